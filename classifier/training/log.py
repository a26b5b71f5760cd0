"""What train.py prints: the header, a line for each epoch, and the end."""

import collections
import math

import numpy as np

from classifier.base.console import command, say, shell_path, show
from classifier.base.cpu import unused_gpus
from classifier.base.metrics import accuracy_interval
from classifier.cluster.devices import devices
from classifier.networks import PRETRAINED_NETWORKS
from classifier.runs.folder import Run
from classifier.runs.settings import DEFAULTS
from classifier.training.phases import TRAINING
from classifier.training.preparation import device, versions
from classifier.training.state import TrainingState

MOST_NAMED = 100  # classes: with more, the header would be pages


def say_header(run: Run, sets) -> None:
    """Say what is about to be trained, on what, and with what."""
    record = run.record
    computing = device(record.settings)
    on_or_off = (f"{name} {'on' if computing[name] else 'off'}" for name in ("oneDNN", "bfloat16"))
    cpu = ("CPU", computing["cpu"], f"{computing['cores']} cores", computing["instruction set"])
    say("versions   " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    say("device     " + ", ".join(filter(None, [*computing["gpus"], *cpu, *on_or_off])))
    if unused := unused_gpus():
        say(
            f"device     {', '.join(unused)} not used: libraries for it are missing, or do not fit its driver: "
            "pip install 'tensorflow[and-cuda]'"
        )
    if len(names := devices()) > 1:
        say(f"devices    {len(names)} in this machine, each takes its share of every batch: {', '.join(names)}")
    say(f"images     {_counts(record.images)} (training + validation)")
    split = record.split
    if split.get("group_by"):
        say(f"split      {split['groups']} groups of images, each on one side")
    if "near_copies" in split:
        where = "kept together" if split["together"] else "on both sides, or a class would be on one side only"
        say(f"split      {split['near_copies']} images are near-copies of others: {where} (see --no-group-near-copies)")
    if sets.skipped:
        reasons = collections.Counter(reason for _, reason in sets.skipped)
        summary = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        say(f"skipped    {len(sets.skipped)}: {summary}; all in {shell_path(run.path / 'skipped.csv')}")
    say(f"run        {shell_path(run.path)}")


def _counts(counts):
    """How many images each class has, or of very many classes: all together, and the one with the fewest."""
    if len(counts) <= MOST_NAMED:
        return ", ".join(f"{name} {n['training']} + {n['validation']}" for name, n in counts.items())
    training, validation = (sum(n[side] for n in counts.values()) for side in ("training", "validation"))
    name, least = min(counts.items(), key=lambda item: sum(item[1].values()))
    return (
        f"{training:,} + {validation:,} of {len(counts):,} classes, the fewest of {name}:"
        f" {least['training']} + {least['validation']}"
    )


def say_phase(state: TrainingState) -> None:
    """Say what is trained now."""
    trained = sum(math.prod(weight.shape) for weight in state.network.trainable_weights)
    total = state.whole.count_params()
    parts = f"{trained:,} of {total:,} parameters are trained" if trained < total else f"{total:,} parameters"
    resumed = f", resumed after epoch {state.epoch}" if state.epoch else ""
    precision = ", steps in bfloat16" if state.in_bfloat16 else ""
    say(f"network    {state.settings.network}, {state.settings.image_size} px, {parts}{precision}{resumed}")


def epoch_line(row: dict, epochs: int, selected: bool) -> str:
    """A row of the history as a line for people."""
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"
        f"  loss {row['loss']:.4f}  accuracy {row['accuracy']:6.1%}"
        f"  validation loss {row['val_loss']:.4f}  accuracy {row['val_accuracy']:6.1%}"
        f"  {row['seconds']:.1f} s  {row['images_per_second']:.0f} images/s{'  selected' if selected else ''}"
    )


def print_closing(run: Run, state: TrainingState, confusion: np.ndarray) -> None:
    """Print the result, where it is, and what to do next. `confusion`: see calibration.calibrate()."""
    record, settings, phase = run.record, run.record.settings, state.phase
    row, predicted = record.selected, confusion.sum(axis=0)
    if (predicted > 0).sum() == 1:
        say(
            f"warning: the network predicts {record.classes[predicted.argmax()]!r} for every validation image: try more"
            " --epochs, another --lr, or --class-weights balanced if some classes are smaller than others"
        )
    elif _may_be_chance(confusion):
        say(
            "warning: it may be no better than always predicting the largest class: there may be too few validation images"
            " to tell, the images may show too little of the classes, or many labels may be wrong"
        )
    if state.epoch < phase.last and not phase.is_head:
        show(f"stopped early: no better one in {settings.patience} epochs (to continue: --resume --patience 0)")
    if phase.unfrozen and row["epoch"] <= phase.first:
        show("fine-tuning made it no better: the head on frozen features predicts")
    largest = max(counts["validation"] for counts in record.images.values()) / len(state.sets.valid)
    majority = 1 / len(record.classes) if settings.class_weights == "balanced" else largest
    show(
        f"selected: epoch {row['epoch']}, validation accuracy {row['val_accuracy']:.1%}, loss {row['val_loss']:.4f}"
        f" (always predicting the largest class: {majority:.1%})"
    )
    say(f"likely to help next: {'; '.join(_likely_to_help(run, phase, confusion))}")
    show(_how_far_to_trust_unknown(phase, record.ood.left_out_area_under_roc))
    show(f"saved in {shell_path(run.path)}; now run:")
    show(f"  {command('predict.py', '--model', run.path, state.sets.valid.paths[0])}")


def _likely_to_help(run, phase, confusion):
    """What is likely to make the network better, by what was trained, and on how many images; the best first."""
    settings, row, errors = run.record.settings, run.record.selected, confusion.sum() - confusion.trace()
    if errors < 3:
        return ["images for testing, from other times and places: the validation images show too few errors to learn from"]
    advice = []
    if phase.is_head:
        advice.append(f"fine-tuning: {command('train.py', '--resume', run.path, '--fine-tune', 'auto')}")
    elif not phase.unfrozen and settings.weights == DEFAULTS.weights:
        advice.append("a pretrained network: --network mobilenet_v2")
    if row["accuracy"] > row["val_accuracy"] or phase.is_head:  # more than it can generalize from
        counts = confusion.sum(axis=1)
        recalls = confusion.diagonal() / np.maximum(counts, 1)
        worst = int(np.argmin(recalls))
        few = f"{recalls[worst]:.0%} of {counts[worst]} validation images are predicted correctly"
        advice.append(f"more images of {run.record.classes[worst]!r}: {few}")
    else:
        advice.append(f"more --epochs than {settings.epochs}: the training images are not learnt yet")
    if settings.image_size < 224 and settings.network in PRETRAINED_NETWORKS:
        advice.append("--image-size 224, for which the network was pretrained")
    suspects = command("evaluate.py", settings.data_dir, "--model", run.path, "--suspects", "suspects.csv")
    return [*advice, f"if labels may be wrong: {suspects}"]


def _may_be_chance(confusion):
    """True if the share of correct predictions may be that of the largest class, within its 95 % confidence interval."""
    lowest, _ = accuracy_interval(confusion.trace(), confusion.sum())
    return lowest <= confusion.sum(axis=1).max() / confusion.sum()


def _how_far_to_trust_unknown(phase, left_out):
    """`left_out`: see left_out_area_under_roc(), all that can be measured here. The rest was: see docs/results."""
    near = "few" if left_out < 0.75 else "some" if left_out < 0.95 else "most"
    advice = "do not rely on it: a network from scratch sees little but that colours or textures are unusual"
    if phase.name != TRAINING:
        advice = f"expect it for many photographs of other things, and for {near} of things like the classes"
    return f"unknown: {advice} (area under the ROC curve {left_out:.2f} if a class is left out, 0.50 by chance)"
