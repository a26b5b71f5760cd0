"""The settings of a training: types, defaults, flags, and the recipe of each network. TensorFlow is not needed."""

import argparse
import dataclasses
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

from classifier.base.console import NO_DATA, PROJECT, USAGE, UserError, number, switch
from classifier.runs.folder import FITS, MAX_IMAGE_SIZE, METADATA, MIN_IMAGE_SIZE

PRETRAINED_NETWORKS = {  # name: module and class in keras.applications
    **{f"convnext_{n.lower()}": f"convnext.ConvNeXt{n}" for n in ("Tiny", "Small", "Base", "Large", "XLarge")},
    **{f"densenet{n}": f"densenet.DenseNet{n}" for n in (121, 169, 201)},
    **{f"efficientnet_b{n}": f"efficientnet.EfficientNetB{n}" for n in range(8)},
    **{f"efficientnet_v2_b{n}": f"efficientnet_v2.EfficientNetV2B{n}" for n in range(4)},
    **{f"efficientnet_v2_{n.lower()}": f"efficientnet_v2.EfficientNetV2{n}" for n in "SML"},
    "inception_resnet_v2": "inception_resnet_v2.InceptionResNetV2",
    "inception_v3": "inception_v3.InceptionV3",
    "mobilenet": "mobilenet.MobileNet",
    "mobilenet_v2": "mobilenet_v2.MobileNetV2",
    "mobilenet_v3_small": "mobilenet_v3.MobileNetV3Small",
    "mobilenet_v3_large": "mobilenet_v3.MobileNetV3Large",
    "nasnet_mobile": "nasnet.NASNetMobile",
    "nasnet_large": "nasnet.NASNetLarge",
    **{f"resnet{n}": f"resnet.ResNet{n}" for n in (50, 101, 152)},
    **{f"resnet{n}_v2": f"resnet_v2.ResNet{n}V2" for n in (50, 101, 152)},
    "vgg16": "vgg16.VGG16",
    "vgg19": "vgg19.VGG19",
    "xception": "xception.Xception",
}
RESNET = {"start_size": 64, "batch_size": 64, "lr": 3e-3, "weight_decay": 0.05, "dropout": 0.1, "label_smoothing": 0.05}
# The head: chosen on validation images of four sets, see results/README.md.
PRETRAINED = {"image_size": 224, "label_smoothing": 0.0, "dropout": 0.5, "weight_decay": 3.0, "epochs": 150, "patience": 10}
WITHOUT_WEIGHTS = {"image_size": 224, "label_smoothing": 0.0}
NETWORKS = ("cnn", "resnet", *PRETRAINED_NETWORKS)
HEAT_MAP_METHODS = {"hirescam": "HiResCAM", "gradcam": "Grad-CAM"}  # see explanations.py


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of a training, and its flag on the command line."""

    kind: Callable  # text → value
    default: object
    group: str  # of flags in --help
    metavar: str | None
    help: str
    choices: tuple | None = None


def regular_expression(text):
    """An argparse type: a regular expression, as text."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return text


SETTINGS = {
    "data_dir": Setting(
        Path,
        PROJECT / "training_data",
        "images",
        "FOLDER",
        "class folders, images named cat.1.jpg or cat_1.jpg, or a CSV file of path,label",
    ),
    "classes_from": Setting(
        str,
        None,
        "images",
        "LEVEL",
        "leaf or top: which folders are the classes, if some are below others: those of the images, or the topmost",
        ("leaf", "top"),
    ),
    "limit_per_class": Setting(number(int, 2), None, "images", "N", "use only the first N images of each class"),
    "validation_split": Setting(
        number(float, above=0, below=1), 0.2, "images", "P", "fraction of each class that is used for validation"
    ),
    "validation_dir": Setting(
        Path, None, "images", "FOLDER", "validate on the images in this folder, and train on all in --data-dir"
    ),
    "group_near_copies": Setting(
        switch,
        True,
        "images",
        None,
        "near-copies of an image may be on either side of the split into training and validation",
    ),
    "group_by": Setting(
        regular_expression,
        None,
        "images",
        "REGEX",
        "keep images together, for training or for validation, where this finds the same in their paths, such as a patient,"
        " a video or a place: its first group in parentheses, or all that it matches",
    ),
    "image_size": Setting(
        number(int, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE), 128, "images", "PX", "side of the square that every image is resized to"
    ),
    "fit": Setting(
        str,
        "squash",
        "images",
        "HOW",
        "how an image becomes a square: squash (all of it, resized), crop (the largest square in the centre), or pad (all of"
        " it, in its shape, the rest filled with its mean colour)",
        FITS,
    ),
    "start_size": Setting(
        number(int, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE),
        None,
        "images",
        "PX",
        "side of the augmented images in the first epoch, which grows to --image-size",
    ),
    "cache_limit": Setting(
        number(float, 0),
        None,
        "images",
        "GB",
        "keep at most so many gigabytes of decoded images for later epochs and runs (default: all)",
    ),
    "augment": Setting(switch, True, "images", None, "train without augmentation"),
    "network": Setting(
        str,
        "cnn",
        "network",
        "NAME",
        f"cnn (default), resnet, or a pretrained one of keras.applications: {', '.join(PRETRAINED_NETWORKS)}",
        NETWORKS,
    ),
    "weights": Setting(
        str, "imagenet", "network", "SOURCE", "weights of a pretrained network: imagenet, none, or a .h5 file of Keras"
    ),
    "fine_tune": Setting(
        str,
        None,
        "network",
        "LAYERS",
        "then train pretrained layers, too: those from the layer of this name on; a number: the last N; auto: which layers, "
        "how long and how fast is chosen by the number of images and the validation accuracy of the head",
    ),
    "fine_tune_epochs": Setting(number(int, 1), 5, "network", "N", "epochs of fine-tuning"),
    "fine_tune_lr": Setting(number(float, above=0), 1e-4, "network", "RATE", "highest learning rate of fine-tuning"),
    "dropout": Setting(number(float, 0, below=1), 0.3, "network", "P", "fraction of the features that a step drops"),
    "epochs": Setting(
        number(int, 1),
        None,
        "training",
        "N",
        "passes over all training images (default: 40 to 100, the fewer images, the more; 150 at most for a head)",
    ),
    "minutes": Setting(
        number(float, above=0),
        None,
        "training",
        "M",
        "choose --epochs, or with a pretrained network whether and how long to fine-tune, so that the training takes about "
        "M minutes on this machine",
    ),
    "batch_size": Setting(number(int, 1), 32, "training", "N", "images in a step"),
    "lr": Setting(
        number(float, above=0), 1e-3, "training", "RATE", "highest learning rate of AdamW: warm-up, then cosine decay to 0"
    ),
    "weight_decay": Setting(number(float, 0), 0.02, "training", "RATE", "weight decay of AdamW"),
    "label_smoothing": Setting(
        number(float, 0, below=1), 0.1, "training", "P", "fraction of each label that is spread over all classes"
    ),
    "ema": Setting(
        number(float, 0, below=1),
        0.99,
        "training",
        "P",
        "decay of the weight averaging (EMA); the averaged weights predict; 0: no averaging",
    ),
    "class_weights": Setting(
        str,
        "auto",
        "training",
        "HOW",
        "auto: images of small classes count a little more where classes differ much; none: all images count the same; "
        "balanced: all classes count the same, in the validation figures, too",
        ("auto", "none", "balanced"),
    ),
    "mixed_precision": Setting(
        switch,
        True,
        "training",
        None,
        "compute training steps in float32 even if the CPU or the GPUs have bfloat16, which is faster",
    ),
    "patience": Setting(
        number(int, 0),
        0,
        "training",
        "N",
        "stop after N epochs without a higher validation accuracy, or without a lower validation loss of a head; 0: never; "
        "fine-tuning does all its epochs",
    ),
    "seed": Setting(
        number(int, 0, 2**32 - 1),
        0,
        "training",
        "N",
        "random seed of the initial weights, the order of the images and their augmentation",
    ),
    "save_minutes": Setting(number(float, 0), 5.0, "runs", "MINUTES", "save at least this often within an epoch"),
    "tensorboard": Setting(
        switch,
        False,
        "runs",
        None,
        "also write the epochs, the first batch and the network's graph for TensorBoard, into the run's tensorboard/",
    ),
}
DEFAULTS = {name: setting.default for name, setting in SETTINGS.items()}
# What runs did before they recorded it; the defaults above may change.
UNRECORDED = {"fit": "squash", "classes_from": "top", "class_weights": "none", "group_near_copies": False}
CHANGEABLE_ON_RESUME = {"cache_limit", "data_dir", "validation_dir", "patience", "save_minutes", "tensorboard"}
FINE_TUNING = {"fine_tune", "fine_tune_epochs", "fine_tune_lr"}
AUTO = "auto"


def recipe_of(network, weights):
    """The defaults of a network that are its own."""
    if network in PRETRAINED_NETWORKS:
        return PRETRAINED if weights != "none" else WITHOUT_WEIGHTS
    return RESNET if network == "resnet" else {}


def epochs_for(num_images):
    """How many epochs a network from scratch needs for this number of training images."""
    return round(min(max(480_000 / num_images, 40), 100))


def trains_head(settings):
    """True if a training begins with a head alone, on the features of a frozen pretrained network."""
    return settings["network"] in PRETRAINED_NETWORKS and settings["weights"] != "none"


def head_epochs(metadata, settings):
    """How many epochs come before fine-tuning: where the head stopped early, or all."""
    return metadata.get("head_epochs", settings["epochs"])


def is_fine_tuned(metadata, settings):
    """True if at least one epoch of fine-tuning is done."""
    return metadata.get("epochs", 0) > head_epochs(metadata, settings)


def add_flags(parser):
    """Add a flag for each setting to an ArgumentParser, in groups; returns {group: argparse's group}.

    A setting that is on by default has a flag --no-… to turn it off.
    """
    groups = {}
    for name, setting in SETTINGS.items():
        group = groups.get(setting.group) or groups.setdefault(setting.group, parser.add_argument_group(setting.group))
        flag = name.replace("_", "-")
        if setting.kind is switch:
            action = "store_false" if setting.default else "store_true"
            group.add_argument(f"--{'no-' if setting.default else ''}{flag}", dest=name, action=action, help=setting.help)
        else:
            shown = setting.help if name == "network" else setting.help + _defaults_of(name)
            group.add_argument(f"--{flag}", type=setting.kind, metavar=setting.metavar, choices=setting.choices, help=shown)
    return groups


def _defaults_of(name):
    """The default of a setting for --help, and those of the networks that have another."""
    default = DEFAULTS[name]
    if default is None:
        return ""
    recipes = {"resnet": RESNET, "pretrained ones": PRETRAINED}
    others = [f"{recipe[name]} for {network}" for network, recipe in recipes.items() if name in recipe]
    return f" (default: {', '.join([str(default.name if isinstance(default, Path) else default), *others])})"


def check_settings(settings):
    """Raise UserError for settings that do not fit the network, or each other."""
    network = settings["network"]
    pretrained = network in PRETRAINED_NETWORKS
    for name in ("validation_split", "group_by"):
        if settings["validation_dir"] and settings[name] != DEFAULTS[name]:
            raise UserError(f"--{name.replace('_', '-')} is for images without --validation-dir", USAGE)
    if settings["start_size"] and network != "resnet":
        raise UserError(f"--start-size is for resnet: {network} takes images of one size", USAGE)
    if not pretrained and settings["weights"] != DEFAULTS["weights"]:
        raise UserError(f"--weights is for pretrained networks: {network} is not one", USAGE)
    if settings["fine_tune"] and (not pretrained or settings["weights"] == "none"):
        raise UserError("--fine-tune is for pretrained networks, with their weights", USAGE)
    if settings["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs tensorboard: pip install -c requirements-optional.txt tensorboard", USAGE)
    for name in FINE_TUNING:
        if not settings["fine_tune"] and settings[name] != DEFAULTS[name]:
            raise UserError(f"--{name.replace('_', '-')} is for --fine-tune: say which layers", USAGE)


def settings_to_resume(run, metadata, given):
    """The settings in the metadata of a run, with those given that may change. Raises UserError for any other."""
    settings = DEFAULTS | UNRECORDED | metadata["settings"]
    if isinstance(settings["class_weights"], bool):  # as in earlier versions
        settings["class_weights"] = "balanced" if settings["class_weights"] else "none"
    for name, setting in SETTINGS.items():
        if settings[name] is not None or setting.default is not None or name == "epochs":
            try:
                settings[name] = setting.kind(str(settings[name]))
            except argparse.ArgumentTypeError as error:
                raise UserError(f"{run / METADATA} is damaged: {name} {error}", NO_DATA) from None
    fine_tuned = is_fine_tuned(metadata, settings)
    changeable = CHANGEABLE_ON_RESUME | ({"fine_tune_epochs"} if fine_tuned else {"epochs", *FINE_TUNING})
    if given.get("fine_tune") == AUTO and metadata.get("fine_tune_auto"):  # it was chosen before
        del given["fine_tune"]
    more = "fine_tune_epochs" if fine_tuned else "epochs"
    if more in given or not metadata["finished"]:  # else nothing would be trained at that rate
        changeable |= {"fine_tune_lr" if fine_tuned else "lr"}
    for name, value in given.items():
        if name not in changeable and value != settings[name]:
            setting = name.replace("_", "-")
            raise UserError(f"{run} began with {setting} {settings[name]}: that cannot change on --resume", USAGE)
    changed = settings | given
    wanted = head_epochs(metadata, changed) + changed["fine_tune_epochs"] if fine_tuned else changed["epochs"]
    if wanted < metadata.get("epochs", 0):
        raise UserError(f"{run} has done {metadata['epochs']} epochs already: the number cannot be lower", USAGE)
    return changed


def data_options(settings):
    """The arguments of read_train_sets() that these settings, or those of an earlier run, say."""
    settings = DEFAULTS | UNRECORDED | settings
    same = ("limit_per_class", "classes_from", "group_by", "fit")
    options = {name: settings[name] for name in same}
    limit = settings["cache_limit"] and 1e9 * settings["cache_limit"]
    return options | {
        "validation_size": settings["validation_split"],
        "validation_path": settings["validation_dir"],
        "cache_limit": limit,
    }
