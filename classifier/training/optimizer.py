"""How weights are updated: AdamW, its learning-rate schedule, and the precision of training steps."""

import contextlib

import keras
import tensorflow as tf

from classifier.base import cpu


def learning_rate_schedule(lr, steps):
    """The learning rate of each step: warm-up to `lr` in the first twentieth of the steps, then cosine decay to 0."""
    warmup = max(steps // 20, 1)
    decay = max(steps - warmup, 1)
    return keras.optimizers.schedules.CosineDecay(lr / warmup, decay, warmup_target=lr, warmup_steps=warmup)


def constant_after_warmup(lr, warmup):
    """A learning rate that grows to `lr` in `warmup` steps and stays there."""
    return keras.optimizers.schedules.CosineDecay(lr / warmup, 1, alpha=1.0, warmup_target=lr, warmup_steps=warmup)


class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW, but with one fused operation of TensorFlow for each weight tensor instead of a dozen.

    There is no weight decay of biases, nor of the scale and offset of batch normalization.
    """

    def __init__(self, learning_rate, weight_decay=0.0):
        super().__init__(learning_rate, weight_decay)
        self.weight_decay = weight_decay or None  # None: no operations for it at all
        self.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable),
            m=_handle(self._momentums[index]),
            v=_handle(self._velocities[index]),
            grad=gradient,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
        )


def _handle(variable):
    """The handle of a variable of Keras or TensorFlow, on this device."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


def gpus_have_bfloat16():
    """True if all GPUs multiply bfloat16 numbers: from compute capability 8.0 on. None if there is no GPU."""
    gpus = tf.config.list_physical_devices("GPU")
    capabilities = (tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus)
    return all(capability >= (8, 0) for capability in capabilities) if gpus else None


def steps_in_bfloat16(settings):
    """True if training steps with these settings are computed in bfloat16: on devices that have it."""
    on_gpus = gpus_have_bfloat16()
    return settings["mixed_precision"] and (cpu.has_bfloat16() if on_gpus is None else on_gpus)


@contextlib.contextmanager
def bfloat16_layers(wanted):
    """A context in which layers that are made compute in bfloat16, if `wanted`, and for GPUs; yields whether they do.

    On a CPU it is bfloat16() that makes them do so.
    """
    policy, chosen = keras.config.dtype_policy(), bool(wanted and gpus_have_bfloat16())
    if chosen:
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        yield chosen
    finally:
        keras.config.set_dtype_policy(policy)


@contextlib.contextmanager
def bfloat16():
    """A context in which graphs on a CPU compute their convolutions and matrix products in bfloat16.

    Weights, their averages and losses stay float32: mixed precision (Micikevicius et al., "Mixed Precision Training", 2018;
    bfloat16 has float32's range and needs no loss scaling: Kalamkar et al., "A Study of BFLOAT16 for Deep Learning
    Training", 2019).
    """
    name = "auto_mixed_precision_onednn_bfloat16"
    tf.config.optimizer.set_experimental_options({name: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({name: False})
