"""The graph of a model's layers."""

import keras
from tensorboard.compat.proto.graph_pb2 import GraphDef

from mnist_dist.training.board_graph import graph_pb


def test_node_is_a_layer_and_edge_its_input():
    inputs = keras.Input((4, 4, 1), name="images")
    flat = keras.layers.Flatten(name="flat")(inputs)
    left = keras.layers.Dense(3, name="left")(flat)
    right = keras.layers.Dense(3, use_bias=False, name="right")(flat)
    total = keras.layers.Add(name="total")([left, right])
    model = keras.Model(inputs, total)
    keras.Model(inputs, keras.layers.Dense(7, name="of_another_model")(total))
    (value,) = graph_pb(model).value
    graph = GraphDef.FromString(value.tensor.string_val[0])
    assert {n.name: (n.op, list(n.input)) for n in graph.node} == {
        "images": ("InputLayer", []),
        "flat": ("Flatten", ["images"]),
        "left": ("Dense", ["flat"]),
        "right": ("Dense", ["flat"]),
        "total": ("Add", ["left", "right"]),
    }
    nodes = {n.name: n for n in graph.node}
    assert [nodes[name].attr["parameters"].i for name in ("left", "right")] == [51, 48]
    (shape,) = nodes["total"].attr["_output_shapes"].list.shape
    assert [dim.size for dim in shape.dim] == [-1, 3]
