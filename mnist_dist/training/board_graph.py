"""The layers of a model, as TensorBoard draws a graph."""

import keras
import numpy as np
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_BLOB_SEQUENCE,
    Summary,
)
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.graph import metadata
from tensorboard.util.tensor_util import make_tensor_proto


def graph_pb(model: keras.Model) -> Summary:
    """Returns a graph with a node for each layer, under its name.

    A node tells the class, the number of parameters and the shape of the output. Layers
    of a model whose class computes in its own way have no edges: Keras does not know them.
    """
    graph = GraphDef()
    layers = list(model._flatten_layers(include_self=False, recursive=False))
    for layer in layers:
        node = graph.node.add(name=layer.name, op=type(layer).__name__)
        for keras_node in layer._inbound_nodes:
            parents = [n.operation for n in keras_node.parent_nodes]
            # A layer may be part of other models too.
            node.input.extend(p.name for p in parents if p in layers)
            for tensor in keras_node.output_tensors:
                shape = node.attr["_output_shapes"].list.shape.add()
                shape.CopyFrom(_describe_shape(tensor.shape))
        count = sum(int(np.prod(v.shape)) for v in layer.weights)
        node.attr["parameters"].CopyFrom(AttrValue(i=count))
    # As an event's `graph_def` is read; an event of its own would outlast its start.
    summary = Summary()
    value = summary.value.add(
        tag=metadata.RUN_GRAPH_NAME,
        tensor=make_tensor_proto([graph.SerializeToString()]),
    )
    value.metadata.plugin_data.plugin_name = metadata.PLUGIN_NAME
    value.metadata.data_class = DATA_CLASS_BLOB_SEQUENCE
    return summary


def _describe_shape(shape: tuple[int | None, ...]) -> TensorShapeProto:
    sizes = [-1 if size is None else size for size in shape]
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])
