"""The run record, model.json: what a training was asked for, what it was made of, and what came of it."""

import dataclasses
import json
import math
from pathlib import Path

from classifier.base.console import NO_DATA, UserError, describe
from classifier.base.files import digest_of, write_text
from classifier.runs.settings import Settings

RECORD = "model.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class OodRecord:
    """The out-of-distribution score of a run: see networks/out_of_distribution.py."""

    threshold: float  # most images of the classes are below
    features: str  # which ones: "last" or "maps", see networks.by_name.with_features()
    left_out_area_under_roc: float  # how well a class would be told from the others if it were left out


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What is known of a run. Only Run.update() changes the record of a run."""

    settings: Settings
    classes: list[str]  # in label order
    images: dict  # {class: {"training": n, "validation": n}}
    skipped: int  # files that could not be used
    split: dict  # how the split was made
    fingerprint: str  # of classes, images and split
    versions: dict  # {package: version} of all that shapes a training
    device: dict  # what it was trained on
    epochs: int = 0  # done
    head_epochs: int | None = None  # done when the head of a pretrained network was finished; None before that
    fine_tune_auto: bool = False  # --fine-tune auto has chosen the settings of fine-tuning
    selected: dict | None = None  # the row of the history whose weights predict
    history_digest: str | None = None
    selected_digest: str | None = None  # of the selected weights
    temperature: float | None = None
    ood: OodRecord | None = None
    litert: dict | None = None  # digests of the "network" that model.tflite was made of, and of the "file"
    finished: bool = False

    @property
    def network(self) -> str:
        """The name of the network."""
        return self.settings.network

    @property
    def image_size(self) -> int:
        """Side of the network's images in pixels."""
        return self.settings.image_size

    @property
    def fit(self) -> str:
        """How images become squares."""
        return self.settings.fit

    @property
    def is_fine_tuned(self) -> bool:
        """True if at least one epoch of fine-tuning is done."""
        return self.head_epochs is not None and self.epochs > self.head_epochs


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record, whole or not at all, with a digest that shows any change. Raises UserError."""
    data = {"format": FORMAT} | dataclasses.asdict(record) | {"settings": record.settings.as_json()}
    data = json.loads(json.dumps(data))  # as it will be read
    write_text(path, json.dumps(data | {"digest": _digest_of(data)}, indent=2) + "\n")


def _digest_of(data):
    return digest_of(json.dumps(data, sort_keys=True).encode())


def read_record(path: Path) -> RunRecord:
    """The record in a file. Raises UserError if there is none, it is damaged, or it has another format."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            raise UserError(f"{path} has another format: this version reads format {FORMAT} only; train again", NO_DATA)
        digest = data.pop("digest")
        if digest != _digest_of(data):
            raise ValueError("it was changed")
        del data["format"]
        data["settings"] = Settings.from_json(data["settings"])
        data["ood"] = data["ood"] and OodRecord(**data["ood"])
        record = RunRecord(**data)
        _check(record)
    except OSError as error:
        raise UserError(f"{path.parent} is not a run folder of this project: {describe(error)}", NO_DATA) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged: restore it, or use another run", NO_DATA) from None
    return record


def _check(record):
    """Raise an error for values that a training cannot have written: a digest shows no intention."""
    names = {name.encode(errors="surrogateescape") for name in record.classes}
    sound = (
        isinstance(record.classes, list)
        and len(names) == len(record.classes) >= 2
        and all(isinstance(value, dict) for value in (record.images, record.split, record.versions, record.device))
        and all(type(number) is int for number in (record.skipped, record.epochs, record.head_epochs or 0))
        and all(isinstance(value, dict | None) for value in (record.selected, record.litert))
        and isinstance(record.finished, bool)
        and (record.temperature is None or _is_positive(record.temperature))
        and (record.ood is None or (_is_positive(record.ood.threshold) and record.ood.features in ("last", "maps")))
    )
    if not sound:
        raise ValueError("values of other kinds")


def _is_positive(number):
    return isinstance(number, float) and 0 < number < math.inf
