"""TensorFlow Serving's warm-up file: requests it makes of a model before users do.

The file is a TFRecord of `tensorflow_serving.apis.prediction_log_pb2.PredictionLog`.
These messages are written here field by field, as protocol buffers lay them out, for
the package that defines them brings a gRPC stack along that nothing else needs.
"""

import os
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

FILE_NAME = os.path.join("assets.extra", "tf_serving_warmup_requests")


def save_warmup_requests(
    saved_model_dir: str, requests: Iterable[tuple[str, Mapping[str, np.ndarray]]]
) -> None:
    """Writes the warm-up file of a SavedModel.

    Args:
      saved_model_dir: a version directory, not yet published.
      requests: of each, the signature's name and its inputs; at most 1000.
    """
    path = os.path.join(saved_model_dir, FILE_NAME)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for signature, inputs in requests:
            writer.write(_prediction_log(signature, inputs))


def _prediction_log(signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    model_spec = _field(3, signature.encode())  # ModelSpec.signature_name
    request = _field(1, model_spec)  # PredictRequest.model_spec
    for name, array in inputs.items():
        tensor = tf.make_tensor_proto(array).SerializeToString()
        # PredictRequest.inputs: a map is a list of (key, value).
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))
    predict_log = _field(1, request)  # PredictLog.request
    return _field(6, predict_log)  # PredictionLog.predict_log


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field: number and wire type, length, content."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
