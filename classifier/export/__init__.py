"""Exports of a trained network. What export.py needs to know of them without importing TensorFlow: what there is."""

import importlib.util

from classifier.runs.folder import LITERT

EXPORTS = {  # format: file, and the packages that it needs
    "litert": (LITERT, ["ai_edge_litert"]),
    "litert-int8": ("model_int8.tflite", ["ai_edge_litert"]),
    "onnx": ("model.onnx", ["tf2onnx", "onnxruntime"]),
    "savedmodel": ("saved_model", []),
    "html": ("model.html", ["ai_edge_litert"]),
}


def missing_packages(name: str) -> list[str]:
    """The packages that an export needs and that are not installed."""
    return [package for package in EXPORTS[name][1] if importlib.util.find_spec(package) is None]
