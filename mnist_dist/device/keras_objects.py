"""Where a Keras model keeps its weights, as tf.train.Checkpoint finds them."""

import tensorflow as tf

from mnist_dist.device.train_state import TrainState


def find_keras_objects(state: TrainState) -> dict[str, str | None]:
    """Returns the objects of the model, and the array of a checkpoint that each takes.

    With them in its graph, a checkpoint can be read by
    `tf.train.Checkpoint(model=model).restore(...)`, for a model that is built of the same
    layers in the same order. A weight takes its moving average, if the run keeps one, as
    everything does that reads trained weights.

    Returns:
      `KerasObjects` of `run/object_graph.py`: by paths that begin with `model`, and
      `save_counter`, which `tf.train.Checkpoint` has of its own and looks for.
    """
    prefix = "ema" if state.ema else "model"
    names = {
        id(variable): f"{prefix}/{path}"
        for path, variable in zip(state.weight_paths, state.keras_weights, strict=True)
    }
    found = {
        path: names.get(id(thing)) for path, thing in _walk(state.model).items() if path
    }
    # The same layers, built as a Sequential or as a functional model.
    if any(path.startswith("_functional/") for path in found):
        found |= {p.removeprefix("_functional/"): name for p, name in found.items()}
    elif any(path.startswith("_operations/") for path in found):
        found |= {f"_functional/{path}": name for path, name in found.items()}
    objects = {f"model/{path}": name for path, name in found.items()}
    return objects | {"save_counter": "step"}


def _walk(model: tf.Module) -> dict[str, object]:
    """Returns every object that tf.train.Checkpoint finds, by its shortest path."""
    found, seen, waiting = {}, {id(model)}, [("", model)]
    for path, thing in waiting:
        found[path] = thing
        for name, child in tf.train.TrackableView.children(thing).items():
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append((f"{path}/{name}".removeprefix("/"), child))
    return found
