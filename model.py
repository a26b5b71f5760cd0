"""The network, and how its weights are saved and restored."""

import contextlib
import shutil

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from console import NO_DATA, UserError, describe, say
from runs import checkpoints_in

keras.config.set_floatx("float32")  # whatever the user's ~/.keras/keras.json says
keras.config.set_image_data_format("channels_last")
tf.get_logger().setLevel("ERROR")  # not a page about each checkpoint that doesn't fit

# --- The network ------------------------------------------------------------------------------------------------------


def create_weights():
    """How weights start: a normal distribution with σ = 0.05, cut off at 2 σ."""
    return keras.initializers.TruncatedNormal(stddev=0.05)


def create_biases():
    """How biases start: a little above zero, so that every ReLU lets something through at first."""
    return keras.initializers.Constant(0.05)


class Bias(layers.Layer):
    """Adds a trainable number to each channel: (n, …, channels) → the same."""

    def build(self, input_shape):
        self.bias = self.add_weight(name="bias", shape=(input_shape[-1],), initializer=create_biases())

    def call(self, inputs):
        return inputs + self.bias


def create_convolutional_layer(inputs, num_filters, name):
    """3×3 convolution, 2×2 max-pooling, bias, ReLU: (n, h, w, channels) → (n, h // 2, w // 2, num_filters).

    The bias comes behind the pooling: max(x) + b is max(x + b), with a quarter of the additions and of their gradients.
    """
    maps = layers.Conv2D(
        num_filters, 3, padding="same", use_bias=False, kernel_initializer=create_weights(), name=name
    )(inputs)
    maps = layers.MaxPooling2D(2, name=f"{name}_pool")(maps)
    maps = Bias(name=f"{name}_bias")(maps)
    return layers.ReLU(name=f"{name}_relu")(maps)


def create_flatten_layer(inputs):
    """(n, h, w, channels) → (n, h * w * channels)."""
    return layers.Flatten(name="flatten")(inputs)


def create_fc_layer(inputs, num_outputs, name, use_relu=True):
    """Fully connected layer, with ReLU if wanted: (n, features) → (n, num_outputs)."""
    outputs = layers.Dense(
        num_outputs, name=name, kernel_initializer=create_weights(), bias_initializer=create_biases()
    )(inputs)
    return layers.ReLU(name=f"{name}_relu")(outputs) if use_relu else outputs


def create_cnn(image_size, num_classes):
    """Three convolutions and two fully connected layers.

    (n, image_size, image_size, 3) uint8 RGB → (n, num_classes) logits.
    """
    pictures = keras.Input((image_size, image_size, 3), dtype="uint8", name="pictures")
    maps = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(pictures)  # -1 … 1: around 0, training starts sooner
    maps = create_convolutional_layer(maps, 32, "conv1")
    maps = create_convolutional_layer(maps, 32, "conv2")
    maps = create_convolutional_layer(maps, 64, "conv3")
    features = create_flatten_layer(maps)
    features = create_fc_layer(features, 128, "fc1")
    logits = create_fc_layer(features, num_classes, "fc2", use_relu=False)
    return keras.Model(pictures, logits, name="cnn")


NETWORKS = {"cnn": create_cnn}


def create_network(name, image_size, num_classes):
    """The network that a card names. Raises UserError for a name this version does not have."""
    if name not in NETWORKS:
        raise UserError(f"this version has no network {name!r}, only {', '.join(NETWORKS)}", NO_DATA)
    return NETWORKS[name](image_size, num_classes)


class Adam(keras.optimizers.Adam):
    """Keras' Adam, with TensorFlow's one fused operation for each weight tensor instead of a dozen: the same mathematics."""

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


def compile_logits(network):
    """A fast `logits(pictures)`: (n, image_size, image_size, 3) uint8 array → (n, classes) float32 array."""
    signature = tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)
    graph = tf.function(lambda pictures: network(pictures, training=False), input_signature=[signature])

    def logits(pictures):
        if len(pictures) == 0:  # TensorFlow's convolutions refuse an empty batch
            return np.empty((0, network.output_shape[1]), np.float32)
        with enough_memory():
            return graph(tf.constant(pictures)).numpy()

    return logits


@contextlib.contextmanager
def enough_memory():
    """Turn the errors of a machine that is too small into a line with advice."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise UserError("not enough memory: train with a smaller --batch-size or --image-size") from None


# --- Checkpoints ------------------------------------------------------------------------------------------------------


class Saver:
    """Saves checkpoints of a training into its run folder, and finds the newest sound one again.

    `tracked` are the parts of the training to resume, by name; one is `network`, whose weights the best one holds.
    """

    def __init__(self, run, **tracked):
        self._all = tf.train.Checkpoint(**tracked)
        self._weights = tf.train.Checkpoint(network=tracked["network"])
        self._newest = run / "checkpoints" / "newest"
        self._best = run / "checkpoints" / "best"

    def save(self, number):
        """Save everything as the newest checkpoint, `number`; the one before it stays. Raises UserError if it can't."""
        _write(self._all, self._newest, number, keep=2)

    def save_best(self, number):
        """Save the weights as the best so far."""
        _write(self._weights, self._best, number, keep=1)

    def restore(self):
        """Restore the newest sound checkpoint; False if there is none yet."""
        prefixes = checkpoints_in(self._newest)
        return bool(prefixes) and bool(_restore_first_sound(self._all, prefixes))


def _write(checkpoint, folder, number, keep):
    """Write folder/ckpt-<number> and then delete all but the newest `keep`.

    TensorFlow's CheckpointManager would do, but for the state file it keeps: damaged, that is one more way to lose a run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"partial-{number}"  # TensorFlow writes the index in place: killed then, it would be cut off
        checkpoint.write(str(partial))
        for path in sorted(folder.glob(f"{partial.name}.*")):  # the data, and last the index that makes it count
            path.replace(folder / path.name.replace(partial.name, f"ckpt-{number}"))
        for old in checkpoints_in(folder)[keep:]:
            for path in folder.glob(f"{old.name}.*"):
                path.unlink()
    except (tf.errors.OpError, OSError) as error:
        for leftover in folder.glob("partial-*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        reason = describe(error) if isinstance(error, OSError) else error.message.split("\n")[0]
        raise UserError(f"cannot save a checkpoint in {folder} (the last good one is kept): {reason}") from None


def _restore_first_sound(checkpoint, prefixes):
    """Restore the first of `prefixes` that can be read and fits; says which ones could not. Returns it.

    A checkpoint is a TensorFlow tensor bundle: reading it checks every tensor's sum and never runs code.
    """
    for prefix in prefixes:
        try:
            checkpoint.read(str(prefix)).expect_partial().assert_existing_objects_matched()
            return prefix
        except (tf.errors.OpError, OSError, IndexError, ValueError, AssertionError) as error:
            problem = "does not fit the network" if isinstance(error, ValueError | AssertionError) else "is damaged"
            say(f"warning: checkpoint {prefix} {problem}")
    raise UserError(f"no sound checkpoint among {', '.join(map(str, prefixes))}", NO_DATA)


def load_network(run, card):
    """Rebuild the network of a run with its best weights, or its newest where those cannot be read.

    Raises UserError with exit code 3 for a folder that has no sound checkpoint.
    """
    network = create_network(card["network"], card["image_size"], len(card["classes"]))
    prefixes = [*checkpoints_in(run / "checkpoints" / "best"), *checkpoints_in(run / "checkpoints" / "newest")]
    if not prefixes:
        raise UserError(f"{run} has no checkpoint yet", NO_DATA)
    used = _restore_first_sound(tf.train.Checkpoint(network=network), prefixes)
    if used != prefixes[0]:
        say(f"using checkpoint {used} instead")
    return network
