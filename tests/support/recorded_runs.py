"""What runs have recorded, written by hand: `config.json` and `metrics.jsonl` alone."""

import json

GPUS = [f"/job:worker/replica:0/task:0/device:GPU:{i}" for i in range(2)]


def write_run(
    folder,
    *,
    flags=None,
    accuracies=(0.5, 0.75, 0.625),
    starts=(1000.0,),
    reason="all steps are done",
    versions=None,
):
    """Writes a run of three records each; step 10 is reached 4 s after the start."""
    folder.mkdir(parents=True)
    lines = []
    for i, accuracy in enumerate(accuracies, start=1):
        shared = {"step": 10 * i, "epoch": i / 4, "time": 1000.0 + 4 * i}
        train = {"loss": 1 / i, "accuracy": 0.5, "images_per_second": 100.0 * i}
        lines.append({"kind": "train", **shared, **train, "learning_rate": 0.1})
        result = {"loss": 2 / i, "accuracy": accuracy, "split": "test"}
        lines.append({"kind": "eval", **shared, **result, "num_examples": 8})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    config = {
        "settings": {"model": "mlp"},
        "flags": {"model_dir": str(folder), "model": "mlp", "seed": 1} | (flags or {}),
        "resolved": {
            "total_steps": 30,
            "devices": GPUS,
            "num_workers": 1,
            "starts": [{"step": 0, "time": time} for time in starts],
            "ended": reason and {"step": 30, "reason": reason},
        },
        "versions": versions or {"tensorflow": "2.21.0"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
