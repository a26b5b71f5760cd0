"""Train a classifier on folders of pictures: python train.py --data-dir my_pictures"""

import argparse
import collections
import contextlib
import csv
import math
import os
import platform
import signal
import sys
import time
from pathlib import Path

import console
from console import NO_DATA, USAGE, UserError, command, csv_text, number, say, shell_path, write_whole
from runs import CARD, MAX_IMAGE_SIZE, MIN_IMAGE_SIZE, find_run, locked, new_run, read_card, write_card

# TensorFlow, and what imports it, is imported inside the functions that use it: --help and a wrong flag answer at once.

HERE = Path(__file__).resolve().parent
SETTINGS = {  # name: (type, default)
    "data_dir": (Path, HERE / "training_data"),
    "limit_per_class": (number(int, 2), None),
    "validation_split": (number(float, above=0, below=1), 0.2),
    "image_size": (number(int, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE), 128),
    "epochs": (number(int, 1), 20),
    "batch_size": (number(int, 1), 32),
    "lr": (number(float, above=0), 5e-4),
    "patience": (number(int, 0), 5),
    "seed": (number(int, 0, 2**32 - 1), 0),
    "save_minutes": (number(float, 0), 5.0),
}
DEFAULTS = {name: default for name, (_, default) in SETTINGS.items()}
CHANGEABLE_ON_RESUME = {"data_dir", "epochs", "patience", "save_minutes"}
HISTORY = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "pictures_per_second"]


def parse_arguments(argv):
    """The settings that the command line gives, without the defaults: to resume, only what was given counts."""
    parser = argparse.ArgumentParser(
        description="Train a classifier on folders of pictures.",
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable data, 130 interrupted, 143 terminated",
    )

    def add(group, flag, metavar, description):
        kind, default = SETTINGS[flag[2:].replace("-", "_")]
        if default is not None:
            description += f" (default: {default.name if isinstance(default, Path) else default})"
        group.add_argument(flag, type=kind, metavar=metavar, help=description)

    data = parser.add_argument_group("pictures")
    add(data, "--data-dir", "FOLDER", "class folders, or pictures named like cat.1.jpg")
    add(data, "--limit-per-class", "N", "take the first N of each class")
    add(data, "--validation-split", "P", "part of each class to validate on")
    add(data, "--image-size", "PX", "side of the square that every picture is resized to")
    training = parser.add_argument_group("training")
    add(training, "--epochs", "N", "rounds over all training pictures")
    add(training, "--batch-size", "N", "pictures a step")
    add(training, "--lr", "RATE", "learning rate of Adam")
    add(training, "--patience", "N", "stop after N epochs without a better one; 0: never")
    add(training, "--seed", "N", "of the first weights and the order of the pictures")
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
        train(DEFAULTS | given, output)
    return console.DONE


def settings_to_resume(run, given):
    """The settings a run began with, and those that may change on the way. Raises UserError for any other."""
    settings = DEFAULTS | read_card(run)["settings"]
    for name, (kind, default) in SETTINGS.items():
        if settings[name] is not None or default is not None:
            try:
                settings[name] = kind(str(settings[name]))
            except argparse.ArgumentTypeError as error:
                raise UserError(f"{run / CARD} is damaged: {name} {error}", NO_DATA) from None
    for name, value in given.items():
        if name not in CHANGEABLE_ON_RESUME and value != settings[name]:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} was {settings[name]} when {run} began: it cannot change on --resume", USAGE)
    return settings | given


def train(settings, output, run=None):
    """Train a network as `settings` (see DEFAULTS) say: in a new run folder in `output`, or go on with `run`.

    Returns the history, a list of dictionaries with the keys HISTORY, one an epoch. Raises UserError for what a user
    can mend. A signal to stop saves a checkpoint and raises SystemExit.
    """
    from dataset import read_train_sets

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
    except BaseException:
        if not resuming:
            run.rmdir()
        raise
    settings = settings | {"data_dir": str(Path(settings["data_dir"]).absolute())}
    with locked(run):
        card = (read_card(run) if resuming else make_card(settings, sets)) | {"settings": settings}
        if card.get("fingerprint") != sets.fingerprint:
            raise UserError(f"the pictures in {settings['data_dir']} are not those {run} began with", NO_DATA)
        write_card(run, card)
        write_whole(run / "skipped.csv", csv_text(["path", "reason"], sets.skipped))
        return train_in(run, card, sets)


def train_in(run, card, sets):
    """Train in a run folder from where it is to its end: the loop over the epochs. Returns the history."""
    from model import enough_memory

    settings = card["settings"]
    with enough_memory():
        training = Training(run, card, sets)
    say_header(run, card, sets, training)
    with enough_memory(), training.listening_to_signals():
        while training.epoch < settings["epochs"] and not training.out_of_patience():
            started = time.monotonic()
            row = training.train_epoch() | training.validate()
            is_best = training.finish_epoch(row | {"seconds": time.monotonic() - started})
            write_card(run, card | training.results())
            print(epoch_line(training.history[-1], settings["epochs"], is_best), flush=True)
    card |= training.results() | {"finished": True}
    write_card(run, card)
    export_for_prediction(run, card, sets)
    print_closing(run, training, sets)
    return training.history


def export_for_prediction(run, card, sets):
    """Write the LiteRT file, with which predict.py answers in a blink; without it, it gives the same answers later."""
    from export import export, first_pictures, missing_packages
    from inference import litert_problem

    if missing_packages("litert"):
        say("no LiteRT file for quick predictions: pip install ai-edge-litert, then run export.py")
    elif litert_problem(run, card):
        try:
            export(run, card, "litert", *first_pictures(sets.valid))
        except (OSError, UserError) as error:
            say(f"warning: no LiteRT file for quick predictions: {error}")


class Training:
    """A network in training: what a step does, and all that has to be saved for the run to go on as if never stopped."""

    def __init__(self, run, card, sets):
        import tensorflow as tf

        import model

        self.run, self.sets, self.settings = run, sets, card["settings"]
        settings = self.settings
        self.batch_size = min(settings["batch_size"], len(sets.train))
        if self.batch_size < settings["batch_size"]:
            say(f"--batch-size {settings['batch_size']} is more than all training pictures: it is {self.batch_size} now")
        self.steps = math.ceil(len(sets.train) / self.batch_size)

        tf.keras.utils.set_random_seed(settings["seed"])
        tf.config.experimental.enable_op_determinism()  # the same run again gives the same weights, to the bit
        gpus = tf.config.list_logical_devices("GPU")
        self.strategy = tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
        with self.strategy.scope():
            self.network = model.create_network(card["network"], settings["image_size"], len(sets.classes))
            optimizer = model.Adam(settings["lr"])
            optimizer.build(self.network.trainable_variables)
        self._epoch = tf.Variable(0, dtype=tf.int64)  # epochs done
        self._step = tf.Variable(0, dtype=tf.int64)  # steps done in this epoch
        self.sums = tf.Variable([0.0, 0.0], dtype=tf.float64)  # of losses and of right answers in this epoch
        self.train_step = make_train_step(self.strategy, self.network, optimizer, self.sums)
        self._logits = model.compile_logits(self.network)
        self._saver = model.Saver(
            run, network=self.network, optimizer=optimizer, epoch=self._epoch, step=self._step, sums=self.sums
        )
        restored = self._saver.restore()
        self._last_save = time.monotonic()
        self._signal = None
        self.history = read_history(run)[: self.epoch]
        if [row["epoch"] for row in self.history] != list(range(1, self.epoch + 1)):
            raise UserError(f"{run / 'history.csv'} does not tell of all {self.epoch} epochs: start a new run", NO_DATA)
        if card.get("epochs") and not restored:
            raise UserError(f"the checkpoints of {run} are gone: start a new run", NO_DATA)

    @property
    def epoch(self):
        """How many epochs are done."""
        return int(self._epoch)

    def train_epoch(self):
        """Train on the rest of the current epoch's batches; returns the training half of the history's row."""
        started, first = time.monotonic(), int(self._step)
        batches = self.sets.train.batches(self.batch_size, self.settings["seed"], self.epoch, first)
        with console.progress(f"epoch {self.epoch + 1}/{self.settings['epochs']}", self.steps) as advance:
            advance(first)
            for pixels, labels in batches:
                self.train_step(pixels, labels)
                self._step.assign_add(1)
                advance()
                self._save_if_due()
        loss, accuracy = self.sums.numpy() / len(self.sets.train)
        speed = max(len(self.sets.train) - first * self.batch_size, 0) / (time.monotonic() - started)
        return {"epoch": self.epoch + 1, "loss": loss, "accuracy": accuracy, "pictures_per_second": speed}

    def validate(self):
        """Score every validation picture; returns the validation half of the history's row."""
        import numpy as np

        from inference import log_probabilities

        loss = right = 0
        with console.progress("validation", len(self.sets.valid)) as advance:
            for pixels, labels in self.sets.valid.batches(self.batch_size):
                scores = log_probabilities(self._logits(pixels))  # (n, classes)
                loss -= scores[np.arange(len(labels)), labels].sum()
                right += (scores.argmax(axis=1) == labels).sum()
                advance(len(labels))
                self._save_if_due()
        return {"val_loss": loss / len(self.sets.valid), "val_accuracy": right / len(self.sets.valid)}

    def finish_epoch(self, row):
        """Take a row into the history and save it, the best weights and the newest checkpoint; True if it is the best.

        In this order: a run that is killed in between does the epoch again, and comes to the same.
        """
        self._refuse_nonsense(row["loss"] + row["val_loss"])
        row = {name: row["epoch"] if name == "epoch" else round(float(row[name]), 6) for name in HISTORY}
        self.history.append(row)
        write_whole(self.run / "history.csv", csv_text(HISTORY, [list(row.values()) for row in self.history]))
        is_best = self.best() is row
        if is_best:
            self._saver.save_best(row["epoch"])
        self.begin_epoch()
        self._save()
        return is_best

    def begin_epoch(self):
        """Move on to the first step of the next epoch."""
        self._epoch.assign_add(1)
        self._step.assign(0)
        self.sums.assign([0.0, 0.0])

    def best(self):
        """The history's row with the best validation accuracy; among equals, with the lowest validation loss."""
        return max(self.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]), default=None)

    def results(self):
        """What the card tells of the training so far."""
        return {"epochs": self.epoch, "best": self.best()}

    def out_of_patience(self):
        """True if --patience epochs have gone by without a better one."""
        return bool(self.history and 0 < self.settings["patience"] <= self.epoch - self.best()["epoch"])

    @contextlib.contextmanager
    def listening_to_signals(self):
        """Let SIGINT (Ctrl-C) and SIGTERM wait for the end of a step; a second one does not wait."""

        def remember(signum, _):
            if self._signal:
                sys.exit(128 + signum)
            self._signal = signum

        before = {signum: signal.signal(signum, remember) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _save_if_due(self):
        """Save every --save-minutes; save and leave if a signal came."""
        if self._signal or time.monotonic() - self._last_save > 60 * self.settings["save_minutes"]:
            self._refuse_nonsense(self.sums.numpy()[0])
            self._save()
        if self._signal:
            say(f"stopped in epoch {self.epoch + 1}, after {int(self._step)} of {self.steps} steps; to go on:")
            say(f"  {command('train.py', '--resume', self.run)}")
            sys.exit(console.INTERRUPTED if self._signal == signal.SIGINT else console.TERMINATED)

    def _save(self):
        self._saver.save(number=self.epoch * (self.steps + 1) + int(self._step))
        self._last_save = time.monotonic()

    def _refuse_nonsense(self, loss):
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is not a number any more in epoch {self.epoch + 1}: try a lower --lr than"
                f" {self.settings['lr']} (the last good checkpoint is kept)"
            )


def make_train_step(strategy, network, optimizer, sums):
    """One step of training as a graph, `step(pixels, labels)`: (n, size, size, 3) uint8 RGB and (n,) int32.

    It minimizes the cross-entropy, and adds to `sums`, (2,) float64, the losses and the right answers of the batch.
    On several devices each takes its share of the batch, and their gradients are added up.
    """
    import tensorflow as tf

    def replica_step(pixels, labels):
        size = tf.shape(labels)[0]  # of the whole batch
        device = tf.distribute.get_replica_context()
        devices, weights = device.num_replicas_in_sync, 1.0
        if devices > 1:  # this device takes its share; where none is left for it, a picture that counts nothing
            share = tf.range(device.replica_id_in_sync_group, tf.maximum(size, devices), devices)
            weights = tf.cast(share < size, tf.float32)
            pixels, labels = tf.gather(pixels, share % size), tf.gather(labels, share % size)
        with tf.GradientTape() as tape:
            logits = network(pixels, training=True)  # (n, classes)
            losses = weights * tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)  # (n,)
            loss = tf.reduce_sum(losses) / tf.cast(size, tf.float32)  # so that the shares' gradients add up
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)
        right = weights * tf.cast(tf.argmax(logits, axis=1, output_type=tf.int32) == labels, tf.float32)
        return tf.cast(tf.stack([tf.reduce_sum(losses), tf.reduce_sum(right)]), tf.float64)

    pixels_spec = tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)
    labels_spec = tf.TensorSpec((None,), tf.int32)

    @tf.function(input_signature=[pixels_spec, labels_spec])
    def step(pixels, labels):
        sums.assign_add(strategy.reduce("SUM", strategy.run(replica_step, (pixels, labels)), axis=None))

    return step


def make_card(settings, sets):
    """The card of a new run: all that prediction has to know, and all that tells how the network came to be."""
    return {
        "network": "cnn",
        "classes": sets.classes,
        "image_size": settings["image_size"],
        "pictures": count_pictures(sets),
        "skipped": len(sets.skipped),
        "fingerprint": sets.fingerprint,
        "versions": versions(),
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


def read_history(run):
    """The rows of a run's history.csv, empty where there is none yet."""
    path = run / "history.csv"
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{name: float(row[name]) for name in HISTORY} | {"epoch": int(row["epoch"])} for row in rows]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: restore it, or start a new run", NO_DATA) from None


def say_header(run, card, sets, training):
    """Say what is about to be trained, on what, with what."""
    import tensorflow as tf

    counts = ", ".join(f"{name} {n['training']} + {n['validation']}" for name, n in count_pictures(sets).items())
    devices = tf.config.list_logical_devices("GPU") or [f"CPU, {os.cpu_count()} cores"]
    say("versions   " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    say("device     " + ", ".join(str(getattr(device, "name", device)) for device in devices))
    say(f"pictures   {counts} (training + validation)")
    if sets.skipped:
        reasons = collections.Counter(reason for _, reason in sets.skipped)
        summary = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        say(f"skipped    {len(sets.skipped)}: {summary}; all in {shell_path(run / 'skipped.csv')}")
    say(f"network    {card['network']}, {card['image_size']} px, {training.network.count_params():,} parameters")
    begins = f", goes on after epoch {training.epoch}" if training.epoch else ""
    say(f"run        {shell_path(run)}{begins}")


def epoch_line(row, epochs, is_best):
    """One epoch's row of the history as a line for people."""
    return (
        f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"
        f"  loss {row['loss']:.4f}  accuracy {row['accuracy']:6.1%}"
        f"  validation loss {row['val_loss']:.4f}  accuracy {row['val_accuracy']:6.1%}"
        f"  {row['seconds']:.1f} s  {row['pictures_per_second']:.0f} pictures/s{'  best' if is_best else ''}"
    )


def print_closing(run, training, sets):
    """Print what came out, where it is, and what to do next."""
    best = training.best()
    if training.out_of_patience():
        print(f"stopped early: no better epoch in the last {training.settings['patience']}")
    if best:
        print(f"best: epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.1%}, loss {best['val_loss']:.4f}")
    print(f"saved in {shell_path(run)}; now run:")
    print(f"  {command('predict.py', '--model', run, sets.valid.paths[0])}")


if __name__ == "__main__":
    console.run(main)
