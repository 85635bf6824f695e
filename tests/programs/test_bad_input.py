"""Every bad input, through the real programs.

Each ends with exit code 2 and one line, soon, in little memory, and writes nothing.
What the readers do with any bytes at all is tested beside them.
"""

import gzip
import io
import json
import os
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from run_factory import create_run, export_untrained, save_data_set

MAX_BYTES = 256 << 20  # above what a program takes that ends at its first flag
MAX_CPU_SECONDS = 10
MAX_SIZE = 2**32 - 1


@pytest.fixture(scope="module")
def footprint(fork_server):
    process = fork_server.start("mnist_dist.train")
    assert process.wait() == 2
    return process.peak_bytes


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A data set as npz and as IDX, a run of it with an export, and a picture."""
    path = tmp_path_factory.mktemp("good")
    save_data_set(path / "npz")
    with np.load(path / "npz" / "mnist.npz") as arrays:
        (path / "idx").mkdir()
        for name, key in IDX_FILES.items():
            content = idx(*arrays[key].shape, data=arrays[key].tobytes())
            (path / "idx" / name).write_bytes(content)
        Image.fromarray(arrays["x_test"][0]).save(path / "good.png")
    create_run(path / "run", data_dir=path / "npz")
    export_untrained(path / "run" / "export", image_shape=(6, 5, 3), num_classes=4)
    (path / "file").write_bytes(b"not what you think")
    return path


@pytest.fixture
def run(fork_server, footprint, good, tmp_path):
    """Runs a program on bad input; returns its output and the lines of its error."""

    def files():
        return {
            str(path): None if path.is_dir() else (os.stat(path).st_mtime_ns)
            for folder in (good, tmp_path)
            for path in folder.rglob("*")
            if path.name != ".lock"
        }

    def run(program, *flags, environment=None):
        places = {"GOOD": good, "HERE": tmp_path}
        for name, place in places.items():
            flags = [flag.replace(name, str(place)) for flag in flags]
        before = files()
        process = fork_server.start(
            f"mnist_dist.{program}", *flags, environment=environment
        )
        assert process.wait() == 2, process.stderr()
        assert process.cpu_seconds < MAX_CPU_SECONDS
        assert process.peak_bytes < footprint + MAX_BYTES
        assert files() == before
        lines = process.stderr().splitlines()
        assert all(line.startswith(f"{program}: error: ") for line in lines), lines
        return process.stdout(), lines

    return run


@pytest.fixture
def refuse(run):
    """Asserts that a program says the one thing in one line, with these words."""

    def refuse(program, *flags, words, **kwargs):
        _, lines = run(program, *flags, **kwargs)
        assert len(lines) == 1
        for word in words:
            assert word in lines[0]

    return refuse


# Devices.


@pytest.mark.parametrize(
    "command", [["train", "--model_dir=HERE/run"], ["evaluate", "--model_dir=GOOD/run"]]
)
def test_gpus_that_tensorflow_cannot_use(command, refuse, fork_server, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-5d5b)'\n")
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment["CUDA_VISIBLE_DEVICES"] = "999"  # neither hidden, nor there
    words = ["found GPUs on this host (", "or --num_gpus=0 for the CPU"]
    refuse(*command, words=words, environment=environment)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TF_NUM_INTRAOP_THREADS", "99999999"),
        ("TF_NUM_INTEROP_THREADS", "-1"),
        ("OMP_NUM_THREADS", "many"),
    ],
)
def test_threads(name, value, refuse):
    words = [f"{name}: found {value!r}, expected 0 to 4096"]
    refuse("train", "--model_dir=HERE/run", words=words, environment={name: value})


def test_flag_file_that_would_be_waited_for(refuse, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "names").write_text("# nested\n--flagfile=" + str(tmp_path / "pipe"))
    for name in ("pipe", "names"):
        words = [f"{tmp_path}/pipe: found a named pipe, expected a regular file"]
        refuse("train", "--model_dir=HERE/run", f"--flagfile=HERE/{name}", words=words)


# Data sets.

IDX_FILES = {
    "train-images-idx3-ubyte": "x_train",
    "train-labels-idx1-ubyte": "y_train",
    "t10k-images-idx3-ubyte": "x_test",
    "t10k-labels-idx1-ubyte": "y_test",
}


def idx(*shape, data=b"", type_code=8):
    return struct.pack(f">HBB{len(shape)}I", 0, type_code, len(shape), *shape) + data


def zeros_gzip(head, num_bytes):
    """A gzip file of `head` and then so many zeros, a thousandth of its content."""
    compressor = zlib.compressobj(1, wbits=31)
    parts = [compressor.compress(head)]
    parts += [compressor.compress(bytes(1 << 24)) for _ in range(num_bytes >> 24)]
    return b"".join(parts) + compressor.flush()


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
WHOLE = idx(20, 6, 5, 3, data=bytes(1800))
BAD_IDX = {
    "magic": (IMAGES, b"<html>", "found magic number 0x3c68746d", "expected 0x0000080"),
    "another type": (IMAGES, idx(1, type_code=13), "found values of type float32", "expected unsigned bytes"),
    "empty": (IMAGES, b"", "is empty"),
    "short": (IMAGES, WHOLE[:-1], "found 1799 bytes", "claims 1800"),
    "trailing bytes": (IMAGES, WHOLE + b"x", "trailing bytes after the 1800"),
    "absurd": (IMAGES, idx(*[MAX_SIZE] * 4), f"claims {MAX_SIZE**4} bytes", "at most 20"),
    "absurd labels": (LABELS, idx(MAX_SIZE), f"claims {MAX_SIZE} bytes", "at most 8"),
    "zero dimension": (IMAGES, idx(20, 0, 5, 3), "found shape (20, 0, 5, 3)", "expected no zero"),
    "count": (LABELS, idx(19, data=bytes(19)), "found 19 labels", "expected one for each of the 20 images"),
    "bomb": (f"{IMAGES}.gz", lambda: zeros_gzip(idx(3 << 17, 32, 32), 3 << 27), f"claims {3 << 27} bytes", "at most"),
    "hidden bomb": (f"{IMAGES}.gz", lambda: zeros_gzip(WHOLE, 1 << 28), "trailing bytes after the 1800"),
    "not gzip": (f"{IMAGES}.gz", WHOLE, "not a gzip file, though its name says so"),
    "damaged gzip": (f"{IMAGES}.gz", gzip.compress(WHOLE)[:-9], "damaged gzip data"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IDX)
def test_idx(case, refuse, good, tmp_path):
    name, content, *words = BAD_IDX[case]
    shutil.copytree(good / "idx", tmp_path / "data")
    if name.endswith(".gz"):
        os.remove(tmp_path / "data" / name.removesuffix(".gz"))
    path = tmp_path / "data" / name
    path.write_bytes(content() if callable(content) else content)
    flags = ["--model_dir=HERE/run", "--data_dir=HERE/data"]
    refuse("train", *flags, words=[repr(str(path)), *words])


def npy(array):
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


def npz_of_zeros(good):
    """As the good one, but with 4 GiB of zeros for images."""
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (1 << 22, 32, 32)}
    np.lib.format.write_array_header_1_0(header, claim)
    return replaced_npz(good, x_train=header.getvalue() + bytes(1 << 28))


def replaced_npz(good, **members):
    """The good data set's file with other members; None leaves one out."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(good / "npz" / "mnist.npz") as source,
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for name in source.namelist():
            data = members.get(name.removesuffix(".npy"), source.read(name))
            if data is not None:
                target.writestr(name, data)
    return content.getvalue()


BAD_NPZ = {
    "pickle": ({"x_train": npy(np.array([{}]))}, "x_train: found pickled Python objects"),
    "missing key": ({"y_test": None}, "missing y_test", "found 'x_train'"),
    "dtype": ({"x_train": npy(np.zeros((20, 6, 5), "f4"))}, "x_train: found float32 of shape (20, 6, 5)", "expected images: uint8"),
    "shape": ({"x_train": npy(np.zeros(20, "u1"))}, "x_train: found uint8 of shape (20,)", "expected images"),
    "labels": ({"y_train": npy(np.zeros((20, 4), "u1"))}, "y_train: found uint8 of shape (20, 4)", "expected labels"),
    "count": ({"y_train": npy(np.zeros(19, "u1"))}, "y_train: found 19 labels", "expected one for each of the 20"),
    "other test images": ({"x_test": npy(np.zeros((53, 7, 5, 3), "u1"))}, "training images have the shape (6, 5, 3)", "test images (7, 5, 3)"),
    "bomb": (npz_of_zeros, "x_train: ", "claims", "at most"),
    "not a zip": (lambda good: b"PK\3\4 not one", "not a zip archive"),
    "truncated": (lambda good: replaced_npz(good)[:-30], "not a zip archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz(case, refuse, good, tmp_path):
    content, *words = BAD_NPZ[case]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist.npz").write_bytes(
        content(good) if callable(content) else replaced_npz(good, **content)
    )
    flags = ["--model_dir=HERE/run", "--data_dir=HERE/data"]
    refuse("train", *flags, words=[f"{tmp_path}/data", *words])


@pytest.mark.parametrize("program", ["evaluate", "export"])
def test_data_set_of_another_program(program, refuse, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist.npz").write_bytes(b"")
    flags = ["--model_dir=GOOD/run", "--data_dir=HERE/data"]
    flags += ["--export_dir=HERE/export"] if program == "export" else []
    refuse(program, *flags, words=[f"{tmp_path}/data/mnist.npz", "is empty"])


# The cluster.

TASK = {"type": "worker", "index": 0}
BAD_TF_CONFIG = {
    "bad JSON": ("{", "found '{'", "expected JSON"),
    "deep JSON": ("[" * 100_000, "expected JSON"),
    "no cluster": ({"task": TASK}, "found no cluster", "expected"),
    "no worker": ({"cluster": {}, "task": TASK}, "found no worker"),
    "no task": ({"cluster": {"worker": ["a:1"]}}, "found task None"),
    "index": ({"cluster": {"worker": ["a:1", "b:1"]}, "task": TASK | {"index": 2}}, "found 2", "expected 0 to 1"),
    "text for an index": ({"cluster": {"worker": ["a:1", "b:1"]}, "task": TASK | {"index": "one"}}, "found 'one'", "expected 0 to 1"),
    "odd index": ({"cluster": {"worker": ["a:1", "b:1"]}, "task": TASK | {"index": "²"}}, "found '²'", "expected 0 to 1"),
    "odd type": ({"cluster": {"worker": ["a:1"]}, "task": TASK | {"type": []}}, "found task type []"),
    "twice": ({"cluster": {"worker": ["a:1", "a:1"]}, "task": TASK}, "found a:1 twice", "expected different"),
    "port": ({"cluster": {"worker": ["a:1", "b:one"]}, "task": TASK}, "found 'b:one'", "expected host:port"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TF_CONFIG)
def test_tf_config(case, refuse):
    config, *words = BAD_TF_CONFIG[case]
    text = config if isinstance(config, str) else json.dumps(config)
    refuse(
        *("train", "--model_dir=HERE/run"),
        environment={"TF_CONFIG": text},
        words=["TF_CONFIG", *words],
    )


# Flags.

NEW = "--model_dir=HERE/new"
SMALL = [NEW, "--data_dir=GOOD/npz", "--model=mlp"]
RUN = "--model_dir=GOOD/run"
EXPORT = "--export_dir=GOOD/run/export"
FROM = "--from=GOOD/run"
BAD_FLAGS = [
    ("train", [], "--model_dir: found nothing, expected"),
    ("train", ["--model_dir="], "--model_dir: found nothing, expected"),
    ("train", ["--model_dir=GOOD/file"], "--model_dir: found '", "is no directory"),
    ("train", [*SMALL, "--model_dir=GOOD/file/x"], "--model_dir: found '", "expected a directory"),
    ("train", [NEW, "--no_such"], "no_such"),
    ("train", [NEW, "--lr=1"], "--lr: found an unknown flag, expected --learning_rate"),
    ("train", [NEW, "--batch_size=1"], "--batch_size: found", "expected --global_batch_size"),
    ("train", [NEW, "--epochs=1"], "--epochs: found", "expected --train_epochs"),
    ("train", [NEW, "--gpus=1"], "--gpus: found", "expected --num_gpus"),
    ("train", [NEW, "stray"], "unexpected argument 'stray'"),
    ("train", [NEW, "--helpless"], "helpless"),
    ("train", [NEW, "--noexport=1"], "--noexport=1 does not take an argument"),
    ("train", [NEW, "--flagfile=no/such"], "flagfile", "no/such"),
    ("train", [NEW, "--train_epochs=1", "--train_steps=1"], "--train_epochs and --train_steps: found both"),
    ("train", [NEW, "--train_epochs=0"], "--train_epochs: found 0, expected"),
    ("train", [NEW, "--train_epochs=nan"], "--train_epochs: found nan, expected a finite"),
    ("train", [NEW, "--train_steps=-1"], "--train_steps=-1", "-1 is not an integer in the range"),
    ("train", [NEW, "--train_steps=many"], "--train_steps=many", "invalid literal for int"),
    ("train", [NEW, "--learning_rate=inf"], "--learning_rate: found inf, expected a finite"),
    ("train", [NEW, "--global_batch_size=0"], "--global_batch_size=0", "range [1, "),
    ("train", [NEW, "--global_batch_size=3000000000"], "--global_batch_size=3000000000", "range [1, "),
    ("train", [*SMALL, "--global_batch_size=9", "--logical_cpus=2"], "--global_batch_size: found 9", "multiple of the 2 replicas"),
    ("train", [NEW, "--logical_cpus=100000"], "--logical_cpus=100000", "range [1, 64]"),
    ("train", [NEW, "--logical_gpus=2"], "--logical_gpus: found 2", "the MiB that each"),
    ("train", [NEW, "--logical_gpus=2", "--gpu_memory_limit=9", "--num_gpus=0"], "--num_gpus=0", "expected 1"),
    ("train", [*SMALL, "--logical_gpus=2", "--gpu_memory_limit=9"], "found 2 and no GPU", "expected one to split"),
    ("train", [NEW, "--num_gpus=99"], "--num_gpus: found 99, expected at most"),
    ("train", [NEW, "--seed=4294967296"], "--seed=4294967296", "range [0, 4294967295]"),
    ("train", [NEW, "--optimizer=lion"], "--optimizer=lion", "<sgd|adam|adamw>"),
    ("train", [*SMALL, "--model=resnet"], "--model: found 'resnet', expected mlp, cnn"),
    ("train", [*SMALL, "--model=no_such:thing"], "--model: cannot load 'no_such:thing'", "expected it on PYTHONPATH or in the working directory"),
    ("train", [*SMALL, "--model=.:thing"], "--model: found '.:thing', expected mlp, cnn"),
    ("train", [*SMALL, "--model=os:getcwd"], "--model: 'os:getcwd' takes no image_shape"),
    ("train", [NEW, "--data_dir="], "--data_dir: found nothing, expected"),
    ("train", [NEW, "--data_dir=GOOD/file"], "GOOD/file': found a file, expected a directory, or"),
    ("train", [NEW, "--data_dir=no/such"], "'no/such': cannot list the data directory"),
    ("train", [*SMALL, "--validation_examples=20"], "--validation_examples: found 20, expected 0 to 19"),
    ("train", [NEW, "--restore=newest"], "--restore: found 'newest', expected auto"),
    ("train", [NEW, "--restore=²"], "--restore: found '²', expected auto"),
    ("train", [*SMALL, "--restore=5"], "--restore: found 5, expected", "none"),
    ("train", [*SMALL, "--restore=no/ckpt-5"], "--restore: found 'no/ckpt-5', expected"),
    ("train", [*SMALL, "--init_from="], "--init_from: found nothing, expected"),
    ("train", [*SMALL, "--init_from=no/such"], "--init_from: 'no/such': found nothing, expected"),
    ("train", [*SMALL, "--init_from=GOOD/file"], "--init_from: '", "found another file, expected"),
    ("train", [*SMALL, "--freeze=lost"], "--freeze: found 'lost', expected layers", "dense_layer_1"),
    ("train", [NEW, "--profile_steps=abc"], "--profile_steps: found 'abc', expected"),
    ("train", [NEW, "--profile_steps=20,10"], "--profile_steps: found '20,10', expected"),
    ("train", [*SMALL, "--export_dir=GOOD/file"], "--export_dir: found '", "expected a directory"),
    ("train", [*SMALL, "--dry_run", "--export_dir=GOOD/file/x"], "--export_dir: found '", "expected a directory"),
    ("train", [NEW, "--worker_hosts=", "--task_index=0"], "--worker_hosts: found nothing"),
    ("train", [NEW, "--task_index=0"], "--task_index: found 0 without --worker_hosts"),
    ("evaluate", [], "--model_dir and --export_dir: found neither, expected one"),
    ("evaluate", [RUN, EXPORT], "--model_dir and --export_dir: found both"),
    ("evaluate", [EXPORT, "--export_dir="], "--export_dir: found nothing, expected"),
    ("evaluate", [RUN, "--data_dir="], "--data_dir: found nothing, expected"),
    ("evaluate", ["--model_dir=GOOD/file"], "--model_dir: found no", "file/config.json"),
    ("evaluate", ["--export_dir=GOOD/file"], "GOOD/file': no directory", "expected a SavedModel"),
    ("evaluate", [RUN, "--checkpoint=²"], "--checkpoint: found '²', expected latest, best"),
    ("evaluate", [RUN, "--checkpoint=9"], "--checkpoint: found 9, expected latest, best"),
    ("evaluate", [RUN, "--checkpoint=1", "--watch"], "--checkpoint: found with --watch, expected"),
    ("evaluate", [RUN, "--timeout=nan", "--watch"], "--timeout: found nan, expected a finite"),
    ("evaluate", [RUN, "--timeout=1"], "--timeout: found without --watch, expected"),
    ("evaluate", [RUN, "--split=validation"], "--split: found validation, expected"),
    ("evaluate", [RUN, "--num_gpus=99"], "--num_gpus: found 99, expected at most"),
    ("evaluate", [EXPORT, "--nouse_ema"], "--use_ema: found with --export_dir, expected"),
    ("evaluate", [RUN, "--summary_dir=GOOD/file"], "--summary_dir: found '", "expected a directory"),
    ("export", [], "--model_dir: found nothing, expected"),
    ("export", ["--model_dir=no/such"], "--model_dir: found no no/such/config.json"),
    ("export", [RUN, "--checkpoint=7"], "--checkpoint: found 7, expected"),
    ("export", [RUN, "--checkpoint=best"], "best: found no checkpoint, expected"),
    ("export", [RUN, "--version=-1"], "--version=-1", "range [0, "),
    ("export", [RUN, "--version=1", "--format=keras"], "--version: found 1", "expected none"),
    ("export", [RUN, "--format=pb"], "--format=pb", "<saved_model|keras|tflite|onnx>"),
    ("export", [RUN, "--export_dir="], "--export_dir: found nothing, expected"),
    ("export", [RUN, "--export_dir=GOOD/file"], "--export_dir: found '"),
    ("export", [RUN, "--data_dir=no/such"], "'no/such': cannot list the data directory"),
    ("predict", [RUN], "found no file, expected files"),
    ("predict", ["help.png"], "--model_dir and --export_dir: found neither, expected one"),
    ("predict", [RUN, EXPORT, "a.png"], "--model_dir and --export_dir: found both"),
    ("predict", ["--export_dir=GOOD/file", "a.png"], "GOOD/file': no directory", "expected a SavedModel"),
    ("predict", ["--model_dir=GOOD/npz", "a.png"], "GOOD/npz/export': no directory", "`mnist-dist export --model_dir="),
    ("predict", [RUN, "--top_k=5", "a.png"], "--top_k: found 5, expected at most the 4 classes"),
    ("weights", [], "found 'no action', expected one of: list, save"),
    ("weights", ["lost"], "found 'lost', expected one of: list, save"),
    ("weights", ["list"], "--from: found nothing, expected"),
    ("weights", ["list", "--from=no/such"], "--from: 'no/such': found nothing, expected"),
    ("weights", ["list", FROM, "--step=3"], "--step: found it with `list`"),
    ("weights", ["list", FROM, "--layers="], "--layers: found nothing, expected"),
    ("weights", ["list", FROM, "--layers=lost"], "found no layer 'lost', expected one of: dense_layer_1"),
    ("weights", ["list", FROM, "--checkpoint=-1"], "--checkpoint: found '-1', expected"),
    ("weights", ["save", FROM], "--output: found nothing, expected"),
    ("weights", ["save", FROM, "--output=HERE/.npz"], "/.npz': found a hidden file, expected NAME.npz"),
    ("weights", ["save", FROM, "--output=GOOD/file"], "GOOD/file': found something there, expected"),
    ("weights", ["save", FROM, "--output=GOOD/file/f.npz"], "GOOD/file/f.npz': cannot be written"),
    ("weights", ["save", FROM, "--output=HERE/o", "--layers=../x"], "found the layer name '../x', expected"),
    ("weights", ["save", FROM, "--output=HERE/o", "--layers=x/"], "found the layer name 'x/', expected"),
    ("weights", ["transplant", FROM], "--model_dir and --output: found neither, expected"),
    ("weights", ["transplant", FROM, "--map=a", "--output=HERE/o"], "--map: found 'a', expected FROM:TO"),
    ("weights", ["transplant", FROM, "--map=dense_layer_1:../x", "--output=HERE/o"], "new name: found the layer name '../x', expected"),
    ("weights", ["load", FROM, "--model_dir=no/run"], "--model_dir: found 'no/run' without", "expected"),
    ("weights", ["revert", RUN, "--step=7"], "--step: found 7, expected one of the whole"),
    ("launch", ["--num_workers=x"], "--num_workers=x", "invalid literal for int"),
    ("launch", ["--num_workers=100000000"], "--num_workers=100000000", "range [1, 256]"),
    ("launch", [RUN], "Unknown command line flag 'model_dir'"),
    ("launch", ["--", "--no_such"], "no_such"),
    ("launch", ["--"], "--model_dir: found nothing, expected"),
    ("launch", ["--", NEW, "--learning_rate=nan"], "--learning_rate: found nan, expected"),
    ("launch", ["--", NEW, "--task_index=1"], "--task_index: found one after the --, expected neither"),
    ("launch", ["--", NEW, "stray"], "unexpected argument 'stray'"),
    ("launch", ["--nnodes=2", "--", NEW], "--master_addr: found nothing, expected"),
    ("launch", ["--nnodes=3:2", "--", NEW], "--nnodes: found '3:2'", "as in 2:4"),
    ("launch", ["--nnodes=0:4", "--", NEW], "--nnodes: found '0:4'", "as in 2:4"),
    ("launch", ["--nnodes=many", "--", NEW], "--nnodes: found 'many'", "as in 2:4"),
    ("launch", ["--nnodes=1:4", "--master_addr=a", "--", NEW, "--global_batch_size=48", "--num_microbatches=6"], "--nnodes: found 4", "expected 0 or one of 8, 16"),
    ("launch", ["--rejoin_timeout=5", "--", NEW], "--rejoin_timeout: found it with --nnodes=1", "MIN:MAX"),
    ("launch", ["--min_workers=3", "--", NEW], "--min_workers: found 3 of 2", "1 to 2"),
    ("launch", ["--num_workers=6", "--min_workers=4", "--", NEW, "--global_batch_size=48", "--num_microbatches=6"], "--min_workers: found 4", "one of 4, 8"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "flags", "words"),
    [(program, flags, words) for program, flags, *words in BAD_FLAGS],
    ids=[" ".join([program, *flags]) for program, flags, *_ in BAD_FLAGS],
)
def test_flags(program, flags, words, refuse, good):
    refuse(program, *flags, words=[w.replace("GOOD", str(good)) for w in words])


# Layer files.

KERNEL = "dense_layer_1/kernel"


def layer_zip(*names, data=None):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            array = npy(np.ones(3, np.float32)) if data is None else data
            archive.writestr(f"{name}.npy", array)
    return content.getvalue()


def layer_bomb():
    return layer_zip("a/b", data=npy(np.zeros(1 << 26, np.float32)))


BAD_LAYER_FILES = {
    "up": (layer_zip("../x"), r"found the name '../x', expected <layer>/<weight>"),
    "far up": (layer_zip("a/../../x"), "found the name 'a/../../x', expected"),
    "absolute": (layer_zip("/etc/x"), "found the name '/etc/x', expected"),
    "no layer": (layer_zip("kernel"), "found the name 'kernel', expected"),
    "NUL": (layer_zip("a/bXc").replace(b"bXc", b"b\0c"), r"found the name 'a/b\x00c', expected"),
    "pickle": (layer_zip("a/b", data=npy(np.array([{}]))), "a/b: found pickled Python objects"),
    "text": (layer_zip("a/b", data=npy(np.array(["x"]))), "a/b: found dtype <U1, expected numbers"),
    "bomb": (layer_bomb, "a/b: the header claims 268435456 bytes", "at most"),
    "no zip": (b"no zip", "not an .npz archive"),
    "no weights": (layer_zip(), "found no weights, expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LAYER_FILES)
def test_layer_file(case, refuse, tmp_path):
    content, *words = BAD_LAYER_FILES[case]
    path = tmp_path / "f.npz"
    path.write_bytes(content() if callable(content) else content)
    refuse(
        "weights", "list", f"--from={path}", words=[f"--from: {str(path)!r}", *words]
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "found"),
    [
        ((90, 5), "f4", "float32 [90, 5]"),
        ((90, 128), "f8", "float64 [90, 128]"),
    ],
)
@pytest.mark.parametrize("program", ["train", "weights"])
def test_layer_of_another_form(program, shape, dtype, found, refuse, tmp_path):
    path = tmp_path / "f.npz"
    path.write_bytes(layer_zip(KERNEL, data=npy(np.zeros(shape, dtype))))
    flags = {
        "train": [*SMALL, f"--init_from={path}"],
        "weights": ["load", f"--from={path}", RUN],
    }[program]
    words = [str(path), f"{KERNEL}: found {found}, expected float32 [90, 128]"]
    refuse(program, *flags, words=words)


# SavedModels, and the runs that they come from.


def remove_serving_default(path):
    shutil.rmtree(path)
    module = tf.Module()
    module.other = tf.function(
        lambda x: {"y": x}, input_signature=[tf.TensorSpec([None])]
    )
    tf.saved_model.save(module, str(path), signatures={"other": module.other})


def cut(name):
    return lambda path: os.truncate(path / name, 1000)


def put_pipe(name):
    def put(path):
        os.remove(path / name)
        os.mkfifo(path / name)

    return put


BAD_SAVED_MODELS = {
    "no variables": (lambda path: shutil.rmtree(path / "variables"), "variables"),
    "cut variables": (cut("variables/variables.data-00000-of-00001"), "variables"),
    "cut graph": (cut("saved_model.pb"), "saved_model.pb"),
    "a pipe for its graph": (put_pipe("saved_model.pb"), "found a named pipe, expected a regular file"),
    "a pipe beside its variables": (put_pipe("variables/variables.index"), "found a named pipe, expected a regular file"),
    "a pipe for its card": (put_pipe("model_card.json"), "found a named pipe, expected a regular file"),
    "no serving_default": (remove_serving_default, "found the signatures ['other'], expected serving_default"),
}  # fmt: skip


@pytest.mark.parametrize("program", ["evaluate", "predict"])
@pytest.mark.parametrize("case", BAD_SAVED_MODELS)
def test_saved_model(case, program, refuse, good, tmp_path):
    damage, word = BAD_SAVED_MODELS[case]
    path = tmp_path / "model"
    shutil.copytree(good / "run" / "export" / "0", path)
    damage(path)
    images = ["GOOD/good.png"] if program == "predict" else []
    refuse(program, f"--export_dir={path}", *images, words=[str(path), word])


BAD_CONFIGS = {
    "no JSON": (b"{", "expected the settings of a run, as JSON"),
    "deep JSON": (b"[" * 100_000, "expected the settings of a run, as JSON"),
    "a list": (b"[]", "expected the settings of a run"),
    "no settings": (b"{}", "expected the settings of a run"),
    "no model": (b'{"settings": {}, "flags": {}, "resolved": {}}', "expected the settings"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_run_config(case, refuse, good, tmp_path):
    content, word = BAD_CONFIGS[case]
    shutil.copytree(good / "run", tmp_path / "run")
    (tmp_path / "run" / "config.json").write_bytes(content)
    flags = ["--model_dir=HERE/run"]
    refuse("evaluate", *flags, words=["run/config.json", word])
    refuse("export", *flags, words=["run/config.json", word])


# Pictures.


def png(width, height, data=b""):
    """A PNG of one bit a pixel; `data` is what it holds, compressed."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", checksum)
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def png_bomb():
    """Half a gigabyte, in half a megabyte."""
    rows = zlib.compressobj(1)
    parts = [rows.compress(bytes(7501 * 1000)) for _ in range(60)]
    return png(60000, 60000, b"".join(parts) + rows.flush())


TOO_LARGE = "found 60000x60000 pixels, expected at most"
FAR_TOO_LARGE = "cannot be read (Image size (3600000000 pixels) exceeds limit"
BAD_IMAGES = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello", "found 0x68656c6c at its start, expected a picture"),
    "cut": (lambda: png(6, 5)[:40], "found 0x89504e47 at its start, expected a picture"),
    "no pixels": (lambda: png(6, 5), "a picture that cannot be read"),
    "large header": (lambda: png(9000, 9000), "found 9000x9000 pixels, expected at most"),
    "huge header": (lambda: png(60000, 60000), FAR_TOO_LARGE),
    "most huge header": (lambda: png(2**31 - 1, 2**31 - 1), f"cannot be read (Image size ({(2**31 - 1) ** 2} pixels) exceeds limit"),
    "bomb": (png_bomb, FAR_TOO_LARGE),
    "huge array": (idx(1, 60000, 60000), TOO_LARGE),
    "bomb of an array": (lambda: zeros_gzip(idx(1, 60000, 60000), 1 << 27), TOO_LARGE),
    "absurd array": (idx(MAX_SIZE, 6, 5), f"found 0 whole images, the header claims {MAX_SIZE}"),
    "pickle": (npy(np.array([{}])), "found pickled Python objects"),
    "floats": (npy(np.zeros((6, 5))), "found float64 of shape (6, 5), expected images"),
    "damaged gzip": (b"\x1f\x8b\x08 and so on", "damaged gzip data"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_image(case, run, good, tmp_path):
    content, word = BAD_IMAGES[case]
    path = tmp_path / "bad"
    path.write_bytes(content() if callable(content) else content)
    flags = [RUN, "--format=json"]
    output, lines = run("predict", *flags, str(path), "GOOD/good.png")
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert word in lines[0]
    # The rest is done.
    (result,) = map(json.loads, output.splitlines())
    assert result["file"] == f"{good}/good.png"


def test_unreadable_images_are_named_one_by_one(run, tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    paths = [f"{tmp_path}/{name}" for name in ("none", "empty", "pipe")]
    output, lines = run("predict", RUN, "--format=json", *paths)
    assert output == ""
    for line, path, word in zip(
        lines, paths, ["No such file", "no files in", "a regular file"], strict=True
    ):
        assert path in line
        assert word in line
