"""The settings of a training: their types, bounds, defaults and flags, and the recipe of each network."""

import argparse
import dataclasses
import importlib.util
import re
import typing
from pathlib import Path

from classifier.base.console import NO_DATA, PROJECT, USAGE, UserError, number, outside_bounds
from classifier.data import FITS, MAX_IMAGE_SIZE, MIN_IMAGE_SIZE
from classifier.networks import NETWORKS, PRETRAINED_NETWORKS

RESNET = {"start_size": 64, "batch_size": 64, "lr": 3e-3, "weight_decay": 0.05, "dropout": 0.1, "label_smoothing": 0.05}
# The head: chosen on validation images of four sets, see docs/results/accuracy.md.
PRETRAINED = {"image_size": 224, "label_smoothing": 0.0, "dropout": 0.5, "weight_decay": 3.0, "epochs": 150, "patience": 10}
WITHOUT_WEIGHTS = {"image_size": 224, "label_smoothing": 0.0}
AUTO = "auto"
FINE_TUNING = ("fine_tune", "fine_tune_epochs", "fine_tune_lr")
CHANGEABLE_ON_RESUME = {"cache_limit", "data_dir", "validation_dir", "patience", "save_minutes", "tensorboard"}


HELP = {
    "data_dir": "class folders, images named cat.1.jpg or cat_1.jpg, or a CSV file of path,label",
    "classes_from": "leaf or top: which folders are the classes, if some are below others: those of the images, or the "
    "topmost",
    "limit_per_class": "use only the first N images of each class",
    "validation_split": "fraction of each class that is used for validation",
    "validation_dir": "validate on the images in this folder, and train on all in --data-dir",
    "group_near_copies": "near-copies of an image may be on either side of the split into training and validation",
    "group_by": "keep images on one side of the split where this finds the same in their paths, such as a patient, a video "
    "or a place: its first group in parentheses, or all that it matches",
    "image_size": "side of the square that every image is resized to",
    "fit": "how an image becomes a square: squash (all of it, resized), crop (the largest square in the centre), or pad "
    "(all of it, in its shape, the rest filled with its mean colour)",
    "start_size": "side of the augmented images in the first epoch, which grows to --image-size",
    "cache_limit": "keep at most so many gigabytes of decoded images for later epochs and runs (default: all)",
    "augment": "train without augmentation",
    "network": f"cnn (default), resnet, or a pretrained one of keras.applications: {', '.join(PRETRAINED_NETWORKS)}",
    "weights": "weights of a pretrained network: imagenet, none, or a .h5 file of Keras",
    "fine_tune": "then train pretrained layers, too: those from the layer of this name on; a number: the last N; auto: "
    "which layers, how long and how fast is chosen by the number of images and the validation accuracy of the head",
    "fine_tune_epochs": "epochs of fine-tuning",
    "fine_tune_lr": "highest learning rate of fine-tuning",
    "dropout": "fraction of the features that a step drops",
    "epochs": "passes over all training images (default: 40 to 100, the fewer images, the more; 150 at most for a head)",
    "minutes": "choose --epochs, or with a pretrained network whether and how long to fine-tune, so that the training "
    "takes about M minutes on this machine",
    "batch_size": "images in a step",
    "lr": "highest learning rate of AdamW: warm-up, then cosine decay to 0",
    "weight_decay": "weight decay of AdamW",
    "label_smoothing": "fraction of each label that is spread over all classes",
    "ema": "decay of the weight averaging (EMA); the averaged weights predict; 0: no averaging",
    "class_weights": "auto: images of small classes count a little more where classes differ much; none: all images count "
    "the same; balanced: all classes count the same, in the validation figures, too",
    "mixed_precision": "compute training steps in float32 even if the CPU or the GPUs have bfloat16, which is faster",
    "patience": "stop after N epochs without a higher validation accuracy, or without a lower validation loss of a head; 0: "
    "never; fine-tuning does all its epochs",
    "seed": "random seed of the initial weights, the order of the images and their augmentation",
    "save_minutes": "save at least this often within an epoch",
    "tensorboard": "also write the epochs, the first batch and the network's graph for TensorBoard",
}


def setting(default, group, metavar=None, choices=None, **bounds):
    """A field of Settings: its default, the group of its flag in --help, and what values it may have (see number())."""
    about = {"group": group, "metavar": metavar, "choices": choices, "bounds": bounds}
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training does. Each setting has a flag, see HELP; None means: not asked for."""

    data_dir: Path = setting(PROJECT / "training_data", "images", "FOLDER")
    classes_from: str | None = setting(None, "images", "LEVEL", ("leaf", "top"))
    limit_per_class: int | None = setting(None, "images", "N", low=2)
    validation_split: float = setting(0.2, "images", "P", above=0, below=1)
    validation_dir: Path | None = setting(None, "images", "FOLDER")
    group_near_copies: bool = setting(True, "images")
    group_by: str | None = setting(None, "images", "REGEX")
    image_size: int = setting(128, "images", "PX", low=MIN_IMAGE_SIZE, high=MAX_IMAGE_SIZE)
    fit: str = setting("squash", "images", "HOW", FITS)
    start_size: int | None = setting(None, "images", "PX", low=MIN_IMAGE_SIZE, high=MAX_IMAGE_SIZE)
    cache_limit: float | None = setting(None, "images", "GB", low=0)
    augment: bool = setting(True, "images")
    network: str = setting("cnn", "network", "NAME", (*NETWORKS, *PRETRAINED_NETWORKS))
    weights: str = setting("imagenet", "network", "SOURCE")
    fine_tune: str | None = setting(None, "network", "LAYERS")
    fine_tune_epochs: int = setting(5, "network", "N", low=1)
    fine_tune_lr: float = setting(1e-4, "network", "RATE", above=0)
    dropout: float = setting(0.3, "network", "P", low=0, below=1)
    epochs: int | None = setting(None, "training", "N", low=1)
    minutes: float | None = setting(None, "training", "M", above=0)
    batch_size: int = setting(32, "training", "N", low=1)
    lr: float = setting(1e-3, "training", "RATE", above=0)
    weight_decay: float = setting(0.02, "training", "RATE", low=0)
    label_smoothing: float = setting(0.1, "training", "P", low=0, below=1)
    ema: float = setting(0.99, "training", "P", low=0, below=1)
    class_weights: str = setting("auto", "training", "HOW", ("auto", "none", "balanced"))
    mixed_precision: bool = setting(True, "training")
    patience: int = setting(0, "training", "N", low=0)
    seed: int = setting(0, "training", "N", low=0, high=2**32 - 1)
    save_minutes: float = setting(5.0, "runs", "MINUTES", low=0)
    tensorboard: bool = setting(False, "runs")

    @property
    def is_pretrained(self) -> bool:
        """True for a network of keras.applications with its weights: a new head is trained on its frozen layers first."""
        return self.network in PRETRAINED_NETWORKS and self.weights != "none"

    def replace(self, **changes) -> "Settings":
        """The same settings with these changes."""
        return dataclasses.replace(self, **changes)

    def as_json(self) -> dict:
        """The settings as JSON data; paths are absolute."""
        return {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict) -> "Settings":
        """The settings that as_json() gave. Raises ValueError where one is missing, unknown or out of bounds."""
        if values.keys() != FIELDS.keys():
            raise ValueError(f"settings {sorted(values.keys() ^ FIELDS.keys())}")
        return cls(**{name: _checked(field, values[name]) for name, field in FIELDS.items()})


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
DEFAULTS = Settings()


def _kind(field):
    """(type, whether None is allowed) of a field."""
    kinds = typing.get_args(field.type) or (field.type,)
    return kinds[0], type(None) in kinds


def _checked(field, value):
    """A value from a file as the field has it. Raises ValueError."""
    kind, may_be_none = _kind(field)
    if value is None and may_be_none:
        return None
    wanted = str if kind is Path else (int, float) if kind is float else kind
    choices = field.metadata["choices"]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool) or (choices and value not in choices):
        raise ValueError(f"{field.name} {value!r}")
    if problem := kind in (int, float) and outside_bounds(value, **field.metadata["bounds"]):
        raise ValueError(f"{field.name} {problem}")
    return kind(value)


def epochs_for(num_images: int) -> int:
    """How many epochs a network from scratch needs for this number of training images."""
    return round(min(max(480_000 / num_images, 40), 100))


def add_flags(parser: argparse.ArgumentParser) -> dict:
    """Add a flag for each setting, in groups; returns {group: argparse's group}.

    A setting that is on by default has a flag --no-… to turn it off.
    """
    groups = {}
    for name, field in FIELDS.items():
        kind, about = _kind(field)[0], field.metadata
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"])
        add, flag = groups[about["group"]].add_argument, name.replace("_", "-")
        if kind is bool:
            prefix, action = ("no-", "store_false") if field.default else ("", "store_true")
            add(f"--{prefix}{flag}", dest=name, action=action, help=HELP[name])
            continue
        if kind in (int, float):
            kind = number(kind, **about["bounds"])
        elif name == "group_by":
            kind = regular_expression
        shown = HELP[name] + ("" if name == "network" else _defaults_of(field))
        add(f"--{flag}", type=kind, metavar=about["metavar"], choices=about["choices"], help=shown)
    return groups


def regular_expression(text: str) -> str:
    """An argparse type: a regular expression, as text."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return text


def _defaults_of(field):
    """The default of a setting for --help, and those of the networks that have another."""
    if field.default is None:
        return ""
    recipes = {"resnet": RESNET, "pretrained ones": PRETRAINED}
    others = [f"{recipe[field.name]} for {network}" for network, recipe in recipes.items() if field.name in recipe]
    default = field.default.name if isinstance(field.default, Path) else field.default
    return f" (default: {', '.join([str(default), *others])})"


def settings_of_flags(given: dict) -> Settings:
    """The settings of a new training: what was given, else the recipe of its network, else the defaults.

    Raises UserError where they do not fit each other.
    """
    network, weights = (given.get(name, getattr(DEFAULTS, name)) for name in ("network", "weights"))
    recipe = RESNET if network == "resnet" else {}
    if network in PRETRAINED_NETWORKS:
        recipe = PRETRAINED if weights != "none" else WITHOUT_WEIGHTS
    return _fitting(Settings(**recipe | given))


def settings_to_resume(run, given: dict) -> Settings:
    """The settings of a Run, with those given that may change. Raises UserError for any other."""
    record, settings = run.record, run.record.settings
    if given.get("fine_tune") == AUTO and record.fine_tune_auto:  # it was chosen before
        given = {name: value for name, value in given.items() if name != "fine_tune"}
    changeable = CHANGEABLE_ON_RESUME | ({"fine_tune_epochs"} if record.is_fine_tuned else {"epochs", *FINE_TUNING})
    more = "fine_tune_epochs" if record.is_fine_tuned else "epochs"
    if more in given or not record.finished:  # else nothing would be trained at that rate
        changeable |= {"fine_tune_lr" if record.is_fine_tuned else "lr"}
    for name, value in given.items():
        if name not in changeable and value != getattr(settings, name):
            began = f"{name.replace('_', '-')} {getattr(settings, name)}"
            raise UserError(f"{run.path} began with {began}: that cannot change on --resume", USAGE)
    settings = _fitting(settings.replace(**given))
    for name in ("data_dir", "validation_dir"):
        if (folder := getattr(settings, name)) and not folder.exists():
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{run.path} began with {folder}, which is not there: say with {flag} where it is now", NO_DATA)
    wanted = record.head_epochs + settings.fine_tune_epochs if record.is_fine_tuned else settings.epochs
    if wanted < record.epochs:
        raise UserError(f"{run.path} has done {record.epochs} epochs already: the number cannot be lower", USAGE)
    return settings


def _fitting(settings):
    """The settings. Raises UserError if they do not fit the network, or each other."""

    def refuse(names, why):
        for name in names:
            if getattr(settings, name) != getattr(DEFAULTS, name):
                raise UserError(f"--{name.replace('_', '-')} {why}", USAGE)

    pretrained = settings.network in PRETRAINED_NETWORKS
    if settings.validation_dir:
        refuse(["validation_split", "group_by"], "is for images without --validation-dir")
    if settings.network != "resnet":
        refuse(["start_size"], f"is for resnet: {settings.network} takes images of one size")
    if not pretrained:
        refuse(["weights"], f"is for pretrained networks: {settings.network} is not one")
    if not settings.is_pretrained:
        refuse(["fine_tune"], "is for pretrained networks with their weights: choose one with --network")
    if not settings.fine_tune:
        refuse(FINE_TUNING, "is for --fine-tune: say which layers")
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs tensorboard: pip install -c requirements-optional.txt tensorboard", USAGE)
    return settings
