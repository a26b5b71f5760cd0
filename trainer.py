"""A network in training: its optimizer, what a step does, and all that a run needs to go on as if never stopped."""

import contextlib
import csv
import dataclasses
import functools
import math
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import console
import cpu
from augment import augment
from backbones import BACKBONES, extract_features, load_weights, normalize_by_recent_steps, split_at_features, unfreeze
from calibration import fit_temperature
from checkpoints import Saver, load_best, save_novelty
from console import NO_DATA, UserError, command, csv_text, say, write_whole
from dataset import fitting_batch
from inference import log_probabilities
from metrics import calibration_error
from model import compile_outputs, create_network, with_features
from novelty import Novelty, usual_limit

MOST_JUDGED = 3000  # pictures, of training and of validation, to calibrate with
HISTORY = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "pictures_per_second"]


@dataclasses.dataclass
class Phase:
    """Some epochs of a run that all learn in one way: from scratch, or first a new head, then what is below it."""

    name: str  # of its checkpoints' folder
    first: int  # epochs done before it
    last: int  # epochs done after it
    lr: float
    on_features: bool = False  # learns from the features of a frozen backbone
    unfrozen: str | None = None  # which layers of the backbone learn: those from this one on, or so many of the last


def phases_of(settings):
    """The phases that a run with these settings goes through."""
    epochs, more = settings["epochs"], settings["fine_tune_epochs"]
    if settings["network"] not in BACKBONES or settings["weights"] == "none":
        return [Phase("newest", 0, epochs, settings["lr"])]
    phases = [Phase("newest", 0, epochs, settings["lr"], on_features=True)]
    if settings["fine_tune"]:
        phases.append(Phase("fine-tuning", epochs, epochs + more, settings["fine_tune_lr"], unfrozen=settings["fine_tune"]))
    return phases


def steps_in_bfloat16(settings):
    """True if training steps with these settings are computed in bfloat16: on a CPU that has it."""
    return settings["mixed_precision"] and cpu.has_bfloat16() and not tf.config.list_logical_devices("GPU")


class Training:
    """A network in training: what a step does, and all that has to be saved for the run to go on as if never stopped."""

    def __init__(self, run, card, sets, phase):
        self.run, self.sets, self.settings, self.phase = run, sets, card["settings"], phase
        settings = self.settings
        self.batch_size = min(settings["batch_size"], len(sets.train))
        if self.batch_size < settings["batch_size"]:
            say(f"--batch-size {settings['batch_size']} is more than all training pictures: it is {self.batch_size} now")
        self.steps = math.ceil(len(sets.train) / self.batch_size)

        keras.utils.clear_session()  # or layers without a name of their own get another one in each phase
        keras.utils.set_random_seed(settings["seed"])
        tf.config.experimental.enable_op_determinism()  # the same run again gives the same weights, to the bit
        gpus = tf.config.list_logical_devices("GPU")
        strategy = tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
        with strategy.scope():
            create = functools.partial(create_network, card["network"], settings["image_size"], len(sets.classes))
            self.network = create(settings["dropout"])
            self.average = create() if settings["ema"] else self.network  # the weights averaged over the last steps
            if phase.unfrozen:
                unfreeze(self.network, phase.unfrozen)
            if settings["weights"] == "none":
                normalize_by_recent_steps(self.network)
            learner, self._judged = self.network, self.average
            if phase.on_features:
                (self._features_of, learner), (_, self._judged) = map(split_at_features, (self.network, self.average))
            steps = (phase.last - phase.first) * self.steps
            optimizer = AdamW(rate_schedule(phase.lr, steps), settings["weight_decay"])
            optimizer.build(learner.trainable_variables)
        self._epoch = tf.Variable(phase.first, dtype=tf.int64)  # epochs done
        self._step = tf.Variable(0, dtype=tf.int64)  # steps done in this epoch
        self.sums = tf.Variable([0.0, 0.0], dtype=tf.float64)  # of losses and of right answers in this epoch
        self.train_step = make_train_step(
            strategy, learner, optimizer, self.sums, settings["label_smoothing"],
            balanced_weights(sets.train.labels, len(sets.classes)) if settings["class_weights"] else None,
            self._judged if settings["ema"] else None, settings["ema"],
        )  # fmt: skip
        equal = np.ones(len(sets.classes))
        self._valid_weights = balanced_weights(sets.valid.labels, len(equal)) if settings["class_weights"] else equal
        # So many pictures that count the same would tell as much (Kish's effective sample size).
        self.judged_on = len(sets.valid) ** 2 / (self._valid_weights[sets.valid.labels] ** 2).sum()
        self._logits = compile_outputs(self._judged)
        self._learning = learner.trainable_weights
        self._saver = Saver(
            run, phase.name, trained=self.network, network=self.average, optimizer=optimizer, epoch=self._epoch,
            step=self._step, sums=self.sums,
            seeds=[state.value for state in self.network.variables if "seed" in state.path],  # of dropout
        )  # fmt: skip
        restored = self._saver.restore()
        if not restored:
            self._begin(card)
        self._last_save = time.monotonic()
        self._signal = None
        if phase.first and not restored:  # the first epoch overwrites the best weights, with which this phase begins
            self._save()
        self.history = read_history(run)[: self.epoch]
        if [row["epoch"] for row in self.history] != list(range(1, self.epoch + 1)):
            raise UserError(f"{run / 'history.csv'} does not tell of all {self.epoch} epochs: start a new run", NO_DATA)
        if phase.on_features:
            self.sets = extract_features(sets, self._features_of, run.parent / ".cache")

    def _begin(self, card):
        """The weights that a phase begins with, where there is no checkpoint of it yet."""
        if self.phase.first:
            load_best(self.run, self.network)
        elif card["network"] in BACKBONES:
            load_weights(self.network, self.settings["weights"])
        self.average.set_weights(self.network.get_weights())

    @property
    def epoch(self):
        """How many epochs are done."""
        return int(self._epoch)

    def count_params(self):
        """How many numbers learn in this phase, and how many the network has."""
        return sum(math.prod(weight.shape) for weight in self._learning), self.network.count_params()

    def train_epoch(self):
        """Train on the rest of the current epoch's batches; returns the training half of the history's row."""
        started, first = time.monotonic(), int(self._step)
        augmented = self.settings["augment"] and not self.phase.on_features
        view = functools.partial(augment, size=self.training_size()) if augmented else None
        precision = cpu.bfloat16 if self.in_bfloat16() else contextlib.nullcontext
        batches = self.sets.train.batches(self.batch_size, self.settings["seed"], self.epoch, first, view)
        with precision(), console.progress(f"epoch {self.epoch + 1}/{self.phase.last}", self.steps) as advance:
            advance(first)
            for pixels, labels in batches:
                self.train_step(pixels, labels)
                self._step.assign_add(1)
                advance()
                self._save_if_due()
        loss, accuracy = self.sums.numpy() / len(self.sets.train)
        self._refuse_nonsense(loss)
        speed = max(len(self.sets.train) - first * self.batch_size, 0) / (time.monotonic() - started)
        return {"epoch": self.epoch + 1, "loss": loss, "accuracy": accuracy, "pictures_per_second": speed}

    def in_bfloat16(self):
        """True if this phase's steps are computed in bfloat16; a head alone is quick enough without."""
        return steps_in_bfloat16(self.settings) and not self.phase.on_features

    def training_size(self):
        """Side of this epoch's training pictures: it grows from --start-size to --image-size while the rate is high."""
        start, end = (self.settings[name] for name in ("start_size", "image_size"))
        size = np.interp(self.epoch, [0, 0.75 * self.settings["epochs"]], [min(start or end, end), end])
        return end if size == end else int(size) // 8 * 8

    def validate(self):
        """Score every validation picture; returns the validation half of the history's row.

        With --class-weights its figures are means over the classes, as if they had equally many pictures.
        """
        loss = right = 0
        with console.progress("validation", len(self.sets.valid)) as advance:
            for pixels, labels in self.sets.valid.batches(self.batch_size):
                scores = log_probabilities(self._logits(pixels))  # (n, classes)
                weights = self._valid_weights[labels]
                loss -= (weights * scores[np.arange(len(labels)), labels]).sum()
                right += (weights * (scores.argmax(axis=1) == labels)).sum()
                advance(len(labels))
                self._save_if_due()
        self._refuse_nonsense(loss)
        return {"val_loss": loss / len(self.sets.valid), "val_accuracy": right / len(self.sets.valid)}

    def finish_epoch(self, row):
        """Take a row into the history and save it, the best weights and the newest checkpoint; True if it is best().

        In this order: a run that is killed in between does the epoch again, and comes to the same.
        """
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
        """The history's row of the weights that predict: the last one that is as good as the highest, but for chance.

        As good is what lies in the 95 % interval of the highest validation accuracy: two standard errors, with two right and
        two wrong answers added, so that 40 of 40 right is not certainty (Agresti and Coull, "Approximate Is Better than
        'Exact'", 1998). The highest of many epochs was lucky, too; the later one learnt more.
        """
        highest = self._highest()
        if highest is None:
            return None
        count = self.judged_on + 4
        accuracy = (highest["val_accuracy"] * self.judged_on + 2) / count
        least = accuracy - 2 * math.sqrt(accuracy * (1 - accuracy) / count)
        return [row for row in self.history if row["val_accuracy"] >= least][-1]

    def _highest(self):
        """The first row of the history with the highest validation accuracy; None before the first epoch."""
        return max(self.history, key=lambda row: row["val_accuracy"], default=None)

    def results(self):
        """What the card tells of the training so far."""
        return {"epochs": self.epoch, "best": self.best()}

    def out_of_patience(self):
        """True if --patience epochs of this phase have gone by without a higher validation accuracy."""
        highest = self._highest()
        return bool(highest and 0 < self.settings["patience"] <= self.epoch - max(highest["epoch"], self.phase.first))

    def calibrate(self):
        """What the best network's answers mean, from how it does on validation: what the card is to tell of it.

        {"temperature": see calibration.py, "novelty": {"limit": see novelty.py, "features": their kind, see
        with_features()}}. Saves the Novelty beside the network.
        """
        load_best(self.run, self.average)
        rng = np.random.default_rng(0)
        features, logits, labels = self._judge(self.sets.valid, rng.permutation(len(self.sets.valid))[:MOST_JUDGED])
        self.answers = np.bincount(logits.argmax(axis=1), minlength=len(self.sets.classes))  # how often each class was named
        temperature = fit_temperature(logits, labels)
        errors = []
        for scale in (1.0, temperature):
            probabilities = np.exp(log_probabilities(logits / scale))
            errors.append(calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels))
        say(f"temperature {temperature:.2f}: calibration error on validation {errors[0]:.1%} without, {errors[1]:.1%} with")
        novelty = Novelty(len(self.sets.classes))
        train = self.sets.train
        learnt_features, _, learnt_labels = self._judge(train, some_of_each(train.labels, MOST_JUDGED, rng))
        novelty.fit(learnt_features, learnt_labels)
        save_novelty(self.run, novelty, self.best()["epoch"])
        kind = "last" if self.phase.on_features else "maps"
        parts = np.array_split(features, math.ceil(len(features) / 8))  # what it computes is pictures × classes × features
        limit = usual_limit(np.concatenate([novelty(part) for part in parts]))
        return {"temperature": temperature, "novelty": {"limit": limit, "features": kind}}

    def _judge(self, data_set, positions):
        """(features, logits, labels) of the pictures at these positions, without augmentation: see with_features()."""
        network = self._judged
        if self.phase.on_features:
            outputs = compile_outputs(keras.Model(network.input, (network.input, network.output)))
        else:
            outputs = compile_outputs(with_features(network, "maps"))
        batches = data_set.take(np.sort(positions)).batches(fitting_batch(self.settings["image_size"]))
        parts = [(*outputs(pixels), labels) for pixels, labels in batches]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

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
        self.leave_if_asked()

    def leave_if_asked(self):
        """Leave if a signal came; all has to be saved before."""
        if self._signal:
            where = f"in epoch {self.epoch + 1}, after {self._step.numpy()} of {self.steps} steps"
            say(f"stopped {where if self._step.numpy() else f'after epoch {self.epoch}'}; to go on:")
            say(f"  {command('train.py', '--resume', self.run)}")
            sys.exit(console.INTERRUPTED if self._signal == signal.SIGINT else console.TERMINATED)

    def _save(self):
        self._saver.save(number=self.epoch * (self.steps + 1) + int(self._step))
        self._last_save = time.monotonic()

    def _refuse_nonsense(self, loss):
        if not math.isfinite(loss):
            flag = "--fine-tune-lr" if self.phase.unfrozen else "--lr"
            again = "--resume" if self.phase.unfrozen and self.epoch == self.phase.first else "train anew"
            advice = f"{again}, with a lower {flag} than {self.phase.lr}"
            raise UserError(f"the loss is not a number any more in epoch {self.epoch + 1}: {advice}")


def some_of_each(labels, most, rng):
    """Positions of pictures with these labels, (n,), drawn at random: as many of each label, `most` in all, or one each."""
    order = rng.permutation(len(labels))
    members = [order[labels[order] == label] for label in np.unique(labels)]
    return np.concatenate([positions[: max(most // len(members), 1)] for positions in members])


def rate_schedule(lr, steps):
    """The learning rate of each step: up to `lr` in the first twentieth of the steps, then down along a cosine to 0."""
    warmup = max(steps // 20, 1)
    decay = max(steps - warmup, 1)
    return keras.optimizers.schedules.CosineDecay(lr / warmup, decay, warmup_target=lr, warmup_steps=warmup)


def balanced_weights(labels, num_classes):
    """What each picture of a class counts, (num_classes,) float32, for all classes to count the same; 1 on average."""
    counts = np.bincount(labels, minlength=num_classes)
    return (len(labels) / (num_classes * counts)).astype(np.float32)


def make_train_step(strategy, network, optimizer, sums, label_smoothing=0.0, class_weights=None, average=None, ema=0.0):
    """One step of training as a graph, `step(pixels, labels)`: what `network` takes for n pictures, and (n,) int32.

    It minimizes the cross-entropy, with smoothed labels if `label_smoothing` is above 0 (Szegedy et al., "Rethinking the
    Inception Architecture for Computer Vision", 2016) and weighted by `class_weights`, (classes,), if given. Then it moves
    the weights of the network `average`, if given, towards those of `network`: they keep the part `ema` of what they were.
    It adds to `sums`, (2,) float64, the cross-entropies and the right answers of the batch.
    On several devices each takes its share of the batch, and their gradients are added up.
    """

    def replica_step(pixels, labels):
        size = tf.shape(labels)[0]  # of the whole batch
        device = tf.distribute.get_replica_context()
        devices, counts = device.num_replicas_in_sync, 1.0
        if devices > 1:  # this device takes its share; where none is left for it, a picture that counts nothing
            share = tf.range(device.replica_id_in_sync_group, tf.maximum(size, devices), devices)
            counts = tf.cast(share < size, tf.float32)
            pixels, labels = tf.gather(pixels, share % size), tf.gather(labels, share % size)
        weights = counts if class_weights is None else counts * tf.gather(class_weights, labels)
        with tf.GradientTape() as tape:
            logits = network(pixels, training=True)  # (n, classes)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)  # (n,)
            uniform = tf.reduce_logsumexp(logits, axis=1) - tf.reduce_mean(logits, axis=1)  # if any class were as right
            smoothed = (1 - label_smoothing) * losses + label_smoothing * uniform if label_smoothing else losses
            loss = tf.reduce_sum(weights * smoothed) / tf.cast(size, tf.float32)  # so that the shares' gradients add up
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)
        right = tf.cast(tf.argmax(logits, axis=1, output_type=tf.int32) == labels, tf.float32)
        return tf.cast(tf.stack([tf.reduce_sum(counts * losses), tf.reduce_sum(counts * right)]), tf.float64)

    pixels_spec = tf.TensorSpec(network.input_shape, network.inputs[0].dtype)
    labels_spec = tf.TensorSpec((None,), tf.int32)

    @tf.function(input_signature=[pixels_spec, labels_spec])
    def step(pixels, labels):
        sums.assign_add(strategy.reduce("SUM", strategy.run(replica_step, (pixels, labels)), axis=None))
        if average is not None:
            done = tf.cast(optimizer.iterations, tf.float32)
            kept = tf.minimum(ema, (1 + done) / (10 + done))  # at first the average is over few steps
            for mean, weight in zip(average.weights, network.weights, strict=True):
                mean.assign(weight + kept * (mean - weight))

    return step


class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW, with TensorFlow's one fused operation for each weight tensor instead of a dozen: the same mathematics.

    The decay does not touch biases, nor what batch normalization scales and shifts by.
    """

    def __init__(self, learning_rate, weight_decay=0.0):
        super().__init__(learning_rate, weight_decay)
        self.weight_decay = weight_decay or None  # None: no operations for it at all
        self.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable), m=_handle(self._momentums[index]), v=_handle(self._velocities[index]), grad=gradient,
            lr=learning_rate, beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon,
            beta1_power=self.beta_1**step, beta2_power=self.beta_2**step,
        )  # fmt: skip


def _handle(variable):
    """What TensorFlow's operations know a variable by, be it Keras' or TensorFlow's own, on this device."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


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
