"""The settings of a training: their types, their defaults, and what each network has otherwise. TensorFlow is not needed."""

from pathlib import Path

import console
from backbones import BACKBONES
from console import number
from runs import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE

HERE = Path(__file__).resolve().parent
SETTINGS = {  # name: (type, default)
    "data_dir": (Path, HERE / "training_data"),
    "limit_per_class": (number(int, 2), None),
    "validation_split": (number(float, above=0, below=1), 0.2),
    "image_size": (number(int, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE), 128),
    "start_size": (number(int, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE), None),
    "augment": (console.switch, True),
    "network": (str, "cnn"),
    "weights": (str, "imagenet"),
    "fine_tune": (str, None),
    "fine_tune_epochs": (number(int, 1), 5),
    "fine_tune_lr": (number(float, above=0), 1e-4),
    "dropout": (number(float, 0, below=1), 0.3),
    "epochs": (number(int, 1), 20),
    "batch_size": (number(int, 1), 32),
    "lr": (number(float, above=0), 1e-3),
    "weight_decay": (number(float, 0), 0.02),
    "label_smoothing": (number(float, 0, below=1), 0.1),
    "ema": (number(float, 0, below=1), 0.99),
    "class_weights": (console.switch, False),
    "mixed_precision": (console.switch, True),
    "patience": (number(int, 0), 0),
    "seed": (number(int, 0, 2**32 - 1), 0),
    "save_minutes": (number(float, 0), 5.0),
}
DEFAULTS = {name: default for name, (_, default) in SETTINGS.items()}
RESNET = {"start_size": 64, "batch_size": 64, "lr": 3e-3, "weight_decay": 0.05, "dropout": 0.1,
          "label_smoothing": 0.05}  # fmt: skip
PRETRAINED = {"image_size": 224, "label_smoothing": 0.0}
RECIPES = {"cnn": {}, "resnet": RESNET, **dict.fromkeys(BACKBONES, PRETRAINED)}  # network: its own defaults
