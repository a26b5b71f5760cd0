"""The processors of this machine: the CPU's name, cores and instruction set, and what TensorFlow makes of these."""

import os
import platform
import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")  # of Linux
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")  # of Linux: a folder for each
# The instruction sets that oneDNN knows, the widest last: oneDNN's name, and the CPU's flag in /proc/cpuinfo.
INSTRUCTION_SETS = {
    "SSE41": "sse4_1",
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX2_VNNI": "avx_vnni",
    "AVX2_VNNI_2": "avx_ne_convert",
    "AVX512_CORE": "avx512dq",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_fp16",
    "AVX512_CORE_AMX": "amx_bf16",
}


def name() -> str:
    """The name of the CPU; its architecture where the name is not known."""
    found = re.search(r"^model name\s*: (.+)$", _cpu_info(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instruction_set() -> str | None:
    """The widest of INSTRUCTION_SETS that oneDNN may use, None if unknown: ONEDNN_MAX_CPU_ISA can limit it."""
    flags, names = _cpu_info().split(), list(INSTRUCTION_SETS)
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    allowed = names[: names.index(limit) + 1] if limit in names else names
    return next((name for name in reversed(allowed) if INSTRUCTION_SETS[name] in flags), None)


def has_onednn() -> bool:
    """True if TensorFlow computes with oneDNN, see classifier/__init__.py."""
    return os.environ.get("TF_ENABLE_ONEDNN_OPTS", "").lower() in ("1", "true")


def has_onednn_as_installed() -> bool:
    """True if that is TensorFlow's default for this instruction_set() (tensorflow/core/util/port.cc)."""
    return instruction_set() not in (None, "SSE41", "AVX", "AVX2", "AVX512_CORE")


def has_bfloat16() -> bool:
    """True if oneDNN multiplies bfloat16 numbers in hardware; False if unknown."""
    return has_onednn() and instruction_set() in ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX")


def unused_gpus() -> list[str]:
    """Names of GPUs in this machine that TensorFlow does not find, although nobody has hidden them: [] if it finds any."""
    import tensorflow as tf  # slow to import

    if tf.config.list_physical_devices("GPU") or "CUDA_VISIBLE_DEVICES" in os.environ:
        return []
    found = (re.search(r"Model:[ \t]*(\S.*)", path.read_text()) for path in sorted(NVIDIA_GPUS.glob("*/information")))
    return [model[1].strip() if model else "a GPU of NVIDIA" for model in found]


def _cpu_info():
    return CPU_INFO.read_text() if CPU_INFO.exists() else ""
