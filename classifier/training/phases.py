"""The phases of a training: one, or two where a head comes first and then fine-tuning; what each trains, and how long."""

import dataclasses

from classifier.base.console import NO_DATA, UserError
from classifier.networks.by_name import create_network
from classifier.networks.pretrained import first_layer_of_last_sizes, unfreeze
from classifier.runs.folder import checkpoints_in
from classifier.training.settings import AUTO, head_epochs, trains_head

FINE_TUNING = {"weight_decay": 0.02, "dropout": 0.2}  # less than for a head alone: images are augmented
# Validation accuracy of a head: at 98.9 %, dogs and cats lost by large steps; tiles (95 %) and clothes (88 %) gained.
SUITED = 0.97


@dataclasses.dataclass
class Phase:
    """Some epochs of a run that train the same part of the network."""

    name: str  # of the folder of its checkpoints
    first: int  # epochs done before it
    last: int  # epochs done after it
    lr: float
    weight_decay: float
    dropout: float
    on_features: bool = False  # trains the head on the features of a frozen pretrained network
    until_best: bool = False  # at a constant learning rate, until the validation loss is not lower any more
    unfrozen: str | None = None  # which pretrained layers are trained: those from this one on, or this many of the last ones


def phases_of(metadata):
    """The phases of a run."""
    settings = metadata["settings"]
    options = {name: settings[name] for name in ("lr", "weight_decay", "dropout")}
    if not trains_head(settings):
        return [Phase("training", 0, settings["epochs"], **options)]
    first, more = head_epochs(metadata, settings), settings["fine_tune_epochs"]
    phases = [Phase("head", 0, first, **options, on_features=True, until_best=metadata["feature_scales"] > 1)]
    if _fine_tuning_asked_for(settings):
        options |= {"lr": settings["fine_tune_lr"], "unfrozen": settings["fine_tune"]}
        options |= FINE_TUNING if phases[0].until_best else {}
        phases.append(Phase("fine_tuning", first, first + more, **options))
    return phases


def phases_to_do(run, metadata):
    """Yield the phases of a run from the newest one that has a checkpoint on. Raises UserError if checkpoints are missing.

    The metadata may change in a phase: where the head stops early, fine-tuning begins.
    """
    phases = phases_of(metadata)
    begun = [phase for phase in phases if checkpoints_in(run / "checkpoints" / phase.name)]
    if any(phase not in begun and phase.first < metadata.get("epochs", 0) for phase in phases):
        raise UserError(f"the checkpoints of {run} are gone: start a new run", NO_DATA)
    done = max(len(begun) - 1, 0)
    while len(phases_of(metadata)) > done:
        yield phases_of(metadata)[done]
        done += 1


def phase_to_fit(metadata, num_images):
    """The phase whose epochs --minutes chooses: the only one, or fine-tuning, even if it was not asked for."""
    (phase, *_) = phases_of(metadata)
    if phase.on_features:
        settings = metadata["settings"]
        chosen = _fine_tuning_asked_for(settings) or choose_fine_tuning(
            create_network(settings["network"], settings["image_size"], num_classes=2), num_images
        )
        phase = dataclasses.replace(
            phase,
            name="fine_tuning",
            last=chosen["fine_tune_epochs"],
            on_features=False,
            until_best=False,
            lr=chosen["fine_tune_lr"],
            **FINE_TUNING,
            unfrozen=chosen["fine_tune"],
        )
    return phase


def settings_that_fit(settings, training, train_pace, valid_pace, seconds):
    """The settings with which the phase of phase_to_fit() ends within these seconds; paces are seconds for an image."""
    num_train, num_valid, phase = len(training.sets.train), len(training.sets.valid), training.phase
    epoch = num_train * train_pace + num_valid * valid_pace
    if not phase.unfrozen:
        return {"epochs": int(min(max(seconds / (epoch * training.mean_relative_area()), 1), settings["epochs"]))}
    epochs = (seconds - (num_train + num_valid) * valid_pace) // epoch  # each image goes through the frozen network first
    if epochs < 1:
        return {"fine_tune": None}
    return {"fine_tune": phase.unfrozen, "fine_tune_epochs": int(min(epochs, phase.last)), "fine_tune_lr": phase.lr}


def _fine_tuning_asked_for(settings):
    asked = settings["fine_tune"] not in (None, AUTO)
    return {name: settings[name] for name in ("fine_tune", "fine_tune_epochs", "fine_tune_lr")} if asked else None


def choose_fine_tuning(network, num_images, accuracy=0.0):
    """The settings of --fine-tune auto: from which layer on, for how many epochs, how fast.

    The more training images there are, the more layers they can train without being overfitted, and the fewer epochs are
    needed. Where the head alone reaches a high validation `accuracy`, the features suit the classes already: large steps
    would spoil them.
    """
    suited = accuracy >= SUITED
    layers = first_layer_of_last_sizes(network, 1 if suited or num_images < 500 else 2)
    epochs = round(min(max(30_000 / num_images, 6), 40))
    return {"fine_tune": layers, "fine_tune_epochs": epochs, "fine_tune_lr": 1e-4 if suited else 3e-4}


def check_layer(settings, num_classes):
    """Raise UserError, before any training, if the network has no layer of the name that --fine-tune gives."""
    if _fine_tuning_asked_for(settings):
        unfreeze(create_network(settings["network"], settings["image_size"], num_classes), settings["fine_tune"])
