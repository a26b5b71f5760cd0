"""The state of a training: all that a checkpoint holds, so that a run is resumed as if it had never stopped."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from classifier.base.console import say
from classifier.base.files import digest_of
from classifier.cluster import workers
from classifier.cluster.devices import create_strategy, outputs_on_devices, share_of_worker
from classifier.networks import PRETRAINED_NETWORKS
from classifier.networks.by_name import compile_outputs, create_network, extract_features
from classifier.networks.pretrained import load_weights, normalize_by_recent_steps, split_at_features, standardize, unfreeze
from classifier.runs.checkpoints import load_selected, restore_first_sound
from classifier.runs.folder import Run
from classifier.runs.history import History
from classifier.training.batches import class_weights, train_batches
from classifier.training.optimizer import (
    AdamW,
    bfloat16_graphs,
    bfloat16_layers,
    constant_after_warmup,
    steps_in_bfloat16,
    warmup_and_cosine_decay,
)
from classifier.training.phases import Phase


class TrainingState:
    """A phase of a training: its networks and optimizer, its position in the epochs, and the history so far.

    `network` is trained on batches of images, or of features, and `average` has its averaged weights, which predict:
    `predict(batch)` → (n, classes) float32 logits. Both are parts of `whole` and `whole_average`, which take images.
    """

    def __init__(self, run: Run, phase: Phase, sets):
        """Create the networks with random weights: see restore(). `sets` are TrainSets."""
        settings = run.record.settings
        self.run, self.phase, self.sets, self.settings = run, phase, sets, settings
        self.batch_size = min(settings.batch_size, len(sets.train))
        if self.batch_size < settings.batch_size:
            say(f"--batch-size {settings.batch_size} is larger than all training images: using {self.batch_size}")
        self.steps = math.ceil(len(sets.train) / self.batch_size)
        # For a head alone bfloat16 would not be faster. In fine-tuning, features would differ from those that the head was
        # trained on, by half their deviation between images that look alike.
        self.in_bfloat16 = steps_in_bfloat16(settings) and not settings.is_pretrained
        keras.utils.clear_session()  # or layers without a name get another one in each phase
        keras.utils.set_random_seed(settings.seed)
        tf.config.experimental.enable_op_determinism()  # the same training gives the same weights again, bit for bit
        self.strategy = create_strategy()
        with self.strategy.scope():
            self._create_networks(len(sets.classes))
            schedule = warmup_and_cosine_decay(phase.lr, (phase.last - phase.first) * self.steps)
            if phase.is_head:
                schedule = constant_after_warmup(phase.lr, self.steps)
            self.optimizer = AdamW(schedule, phase.weight_decay, self.network.trainable_variables)
        self.predict = outputs_on_devices(self.strategy, self.average, compile_outputs(self.average))
        self._epoch = tf.Variable(phase.first, dtype=tf.int64)  # epochs done
        self.step = tf.Variable(0, dtype=tf.int64)  # steps done in this epoch
        self.sums = tf.Variable([0.0, 0.0], dtype=tf.float64)  # of losses and of correct predictions in this epoch
        self.checkpoint = tf.train.Checkpoint(
            trained=self.whole,
            network=self.whole_average,
            optimizer=self.optimizer,
            epoch=self._epoch,
            step=self.step,
            sums=self.sums,
            seeds=[state.value for state in self.whole.variables if "seed" in state.path],  # of dropout
        )
        self.weights_checkpoint = tf.train.Checkpoint(network=self.whole_average)  # what predicts
        self.class_weights = class_weights(settings.class_weights, sets.train.labels, len(sets.classes))
        self.valid_weights = np.ones(len(sets.classes), np.float32)
        if settings.class_weights == "balanced":
            self.valid_weights = class_weights("balanced", sets.valid.labels, len(sets.classes))

    def _create_networks(self, num_classes):
        settings, phase = self.settings, self.phase
        with bfloat16_layers(self.in_bfloat16) as self._has_bfloat16_layers:
            self.whole = create_network(settings.network, settings.image_size, num_classes, phase.dropout)
        self.whole_average = self.whole
        if settings.ema or self._has_bfloat16_layers:
            self.whole_average = create_network(settings.network, settings.image_size, num_classes)
        if phase.unfrozen:
            unfreeze(self.whole, phase.unfrozen)
        elif settings.network in PRETRAINED_NETWORKS and not settings.is_pretrained:
            normalize_by_recent_steps(self.whole, self.strategy.num_replicas_in_sync > 1)
        self._feature_extractor, self.network, self.average = None, self.whole, self.whole_average
        if phase.is_head:
            self._feature_extractor, self.network = split_at_features(self.whole)
            self.average = split_at_features(self.whole_average)[1]

    def restore(self) -> None:
        """Restore the newest checkpoint and the history, or load the weights that the phase begins with.

        A head then trains on features of the images. Raises UserError for a run that is damaged, or weights that cannot be
        loaded, and if workers have others than the chief.
        """
        prefixes, settings, record = self.run.checkpoints(self.phase.name), self.settings, self.run.record
        if prefixes:
            restore_first_sound(self.checkpoint, prefixes)
        else:
            if self.phase.unfrozen:
                load_selected(self.run, self.whole)
            elif settings.network in PRETRAINED_NETWORKS:
                load_weights(self.whole, settings.weights)
            self.whole_average.set_weights(self.whole.get_weights())
        # As many images of equal weight would be as informative (Kish's effective sample size).
        effective_size = len(self.sets.valid) ** 2 / (self.valid_weights[self.sets.valid.labels] ** 2).sum()
        head_epochs = (record.head_epochs or settings.epochs) if settings.is_pretrained else 0
        self.history = History(self.run, self.epoch, effective_size, head_epochs)
        if workers.count > 1:
            weights = digest_of(*self.whole.get_weights(), *self.whole_average.get_weights())
            position = f"epoch {self.epoch}, step {int(self.step)}"
            workers.compare(position=position, weights=weights, history=self.history.digest())
        if self.phase.is_head:
            features = extract_features(self.sets.images, self._feature_extractor, self.run.cache, settings.fit)
            self.sets = dataclasses.replace(self.sets, images=self.sets.images.with_features(*features))
            standardize((self.whole, self.whole_average), self.sets.train)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return int(self._epoch)

    def begin_epoch(self) -> None:
        """Go to the first step of the next epoch."""
        self._epoch.assign_add(1)
        self.step.assign(0)
        self.sums.assign([0.0, 0.0])

    def has_ended(self) -> bool:
        """True if all epochs of the phase are done, or none was better than the ones before for --patience epochs.

        Fine-tuning does all of them: at the highest rate it may be worse than the head, and better at the end.
        """
        patience = 0 if self.phase.unfrozen else self.settings.patience
        return self.epoch >= self.phase.last or 0 < patience <= self.history.epochs_without_gain(self.phase.first)

    def batches_from(self, first: int) -> Iterator:
        """The batches of this epoch from batch `first` on: see train_batches()."""
        augmented = not self.phase.is_head
        return train_batches(self.sets.train, self.settings, self.epoch, self.batch_size, augmented, first)

    def validation_batches(self) -> Iterator:
        """The batches of all validation images, (images, labels); of several workers, this one's share of each."""
        return self.sets.valid.batches(self.batch_size, share=share_of_worker())

    def update_average(self) -> None:
        """Move the averaged weights a little towards the present ones, with decay --ema; a part of the graph of a step."""
        if self.whole_average is self.whole:
            return
        done = tf.cast(self.optimizer.iterations, tf.float32)
        decay = tf.minimum(self.settings.ema, (1 + done) / (10 + done))  # lower at first: an average over few steps
        for mean, weight in zip(self.average.weights, self.network.weights, strict=True):
            if weight.dtype == "float32":  # not the counter of a Normalization layer
                mean.assign(weight + decay * (mean - weight))

    def precision(self) -> contextlib.AbstractContextManager:
        """A context for this phase's steps: in bfloat16 on a CPU that has it."""
        on_cpu = self.in_bfloat16 and not self._has_bfloat16_layers
        return bfloat16_graphs() if on_cpu else contextlib.nullcontext()

    def is_finite(self) -> bool:
        """True if no weight is infinite or NaN."""
        networks = self.whole, self.whole_average
        return all(np.isfinite(weights).all() for network in networks for weights in network.get_weights())
