"""Trains a recipe of launch/recipes with several seeds: accuracy and seconds.

  python tools/benchmark_recipes.py --recipe=fast_99 --seeds=1-10 [--json=FILE]
  python tools/benchmark_recipes.py --recipe=fast_99 --seeds=101-105 -- \
      --validation_examples=10000 --learning_rate=5e-3

What follows `--` goes to `train`. Each seed is a process of its own, one after another, that
ends without an export. It prints the accuracy of the last evaluation, and the seconds from
the command to the end of training, that evaluation included; then mean, standard deviation
and range. Choose a recipe on validation examples (`--validation_examples`), and use other
seeds for the figure that you publish, which is on the test set.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RECIPE = flags.DEFINE_string(
    "recipe", None, "Name of a file in launch/recipes.", required=True
)
SEEDS = flags.DEFINE_string("seeds", "1-10", "As 1-10, or 1,4,7.")
JSON = flags.DEFINE_string("json", None, "File for the results.")


def parse_seeds(text: str) -> list[int]:
    """Reads numbers and ranges, both ends of which belong to it.

    Raises:
      ValueError: the text is something else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        seeds += range(int(first), int(last if dash else first) + 1)
    if not seeds:
        raise ValueError(f"found no seed in {text!r}")
    return seeds


def train(recipe: str, *, seed: int, more_flags: list[str]) -> dict[str, float]:
    """Trains once in a new directory.

    Returns:
      `seed`; `accuracy` of the last evaluation; and `seconds` to its record.

    Raises:
      subprocess.CalledProcessError: the training failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        model_dir = os.path.join(folder, "run")
        began = time.time()
        subprocess.run(
            [
                *(sys.executable, "-m", "mnist_dist.train", "--noexport"),
                f"--flagfile={os.path.join(_ROOT, 'launch', 'recipes', recipe)}.flags",
                *(f"--model_dir={model_dir}", f"--seed={seed}", *more_flags),
            ],
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": _ROOT},
            check=True,
        )
        with open(os.path.join(model_dir, "metrics.jsonl"), encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
    last = [record for record in records if record["kind"] == "eval"][-1]
    return {
        "seed": seed,
        "accuracy": last["accuracy"],
        "seconds": last["time"] - began,
    }


def summarize(results: list[dict[str, float]]) -> str:
    """Returns a line with the mean, the deviation and the range of the accuracies."""
    accuracies = [result["accuracy"] for result in results]
    seconds = [result["seconds"] for result in results]
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return (
        f"{len(results)} seeds: mean {statistics.mean(accuracies):.3%}, standard "
        f"deviation {deviation:.3%}, {min(accuracies):.2%} to {max(accuracies):.2%}; "
        f"median {statistics.median(seconds):.1f} s "
        f"({min(seconds):.1f}-{max(seconds):.1f})"
    )


def main(argv: list[str]) -> int:
    """Trains with one seed after the other."""
    try:
        seeds = parse_seeds(SEEDS.value)
    except ValueError:
        print(f"--seeds: found {SEEDS.value!r}, expected as 1-10", file=sys.stderr)
        return 2
    results = []
    for seed in seeds:
        result = train(RECIPE.value, seed=seed, more_flags=argv[1:])
        results.append(result)
        print(
            f"seed {seed}: {result['accuracy']:.2%}, {result['seconds']:.1f} s",
            flush=True,
        )
    print(summarize(results))
    if JSON.value:
        with open(JSON.value, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
