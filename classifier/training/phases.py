"""The phases of a training: one, or two where a head comes first and then fine-tuning; what each trains, and how long."""

import dataclasses

from classifier.base.console import NO_DATA, UserError
from classifier.networks.by_name import create_network
from classifier.networks.pretrained import first_layer_of_last_sizes
from classifier.runs.folder import Run
from classifier.runs.settings import AUTO, DEFAULTS, FINE_TUNING, Settings

TRAINING, HEAD, FINE_TUNED = "training", "head", "fine_tuning"
# Weight decay and dropout of fine-tuning: less than for a head alone, for images are augmented.
FINE_TUNING_DECAY, FINE_TUNING_DROPOUT = 0.02, 0.2
# Validation accuracy of a head: at 98.9 %, dogs and cats lost by large steps; tiles (95 %) and clothes (88 %) gained.
SUITED = 0.97


@dataclasses.dataclass(frozen=True)
class Phase:
    """Some epochs of a run that train the same part of the network."""

    name: str  # of the folder of its checkpoints
    first: int  # epochs done before it
    last: int  # epochs done after it, unless it ends early
    lr: float
    weight_decay: float
    dropout: float
    unfrozen: str | None = None  # which pretrained layers are trained: those from this one on, or this many of the last ones

    @property
    def is_head(self) -> bool:
        """True if it trains the head alone, on features of the frozen network, until the validation loss is not lower."""
        return self.name == HEAD


def first_phase(settings: Settings) -> Phase:
    """The first phase of a training: the head of a pretrained network, or the only one of all others."""
    name = HEAD if settings.is_pretrained else TRAINING
    return Phase(name, 0, settings.epochs, settings.lr, settings.weight_decay, settings.dropout)


def fine_tuning_phase(settings: Settings, head_epochs: int) -> Phase:
    """The phase after `head_epochs` of a head."""
    last = head_epochs + settings.fine_tune_epochs
    rates = settings.fine_tune_lr, FINE_TUNING_DECAY, FINE_TUNING_DROPOUT
    return Phase(FINE_TUNED, head_epochs, last, *rates, settings.fine_tune)


def choose_fine_tuning(settings: Settings, num_images: int, accuracy: float = 0.0) -> Settings:
    """The settings with what --fine-tune auto chooses: from which layer on, for how many epochs, how fast.

    What was given stays. The more training images there are, the more layers they can train without being overfitted, and
    the fewer epochs are needed. Where the head alone reaches a high validation `accuracy`, the features suit the classes
    already: large steps would spoil them.
    """
    suited = accuracy >= SUITED
    network = create_network(settings.network, settings.image_size, num_classes=2)
    chosen = {
        "fine_tune": first_layer_of_last_sizes(network, 1 if suited or num_images < 500 else 2),
        "fine_tune_epochs": round(min(max(30_000 / num_images, 6), 40)),
        "fine_tune_lr": 1e-4 if suited else 3e-4,
    }
    given = {name: getattr(settings, name) for name in FINE_TUNING}
    return settings.replace(
        **chosen | {name: value for name, value in given.items() if value not in (getattr(DEFAULTS, name), AUTO)}
    )


def end_head(run: Run, epochs: int, num_images: int) -> None:
    """Record that the head is finished after these epochs, and what --fine-tune auto chooses then."""
    settings = run.record.settings
    if settings.fine_tune == AUTO:
        chosen = choose_fine_tuning(settings, num_images, run.record.selected["val_accuracy"])
        run.update(head_epochs=epochs, settings=chosen, fine_tune_auto=True)
    else:
        run.update(head_epochs=epochs)


def check_checkpoints(run: Run) -> None:
    """Raise UserError if a phase of which epochs are done has no checkpoint."""
    record = run.record
    done = {first_phase(record.settings).name: record.epochs > 0, FINE_TUNED: record.is_fine_tuned}
    if any(begun and not run.checkpoints(name) for name, begun in done.items()):
        raise UserError(f"the checkpoints of {run.path} are gone: start a new run", NO_DATA)
