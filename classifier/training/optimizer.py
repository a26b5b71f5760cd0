"""How weights are updated: AdamW, its learning-rate schedule, and the precision of training steps."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from classifier.base import cpu
from classifier.runs.settings import Settings


def warmup_and_cosine_decay(lr: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of each step: warm-up to `lr` in the first twentieth of the steps, then cosine decay to 0."""
    warmup = max(steps // 20, 1)
    decay = max(steps - warmup, 1)
    return keras.optimizers.schedules.CosineDecay(lr / warmup, decay, warmup_target=lr, warmup_steps=warmup)


def constant_after_warmup(lr: float, warmup: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning rate that grows to `lr` in `warmup` steps and stays there."""
    return keras.optimizers.schedules.CosineDecay(lr / warmup, 1, alpha=1.0, warmup_target=lr, warmup_steps=warmup)


BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


class AdamW(tf.Module):
    """AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019) with TensorFlow's fused operation.

    Keras' own takes a dozen operations for each weight tensor. There is no weight decay of biases, nor of the scale and
    offset of batch normalization.
    """

    def __init__(self, schedule, weight_decay: float, variables: list):
        """`schedule(step)` is the learning rate of a step, counted from 0; `variables` are Keras' of the network."""
        super().__init__()
        self._schedule, self._weight_decay = schedule, weight_decay
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.iterations = tf.Variable(0, trainable=False, dtype=tf.int64, aggregation=first)  # steps done
        self._momentums, self._velocities = (
            [tf.Variable(tf.zeros(variable.shape), trainable=False) for variable in variables] for _ in range(2)
        )

    def apply(self, gradients: list, variables: list) -> None:
        """Update Keras variables; each of several devices does it with the sum of the gradients of all."""
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            gradients = replica.all_reduce("SUM", gradients)
        lr, step = self._schedule(self.iterations), tf.cast(self.iterations + 1, tf.float32)
        slots = zip(variables, gradients, self._momentums, self._velocities, strict=True)
        for variable, gradient, momentum, velocity in slots:
            handle = variable.value.handle  # of this device
            if self._weight_decay and variable.name not in ("bias", "gamma", "beta"):
                decay = tf.convert_to_tensor(variable.value) * self._weight_decay * lr
                tf.raw_ops.AssignSubVariableOp(resource=handle, value=decay)
            tf.raw_ops.ResourceApplyAdam(
                var=handle,
                m=momentum.handle,
                v=velocity.handle,
                grad=gradient,
                lr=lr,
                beta1=BETA_1,
                beta2=BETA_2,
                epsilon=EPSILON,
                beta1_power=BETA_1**step,
                beta2_power=BETA_2**step,
            )
        self.iterations.assign_add(1)

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedule(self.iterations))


def gpus_have_bfloat16() -> bool | None:
    """True if all GPUs multiply bfloat16 numbers: from compute capability 8.0 on. None if there is no GPU."""
    gpus = tf.config.list_physical_devices("GPU")
    capabilities = (tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus)
    return all(capability >= (8, 0) for capability in capabilities) if gpus else None


def steps_in_bfloat16(settings: Settings) -> bool:
    """True if training steps with these settings are computed in bfloat16: on devices that have it."""
    on_gpus = gpus_have_bfloat16()
    return settings.mixed_precision and (cpu.has_bfloat16() if on_gpus is None else on_gpus)


@contextlib.contextmanager
def bfloat16_layers(wanted: bool) -> Iterator[bool]:
    """A context in which layers that are made compute in bfloat16, if `wanted`, and for GPUs; yields whether they do.

    On a CPU it is bfloat16_graphs() that makes them do so.
    """
    policy, chosen = keras.config.dtype_policy(), bool(wanted and gpus_have_bfloat16())
    if chosen:
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        yield chosen
    finally:
        keras.config.set_dtype_policy(policy)


@contextlib.contextmanager
def bfloat16_graphs() -> Iterator[None]:
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
