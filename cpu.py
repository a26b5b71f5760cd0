"""The CPU: its name, what it computes with, and training steps in bfloat16 where it has instructions for that."""

import contextlib
import os
import platform
import re
from pathlib import Path

# TensorFlow is imported inside the function that uses it: what a CPU is, is known at once.

CPU_INFO = Path("/proc/cpuinfo")  # of Linux
# The instruction sets that oneDNN tells apart, the widest last: its names, and the flag of a CPU that has one.
INSTRUCTION_SETS = {
    "SSE41": "sse4_1", "AVX": "avx", "AVX2": "avx2", "AVX2_VNNI": "avx_vnni", "AVX2_VNNI_2": "avx_ne_convert",
    "AVX512_CORE": "avx512dq",
    "AVX512_CORE_VNNI": "avx512_vnni", "AVX512_CORE_BF16": "avx512_bf16", "AVX512_CORE_FP16": "avx512_fp16",
    "AVX512_CORE_AMX": "amx_bf16",
}  # fmt: skip


def name():
    """What the CPU is called; what kind it is, where nobody tells."""
    found = re.search(r"^model name\s*: (.+)$", _cpu_info(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instruction_set():
    """The widest of INSTRUCTION_SETS that oneDNN may use, None where nobody tells: ONEDNN_MAX_CPU_ISA can narrow it."""
    flags, names = _cpu_info().split(), list(INSTRUCTION_SETS)
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    allowed = names[: names.index(limit) + 1] if limit in names else names
    return next((name for name in reversed(allowed) if INSTRUCTION_SETS[name] in flags), None)


def has_onednn():
    """True if TensorFlow computes with oneDNN, see libraries.py."""
    return os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("1", "true")


def has_onednn_as_installed():
    """True if TensorFlow would do so by itself on a CPU with just this instruction_set() (tensorflow/core/util/port.cc)."""
    return instruction_set() not in (None, "SSE41", "AVX", "AVX2", "AVX512_CORE")


def has_bfloat16():
    """True if oneDNN multiplies bfloat16 numbers in hardware; False where nobody tells."""
    names, widest = list(INSTRUCTION_SETS), instruction_set()
    return has_onednn() and widest is not None and names.index(widest) >= names.index("AVX512_CORE_BF16")


def _cpu_info():
    return CPU_INFO.read_text() if CPU_INFO.exists() else ""


@contextlib.contextmanager
def bfloat16():
    """Compute the convolutions and matrix products of graphs called meanwhile in bfloat16.

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
