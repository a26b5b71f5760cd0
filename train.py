"""Train a classifier on folders of pictures: python train.py --data-dir my_pictures"""

import argparse
import collections
import contextlib
import csv
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import console
from console import NO_DATA, USAGE, UserError, csv_text, number, say, write_whole
from runs import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE, find_run, new_run, read_card, write_card

# TensorFlow, and what imports it, is imported inside the functions that use it: --help and a wrong flag answer at once.

HERE = Path(__file__).resolve().parent
DEFAULTS = {
    "data_dir": HERE / "training_data",
    "limit_per_class": None,
    "validation_split": 0.2,
    "image_size": 128,
    "batch_size": 32,
    "epochs": 20,
    "lr": 5e-4,
    "patience": 5,
    "seed": 0,
    "save_minutes": 5.0,
}
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

    def add(group, flag, description, **options):
        default = DEFAULTS.get(flag[2:].replace("-", "_"))
        shown = os.path.relpath(default) if isinstance(default, Path) else default
        group.add_argument(flag, help=description + (f" (default: {shown})" if default is not None else ""), **options)

    data = parser.add_argument_group("pictures")
    add(data, "--data-dir", "class folders, or pictures named like cat.1.jpg", type=Path, metavar="FOLDER")
    add(data, "--limit-per-class", "take the first N of each class", type=number(int, 2), metavar="N")
    add(data, "--validation-split", "part of each class to validate on", type=number(float, above=0, below=1), metavar="P")
    add(data, "--image-size", "side of the square that every picture is resized to", metavar="PX",
        type=number(int, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE))  # fmt: skip
    training = parser.add_argument_group("training")
    add(training, "--epochs", "rounds over all training pictures", type=number(int, 1), metavar="N")
    add(training, "--batch-size", "pictures a step", type=number(int, 1), metavar="N")
    add(training, "--lr", "learning rate of Adam", type=number(float, above=0), metavar="RATE")
    add(training, "--patience", "stop after N epochs without a better one; 0: never", type=number(int, 0), metavar="N")
    add(training, "--seed", "of first weights and order of pictures", type=number(int, 0, 2**32 - 1), metavar="N")
    runs = parser.add_argument_group("runs")
    add(runs, "--output", "where numbered run folders are made (default: runs)", type=Path, metavar="FOLDER")
    add(runs, "--resume", "go on with a run (default: the newest) as if it had never stopped",
        type=Path, nargs="?", const=None, metavar="RUN")  # fmt: skip
    add(runs, "--save-minutes", "save within an epoch at least so often", type=number(float, 0), metavar="MINUTES")
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
        card = read_card(run) if resuming else make_card(settings, sets)
    except BaseException:
        if not resuming:
            run.rmdir()
        raise
    if card.get("fingerprint") != sets.fingerprint:
        raise UserError(f"the pictures in {settings['data_dir']} are not those {run} began with: start a new run", NO_DATA)
    card["settings"] = settings | {"data_dir": str(Path(settings["data_dir"]).absolute())}
    write_card(run, card)
    write_whole(run / "skipped.csv", csv_text(["path", "reason"], sets.skipped))
    with enough_memory():
        training = Training(run, settings, sets, card["network"])
    say_header(run, card, sets, training)

    with enough_memory(), training.listening_to_signals():
        while training.epoch < settings["epochs"] and not training.out_of_patience():
            started = time.monotonic()
            row = training.train_epoch() | training.validate()
            is_best = training.finish_epoch(row | {"seconds": time.monotonic() - started})
            write_card(run, card | training.results())
            print(epoch_line(training.history[-1], settings["epochs"], is_best), flush=True)
    write_card(run, card | training.results() | {"finished": True})
    print_closing(run, training, sets)
    return training.history


class Training:
    """A network in training: what a step does, and all that has to be saved for the run to go on as if never stopped."""

    def __init__(self, run, settings, sets, network_name):
        import tensorflow as tf

        import model

        self.run, self.settings, self.sets = run, settings, sets
        self.batch_size = min(settings["batch_size"], len(sets.train))
        if self.batch_size < settings["batch_size"]:
            say(f"--batch-size {settings['batch_size']} is more than all training pictures: it is {self.batch_size} now")
        self.steps = math.ceil(len(sets.train) / self.batch_size)

        tf.keras.utils.set_random_seed(settings["seed"])
        tf.config.experimental.enable_op_determinism()  # the same run again gives the same weights, to the bit
        gpus = tf.config.list_logical_devices("GPU")
        self.strategy = tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
        with self.strategy.scope():
            self.network = model.create_network(network_name, settings["image_size"], len(sets.classes))
            optimizer = tf.keras.optimizers.Adam(settings["lr"])
            optimizer.build(self.network.trainable_variables)
        self._epoch = tf.Variable(0, dtype=tf.int64)  # epochs done
        self._step = tf.Variable(0, dtype=tf.int64)  # steps done in this epoch
        self._sums = tf.Variable([0.0, 0.0], dtype=tf.float64)  # of losses and of right answers in this epoch
        self._train_step = make_train_step(self.strategy, self.network, optimizer, self._sums)
        self._logits = model.compile_logits(self.network)
        self._saver = model.Saver(
            run, network=self.network, optimizer=optimizer, epoch=self._epoch, step=self._step, sums=self._sums
        )
        self._saver.restore()
        self._last_save = time.monotonic()
        self._signal = None
        self.history = [row for row in read_history(run) if row["epoch"] <= self.epoch]

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
                self._train_step(pixels, labels)
                self._step.assign_add(1)
                advance()
                self._save_if_due()
        loss, accuracy = self._sums.numpy() / len(self.sets.train)
        speed = max(len(self.sets.train) - first * self.batch_size, 0) / (time.monotonic() - started)
        return {"epoch": self.epoch + 1, "loss": loss, "accuracy": accuracy, "pictures_per_second": speed}

    def validate(self):
        """Score every validation picture; returns the validation half of the history's row."""
        import numpy as np

        from model import log_probabilities

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
        self._epoch.assign_add(1)
        self._step.assign(0)
        self._sums.assign([0.0, 0.0])
        self._save()
        return is_best

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
                raise KeyboardInterrupt
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
            self._refuse_nonsense(self._sums.numpy()[0])
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


@contextlib.contextmanager
def enough_memory():
    """Turn the errors of a machine that is too small into a line with advice."""
    import tensorflow as tf

    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise UserError("not enough memory: try a smaller --batch-size or --image-size") from None


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
    counts = {}
    for label, name in enumerate(sets.classes):
        counts[name] = {
            "training": int((sets.train.labels == label).sum()),
            "validation": int((sets.valid.labels == label).sum()),
        }
    return {
        "network": "cnn",
        "classes": sets.classes,
        "image_size": settings["image_size"],
        "pictures": counts,
        "skipped": len(sets.skipped),
        "fingerprint": sets.fingerprint,
        "versions": versions(),
        "finished": False,
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
        raise UserError(f"{path} is damaged: move it away to go on without it", NO_DATA) from None


def say_header(run, card, sets, training):
    """Say what is about to be trained, on what, with what."""
    import tensorflow as tf

    counts = ", ".join(f"{name} {n['training']} + {n['validation']}" for name, n in card["pictures"].items())
    devices = tf.config.list_logical_devices("GPU") or [f"CPU, {os.cpu_count()} cores"]
    say("versions   " + ", ".join(f"{name} {version}" for name, version in card["versions"].items()))
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


def command(script, *arguments):
    """A command to copy into the shell: it runs a script of this project with this Python."""
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    return " ".join(shell_path(part) for part in (python, HERE / script, *arguments))


def shell_path(path):
    """A path as short as it can be from here, quoted for the shell; what is not a path stays as it is."""
    relative = os.path.relpath(path)
    return shlex.quote(relative if os.path.isabs(path) and not relative.startswith("..") else str(path))


if __name__ == "__main__":
    console.run(main)
