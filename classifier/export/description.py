"""What an exported network says of itself: classes, input, temperature, inside the LiteRT or ONNX file.

For LiteRT this is what ML Kit, MediaPipe and Android Studio read: TFLITE_METADATA, a flatbuffer with a schema of its own,
in a buffer of the model, and the files that it names, as a ZIP archive behind the model.
"""

import io
import json
import zipfile

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from classifier.runs.record import RunRecord

INPUT = "(n, {0}, {0}, 3) uint8 RGB, upright, with values from 0 to 255; scaling is inside"
OUTPUT = "logits, divided by the temperature already: their softmax is the probability of each class"
OOD_OUTPUT = "out-of-distribution score: an image above ood_threshold is unlike all training images"
LABELS, DESCRIPTION = "labels.txt", "description.json"  # the files behind a LiteRT model
# Numbers that the schema gives: types of files, contents and colour spaces.
DESCRIPTIONS, TENSOR_AXIS_LABELS, FEATURE_PROPERTIES, IMAGE_PROPERTIES, RGB = 1, 2, 1, 2, 1


def description_of(record: RunRecord) -> dict:
    """What a program must know to use an exported network, as a dictionary for JSON."""
    described = {
        "network": record.network,
        "classes": record.classes,
        "image_size": record.image_size,
        "fit": record.fit,
        "input": INPUT.format(record.image_size),
        "output": OUTPUT,
        "temperature": record.temperature or 1.0,
    }
    return described | ({"ood_threshold": record.ood.threshold} if record.ood else {})


def describe_onnx(model, record: RunRecord) -> None:
    """Put the description into an ONNX model, as its metadata properties: text, and all else as JSON."""
    for name, value in description_of(record).items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=name, value=text)


def described_litert(converted: bytes, record: RunRecord) -> bytes:
    """A LiteRT model, as bytes, with its description in it."""
    model = flatbuffer_utils.convert_bytearray_to_object(converted)
    graph = model.subgraphs[0]
    buffer, entry = schema.BufferT(), schema.MetadataT()
    ranks = [len(graph.tensors[index].shape) for index in graph.outputs]
    buffer.data = np.frombuffer(_model_metadata(record, ranks), np.uint8)
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(model))
    with zipfile.ZipFile(file, "a") as archive:  # not compressed: readers map it into memory
        labels = "".join(f"{' '.join(name.splitlines())}\n" for name in record.classes)
        for name, text in ((LABELS, labels), (DESCRIPTION, json.dumps(description_of(record), indent=1))):
            archive.writestr(zipfile.ZipInfo(name), text.encode(errors="replace"))  # a ZipInfo has the same date always
    return file.getvalue()


def _model_metadata(record, ranks):
    """The flatbuffer ModelMetadata; `ranks` are those of the outputs, in their order: logits have two dimensions.

    Tables are written as {number of a field: value}, with the numbers of metadata_schema.fbs, which MediaPipe has:
    ModelMetadata: 0 name, 1 description, 3 subgraph_metadata, 6 associated_files, 7 min_parser_version
    SubGraphMetadata: 2 input_tensor_metadata, 3 output_tensor_metadata
    TensorMetadata: 0 name, 1 description, 3 content, 6 associated_files
    AssociatedFile: 0 name, 1 description, 2 type; Content: 0 type, 1 properties; ImageProperties: 0 color_space
    """
    labels = {0: LABELS, 1: "the classes, in the order of the logits", 2: TENSOR_AXIS_LABELS}
    description = {0: DESCRIPTION, 1: "classes, input, output and temperature as JSON", 2: DESCRIPTIONS}
    features = {0: FEATURE_PROPERTIES, 1: {}}
    image = {0: "image", 1: INPUT.format(record.image_size), 3: {0: IMAGE_PROPERTIES, 1: {0: RGB}}}
    logits = {0: "logits", 1: OUTPUT, 3: features, 6: [labels]}
    ood_scores = {0: "ood_score", 1: OOD_OUTPUT, 3: features}
    described = {
        0: record.network,
        1: f"image classifier; temperature {record.temperature or 1.0:.6g}; see {DESCRIPTION}",
        3: [{2: [image], 3: [logits if rank == 2 else ood_scores for rank in ranks]}],
        6: [description],
        7: "1.0.0",
    }
    builder = flatbuffers.Builder()
    builder.Finish(_offset(builder, described), b"M001")
    return bytes(builder.Output())


def _offset(builder, value):
    """Write a string, a list, or a table as {number of a field: value}, where an integer is one byte; returns its offset."""
    if isinstance(value, str):
        return builder.CreateString(value, errors="replace")
    if isinstance(value, list):
        offsets = [_offset(builder, each) for each in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    fields = {number: each if isinstance(each, int) else _offset(builder, each) for number, each in value.items()}
    builder.StartObject(max(fields, default=-1) + 1)
    for number, field in fields.items():
        if isinstance(value[number], int):
            builder.PrependUint8Slot(number, field, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, field, 0)
    return builder.EndObject()
