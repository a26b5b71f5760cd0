"""The history of a training: a row for each epoch, in history.csv, and which epoch's weights are selected."""

import csv
import math

from classifier.base.console import NO_DATA, UserError
from classifier.base.files import csv_text, digest_of
from classifier.runs.folder import Run
from classifier.runs.record import RECORD

FIGURES = ["loss", "accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second", "learning_rate"]
RESULTS = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]  # not how long it took: done again, that is another
COLUMNS = ["epoch", *FIGURES]  # at the end of the epoch


def read_history(run: Run) -> list[dict]:
    """The rows of a run's history.csv, dictionaries with the keys COLUMNS; none if there is no file.

    Raises UserError if it is damaged.
    """
    path = run.path / "history.csv"
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [
                {"epoch": int(row["epoch"]), **{name: float(row[name]) for name in FIGURES}} for row in csv.DictReader(file)
            ]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: restore it, or start a new run", NO_DATA) from None


def _digest_of(rows):
    return digest_of(str([[row[name] for name in RESULTS] for row in rows]).encode())


class History:
    """The rows of a run's history.csv: dictionaries with the keys COLUMNS, one for each epoch."""

    def __init__(self, run: Run, epochs: int, validation_size: float, head_epochs: int = 0):
        """Read the rows of the first `epochs`. `validation_size` images count in the validation accuracy.

        In the first `head_epochs` a head alone is trained, at a constant learning rate: see selected(). Raises UserError if
        the file does not have these rows, or is not of the same training as the record.
        """
        self._run, self._validation_size, self._head_epochs = run, validation_size, head_epochs
        path, saved, record = run.path / "history.csv", read_history(run), run.record
        self.rows = saved[:epochs]
        if [row["epoch"] for row in self.rows] != list(range(1, epochs + 1)):
            raise UserError(f"{path} does not have a row for each of {epochs} epochs: start a new run", NO_DATA)
        recorded = record.history_digest
        if recorded and len(saved) >= record.epochs and _digest_of(saved[: record.epochs]) != recorded:
            problem = f"{path} and {RECORD} are not of the same training"
            raise UserError(f"{problem}, or one of them was changed: restore them, or start a new run", NO_DATA)

    def digest(self) -> str:
        """Identifies all that the history says, but for times."""
        return _digest_of(self.rows)

    def append(self, row: dict) -> None:
        """Add the row of an epoch and save the file."""
        figures = {name: round(float(row[name]), 6) for name in FIGURES}
        self.rows.append({"epoch": row["epoch"], **figures, "learning_rate": float(f"{row['learning_rate']:.6g}")})
        self._run.write("history.csv", csv_text(COLUMNS, [list(row.values()) for row in self.rows]))

    def selected(self) -> dict | None:
        """The row whose weights predict: the last one that is as good as the highest accuracy, except for chance.

        As good is an accuracy within the 95 % confidence interval of the highest: two standard errors, with two correct and
        two incorrect predictions added, so that 40 of 40 is not certainty (Agresti and Coull, "Approximate Is Better than
        'Exact'", 1998). The highest of many epochs is partly luck, and a later one has learnt more. Of the epochs of a head
        at a constant learning rate, it is the one with the lowest validation loss: later ones may be overfitted. Fine-tuning
        replaces it only with a lower loss or a higher accuracy.
        """
        if not self.rows:
            return None
        candidates = self.rows[self._head_epochs :]
        if self._head_epochs:
            head = _lowest_loss(self.rows[: self._head_epochs])
            better = (
                row for row in candidates if row["val_loss"] < head["val_loss"] or row["val_accuracy"] > head["val_accuracy"]
            )
            candidates = [head, *better]
        count = self._validation_size + 4
        accuracy = (_highest(candidates)["val_accuracy"] * self._validation_size + 2) / count
        lowest = accuracy - 2 * math.sqrt(accuracy * (1 - accuracy) / count)
        return [row for row in candidates if row["val_accuracy"] >= lowest][-1]

    def epochs_without_gain(self, first: int) -> int:
        """How many epochs after epoch `first` have passed since the best one.

        That is the one with the lowest validation loss for a head, with the highest validation accuracy for all else.
        """
        if not self.rows:
            return 0
        best = _highest(self.rows) if len(self.rows) > self._head_epochs else _lowest_loss(self.rows)
        return len(self.rows) - max(best["epoch"], first)


def _highest(rows):
    """The first row with the highest validation accuracy."""
    return max(rows, key=lambda row: row["val_accuracy"])


def _lowest_loss(rows):
    """The first row with the lowest validation loss."""
    return min(rows, key=lambda row: row["val_loss"])
