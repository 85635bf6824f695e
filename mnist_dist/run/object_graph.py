"""The graph of objects in a checkpoint, by which tf.train.Checkpoint finds the arrays.

Our own readers take the arrays by their names and do not read it.
"""

from collections.abc import Iterable, Mapping

from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

# How tf.train.Checkpoint names a variable's value.
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"

# Objects of a Keras model by their path below `tf.train.Checkpoint`, as
# `model/_operations/2/_kernel`, and the array that each takes: None if it has none.
KerasObjects = Mapping[str, str | None]


def create_object_graph(names: Iterable[str], keras_objects: KerasObjects) -> bytes:
    """Describes what a checkpoint holds, for `tf.train.Checkpoint(...).restore`.

    Args:
      names: of the arrays: each is a variable in nested dictionaries.
      keras_objects: further ways to the same arrays, which a Keras model follows.

    Returns:
      A serialized `TrackableObjectGraph`.
    """
    arrays: dict[str, str | None] = {name: name for name in names}
    arrays.update(keras_objects)
    graph = TrackableObjectGraph()
    nodes = {"": graph.nodes.add()}
    for path in arrays:
        above = ""
        for part in path.split("/"):
            parent, above = nodes[above], f"{above}/{part}"
            if above not in nodes:
                parent.children.add(node_id=len(graph.nodes), local_name=part)
                nodes[above] = graph.nodes.add()
    for path, name in arrays.items():
        if name is not None:
            nodes[f"/{path}"].attributes.add(
                name="VARIABLE_VALUE", full_name=name, checkpoint_key=name + SUFFIX
            )
    return graph.SerializeToString()
