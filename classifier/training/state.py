"""The state of a training: all that a checkpoint holds, so that a run is resumed as if it had never stopped."""

import contextlib
import dataclasses
import functools
import math
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from classifier.base import console
from classifier.base.console import StopRequest, UserError, command, say, shell_path
from classifier.base.files import digest_of
from classifier.cluster import workers
from classifier.cluster.devices import create_strategy, outputs_on_devices, share_of_worker
from classifier.data.augmentation import augment
from classifier.networks.by_name import compile_outputs, create_network, extract_features
from classifier.networks.pretrained import load_weights, normalize_by_recent_steps, split_at_features, standardize, unfreeze
from classifier.runs.checkpoints import Saver, load_selected
from classifier.runs.folder import checkpoints_in
from classifier.runs.history import History
from classifier.training.optimizer import (
    AdamW,
    bfloat16,
    bfloat16_layers,
    constant_after_warmup,
    learning_rate_schedule,
    steps_in_bfloat16,
)
from classifier.training.phases import choose_fine_tuning
from classifier.training.settings import AUTO, DEFAULTS, PRETRAINED_NETWORKS, head_epochs

NOT_FINITE = "loss became infinite or NaN"


def make_repeatable(seed):
    """Make the same training give the same weights again, bit for bit."""
    keras.utils.clear_session()  # or layers without a name get another one in each phase
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


class Networks:
    """The networks of a phase and their optimizer, on all devices."""

    def __init__(self, metadata, num_classes, phase, steps, in_bfloat16):
        settings = metadata["settings"]
        self.strategy = create_strategy()
        with self.strategy.scope():
            create = functools.partial(
                create_network,
                metadata["network"],
                settings["image_size"],
                num_classes,
                feature_scales=metadata["feature_scales"],
            )
            with bfloat16_layers(in_bfloat16) as self.has_bfloat16_layers:
                self.whole = create(phase.dropout)
            self.whole_average = create() if settings["ema"] or self.has_bfloat16_layers else self.whole
            if phase.unfrozen:
                unfreeze(self.whole, phase.unfrozen)
            if settings["weights"] == "none":
                normalize_by_recent_steps(self.whole, self.strategy.num_replicas_in_sync > 1)
            # The parts that take a batch: of images, or of features.
            self.feature_extractor, self.trained, self.average = None, self.whole, self.whole_average
            if phase.on_features:
                self.feature_extractor, self.trained = split_at_features(self.whole)
                self.average = split_at_features(self.whole_average)[1]
            schedule = learning_rate_schedule(phase.lr, (phase.last - phase.first) * steps)
            if phase.until_best:
                schedule = constant_after_warmup(phase.lr, steps)
            self.optimizer = AdamW(schedule, phase.weight_decay)
            self.optimizer.build(self.trained.trainable_variables)
        # Of the averaged weights, which predict.
        self.logits = outputs_on_devices(self.strategy, self.average, compile_outputs(self.average))

    def learning_rate(self):
        """The learning rate of the next step."""
        return float(self.optimizer.learning_rate)

    def count_parameters(self):
        """How many parameters are trained, and how many the network has."""
        return sum(math.prod(weight.shape) for weight in self.trained.trainable_weights), self.whole.count_params()


class Training:
    """One phase of a training: its networks, its position in the epochs, and its checkpoints. Call restore() first."""

    def __init__(self, run, metadata, sets, phase):
        self.run, self.sets, self.settings, self.phase = run, sets, metadata["settings"], phase
        self._metadata = metadata
        self._head_epochs = head_epochs(metadata, self.settings) if metadata["feature_scales"] > 1 else 0
        self.batch_size = min(self.settings["batch_size"], len(sets.train))
        if self.batch_size < self.settings["batch_size"]:
            say(f"--batch-size {self.settings['batch_size']} is larger than all training images: using {self.batch_size}")
        self.steps = math.ceil(len(sets.train) / self.batch_size)
        make_repeatable(self.settings["seed"])
        self.networks = Networks(metadata, len(sets.classes), phase, self.steps, self.in_bfloat16)
        self._epoch = tf.Variable(phase.first, dtype=tf.int64)  # epochs done
        self.step = tf.Variable(0, dtype=tf.int64)  # steps done in this epoch
        self.sums = tf.Variable([0.0, 0.0], dtype=tf.float64)  # of losses and of correct predictions in this epoch
        self._saver = Saver(
            run,
            phase.name,
            trained=self.networks.whole,
            network=self.networks.whole_average,
            optimizer=self.networks.optimizer,
            epoch=self._epoch,
            step=self.step,
            sums=self.sums,
            seeds=[state.value for state in self.networks.whole.variables if "seed" in state.path],  # of dropout
        )
        self._stop, self._last_save = StopRequest(), time.monotonic()
        self.class_weights = class_weights(self.settings["class_weights"], sets.train.labels, len(sets.classes))
        self.valid_weights = np.ones(len(sets.classes), np.float32)
        if self.settings["class_weights"] == "balanced":
            self.valid_weights = class_weights("balanced", sets.valid.labels, len(sets.classes))

    def restore(self):
        """Restore the newest checkpoint and the history, or load the weights that the phase begins with.

        Raises UserError for a run that is damaged, or weights that cannot be loaded, and if workers have others than the
        chief.
        """
        is_restored = self._saver.restore()
        if not is_restored:
            if self.phase.first:
                load_selected(self.run, self.networks.whole)
            elif self.settings["network"] in PRETRAINED_NETWORKS:
                load_weights(self.networks.whole, self.settings["weights"])
            self.networks.whole_average.set_weights(self.networks.whole.get_weights())
        # As many images of equal weight would be as informative (Kish's effective sample size).
        effective_size = len(self.sets.valid) ** 2 / (self.valid_weights[self.sets.valid.labels] ** 2).sum()
        self.history = History(self.run, self.epoch, effective_size, self._head_epochs)
        self.history.check(self._metadata)
        if workers.count > 1:
            weights = digest_of(*self.networks.whole.get_weights(), *self.networks.whole_average.get_weights())
            position = f"epoch {self.epoch}, step {int(self.step)}"
            workers.compare(position=position, weights=weights, history=self.history.digest())
        if self.phase.first and not is_restored:  # its first epoch may overwrite the selected weights, with which it begins
            self._save()

    def extract_features(self):
        """From now on train and validate on features, if the phase trains only the head."""
        if self.phase.on_features:
            images, extractor, cache_dir = self.sets.images, self.networks.feature_extractor, self.run.parent / ".cache"
            features = extract_features(images, extractor, cache_dir, self.settings["fit"])
            self.sets = dataclasses.replace(self.sets, images=features)
            if self.phase.until_best:
                standardize((self.networks.whole, self.networks.whole_average), self.sets.train)

    @property
    def epoch(self):
        """How many epochs are done."""
        return int(self._epoch)

    @property
    def is_over(self):
        """True if all epochs of the phase are done."""
        return self.epoch >= self.phase.last

    def training_image_size(self, epoch=None):
        """Side of an epoch's training images: it grows from --start-size to --image-size while the rate is high."""
        start, end = (self.settings[name] for name in ("start_size", "image_size"))
        epoch = self.epoch if epoch is None else epoch
        size = np.interp(epoch, [0, 0.75 * self.settings["epochs"]], [min(start or end, end), end])
        return end if size == end else int(size) // 8 * 8

    def mean_relative_area(self):
        """How many pixels a training image has on average over the epochs, relative to the first epoch."""
        sizes = [self.training_image_size(epoch) for epoch in range(self.settings["epochs"])]
        return np.mean(np.square(sizes)) / sizes[0] ** 2

    @property
    def in_bfloat16(self):
        """True if this phase's steps are computed in bfloat16.

        For a head alone it would not be faster. In fine-tuning, features would differ from those that the head was trained
        on, by half their deviation between images that look alike.
        """
        return steps_in_bfloat16(self.settings) and not (self.phase.on_features or self._head_epochs)

    def precision(self):
        """A context for this phase's steps."""
        return bfloat16() if self.in_bfloat16 and not self.networks.has_bfloat16_layers else contextlib.nullcontext()

    def batches(self):
        """Yield the batches that are left of this epoch, (images, labels); each is counted as done when the next is wanted.

        Saves a checkpoint every --save-minutes. Leaves if a signal came, after saving one.
        """
        first = int(self.step)
        with console.progress(f"epoch {self.epoch + 1}/{self.phase.last}", self.steps) as advance:
            advance(first)
            for batch in self.batches_from(first):
                yield batch
                self.step.assign_add(1)
                advance()
                self._save_if_due()

    def batches_from(self, first):
        """Yield the batches of this epoch from `first` on, as they are, (images, labels): this worker's share of each."""
        augmented = self.settings["augment"] and not self.phase.on_features
        view = functools.partial(augment, size=self.training_image_size()) if augmented else None
        return self.sets.train.batches(self.batch_size, self.settings["seed"], self.epoch, first, view, share_of_worker())

    def validation_batches(self):
        """Yield the batches of all validation images, (images, labels), this worker's share of each; see batches()."""
        with console.progress("validation", len(self.sets.valid)) as advance:
            for images, labels in self.sets.valid.batches(self.batch_size, share=share_of_worker()):
                yield images, labels
                advance(len(labels))
                self._save_if_due()

    @contextlib.contextmanager
    def finite(self):
        """A context for steps in which a loss that is not finite ends the training, see make_train_step(), with advice."""
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            if NOT_FINITE not in error.message:
                raise
            number = int(self.step)
            paths = self.sets.train.paths_of_batch(number, self.batch_size, self.settings["seed"], self.epoch)
            say(f"images of this step: {', '.join(map(str, paths))}")
            self.stop_not_finite(f"the {NOT_FINITE} in epoch {self.epoch + 1}, step {number + 1} of {self.steps}")

    def stop_not_finite(self, what):
        """Raise UserError: `what` is not finite, in words, and how to go on."""
        flag = "--fine-tune-lr" if self.phase.unfrozen else "--lr"
        newest = checkpoints_in(self.run / "checkpoints" / self.phase.name)
        again = f"--resume, from {shell_path(newest[0])}" if newest else "start a new training"
        raise UserError(f"{what}: {again}, with a lower {flag} than {self.phase.lr}")

    def finish_epoch(self, row):
        """Save the history with this row, the weights if they are selected now, and a checkpoint; True if they are.

        In this order: a run that is killed in between does the epoch again, with the same result.
        """
        self.history.append(workers.of_chief(lambda: row))
        is_selected = self.history.selected() is self.history.rows[-1]
        if is_selected:
            self._saver.save_selected(row["epoch"])
        self.begin_epoch()
        self._save()
        return is_selected

    def begin_epoch(self):
        """Go to the first step of the next epoch."""
        self._epoch.assign_add(1)
        self.step.assign(0)
        self.sums.assign([0.0, 0.0])

    def results(self):
        """What the metadata records of the training so far."""
        results = {"epochs": self.epoch, "selected": self.history.selected(), "history_digest": self.history.digest()}
        if self.phase.until_best and self.has_ended():
            results["head_epochs"] = self.epoch
        if self.phase.on_features and self.settings["fine_tune"] == AUTO and self.has_ended():
            accuracy = self.history.selected()["val_accuracy"]
            chosen = choose_fine_tuning(self.networks.whole, len(self.sets.train), accuracy)
            said = {name: self.settings[name] for name in chosen if self.settings[name] not in (DEFAULTS[name], AUTO)}
            results |= {"settings": self.settings | chosen | said, "fine_tune_auto": True}
        return results

    def has_ended(self):
        """True if all epochs of the phase are done, or none was better than the ones before for --patience epochs."""
        return self.is_over or self._stops_early()

    def is_worth_a_line(self):
        """True after each epoch of a network, and after every tenth and the last one of a head, which are short."""
        return not self.phase.until_best or self.epoch % 10 == 0 or self.has_ended()

    def _stops_early(self):
        if self._head_epochs and self.phase.unfrozen:
            return False  # at the highest rate it may be worse than the head, and better at the end
        if self.settings["fine_tune"] and not (self.phase.unfrozen or self.phase.until_best):
            return False  # an earlier version trained all epochs of the head
        return self.history.out_of_patience(self.settings["patience"], self.phase.first)

    def listening_to_signals(self):
        """A context in which a signal to stop waits for the end of a step."""
        return self._stop.listening()

    def leave_if_asked(self):
        """Leave if a signal came, to any of the workers; everything must be saved before."""
        self._leave_after(workers.any_of(self._stop.signum))

    def _leave_after(self, signum):
        if signum:
            where = f"in epoch {self.epoch + 1}, after {self.step.numpy()} of {self.steps} steps"
            say(f"stopped {where if self.step.numpy() else f'after epoch {self.epoch}'}; to resume:")
            say(f"  {command('train.py', '--resume', self.run)}")
            sys.exit(console.INTERRUPTED if signum == signal.SIGINT else console.TERMINATED)

    def _save_if_due(self):
        signum = workers.any_of(self._stop.signum)  # once: another may come, which not all workers would know of
        if signum or time.monotonic() - self._last_save > 60 * self.settings["save_minutes"]:
            self._save()
        self._leave_after(signum)

    def _save(self):
        networks = self.networks.whole, self.networks.whole_average
        if not all(np.isfinite(weights).all() for network in networks for weights in network.get_weights()):
            self.stop_not_finite(f"weights became infinite or NaN in epoch {self.epoch + (1 if self.step.numpy() else 0)}")
        self._saver.save(number=self.epoch * (self.steps + 1) + int(self.step))
        self._last_save = time.monotonic()


def class_weights(how, labels, num_classes):
    """What an image of each class counts, (num_classes,) float32, 1 on average over images; None if all count the same.

    `how` is "balanced": all classes count the same; "none"; or "auto": if the largest class has more than three times as
    many images as the smallest, the weights are the square roots of the balanced ones. In trials, accuracy did not fall,
    small classes gained recall, and probabilities stayed calibrated, which balanced weights distort.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if how == "none" or (how == "auto" and counts.max() <= 3 * counts.min()):
        return None
    weights = counts ** (-1.0 if how == "balanced" else -0.5)
    return (weights * len(labels) / (weights * counts).sum()).astype(np.float32)
