"""Train a classifier on folders of images: python train.py --data-dir my_images

Read it from the top down: reading the data, the phases, the loop over the epochs, the step that takes the gradient,
validation, saving. What is only called here is in classifier/.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # python -I leaves it out

from classifier.base import console
from classifier.base.console import PROJECT, progress, show
from classifier.cluster import workers
from classifier.runs.folder import Run, find_run, new_or_resumed
from classifier.runs.settings import Settings, add_flags, epochs_for, settings_of_flags, settings_to_resume

# TensorFlow, and what imports it, is imported inside the functions that use it: --help and a wrong flag answer at once.


def parse_arguments(argv: list[str] | None) -> dict:
    """The settings that the command line gives, without the defaults: to resume, only what was given counts."""
    parser = argparse.ArgumentParser(
        description="Train a classifier on folders of images.",
        argument_default=argparse.SUPPRESS,
        epilog="exit codes: 0 done, 1 failed, 2 wrong usage, 3 no usable data, 128+N: signal N",
    )
    runs = add_flags(parser)["runs"]
    runs.add_argument("--output", type=Path, metavar="FOLDER", help="where numbered run folders are made (default: runs)")
    text = "continue a run (default: the newest) as if it had never stopped"
    runs.add_argument("--resume", type=Path, nargs="?", const=None, metavar="RUN", help=text)
    return vars(parser.parse_args(argv))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train; returns the exit code."""
    given = parse_arguments(argv)
    output = given.pop("output", PROJECT / "runs")
    with workers.together():  # if the environment says that there are others: on a cluster
        if "resume" in given:
            run = find_run(given.pop("resume") or output, finished=False)
            train(settings_to_resume(run, given), run.path.parent, run)
        else:
            train(settings_of_flags(given), output)
    return console.DONE


def train(settings: Settings, output: Path, run: Run | None = None) -> list[dict]:
    """Train a network with these settings, in a new run folder in `output`, or resume `run`.

    Returns the history, a dictionary for each epoch (see history.py). Raises UserError for what a user can correct. A signal
    to stop saves a checkpoint and raises SystemExit.
    """
    from classifier.training.log import print_closing, say_header
    from classifier.training.minutes import choose_epochs
    from classifier.training.preparation import begin_run, prepare, resume_run, say_what_differs

    started = time.monotonic()
    prepare(settings)
    with new_or_resumed(output, run) as folder:
        sets = read_data(settings, output / ".cache", run)
        settings = settings.replace(epochs=settings.epochs or epochs_for(len(sets.train)))
        if run is None:
            run = begin_run(folder, settings, sets)
        else:
            resume_run(run, settings, sets)
        if settings.minutes and not run.has_checkpoints():
            choose_epochs(run, sets, make_train_step, started + 60 * settings.minutes)
        say_header(run, sets)
        say_what_differs(run.record)
        state = train_phases(run, sets)
        if workers.is_chief():
            print_closing(run, state, confusion=finish(run, state))
    return state.history.rows


def read_data(settings: Settings, cache_dir: Path, run: Run | None):
    """Find, check, decode and split the images: TrainSets."""
    from classifier.training.preparation import near_copies_among
    from dataset import read_images, split_images

    images = read_images(settings, cache_dir)
    near_copies = near_copies_among(images.data, settings, cache_dir, run)  # they stay on one side
    return split_images(images, settings, near_copies)


def train_phases(run: Run, sets):
    """Train all of a network, or first a new head on a frozen pretrained network and then, if asked for, its last layers."""
    from classifier.training.phases import FINE_TUNED, check_checkpoints, end_head, fine_tuning_phase, first_phase

    check_checkpoints(run)
    if not run.checkpoints(FINE_TUNED):
        state = train_phase(run, first_phase(run.record.settings), sets)
        if state.phase.is_head:
            end_head(run, state.epoch, len(sets.train))  # --fine-tune auto chooses here
    if run.record.settings.fine_tune:
        state = train_phase(run, fine_tuning_phase(run.record.settings, run.record.head_epochs), sets)
    return state


def train_phase(run: Run, phase, sets):
    """The loop over the epochs of a phase, from its newest checkpoint to its end. Returns its state."""
    from classifier.networks.by_name import enough_memory
    from classifier.training.curves import Watcher
    from classifier.training.log import epoch_line, say_phase
    from classifier.training.saving import Saver
    from classifier.training.state import TrainingState

    with enough_memory():
        state = TrainingState(run, phase, sets)
        state.restore()
    saver, watcher, train_step = Saver(state), Watcher(run, sets), make_train_step(state)
    if phase.unfrozen and not run.checkpoints(phase.name):
        saver.save()  # its first epoch may overwrite the selected weights, with which it begins
    if state.epoch != run.record.epochs:  # it was killed between the checkpoint and the record
        saver.record_epochs()
    say_phase(state)
    watcher.begin_phase(state)
    with enough_memory(), saver.listening():
        while not state.has_ended():
            started = time.monotonic()
            row = train_epoch(state, train_step, saver) | validate(state, saver)
            selected = saver.finish_epoch(row | {"seconds": time.monotonic() - started})
            if not phase.is_head or state.epoch % 10 == 0 or state.has_ended():  # those of a head are short
                show(epoch_line(state.history.rows[-1], phase.last, selected))
            watcher.after_epoch(state)
        saver.leave_if_asked()  # if a signal came while the last epoch was saved
    watcher.draw_curves(state)
    return state


def train_epoch(state, train_step, saver) -> dict:
    """Train on the batches that are left of this epoch; returns the training half of a row of the history."""
    started, first = time.monotonic(), int(state.step)
    title = f"epoch {state.epoch + 1}/{state.phase.last}"
    with state.precision(), saver.finite(), progress(title, state.steps) as advance:
        advance(first)
        for images, labels in state.batches_from(first):  # (n, size, size, 3) uint8, (n,) int32
            train_step(images, labels)
            state.step.assign_add(1)
            advance()
            saver.save_if_due()
    num_images = len(state.sets.train)
    loss, accuracy = state.sums.numpy() / num_images
    speed = max(num_images - first * state.batch_size, 0) / (time.monotonic() - started)
    rate = state.optimizer.learning_rate()
    return {"epoch": state.epoch + 1, "loss": loss, "accuracy": accuracy, "images_per_second": speed, "learning_rate": rate}


def make_train_step(state):
    """One step of training as a graph: `train_step(images, labels)` of a batch, (n, …) and (n,) int32.

    It minimizes the cross-entropy, with smoothed labels (Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", 2016) and weighted classes if the settings say so, and adds the cross-entropies and the number of correct
    predictions to state.sums. On several devices each takes its share of the batch: see on_devices().
    """
    import tensorflow as tf

    from classifier.cluster.devices import of_whole_batch, on_devices
    from classifier.training.saving import NOT_FINITE

    network, strategy, smoothing = state.network, state.strategy, state.settings.label_smoothing

    def step_of_device(images, labels):
        labels, counts, batch_size = of_whole_batch(labels)
        weights = counts if state.class_weights is None else counts * tf.gather(state.class_weights, labels)
        with tf.GradientTape() as tape:
            logits = tf.cast(network(images, training=True), tf.float32)  # (n, classes)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)  # (n,)
            uniform = tf.reduce_logsumexp(logits, axis=1) - tf.reduce_mean(logits, axis=1)  # if any class were right
            smoothed = (1 - smoothing) * losses + smoothing * uniform if smoothing else losses
            loss = tf.reduce_sum(weights * smoothed) / batch_size
        gradients = tape.gradient(loss, network.trainable_variables)
        state.optimizer.apply(gradients, network.trainable_variables)
        correct = tf.cast(tf.argmax(logits, axis=1, output_type=tf.int32) == labels, tf.float32)
        return tf.cast(tf.stack([tf.reduce_sum(counts * losses), tf.reduce_sum(counts * correct)]), tf.float64)

    images_spec = tf.TensorSpec(network.input_shape, network.inputs[0].dtype)

    @on_devices(strategy, images_spec, tf.TensorSpec((None,), tf.int32))
    def train_step(images, labels):
        results = strategy.reduce("SUM", strategy.run(step_of_device, (images, labels)), axis=None)
        state.sums.assign_add(tf.debugging.check_numerics(results, NOT_FINITE))
        state.update_average()

    return train_step


def validate(state, saver) -> dict:
    """Score every validation image with the averaged weights; returns the validation half of a row of the history.

    With --class-weights balanced its figures are means over the classes, as if all had equally many images.
    """
    import numpy as np

    from classifier.base.metrics import log_softmax

    loss = correct = 0.0
    with progress("validation", len(state.sets.valid)) as advance:
        for images, labels in state.validation_batches():
            scores = log_softmax(state.predict(images))  # (n, classes)
            weights = state.valid_weights[labels]
            loss -= (weights * scores[np.arange(len(labels)), labels]).sum()
            correct += (weights * (scores.argmax(axis=1) == labels)).sum()
            advance(len(labels))
            saver.save_if_due()
    loss, correct = workers.sum_of_all(loss, correct)
    if not np.isfinite(loss):
        saver.stop_not_finite(f"the validation loss is infinite or NaN after epoch {state.epoch + 1}")
    num_images = len(state.sets.valid)
    return {"val_loss": loss / num_images, "val_accuracy": correct / num_images}


def finish(run: Run, state):
    """Fit temperature and OOD threshold to the selected weights, and export them for prediction.

    Returns the confusion matrix of validation images: see calibrate().
    """
    from classifier.export.converters import export_for_prediction
    from classifier.networks.by_name import enough_memory
    from classifier.runs.checkpoints import load_selected, save_ood
    from classifier.training.calibration import calibrate

    load_selected(run, state.whole_average)
    with enough_memory():
        temperature, ood, fitted, confusion = calibrate(state)
    save_ood(run, fitted, run.record.selected["epoch"])
    run.update(temperature=temperature, ood=ood, selected_digest=run.selected_digest(), finished=True)
    export_for_prediction(run, state.sets.valid)
    return confusion


if __name__ == "__main__":
    console.run(main)
