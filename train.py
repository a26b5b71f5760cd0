"""Train a classifier on folders of images: python train.py --data-dir my_images

Read here the loop over the epochs, and make_train_step(): the step that computes the gradient.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

from classifier.base import console
from classifier.base.console import PROJECT, UserError, show
from classifier.base.files import locked, remove
from classifier.cluster import workers
from classifier.runs.folder import find_run, has_checkpoints, new_run, read_metadata, selected_digest, write_metadata
from classifier.training.settings import (
    DEFAULTS,
    add_flags,
    check_settings,
    data_options,
    epochs_for,
    recipe_of,
    settings_to_resume,
)

# TensorFlow, and what imports it, is imported inside the functions that use it: --help and a wrong flag answer at once.


def parse_arguments(argv):
    """The settings that the command line gives, without the defaults: to resume, only what was given counts."""
    parser = argparse.ArgumentParser(
        description="Train a classifier on folders of images.",
        argument_default=argparse.SUPPRESS,
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable data, 130 interrupted, 143 terminated",
    )
    runs = add_flags(parser)["runs"]
    runs.add_argument("--output", type=Path, metavar="FOLDER", help="where numbered run folders are made (default: runs)")
    runs.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=None,
        metavar="RUN",
        help="continue a run (default: the newest) as if it had never stopped",
    )
    return vars(parser.parse_args(argv))


def main(argv=None):
    """Parse the command line and train; returns the exit code."""
    given = parse_arguments(argv)
    output = given.pop("output", PROJECT / "runs")
    with workers.together():  # if the environment says that there are others: on a cluster
        if "resume" in given:
            run = find_run(given.pop("resume") or output, finished=False)
            train(settings_to_resume(run, read_metadata(run), given), run.parent, run)
        else:
            network, weights = (given.get(name, DEFAULTS[name]) for name in ("network", "weights"))
            train(DEFAULTS | recipe_of(network, weights) | given, output)
    return console.DONE


def train(settings, output, run=None):
    """Train a network with these settings (see DEFAULTS), in a new run folder in `output`, or resume `run`.

    Returns the history, a list of dictionaries, one for each epoch (see history.py). Raises UserError for what a user can
    correct. A signal to stop saves a checkpoint and raises SystemExit.
    """
    from classifier.data.near_copies import near_copies_finder, near_copies_reader
    from classifier.runs.record import begin_run, prepare_machines
    from classifier.training.phases import check_layer
    from dataset import read_train_sets

    started = time.monotonic()
    check_settings(settings)
    prepare_machines(settings)
    resuming = run is not None
    run = run or new_run(output)
    try:
        sets = read_train_sets(
            settings["data_dir"],
            settings["image_size"],
            cache_dir=output / ".cache",
            near_copies_of=near_copies_reader(run) if resuming else near_copies_finder(settings, output / ".cache"),
            **data_options(settings),
        )
        check_layer(settings, len(sets.classes))
    except BaseException:
        if not resuming:
            remove(run)
        raise
    with locked(run):
        folders = {name: settings[name] for name in ("data_dir", "validation_dir") if settings[name] is not None}
        settings = settings | {name: str(Path(folder).absolute()) for name, folder in folders.items()}
        settings["epochs"] = settings["epochs"] or epochs_for(len(sets.train))
        metadata = workers.of_chief(lambda: begin_run(run, settings, sets, resuming))
        try:
            if settings["minutes"] and not has_checkpoints(run):
                choose_epochs(run, metadata, sets, started + 60 * settings["minutes"])
            return train_in(run, metadata, sets)
        except UserError:
            if not resuming and not has_checkpoints(run):  # else --resume would choose it
                remove(run)
            raise


def choose_epochs(run, metadata, sets, end):
    """Decide for --minutes, by the speed of a few steps, how many epochs fit into the time until `end`, of time.monotonic().

    Changes the settings in the metadata: from then on, a resumed training does as many, whatever its speed.
    """
    from classifier.networks.by_name import enough_memory
    from classifier.training.phases import phase_to_fit, settings_that_fit
    from classifier.training.state import Training

    started = time.monotonic()
    with enough_memory():
        training = Training(run, metadata, sets, phase_to_fit(metadata, len(sets.train)))
        speed = measure_speed(training)
    setting_up = 2 * (time.monotonic() - started)  # once more for the training, and about as long for the end
    seconds = 0.9 * (end - time.monotonic() - setting_up)
    metadata["settings"] |= workers.of_chief(lambda: settings_that_fit(metadata["settings"], training, *speed, seconds))
    write_metadata(run, metadata)


def measure_speed(training, steps=8):
    """Seconds for a training image, and for a validation image, from a few steps after a first one."""
    train_step, times = train_step_of(training), []
    batches = itertools.chain.from_iterable(training.batches_from(0) for _ in itertools.count())
    for images, labels in itertools.islice(batches, 1 + steps):
        started = time.monotonic()
        train_step(images, labels)
        trained = time.monotonic()
        training.networks.logits(images)
        times.append((trained - started, time.monotonic() - trained))
    return [statistics.median(column) / training.batch_size for column in zip(*times[1:], strict=True)]


def train_in(run, metadata, sets):
    """Train in a run folder from its newest checkpoint to the end: the loop over the epochs. Returns the history."""
    from classifier.networks.by_name import enough_memory
    from classifier.runs.record import say_what_differs
    from classifier.training.log import epoch_line, print_closing, say_header, say_phase
    from classifier.training.phases import phases_of, phases_to_do
    from classifier.training.state import Training
    from classifier.training.watching import Watcher

    say_header(run, metadata, sets)
    say_what_differs(metadata)
    metadata = metadata | {"finished": False}
    for fitted in ("temperature", "ood"):  # to earlier weights
        metadata.pop(fitted, None)
    watcher = Watcher(run, metadata["settings"], sets)
    for phase in phases_to_do(run, metadata):  # one; two if pretrained layers are fine-tuned after the head
        with enough_memory():
            training = Training(run, metadata, sets, phase)
            training.restore()
            training.extract_features()
        say_phase(metadata, training)
        watcher.begin_phase(training)
        train_step = train_step_of(training)
        with enough_memory(), training.listening_to_signals():
            while not training.has_ended():
                started = time.monotonic()
                row = train_epoch(training, train_step) | validate(training)
                # From here on the run is not finished, see find_run(), and history and selected weights may change.
                metadata.pop("selected_digest", None)
                write_metadata(run, metadata | {"history_digest": None})
                selected = training.finish_epoch(row | {"seconds": time.monotonic() - started})
                write_metadata(run, metadata | training.results())
                if training.is_worth_a_line():
                    show(epoch_line(training.history.rows[-1], phases_of(metadata)[-1].last, selected))
                watcher.after_epoch(training)
            training.leave_if_asked()  # if a signal came while the last epoch was saved
        if not training.results().items() <= metadata.items():
            metadata |= training.results()
            write_metadata(run, metadata)  # the next phase begins after this number of epochs
    watcher.draw_curves(training)
    if workers.is_chief():
        confusion = finish(run, metadata, training)
        print_closing(run, metadata, training, sets, confusion)
    return training.history.rows


def train_epoch(training, train_step):
    """Train on the batches that are left of this epoch; returns the training half of a row of the history."""
    started, first = time.monotonic(), int(training.step)
    with training.precision(), training.finite():
        for images, labels in training.batches():
            train_step(images, labels)
    num_images = len(training.sets.train)
    loss, accuracy = training.sums.numpy() / num_images
    speed = max(num_images - first * training.batch_size, 0) / (time.monotonic() - started)
    rate = training.networks.learning_rate()
    return {
        "epoch": training.epoch + 1,
        "loss": loss,
        "accuracy": accuracy,
        "images_per_second": speed,
        "learning_rate": rate,
    }


def train_step_of(training):
    """The train_step() of a phase, with its networks and settings."""
    networks, settings = training.networks, training.settings
    return make_train_step(
        networks.strategy,
        networks.trained,
        networks.optimizer,
        training.sums,
        settings["label_smoothing"],
        training.class_weights,
        None if networks.whole_average is networks.whole else networks.average,
        settings["ema"],
    )


def make_train_step(strategy, network, optimizer, sums, label_smoothing=0.0, class_weights=None, average=None, ema=0.0):
    """One step of training as a graph, `train_step(images, labels)`: what `network` takes for n images, and (n,) int32.

    It minimizes the cross-entropy, with smoothed labels if `label_smoothing` is above 0 (Szegedy et al., "Rethinking the
    Inception Architecture for Computer Vision", 2016) and weighted by `class_weights`, (classes,), if given. It adds the
    cross-entropies and the number of correct predictions to `sums`, (2,) float64. If `average` is given, a network, its
    weights become a moving average of those of `network`, with decay `ema`. On several devices each takes its share of
    the batch, and their gradients are added up: see on_devices().
    """
    import tensorflow as tf

    from classifier.cluster.devices import of_whole_batch, on_devices
    from classifier.training.state import NOT_FINITE

    def replica_step(images, labels):
        labels, counts, batch_size = of_whole_batch(labels)
        weights = counts if class_weights is None else counts * tf.gather(class_weights, labels)
        with tf.GradientTape() as tape:
            logits = tf.cast(network(images, training=True), tf.float32)  # (n, classes)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)  # (n,)
            uniform = tf.reduce_logsumexp(logits, axis=1) - tf.reduce_mean(logits, axis=1)  # if any class were right
            smoothed = (1 - label_smoothing) * losses + label_smoothing * uniform if label_smoothing else losses
            loss = tf.reduce_sum(weights * smoothed) / batch_size
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)
        correct = tf.cast(tf.argmax(logits, axis=1, output_type=tf.int32) == labels, tf.float32)
        return tf.cast(tf.stack([tf.reduce_sum(counts * losses), tf.reduce_sum(counts * correct)]), tf.float64)

    images_spec = tf.TensorSpec(network.input_shape, network.inputs[0].dtype)

    @on_devices(strategy, images_spec, tf.TensorSpec((None,), tf.int32))
    def train_step(images, labels):
        results = strategy.reduce("SUM", strategy.run(replica_step, (images, labels)), axis=None)
        sums.assign_add(tf.debugging.check_numerics(results, NOT_FINITE))  # here all devices have the same
        if average is not None:
            done = tf.cast(optimizer.iterations, tf.float32)
            decay = tf.minimum(ema, (1 + done) / (10 + done))  # lower at first, when the average is over few steps
            for mean, weight in zip(average.weights, network.weights, strict=True):
                if weight.dtype == "float32":  # not the counter of a Normalization layer
                    mean.assign(weight + decay * (mean - weight))

    return train_step


def validate(training):
    """Score every validation image with the averaged weights; returns the validation half of a row of the history.

    With --class-weights balanced its figures are means over the classes, as if all had equally many images.
    """
    import numpy as np

    from classifier.base.metrics import log_softmax

    loss = correct = 0
    for images, labels in training.validation_batches():
        scores = log_softmax(training.networks.logits(images))  # (n, classes)
        weights = training.valid_weights[labels]
        loss -= (weights * scores[np.arange(len(labels)), labels]).sum()
        correct += (weights * (scores.argmax(axis=1) == labels)).sum()
    loss, correct = workers.sum_of_all(loss, correct)
    if not np.isfinite(loss):
        training.stop_not_finite(f"the validation loss is infinite or NaN after epoch {training.epoch + 1}")
    num_images = len(training.sets.valid)
    return {"val_loss": loss / num_images, "val_accuracy": correct / num_images}


def finish(run, metadata, training):
    """Fit temperature and OOD threshold to the selected weights, and export them for prediction.

    Adds to the metadata. Returns the confusion matrix of validation images: see calibrate().
    """
    from classifier.export.converters import export_for_prediction
    from classifier.networks.by_name import enough_memory
    from classifier.runs.checkpoints import load_selected, save_ood
    from classifier.training.calibration import calibrate

    load_selected(run, training.networks.whole_average, metadata.get("selected_digest"))
    with enough_memory():
        fitted, ood, confusion = calibrate(
            training.networks.average, training.sets, metadata["image_size"], training.phase.on_features
        )
    save_ood(run, ood, training.history.selected()["epoch"])
    metadata |= fitted | {"finished": True, "selected_digest": selected_digest(run)}
    write_metadata(run, metadata)
    export_for_prediction(run, metadata, training.sets.valid)
    return confusion


if __name__ == "__main__":
    console.run(main)
