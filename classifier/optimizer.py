"""How weights are updated: AdamW, its learning-rate schedule, and the precision of training steps."""

import contextlib

import keras
import tensorflow as tf

from classifier import cpu


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
            var=_handle(variable), m=_handle(self._momentums[index]), v=_handle(self._velocities[index]), grad=gradient,
            lr=learning_rate, beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon,
            beta1_power=self.beta_1**step, beta2_power=self.beta_2**step,
        )  # fmt: skip


def _handle(variable):
    """The handle of a variable of Keras or TensorFlow, on this device."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


def steps_in_bfloat16(settings):
    """True if training steps with these settings are computed in bfloat16: on a CPU that has it."""
    return settings["mixed_precision"] and cpu.has_bfloat16() and not tf.config.list_logical_devices("GPU")


@contextlib.contextmanager
def bfloat16():
    """A context in which graphs compute their convolutions and matrix products in bfloat16.

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
