r"""Looks at, takes out, puts in and compares the weights of single layers.

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
.keras or .npz file, or a folder of <layer>/<weight>.npy files. `load` and `transplant`
change the newest checkpoint of a run that is not going on: `load` all of the source or
nothing, `transplant` what fits. A new run takes a layer file by `train --init_from`.
"""

import functools
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from mnist_dist.cli import program
from mnist_dist.errors import InputError

if TYPE_CHECKING:
    from mnist_dist.files.arrays import Arrays
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
flags.DEFINE_string("model_dir", None, "Run that is listed or changed.")
flags.DEFINE_string(
    "checkpoint", "latest", "Which checkpoint of a run: latest, best, or a step."
)
flags.DEFINE_bool(
    "use_ema", None, "Take the weights' moving average. Default: if the run kept one."
)
_names("layers", [], "Layers to take, NAME,... Default: all. May be repeated.")
_names("map", [], "FROM:TO,...: layers, and their new names. May be repeated.")
flags.DEFINE_string(
    "output", None, "File to write, F.npz; or a new folder for .npy files."
)
flags.DEFINE_integer(
    "step", None, "Step of the checkpoint that `revert` goes back to.", lower_bound=0
)
flags.DEFINE_enum("format", "table", ["table", "json"], "Form of the results.")

FLAGS = flags.FLAGS


def main(argv: Sequence[str]) -> int:
    """Runs one action; returns the exit code."""
    action = check_flags(argv[1:])
    with program.quiet_imports():
        import tensorflow as tf

    # A training may need all of the GPUs' memory meanwhile.
    tf.config.set_visible_devices([], "GPU")
    action.run()
    return 0


def _list() -> None:
    import numpy as np

    from mnist_dist.layer_weights.layers import layer_of

    (weights,) = _load("from")
    rows = [
        {
            "layer": layer_of(name),
            "weight": name.rpartition("/")[2],
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "norm": float(np.linalg.norm(array.astype(np.float64).ravel())),
            "key": weights.keys[name],
        }
        for name, array in _selected(weights).items()
    ]
    _print({"source": weights.source}, rows)


def _save() -> None:
    (weights,) = _load("from")
    _save_file(weights.source, _selected(weights))


def _transplant() -> None:
    (weights,) = _load("from")
    if FLAGS.output:
        from mnist_dist.layer_weights.transplant import rename_layers

        pairs = _layer_map() or [(layer, layer) for layer in _layers_of(weights)]
        _save_file(weights.source, rename_layers(weights, pairs), pairs)
    else:
        _put_into_run(weights, _layer_map())


def _load_into_run() -> None:
    (weights,) = _load("from")
    # All of them are named, so all must fit.
    _put_into_run(weights, _layer_map() or [(n, n) for n in _layers_of(weights)])


def _put_into_run(weights: "Weights", pairs: list[tuple[str, str]]) -> None:
    from mnist_dist.inference.trained_model import read_checkpoint
    from mnist_dist.layer_weights import transplant
    from mnist_dist.run import history
    from mnist_dist.run.lock import open_for_writing

    history.check_run(FLAGS.model_dir)
    with open_for_writing(FLAGS.model_dir):
        _, arrays = read_checkpoint(FLAGS.model_dir, "latest")
        fit = transplant.fit_layers(
            weights,
            transplant.run_specs(arrays),
            layer_map=pairs,
            target=FLAGS.model_dir,
        )
        before, path = history.replace_latest(
            FLAGS.model_dir, arrays, transplant.replace_weights(arrays, fit.applied)
        )
    _print(
        {
            "source": weights.source,
            "changed": path,
            "before": before,
            "optimizer": "its slots of the applied layers are zero again",
            "accuracy": "that of the weights before is withdrawn from the records",
        },
        transplant.report_fit(fit),
    )


def _diff() -> None:
    from mnist_dist.layer_weights.differences import diff_layers

    first, second = _load("from", "to")
    rows = [row._asdict() for row in diff_layers(first, second)]
    is_same = all(r["num_different"] == 0 and not r["note"] for r in rows)
    _print(
        {
            "from": first.source,
            "to": second.source,
            "equal": "yes" if is_same else "no",
        },
        rows,
    )


def _checkpoints() -> None:
    from mnist_dist.run.history import list_run_checkpoints

    rows = [row._asdict() for row in list_run_checkpoints(FLAGS.model_dir)]
    if FLAGS.format == "table":
        for row in rows:
            row["time"] = time.strftime(
                "%Y-%m-%d %H:%M:%S", time.localtime(row["time"])
            )
            row["is_best"] = "best" if row["is_best"] else ""
    _print({"run": FLAGS.model_dir}, rows)


def _revert() -> None:
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
    "list": _action(_list, "from", "checkpoint use_ema layers"),
    "save": _action(_save, "from output", "checkpoint use_ema layers"),
    "load": _action(_load_into_run, "from model_dir", "checkpoint use_ema layers map"),
    "transplant": _action(
        _transplant, "from", "checkpoint use_ema layers map model_dir output"
    ),
    "diff": _action(_diff, "from to", "checkpoint use_ema"),
    "checkpoints": _action(_checkpoints, "model_dir"),
    "revert": _action(_revert, "model_dir step"),
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
    if FLAGS.output and os.path.basename(FLAGS.output) == ".npz":
        raise InputError(
            f"--output: found {FLAGS.output!r}, a hidden file, expected NAME.npz"
        )
    program.check_checkpoint(FLAGS.checkpoint)
    _layer_map()
    return action


def _layer_map() -> list[tuple[str, str]]:
    """What --map and --layers name, as pairs of a layer's name there and here."""
    pairs = [(layer, layer) for layer in _layers()]
    for text in itertools.chain(*FLAGS.map):
        source, colon, target = text.partition(":")
        if not (source and colon and target) or ":" in target:
            raise InputError(
                f"--map: found {text!r}, expected FROM:TO, a layer's names"
            )
        pairs.append((source, target))
    return pairs


def _layers() -> list[str]:
    return list(itertools.chain(*FLAGS.layers))


def _load(*names: str) -> "list[Weights]":
    """Reads what these flags name.

    Raises:
      InputError: one cannot be read, or --checkpoint or --use_ema choose from none.
    """
    loaded = [_load_one(name) for name in names]
    for flag, kind in (("checkpoint", "a run"), ("use_ema", "a run or its checkpoint")):
        if FLAGS[flag].present and not any(flag in w.choices for w in loaded):
            sources = " and ".join(weights.source for weights in loaded)
            raise InputError(f"--{flag}: found it with {sources}, expected {kind}")
    return loaded


def _load_one(flag: str) -> "Weights":
    from mnist_dist.layer_weights.weight_sources import load_weights

    try:
        return load_weights(
            str(FLAGS[flag].value), checkpoint=FLAGS.checkpoint, use_ema=FLAGS.use_ema
        )
    except InputError as error:
        message = str(error)
        raise InputError(
            message if message.startswith("--") else f"--{flag}: {message}"
        ) from error


def _selected(weights: "Weights") -> "Arrays":
    from mnist_dist.layer_weights.layers import select_layers

    if not _layers():
        return weights.arrays
    return select_layers(weights.arrays, _layers(), where=weights.source)


def _layers_of(weights: "Weights") -> list[str]:
    from mnist_dist.layer_weights.layers import layer_of

    return list(dict.fromkeys(map(layer_of, weights.arrays)))


def _save_file(
    source: str, arrays: "Arrays", pairs: Sequence[tuple[str, str]] = ()
) -> None:
    from mnist_dist.layer_weights.layer_files import save_folder, save_npz

    if FLAGS.output.endswith(".npz"):
        save_npz(arrays, FLAGS.output)
    else:
        save_folder(arrays, FLAGS.output)
    renamed = {target: layer for layer, target in pairs}
    rows = [
        {
            "saved": name,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "from layer": renamed.get(name.rpartition("/")[0], name.rpartition("/")[0]),
        }
        for name, array in arrays.items()
    ]
    _print({"source": source, "output": FLAGS.output}, rows)


def _print(facts: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    if FLAGS.format == "json":
        finite = [
            {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in row.items()
            }
            for row in rows
        ]
        print(json.dumps(dict(facts) | {"rows": finite}, indent=2))
        return
    for name, text in facts.items():
        print(f"{name:<10} {text}")
    if not rows:
        return
    table = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = [f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)]
        if text := "  ".join(cells).rstrip():
            print(text)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    if isinstance(value, list):
        return "x".join(map(str, value)) or "scalar"
    return "" if value is None else str(value)


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
