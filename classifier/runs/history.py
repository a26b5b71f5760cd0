"""The history of a training: a row for each epoch, in history.csv, and which epoch's weights are selected."""

import csv
import math

from classifier.base.console import NO_DATA, UserError
from classifier.base.files import csv_text, digest_of, write_text
from classifier.runs.folder import METADATA

FIGURES = ["loss", "accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second"]
RESULTS = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
COLUMNS = ["epoch", *FIGURES, "learning_rate"]  # at the end of the epoch; None where earlier runs did not record it


def read_history(run):
    """The rows of a run's history.csv, see History; none if there is no file. Raises UserError if it is damaged."""
    path = run / "history.csv"
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        rates = [row.get("learning_rate") for row in rows]
        return [
            {"epoch": int(row["epoch"]), **{name: float(row[name]) for name in FIGURES}}
            | {"learning_rate": float(rate) if rate else None}
            for row, rate in zip(rows, rates, strict=True)
        ]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: restore it, or start a new run", NO_DATA) from None


def digest_of_rows(rows):
    """A digest of rows of a history, without how long the epochs took."""
    return digest_of(str([[row[name] for name in RESULTS] for row in rows]).encode())


class History:
    """The rows of a run's history.csv: dictionaries with the keys COLUMNS, one for each epoch."""

    def __init__(self, run, epochs, validation_size, head_epochs=0):
        """Read the rows of the first `epochs`. `validation_size` images count in the validation accuracy.

        In the first `head_epochs` a head alone is trained, at a constant learning rate: see selected().
        Raises UserError if the file does not have these rows.
        """
        self._path, self._validation_size, self._head_epochs = run / "history.csv", validation_size, head_epochs
        self._saved = read_history(run)
        self.rows = self._saved[:epochs]
        if [row["epoch"] for row in self.rows] != list(range(1, epochs + 1)):
            raise UserError(f"{self._path} does not have a row for each of {epochs} epochs: start a new run", NO_DATA)

    def check(self, metadata):
        """Raise UserError if the metadata is not of the run that this history is of; see digest()."""
        epochs = metadata.get("epochs", 0)
        recorded = metadata.get("history_digest")  # earlier runs have none
        if recorded and len(self._saved) >= epochs and digest_of_rows(self._saved[:epochs]) != recorded:
            problem = f"{self._path} and {METADATA} are not of the same training"
            raise UserError(f"{problem}, or one of them was changed: restore them, or start a new run", NO_DATA)

    def digest(self):
        """Identifies all that the history says, but for times, which are others if an epoch is done again."""
        return digest_of_rows(self.rows)

    def append(self, row):
        """Add the row of an epoch and save the file."""
        figures = {name: round(float(row[name]), 6) for name in FIGURES}
        self.rows.append({"epoch": row["epoch"], **figures, "learning_rate": float(f"{row['learning_rate']:.6g}")})
        write_text(self._path, csv_text(COLUMNS, [list(row.values()) for row in self.rows]))

    def selected(self):
        """The row whose weights predict: the last one that is as good as the highest accuracy, except for chance.

        As good is an accuracy within the 95 % confidence interval of the highest: two standard errors, with two correct and
        two incorrect predictions added, so that 40 of 40 is not certainty (Agresti and Coull, "Approximate Is Better than
        'Exact'", 1998). The highest of many epochs is partly luck, and a later one has learnt more. Of the epochs of a head
        at a constant learning rate, it is the one with the lowest validation loss: later ones may be overfitted. Fine-tuning
        does not replace it by one that has neither a lower loss nor a higher accuracy.
        """
        if not self.rows:
            return None
        candidates = self.rows[self._head_epochs :]
        if self._head_epochs:
            head = _lowest_loss(self.rows[: self._head_epochs])
            better = lambda row: row["val_loss"] < head["val_loss"] or row["val_accuracy"] > head["val_accuracy"]  # noqa: E731
            candidates = [head, *filter(better, candidates)]
        count = self._validation_size + 4
        accuracy = (_highest(candidates)["val_accuracy"] * self._validation_size + 2) / count
        lowest = accuracy - 2 * math.sqrt(accuracy * (1 - accuracy) / count)
        return [row for row in candidates if row["val_accuracy"] >= lowest][-1]

    def out_of_patience(self, patience, first):
        """True if `patience` epochs after epoch `first` have passed without a better one; 0: no limit.

        Better is a lower validation loss for a head, a higher validation accuracy for all else.
        """
        if not self.rows:
            return False
        best = _highest(self.rows) if len(self.rows) > self._head_epochs else _lowest_loss(self.rows)
        return 0 < patience <= len(self.rows) - max(best["epoch"], first)


def _highest(rows):
    """The first row with the highest validation accuracy."""
    return max(rows, key=lambda row: row["val_accuracy"])


def _lowest_loss(rows):
    """The first row with the lowest validation loss."""
    return min(rows, key=lambda row: row["val_loss"])
