"""What the scripts share. Python runs this file before any module of the package: here are the settings that OpenCV,
TensorFlow and Keras read once, while they are imported."""

import os
import platform

# A file of a few kilobytes can claim billions of pixels. Pillow refuses a "decompression bomb" at the same limit.
MAX_PIXELS = 178_956_970
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

# oneDNN's convolutions are about twice as fast as TensorFlow's own. TensorFlow uses them by default only on CPUs with
# AVX512_VNNI, AVX512_BF16, AVX_VNNI or AMX (tensorflow/core/util/port.cc).
if platform.machine().lower() in ("x86_64", "amd64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# GPUs take memory as they need it; else TensorFlow takes all.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.pop("TF_USE_LEGACY_KERAS", None)
