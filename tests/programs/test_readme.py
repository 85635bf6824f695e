"""The README's length and Python, and the package as the README says to start it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from pages import PAGES, ROOT, find_blocks

from mnist_dist.__main__ import VERBS


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 140


def test_python_of_the_readme_and_of_a_layer_runs(fork_server, tmp_path):
    """All of README, and the three lines of weights.md that set a layer, in one fork."""
    folder = tmp_path / "layers" / "dense_layer_1"
    folder.mkdir(parents=True)
    kernel = np.random.default_rng(1).normal(size=(784, 128)).astype(np.float32)
    np.save(folder / "kernel.npy", kernel)
    np.save(folder / "bias.npy", np.zeros(128, np.float32))
    (layer,) = [b for b in find_blocks("docs/weights.md", "python") if "set_layer" in b]
    program = "\n".join([*find_blocks("README.md", "python"), layer])
    program = program.replace("train_epochs=1", "train_steps=20")
    program += "import numpy as np\nnp.save('found.npy', dense.kernel)\n"
    process = fork_server.start("-c", program, folder=tmp_path)
    assert process.wait() == 0, process.stderr()
    assert (tmp_path / "runs/python/export/20/saved_model.pb").exists()
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), kernel)


def test_model_in_the_working_directory_is_found_by_the_console_script(tmp_path):
    model, _ = find_blocks("docs/make_it_yours.md", "python")
    (tmp_path / "mine.py").write_text(model)
    script = Path(sys.executable).parent / "mnist-dist"
    flags = ["--model_dir=run", "--train_steps=2", "--noexport", "--noprogress"]
    result = subprocess.run(
        [sys.executable, script, "train", "--model=mine:create", *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # this checkout's package
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoints" / "ckpt-2.index").exists()


def test_verbs_are_dispatched():
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "mnist_dist", *arguments],
            capture_output=True,
            text=True,
        )

    assert "train" in run("--help").stdout
    assert run("--version").stdout.startswith("mnist-dist 0.")
    wrong = run("trian")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        f"mnist-dist: error: found verb 'trian', expected {', '.join(VERBS)}\n"
    )
    without_directory = run("train")
    assert without_directory.returncode == 2
    assert without_directory.stderr.count("\n") == 1


def test_wheel_holds_the_data_and_trains_outside_the_checkout(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert sum(name.endswith("-ubyte.gz") for name in names) == 4
    assert not any(name.startswith(("tests/", "tools/")) for name in names)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "mnist_dist",
            "train",
            "--model=mlp",
            "--train_steps=20",
            f"--model_dir={tmp_path}/run",
            "--noprogress",
        ],
        cwd=tmp_path / "site",
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "run" / "export" / "20" / "saved_model.pb").exists()
