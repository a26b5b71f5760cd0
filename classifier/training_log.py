"""What train.py prints: the header, a line for each epoch, and the end."""

import collections

from classifier.console import command, say, shell_path
from classifier.metadata import count_images, device, versions


def say_header(run, metadata, sets):
    """Say what is about to be trained, on what, and with what."""
    computing = device(metadata["settings"])
    on_or_off = (f"{name} {'on' if computing[name] else 'off'}" for name in ("oneDNN", "bfloat16"))
    cpu = ("CPU", computing["cpu"], f"{computing['cores']} cores", computing["instruction set"])
    counts = ", ".join(f"{name} {n['training']} + {n['validation']}" for name, n in count_images(sets).items())
    say("versions   " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    say("device     " + ", ".join(filter(None, [*computing["gpus"], *cpu, *on_or_off])))
    say(f"images     {counts} (training + validation)")
    if sets.skipped:
        reasons = collections.Counter(reason for _, reason in sets.skipped)
        summary = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        say(f"skipped    {len(sets.skipped)}: {summary}; all in {shell_path(run / 'skipped.csv')}")
    say(f"run        {shell_path(run)}")


def say_phase(metadata, training):
    """Say what is trained now."""
    trained, total = training.networks.count_parameters()
    parts = f"{trained:,} of {total:,} parameters are trained" if trained < total else f"{total:,} parameters"
    resumed = f", resumed after epoch {training.epoch}" if training.epoch else ""
    precision = ", steps in bfloat16" if training.in_bfloat16 else ""
    say(f"network    {metadata['network']}, {metadata['image_size']} px, {parts}{precision}{resumed}")


def epoch_line(row, epochs, selected):
    """A row of the history as a line for people."""
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"
        f"  loss {row['loss']:.4f}  accuracy {row['accuracy']:6.1%}"
        f"  validation loss {row['val_loss']:.4f}  accuracy {row['val_accuracy']:6.1%}"
        f"  {row['seconds']:.1f} s  {row['pictures_per_second']:.0f} images/s{'  selected' if selected else ''}"
    )


def print_closing(run, metadata, training, sets, predicted):
    """Print the result, where it is, and what to do next. `predicted`: see calibration.calibrate()."""
    row = training.history.selected()
    if (predicted > 0).sum() == 1:
        say(f"warning: the network predicts {sets.classes[predicted.argmax()]!r} for every validation image: try more"
            " --epochs, another --lr, or --class-weights if some classes have fewer images than others")  # fmt: skip
    if not training.is_over:
        print(f"stopped early: no better one in {training.settings['patience']} epochs (to continue: --resume --patience 0)")
    if row:
        largest = max(n["validation"] for n in count_images(sets).values()) / len(sets.valid)
        majority = 1 / len(sets.classes) if training.settings["class_weights"] else largest
        print(f"selected: epoch {row['epoch']}, validation accuracy {row['val_accuracy']:.1%}, loss {row['val_loss']:.4f}"
              f" (always predicting the largest class: {majority:.1%})")  # fmt: skip
    print(_how_far_to_trust_unknown(training.phase, metadata["novelty"]["left_out_area_under_roc"]))
    print(f"saved in {shell_path(run)}; now run:")
    print(f"  {command('predict.py', '--model', run, sets.valid.paths[0])}")


def _how_far_to_trust_unknown(phase, left_out):
    """`left_out`: see left_out_area_under_roc(), all that can be measured here. The rest was: see results/README.md."""
    near = "few" if left_out < 0.75 else "some" if left_out < 0.95 else "most"
    advice = "do not rely on it: a network from scratch sees little but that colours or textures are unusual"
    if phase.on_features or phase.unfrozen:
        advice = f"expect it for many photographs of other things, and for {near} of things like the classes"
    return f"unknown: {advice} (area under the ROC curve {left_out:.2f} if a class is left out, 0.50 by chance)"
