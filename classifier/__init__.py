"""What the scripts share. From Python, one name is public; the folder of this project must be on sys.path:

    from classifier import Classifier

    for answer in Classifier("runs/001").predict(["photo.jpg", array]):
        print(answer.predicted_class, answer.probabilities, answer.ood_score)

An array is (height, width, 3) uint8 RGB, of any size.

Python runs this file before any module of the package: here are the settings that OpenCV, TensorFlow and Keras read once,
while they are imported.
"""

import os
import platform
import typing

from classifier.data import MAX_PIXELS

if typing.TYPE_CHECKING:
    from classifier.predicting.classifier import Answer, Classifier

__all__ = ["Answer", "Classifier"]

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


def __getattr__(name: str):
    """What is public is loaded when it is asked for: `--help` of a script has no use for NumPy and OpenCV."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from classifier.predicting import classifier

    return getattr(classifier, name)
