"""Train a classifier on folders of pictures: python train.py --data-dir my_pictures"""

import argparse
import collections
import platform
import shutil
import time
from pathlib import Path

import console
import cpu
from backbones import BACKBONES
from console import NO_DATA, USAGE, UserError, command, csv_text, say, shell_path, write_whole
from runs import CARD, find_run, locked, new_run, read_card, write_card
from settings import DEFAULTS, PRETRAINED, RECIPES, RESNET, SETTINGS

# TensorFlow, and what imports it, is imported inside the functions that use it: --help and a wrong flag answer at once.

HERE = Path(__file__).resolve().parent
CHANGEABLE_ON_RESUME = {"data_dir", "patience", "save_minutes"}
FINE_TUNING = {"fine_tune", "fine_tune_epochs", "fine_tune_lr"}


def parse_arguments(argv):
    """The settings that the command line gives, without the defaults: to resume, only what was given counts."""
    parser = argparse.ArgumentParser(
        description="Train a classifier on folders of pictures.",
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable data, 130 interrupted, 143 terminated",
    )

    def add(group, flag, metavar, description):
        name = flag[2:].replace("-", "_")
        kind, default = SETTINGS[name]
        if default is not None:
            recipes = {"resnet": RESNET, "pretrained ones": PRETRAINED}
            others = [f"{recipe[name]} for {network}" for network, recipe in recipes.items() if name in recipe]
            shown = default.name if isinstance(default, Path) else default
            description += f" (default: {', '.join([str(shown), *others])})"
        group.add_argument(flag, type=kind, metavar=metavar, help=description)

    data = parser.add_argument_group("pictures")
    add(data, "--data-dir", "FOLDER", "class folders, or pictures named like cat.1.jpg")
    add(data, "--limit-per-class", "N", "take the first N of each class")
    add(data, "--validation-split", "P", "part of each class to validate on")
    add(data, "--image-size", "PX", "side of the square that every picture is resized to")
    add(data, "--start-size", "PX", "side of the augmented pictures at first, which grows to --image-size")
    data.add_argument("--no-augment", dest="augment", action="store_false", help="show every picture as it is each time")
    network = parser.add_argument_group("network")
    network.add_argument("--network", choices=RECIPES, metavar="NAME",
        help=f"cnn (default), resnet, or a pretrained one of keras.applications: {', '.join(BACKBONES)}")  # fmt: skip
    add(network, "--weights", "SOURCE", "of a pretrained network: imagenet, none, or a .h5 file of Keras")
    add(network, "--fine-tune", "LAYERS", "then train the pretrained layers from this one on, or so many of the last, too")
    add(network, "--fine-tune-epochs", "N", "for how many epochs more")
    add(network, "--fine-tune-lr", "RATE", "highest learning rate in these epochs")
    add(network, "--dropout", "P", "part of the features that a step leaves out")
    training = parser.add_argument_group("training")
    add(training, "--epochs", "N", "rounds over all training pictures")
    add(training, "--batch-size", "N", "pictures a step")
    add(training, "--lr", "RATE", "highest learning rate of AdamW; it rises at first, then falls to 0")
    add(training, "--weight-decay", "RATE", "pull of AdamW on the weights towards 0")
    add(training, "--label-smoothing", "P", "part of each label that is spread over all classes")
    add(training, "--ema", "P", "part that the averaged weights, which predict, keep at a step; 0: no average")
    training.add_argument("--class-weights", action="store_true",
        help="let small classes count as much as large ones, in the figures on validation, too")  # fmt: skip
    training.add_argument(
        "--no-mixed-precision", dest="mixed_precision", action="store_false",
        help="compute training steps in float32 even where the CPU has bfloat16, in which the cnn's take 0.6 times as long",
    )  # fmt: skip
    add(training, "--patience", "N", "stop after N epochs without a better one; 0: never")
    add(training, "--seed", "N", "of the first weights, the order of the pictures and their augmentation")
    runs = parser.add_argument_group("runs")
    runs.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where numbered run folders are made (default: runs)"
    )
    runs.add_argument(
        "--resume", type=Path, nargs="?", const=None, metavar="RUN",
        help="go on with a run (default: the newest) as if it had never stopped",
    )  # fmt: skip
    add(runs, "--save-minutes", "MINUTES", "save within an epoch at least so often")
    return vars(parser.parse_args(argv))


def main(argv=None):
    """Parse the command line and train; returns the exit code."""
    given = parse_arguments(argv)
    output = given.pop("output", HERE / "runs")
    if "resume" in given:
        run = find_run(given.pop("resume") or output, finished=False)
        train(settings_to_resume(run, given), run.parent, run)
    else:
        train(DEFAULTS | RECIPES[given.get("network", DEFAULTS["network"])] | given, output)
    return console.DONE


def settings_to_resume(run, given):
    """The settings a run began with, and those that may change on the way. Raises UserError for any other."""
    card = read_card(run)
    settings = DEFAULTS | card["settings"]
    for name, (kind, default) in SETTINGS.items():
        if settings[name] is not None or default is not None:
            try:
                settings[name] = kind(str(settings[name]))
            except argparse.ArgumentTypeError as error:
                raise UserError(f"{run / CARD} is damaged: {name} {error}", NO_DATA) from None
    fine_tuned = card.get("epochs", 0) > settings["epochs"]
    changeable = CHANGEABLE_ON_RESUME | ({"fine_tune_epochs"} if fine_tuned else {"epochs", *FINE_TUNING})
    for name, value in given.items():
        if name not in changeable and value != settings[name]:
            setting = name.replace("_", "-")
            raise UserError(f"{run} began with {setting} {settings[name]}: that cannot change on --resume", USAGE)
    changed = settings | given
    wanted = changed["epochs"] + (changed["fine_tune_epochs"] if fine_tuned else 0)
    if wanted < card.get("epochs", 0):
        raise UserError(f"{run} has done {card['epochs']} epochs already: they cannot be fewer", USAGE)
    return changed


def refuse_what_does_not_fit(settings):
    """Raise UserError for settings that are not for the network."""
    network = settings["network"]
    if settings["start_size"] and network != "resnet":
        raise UserError(f"--start-size is for resnet: {network} takes pictures of one size", USAGE)
    if network not in BACKBONES and settings["weights"] != DEFAULTS["weights"]:
        raise UserError(f"--weights is for pretrained networks: {network} is not one", USAGE)
    if settings["fine_tune"] and (network not in BACKBONES or settings["weights"] == "none"):
        raise UserError("--fine-tune is for pretrained networks, with their weights", USAGE)
    for name in FINE_TUNING:
        if not settings["fine_tune"] and settings[name] != DEFAULTS[name]:
            raise UserError(f"--{name.replace('_', '-')} is for --fine-tune: say which layers", USAGE)


def refuse_unknown_layer(settings, num_classes):
    """Raise UserError before any training if the network has no layer of the name that --fine-tune gives."""
    if settings["fine_tune"]:
        from backbones import unfreeze
        from model import create_network

        unfreeze(create_network(settings["network"], settings["image_size"], num_classes), settings["fine_tune"])


def train(settings, output, run=None):
    """Train a network as `settings` (see DEFAULTS) say: in a new run folder in `output`, or go on with `run`.

    Returns the history, a list of dictionaries with the keys HISTORY, one an epoch. Raises UserError for what a user
    can mend. A signal to stop saves a checkpoint and raises SystemExit.
    """
    from dataset import read_train_sets
    from runs import checkpoints_in

    refuse_what_does_not_fit(settings)
    resuming = run is not None
    run = run or new_run(output)
    try:
        sets = read_train_sets(
            settings["data_dir"],
            settings["image_size"],
            validation_size=settings["validation_split"],
            limit_per_class=settings["limit_per_class"],
            cache_dir=output / ".cache",
        )
        refuse_unknown_layer(settings, len(sets.classes))
    except BaseException:
        if not resuming:
            run.rmdir()
        raise
    settings = settings | {"data_dir": str(Path(settings["data_dir"]).absolute())}
    with locked(run):
        card = read_card(run) if resuming else make_card(settings, sets)
        before, card["settings"] = card.get("settings", settings), settings
        if card.get("fingerprint") != sets.fingerprint:
            raise UserError(f"the pictures in {settings['data_dir']} are not those {run} began with", NO_DATA)
        fine_tunes_otherwise = any(before.get(name) != settings[name] for name in ("epochs", *FINE_TUNING))
        if fine_tunes_otherwise and card.get("epochs", 0) <= settings["epochs"]:  # of an epoch it has not even finished
            shutil.rmtree(run / "checkpoints" / "fine-tuning", ignore_errors=True)
        write_card(run, card)
        write_whole(run / "skipped.csv", csv_text(["path", "reason"], sets.skipped))
        try:
            return train_in(run, card, sets)
        except UserError:
            if not resuming and not checkpoints_in(run / "checkpoints" / "newest"):  # else --resume would choose it
                shutil.rmtree(run)
            raise


def train_in(run, card, sets):
    """Train in a run folder from where it is to its end: the loop over the epochs. Returns the history."""
    from model import enough_memory
    from runs import checkpoints_in
    from trainer import Training, phases_of

    say_header(run, card, sets)
    say_what_differs(card)
    card = {name: value for name, value in card.items() if name not in ("temperature", "novelty")}  # of an earlier best
    card["finished"] = False
    phases = phases_of(card["settings"])
    begun = [phase for phase in phases if checkpoints_in(run / "checkpoints" / phase.name)]
    if any(phase not in begun and phase.first < card.get("epochs", 0) for phase in phases):
        raise UserError(f"the checkpoints of {run} are gone: start a new run", NO_DATA)
    for phase in phases[max(len(begun) - 1, 0) :]:
        with enough_memory():
            training = Training(run, card, sets, phase)
        say_phase(card, training)
        with enough_memory(), training.listening_to_signals():
            while training.epoch < phase.last and not (phase is phases[-1] and training.out_of_patience()):
                started = time.monotonic()
                row = training.train_epoch() | training.validate()
                write_card(run, card)  # until here a run that was finished predicts as before
                kept = training.finish_epoch(row | {"seconds": time.monotonic() - started})
                write_card(run, card | training.results())
                print(epoch_line(training.history[-1], phases[-1].last, kept), flush=True)
            training.leave_if_asked()  # while the last epoch was saved
        card |= training.results()
    with enough_memory():
        card |= training.calibrate()
    card["finished"] = True
    write_card(run, card)
    export_for_prediction(run, card, sets)
    print_closing(run, training, sets)
    return training.history


def export_for_prediction(run, card, sets):
    """Write the LiteRT file, with which predict.py answers in a blink; without it, it gives the same answers later."""
    from export import FORMATS, export, missing_packages
    from inference import litert_problem

    if missing_packages("litert"):
        say("no LiteRT file for quick predictions: pip install ai-edge-litert, then run export.py")
    elif litert_problem(run, card):
        stale = [name for name, (file, _) in FORMATS.items() if name != "litert" and (run / file).exists()]
        if stale:
            say(f"warning: made from earlier weights: {', '.join(stale)}; run export.py again")
        try:
            export(run, card, "litert", sets.valid.paths, sets.valid.labels)
        except Exception as error:  # whatever a converter may raise: the network is trained and saved
            say(f"warning: no LiteRT file for quick predictions: {str(error) or type(error).__name__}")


def make_card(settings, sets):
    """The card of a new run: all that prediction has to know, and all that tells how the network came to be."""
    return {
        "network": settings["network"],
        "classes": sets.classes,
        "image_size": settings["image_size"],
        "pictures": count_pictures(sets),
        "skipped": len(sets.skipped),
        "fingerprint": sets.fingerprint,
        "versions": versions(),
        "device": device(settings),
        "finished": False,
    }


def count_pictures(sets):
    """{class: {"training": n, "validation": n}}."""
    sides = {"training": sets.train, "validation": sets.valid}
    return {
        name: {side: int((data_set.labels == label).sum()) for side, data_set in sides.items()}
        for label, name in enumerate(sets.classes)
    }


def versions():
    """{package: version} of all that shapes a training."""
    import cv2
    import numpy
    import tensorflow

    named = {"tensorflow": tensorflow, "keras": tensorflow.keras, "opencv": cv2, "numpy": numpy}
    return {"python": platform.python_version()} | {name: module.__version__ for name, module in named.items()}


def device(settings):
    """What computes a training with these settings, and with what arithmetic."""
    import tensorflow as tf

    from trainer import steps_in_bfloat16

    return {
        "gpus": [gpu.name for gpu in tf.config.list_logical_devices("GPU")],
        "cpu": cpu.name(),
        "cores": cpu.cores(),
        "instruction set": cpu.instruction_set(),
        "oneDNN": cpu.has_onednn(),
        "bfloat16": steps_in_bfloat16(settings),
    }


def say_what_differs(card):
    """Say in one line why a run that goes on here may not end with the same weights as where it began."""
    if "device" not in card:
        say("note       it began with an earlier version of this project: do not expect the same weights, bit for bit")
        return
    began, now = card.get("versions", {}) | card["device"], versions() | device(card["settings"])
    del now["python"]
    others = [f"{name} {began[name]}, not {value}" for name, value in now.items() if began.get(name, value) != value]
    if others:
        say(f"note       it began with {'; '.join(others)}: do not expect the same weights, bit for bit")


def say_header(run, card, sets):
    """Say what is about to be trained, on what, with what."""
    computing = device(card["settings"])
    on_or_off = (f"{name} {'on' if computing[name] else 'off'}" for name in ("oneDNN", "bfloat16"))
    cores = f"{computing['cores']} cores"
    parts = [*computing["gpus"], "CPU", computing["cpu"], cores, computing["instruction set"], *on_or_off]
    counts = ", ".join(f"{name} {n['training']} + {n['validation']}" for name, n in count_pictures(sets).items())
    say("versions   " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    say("device     " + ", ".join(filter(None, parts)))
    say(f"pictures   {counts} (training + validation)")
    if sets.skipped:
        reasons = collections.Counter(reason for _, reason in sets.skipped)
        summary = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        say(f"skipped    {len(sets.skipped)}: {summary}; all in {shell_path(run / 'skipped.csv')}")
    say(f"run        {shell_path(run)}")


def say_phase(card, training):
    """Say what learns now."""
    learning, total = training.count_params()
    parts = f"{learning:,} of {total:,} parameters learn" if learning < total else f"{total:,} parameters"
    goes_on = f", goes on after epoch {training.epoch}" if training.epoch else ""
    precision = ", steps in bfloat16" if training.in_bfloat16() else ""
    say(f"network    {card['network']}, {card['image_size']} px, {parts}{precision}{goes_on}")


def epoch_line(row, epochs, kept):
    """One epoch's row of the history as a line for people."""
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"
        f"  loss {row['loss']:.4f}  accuracy {row['accuracy']:6.1%}"
        f"  validation loss {row['val_loss']:.4f}  accuracy {row['val_accuracy']:6.1%}"
        f"  {row['seconds']:.1f} s  {row['pictures_per_second']:.0f} pictures/s{'  kept' if kept else ''}"
    )


def print_closing(run, training, sets):
    """Print what came out, where it is, and what to do next."""
    best = training.best()
    if (training.answers > 0).sum() == 1:
        say(f"warning: the network takes every validation picture for {sets.classes[training.answers.argmax()]!r}: try more"
            " --epochs, another --lr, or --class-weights if some classes have fewer pictures than others")  # fmt: skip
    if training.epoch < training.phase.last:
        print(f"stopped early: no better epoch in the last {training.settings['patience']} (--resume --patience 0 goes on)")
    if best:
        largest = max(n["validation"] for n in count_pictures(sets).values()) / len(sets.valid)
        majority = 1 / len(sets.classes) if training.settings["class_weights"] else largest
        print(f"kept: epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.1%}, loss {best['val_loss']:.4f}"
              f" (always naming the largest class: {majority:.1%})")  # fmt: skip
    print(f"saved in {shell_path(run)}; now run:")
    print(f"  {command('predict.py', '--model', run, sets.valid.paths[0])}")


if __name__ == "__main__":
    console.run(main)
