r"""Lists, saves, loads, transplants and compares the weights of single layers.

  python -m mnist_dist.weights list --from=runs/mlp
  python -m mnist_dist.weights save --from=runs/mlp --layers=dense_layer_1 --output=F.npz
  python -m mnist_dist.weights transplant --from=runs/mlp \
      --map=dense_layer_1:features --output=features.npz
  python -m mnist_dist.weights load --from=F.npz --model_dir=runs/other
  python -m mnist_dist.weights transplant --from=runs/mlp --model_dir=runs/other
  python -m mnist_dist.weights diff --from=runs/mlp --to=runs/other
  python -m mnist_dist.weights checkpoints --model_dir=runs/mlp
  python -m mnist_dist.weights revert --model_dir=runs/mlp --step=1000

--from and --to take a run, a checkpoint (RUN/checkpoints/ckpt-100), a SavedModel, a
.keras or .npz file, or a folder of <layer>/<weight>.npy files.

`load` and `transplant` change the newest checkpoint of a run while nothing trains it. `load`
puts in all layers of the source or none, `transplant` those that fit. For a new run use
`train --init_from`.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from mnist_dist.cli import model_flags, program
from mnist_dist.cli.result_tables import format_results
from mnist_dist.errors import InputError

if TYPE_CHECKING:
    from mnist_dist.layer_weights.weight_sources import Weights

# Of a list given twice absl would keep the last, in silence.
_names = functools.partial(
    flags.DEFINE_multi, flags.ListParser(), flags.CsvListSerializer(",")
)
flags.DEFINE_string(
    "from",
    None,
    "Where weights come from: a run, checkpoint, SavedModel, .keras or layer file.",
)
flags.DEFINE_string("to", None, "What `diff` compares --from with.")
model_flags.define_run("Run that is listed or changed.")
_names("layers", [], "Layers to take, NAME,... Default: all. May be repeated.")
_names("map", [], "FROM:TO,...: layers, and their new names. May be repeated.")
flags.DEFINE_string(
    "output",
    None,
    "File to write, F.npz or, for Keras, F.weights.h5; or a new folder for .npy files.",
)
flags.DEFINE_integer(
    "step", None, "Step of the checkpoint that `revert` goes back to.", lower_bound=0
)
flags.DEFINE_enum("format", "table", ["table", "json"], "Form of the results.")

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Runs one action; returns the exit code."""
    action = check_flags(argv[1:])
    program.import_tensorflow_without_gpus()
    action.run()
    return 0


def list_weights() -> None:
    """Prints what layers a source has."""
    from mnist_dist.layer_weights.layers import summarize_weights

    weights = load("from")
    rows = [row._asdict() for row in summarize_weights(weights, layer_names())]
    print(format_results(FLAGS.format, {"source": weights.source}, rows))


def save() -> None:
    """Writes layers, under other names if asked for, to a file or folder."""
    if FLAGS.output.endswith(".weights.h5"):
        save_for_keras()
        return
    from mnist_dist.layer_weights.layer_files import save_layers
    from mnist_dist.layer_weights.layers import list_layers
    from mnist_dist.layer_weights.transplant import rename_layers

    weights = load("from")
    pairs = layer_map() or [(name, name) for name in list_layers(weights.arrays)]
    arrays = rename_layers(weights, pairs)
    save_layers(arrays, FLAGS.output)
    rows = [
        {
            "saved": name,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "from layer": next(a for a, b in pairs if name.startswith(f"{b}/")),
        }
        for name, array in arrays.items()
    ]
    facts = {"source": weights.source, "output": FLAGS.output}
    print(format_results(FLAGS.format, facts, rows))


def save_for_keras() -> None:
    """Writes all weights of a run to a file for `keras.Model.load_weights`."""
    from mnist_dist.device.train_state import weight_path
    from mnist_dist.layer_weights.keras_weights import save_keras_weights

    trained = save_keras_weights(str(FLAGS["from"].value), FLAGS.output, **choices())
    model = trained.state.model
    rows = [
        {"saved": weight_path(model, v), "shape": list(v.shape), "dtype": v.dtype}
        for v in model.weights
    ]
    facts = {"source": trained.checkpoint, "output": FLAGS.output}
    print(format_results(FLAGS.format, facts, rows))


def transplant() -> None:
    """Puts what fits into a run, or writes layers under other names."""
    if FLAGS.output:
        save()
    else:
        put_into_run(must_fit=False)


def load_into_run() -> None:
    """Puts all layers into a run, or none."""
    put_into_run(must_fit=True)


def put_into_run(*, must_fit: bool) -> None:
    """Puts layers into the newest checkpoint of a run."""
    from mnist_dist.layer_weights.run_layers import transplant_layers
    from mnist_dist.layer_weights.transplant import report_fit

    weights = load("from")
    done = transplant_layers(
        weights, FLAGS.model_dir, layer_map=layer_map(), must_fit=must_fit
    )
    facts = {
        "source": weights.source,
        "changed": done.changed,
        "before": done.before,
        "optimizer": "its slots of the applied layers are zero again",
        "accuracy": "that of the weights before is withdrawn from the records",
    }
    print(format_results(FLAGS.format, facts, report_fit(done.fit)))


def diff() -> None:
    """Prints how far two sources are apart, layer by layer."""
    from mnist_dist.layer_weights.differences import are_equal, diff_layers
    from mnist_dist.layer_weights.weight_sources import load_several

    first, second = load_several([str(FLAGS["from"].value), FLAGS.to], **choices())
    rows = diff_layers(first, second)
    facts = {
        "from": first.source,
        "to": second.source,
        "equal": "yes" if are_equal(rows) else "no",
    }
    print(format_results(FLAGS.format, facts, [row._asdict() for row in rows]))


def list_checkpoints() -> None:
    """Prints all checkpoints of a run."""
    from mnist_dist.run.history import list_run_checkpoints

    rows = [row._asdict() for row in list_run_checkpoints(FLAGS.model_dir)]
    if FLAGS.format == "table":
        for row in rows:
            moment = time.localtime(row["time"])
            row["time"] = time.strftime("%Y-%m-%d %H:%M:%S", moment)
            row["is_best"] = "best" if row["is_best"] else ""
            row["is_set_aside"] = "set aside" if row["is_set_aside"] else ""
    print(format_results(FLAGS.format, {"run": FLAGS.model_dir}, rows))


def revert() -> None:
    """Sends a run back to one of its checkpoints."""
    from mnist_dist.run.history import revert_run

    reverted = revert_run(FLAGS.model_dir, FLAGS.step)
    if FLAGS.format == "json":
        print(json.dumps({"run": FLAGS.model_dir} | reverted._asdict(), indent=2))
        return
    print(f"{FLAGS.model_dir} goes on from step {reverted.step}")
    for path in reverted.set_aside:
        print(f"set aside  {path}, now in a folder later-than-{reverted.step}")
    for path in reverted.stale_exports:
        print(f"still there: export of a later step, {path}")


class _Action(NamedTuple):
    """What one word after `weights` does, and the flags it reads."""

    run: Callable[[], None]
    needs: frozenset[str]
    takes: frozenset[str]


def _action(run: Callable[[], None], needs: str, takes: str = "") -> _Action:
    return _Action(run, frozenset(needs.split()), frozenset(f"{takes} format".split()))


ACTIONS: Mapping[str, _Action] = {
    "list": _action(list_weights, "from", "checkpoint use_ema layers"),
    "save": _action(save, "from output", "checkpoint use_ema layers"),
    "load": _action(load_into_run, "from model_dir", "checkpoint use_ema layers map"),
    "transplant": _action(
        transplant, "from", "checkpoint use_ema layers map model_dir output"
    ),
    "diff": _action(diff, "from to", "checkpoint use_ema"),
    "checkpoints": _action(list_checkpoints, "model_dir"),
    "revert": _action(revert, "model_dir step"),
}


def check_flags(arguments: Sequence[str]) -> _Action:
    """Checks the word after `weights` and its flags; returns what it does.

    Raises:
      InputError: names the flag, what was found and what was expected.
    """
    words = ", ".join(ACTIONS)
    if len(arguments) != 1 or arguments[0] not in ACTIONS:
        raise InputError(
            f"found {' '.join(arguments) or 'no action'!r}, expected one of: {words}"
        )
    name, action = arguments[0], ACTIONS[arguments[0]]
    # `list` and `save` of a run may call it what the other programs do.
    if name in ("list", "save") and FLAGS.model_dir and not FLAGS["from"].value:
        FLAGS["from"].value = FLAGS.model_dir
        FLAGS["model_dir"].present = 0
    for needed in sorted(action.needs):
        if FLAGS[needed].value in (None, ""):
            raise InputError(f"--{needed}: found nothing, expected it for `{name}`")
    for flag in FLAGS.get_key_flags_for_module(__name__):
        if flag.present and flag.name not in action.needs | action.takes:
            raise InputError(f"--{flag.name}: found it with `{name}`, which takes none")
    if name == "transplant":
        program.check_one_of("model_dir", "output")
    program.check_checkpoint(FLAGS.checkpoint)
    if layer_map() and (FLAGS.output or "").endswith(".weights.h5"):
        raise InputError(
            f"--output: found {FLAGS.output} with some layers, expected all of them: "
            "Keras takes the weights of a whole model from it"
        )
    return action


def layer_map() -> list[tuple[str, str]]:
    """Returns what --map and --layers name: a layer's name there and here."""
    pairs = [(layer, layer) for layer in layer_names()]
    for text in itertools.chain(*FLAGS.map):
        source, colon, target = text.partition(":")
        if not (source and colon and target) or ":" in target:
            raise InputError(
                f"--map: found {text!r}, expected FROM:TO, a layer's names"
            )
        pairs.append((source, target))
    return pairs


def layer_names() -> list[str]:
    """Returns what --layers names."""
    return list(itertools.chain(*FLAGS.layers))


def load(flag: str) -> "Weights":
    """Reads the weights of what a flag names."""
    from mnist_dist.layer_weights.weight_sources import load_weights

    try:
        return load_weights(str(FLAGS[flag].value), **choices())
    except InputError as error:
        message = str(error)
        raise InputError(
            message if message.startswith("--") else f"--{flag}: {message}"
        ) from error


def choices() -> dict[str, Any]:
    """Returns which checkpoint and kind of weights are asked for, if any."""
    is_given = FLAGS["checkpoint"].present
    return {
        "checkpoint": FLAGS.checkpoint if is_given else None,
        "use_ema": FLAGS.use_ema,
    }


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
