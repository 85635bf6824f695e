"""mnist.npz files: NumPy's own writer is the oracle; the damaged are refused."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mnist_dist.data.npz_files import read_npz
from mnist_dist.errors import InputError

MEBIBYTE = 1 << 20

ARRAYS = {
    "x_train": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "y_train": np.array([1, 0]),
    "x_test": np.full((1, 3, 4), 7, dtype=np.uint8),
    "y_test": np.array([9], dtype=np.uint8),
}


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_magic(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def npy_header(shape: object, descr: object = "|u1") -> bytes:
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    return npy_magic(repr(header).encode())


def npz_bytes(
    compression: int = zipfile.ZIP_DEFLATED, **changed: bytes | None
) -> bytes:
    """A good file but for the members in `changed`; None leaves one out."""
    members = {key: npy_bytes(array) for key, array in ARRAYS.items()} | changed
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for key, content in members.items():
            if content is not None:
                archive.writestr(f"{key}.npy", content)
    return stream.getvalue()


def load(path: Path) -> dict[str, np.ndarray]:
    """The four arrays by name."""
    data = read_npz(path)
    assert data.test is not None
    return {
        "x_train": data.train.images,
        "y_train": data.train.labels,
        "x_test": data.test.images,
        "y_test": data.test.labels,
    }


VALID = npz_bytes(zipfile.ZIP_STORED)
VALID_DEFLATED = npz_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("npz") / "mnist.npz"


# What NumPy writes comes back.


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_four_arrays_come_back(tmp_path, save):
    path = tmp_path / "mnist.npz"
    save(path, **ARRAYS, other=np.array(["ignored"], dtype=object))

    loaded = load(path)

    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[key], array, strict=True)


@given(
    images=hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=5)
        | hnp.array_shapes(min_dims=3, max_dims=3, max_side=5).flatmap(
            lambda shape: st.sampled_from([(*shape, 1), (*shape, 3)])
        ),
    ),
    labels=hnp.arrays(
        st.one_of(
            hnp.integer_dtypes(endianness="?"),
            hnp.unsigned_integer_dtypes(endianness="?"),
        ),
        hnp.array_shapes(max_dims=1),
    ),
    fortran_order=st.booleans(),
    save=st.sampled_from([np.savez, np.savez_compressed]),
)
@settings(deadline=None)
def test_round_trip(scratch, images, labels, fortran_order, save):
    if fortran_order:
        images = np.asfortranarray(images)
    save(scratch, **(ARRAYS | {"x_train": images, "y_train": labels}))

    loaded = load(scratch)

    np.testing.assert_array_equal(loaded["x_train"], images, strict=True)
    np.testing.assert_array_equal(loaded["y_train"], labels, strict=True)
    assert loaded["x_train"].flags.c_contiguous


# Bad input.

IMAGES = "expected images: uint8 of shape (n, height, width), (n, height, width, 1 or"
LABELS = "expected labels: integers of shape (n,) or (n, 1)"

BAD_CONTENT = {
    "empty": (b"", "the file is empty"),
    "not a zip": (b"hello" * 9, "not a zip archive"),
    "truncated": (VALID[:-30], "not a zip archive"),
    "missing key": (
        npz_bytes(y_train=None, x_test=None),
        "missing y_train, x_test; found 'x_train', 'y_test'",
    ),
    "pickled objects": (
        npz_bytes(x_train=npy_bytes(np.array([None], dtype=object))),
        "x_train: found pickled Python objects",
    ),
    "structured objects": (
        npz_bytes(y_test=npy_bytes(np.array([(1, "a")], dtype="i4,O"))),
        "y_test: found pickled Python objects",
    ),
    "float images": (
        npz_bytes(x_train=npy_bytes(np.zeros((2, 3, 4)))),
        f"x_train: found float64 of shape (2, 3, 4), {IMAGES}",
    ),
    "flat images": (
        npz_bytes(x_test=npy_bytes(np.zeros((2, 783), np.uint8))),
        f"x_test: found uint8 of shape (2, 783), {IMAGES}",
    ),
    "float labels": (
        npz_bytes(y_train=npy_bytes(np.zeros(2))),
        f"y_train: found float64 of shape (2,), {LABELS}",
    ),
    "bool labels": (
        npz_bytes(y_train=npy_bytes(np.zeros(2, bool))),
        f"y_train: found bool of shape (2,), {LABELS}",
    ),
    "one-hot labels": (
        npz_bytes(y_test=npy_bytes(np.eye(3, dtype=np.int64))),
        f"y_test: found int64 of shape (3, 3), {LABELS}",
    ),
    "scalar label": (
        npz_bytes(y_test=npy_bytes(np.int64(3))),
        f"y_test: found int64 of shape (), {LABELS}",
    ),
    "no labels": (
        npz_bytes(y_test=npy_bytes(np.zeros(0, np.int64))),
        "y_test: found shape (0,), expected no zero dimension",
    ),
    "negative dimension": (
        npz_bytes(x_train=npy_header((-1, 3, 4)) + bytes(24)),
        "x_train: found shape (-1, 3, 4), expected no zero dimension",
    ),
    "npy header is no dict": (
        npz_bytes(x_train=npy_header((1,)).replace(b"{", b"(")),
        "x_train: not an array in .npy format",
    ),
    "npy of another version": (
        npz_bytes(
            x_train=npy_bytes(ARRAYS["x_train"]).replace(b"\x01\x00", b"\x02\x00")
        ),
        "x_train: not an array in .npy format",
    ),
    "npy header too deep to parse": (
        npz_bytes(x_train=npy_magic(b"-" * 5000 + b"1")),
        "x_train: not an array in .npy format",
    ),
    "short": (
        npz_bytes(x_train=npy_bytes(ARRAYS["x_train"])[:-1]),
        "x_train: too short: found 23 bytes of data, the header claims 24",
    ),
    "trailing": (
        npz_bytes(x_train=npy_bytes(ARRAYS["x_train"]) + b"x"),
        "x_train: trailing bytes after the 24 bytes of data",
    ),
    "absurd shape": (
        npz_bytes(x_train=npy_header((2**62, 2**62, 2**62))),
        f"x_train: the header claims {2**186} bytes of data",
    ),
    "bzip2": (npz_bytes(zipfile.ZIP_BZIP2), "x_train: found zip compression method 12"),
    "lzma": (npz_bytes(zipfile.ZIP_LZMA), "x_train: found zip compression method 14"),
    "wrong checksum": (
        VALID.replace(bytes(range(24)), bytes(24)),
        "Bad CRC-32 for file 'x_train.npy'",
    ),
}


@pytest.mark.parametrize(
    ("content", "expected"), BAD_CONTENT.values(), ids=BAD_CONTENT.keys()
)
def test_bad_content_is_refused(tmp_path, content, expected):
    path = tmp_path / "mnist.npz"
    path.write_bytes(content)
    check_refused(path, expected)


def check_refused(path: Path, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert repr(str(path)) in message
    assert expected in message
    assert len(message.splitlines()) == 1


def test_pickle_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "mnist.npz"
    np.savez(path, **(ARRAYS | {"y_test": np.array([Payload()], dtype=object)}))
    check_refused(path, "y_test: found pickled Python objects, never loaded")
    assert not (tmp_path / "executed").exists()


def test_missing_file_is_refused(tmp_path):
    check_refused(tmp_path / "nothing", "cannot be read (No such file or directory)")


# Any bytes at all load as NumPy reads them or raise InputError: nothing else, ever.


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    content = bytearray(original)
    # zipfile reads a file from its end: damage there goes deepest.
    last = st.integers(max(0, len(content) - 330), len(content))
    for _ in range(draw(st.integers(1, 3))):
        start = min(draw(st.one_of(st.integers(0, len(content)), last)), len(content))
        stop = draw(st.integers(start, min(len(content), start + 8)))
        content[start:stop] = draw(st.binary(max_size=8))
    return bytes(content)


@given(
    content=st.one_of(
        st.binary(max_size=64), mutations(VALID), mutations(VALID_DEFLATED)
    )
)
@settings(deadline=None, max_examples=300)
def test_damaged_archive_loads_as_in_numpy_or_is_refused(scratch, content):
    check_like_numpy_or_refused(scratch, content)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@given(member=mutations(npy_bytes(ARRAYS["x_train"])))
@settings(deadline=None, max_examples=200)
def test_damaged_array_loads_as_in_numpy_or_is_refused(scratch, member):
    check_like_numpy_or_refused(scratch, npz_bytes(x_train=member))


@given(
    shape=st.lists(st.integers(-2, 2**33) | st.booleans(), max_size=5).map(tuple),
    descr=st.sampled_from(["|u1", "<i8", "|O", "|V0", "|S0", "<M8[s]", "(2,)u1"]),
)
@settings(deadline=None)
def test_any_shape_and_type_load_as_in_numpy_or_are_refused(scratch, shape, descr):
    member = npy_header(shape, descr) + bytes(24)
    check_like_numpy_or_refused(scratch, npz_bytes(x_train=member))


def check_like_numpy_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        loaded = load(path)
    except InputError as error:
        message = str(error)
    else:
        with zipfile.ZipFile(path) as archive:
            for key, array in loaded.items():
                member = io.BytesIO(archive.read(f"{key}.npy"))
                expected = np.load(member, allow_pickle=False)
                np.testing.assert_array_equal(array, expected, strict=True)
        return
    assert len(message.splitlines()) == 1


# Memory is bounded by the file, not by what its headers claim.


def noise(num_bytes: int) -> bytes:
    return np.random.Philox(key=1).random_raw(num_bytes // 8).tobytes()


def with_claimed_size(content: bytes, member_bytes: int, claim: int) -> bytes:
    """Changes a member's uncompressed size, in its own and the directory's record."""
    return content.replace(struct.pack("<I", member_bytes), struct.pack("<I", claim))


HUGE = (100 * MEBIBYTE // 784, 28, 28)
SHORT_NOISE = npy_header(HUGE) + noise(MEBIBYTE)

HOSTILE = {
    "zip bomb": (
        npz_bytes(x_train=npy_header((2, 3, 4)) + bytes(16 * MEBIBYTE)),
        "x_train: trailing bytes after the 24 bytes",
    ),
    "header claims what the file cannot hold": (
        npz_bytes(x_train=npy_header(HUGE) + b"x"),
        "x_train: the header claims",
    ),
    "header claims what is not there": (
        npz_bytes(x_train=SHORT_NOISE),
        f"x_train: too short: found {MEBIBYTE} bytes of data",
    ),
    "directory claims what the file cannot hold": (
        with_claimed_size(
            npz_bytes(x_train=SHORT_NOISE), len(SHORT_NOISE), 4000 * MEBIBYTE
        ),
        f"x_train: the zip directory claims {4000 * MEBIBYTE} bytes",
    ),
    "directory claims what is not there": (
        with_claimed_size(
            npz_bytes(x_train=SHORT_NOISE), len(SHORT_NOISE), 100 * MEBIBYTE
        ),
        f"x_train: too short: found {MEBIBYTE} bytes of data",
    ),
    "stored member claims more than the file": (
        with_claimed_size(
            npz_bytes(zipfile.ZIP_STORED, x_train=SHORT_NOISE),
            len(SHORT_NOISE),
            500 * MEBIBYTE,
        ),
        f"x_train: the zip directory claims {500 * MEBIBYTE} bytes",
    ),
}


@pytest.mark.parametrize(("content", "expected"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file_costs_little_memory(tmp_path, content, expected):
    path = tmp_path / "hostile.npz"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        check_refused(path, expected)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * MEBIBYTE
