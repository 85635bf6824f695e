"""IDX files: what is written comes back; what is damaged is refused, cheaply."""

from __future__ import annotations

import gzip
import math
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mnist_dist.errors import InputError
from mnist_dist.files.idx import load_idx

MEBIBYTE = 1 << 20
MAX_SIZE = 2**32 - 1


def idx_bytes(
    *shape: int, data: bytes | None = None, type_code: int = 8, zeros: int = 0
) -> bytes:
    header = struct.pack(f">HBB{len(shape)}I", zeros, type_code, len(shape), *shape)
    return header + (bytes(math.prod(shape)) if data is None else data)


VALID = idx_bytes(2, 3, 4, data=bytes(range(24)))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx") / "images-idx3-ubyte"


# Header and data, plain or compressed.


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 2, 3), (5, 2, 3, 3)])
def test_values_come_back_in_c_order(tmp_path, shape, compress):
    values = bytes(range(math.prod(shape)))
    path = tmp_path / "file"
    path.write_bytes(compress(idx_bytes(*shape, data=values)))

    array = load_idx(path)

    assert array.dtype == np.uint8
    assert array.shape == shape
    assert array.tobytes() == values


def test_gzip_of_several_members_and_zero_padding_is_one_stream(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(VALID[:7]) + gzip.compress(VALID[7:]) + bytes(9))
    assert load_idx(path).tobytes() == bytes(range(24))


def test_highly_compressible_file_is_not_taken_for_a_bomb(tmp_path):
    path = tmp_path / "black.gz"
    path.write_bytes(gzip.compress(idx_bytes(1000, 28, 28)))
    assert path.stat().st_size < 1000  # close to the largest ratio of deflate
    array = load_idx(path)
    assert array.shape == (1000, 28, 28)
    assert not array.any()


def test_path_may_be_a_string(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(VALID)
    assert load_idx(str(path)).shape == (2, 3, 4)


@given(
    array=hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=6)),
    compressed=st.booleans(),
)
@settings(deadline=None)
def test_round_trip(scratch, array, compressed):
    content = idx_bytes(*array.shape, data=array.tobytes())
    scratch.write_bytes(gzip.compress(content, 1) if compressed else content)
    np.testing.assert_array_equal(load_idx(scratch), array, strict=True)


# Bad input.

BAD_CONTENT = {
    "empty": (b"", "the file is empty"),
    "one byte": (b"\0", "found 1 bytes, an IDX header starts with 4"),
    "text": (b"<html>", "magic number 0x3c68746d, expected 0x00000801"),
    "nonzero start": (idx_bytes(1, zeros=1), "0x00010801, expected 0x00000801"),
    "unknown type": (idx_bytes(1, type_code=7), "0x00000701, expected 0x00000801"),
    "rank 0": (idx_bytes(data=b"x"), "0x00000800, expected 0x00000801"),
    "rank 5": (idx_bytes(1, 1, 1, 1, 1), "0x00000805, expected 0x00000801"),
    "int8": (idx_bytes(1, type_code=0x09), "int8 (IDX type 0x09), expected unsigned"),
    "int16": (idx_bytes(1, type_code=0x0B), "int16 (IDX type 0x0B), expected unsigned"),
    "int32": (idx_bytes(1, type_code=0x0C), "int32 (IDX type 0x0C), expected unsigned"),
    "float32": (idx_bytes(1, type_code=0x0D), "float32 (IDX type 0x0D), expected"),
    "float64": (idx_bytes(1, type_code=0x0E), "float64 (IDX type 0x0E), expected"),
    "short header": (VALID[:15], "found 11 bytes of dimensions, expected 12"),
    "zero dimension": (idx_bytes(3, 0, 28), "found shape (3, 0, 28), expected no zero"),
    "no data": (VALID[:16], "claims 24 bytes of data, but a file of this size"),
    "short": (VALID[:-1], "found 23 bytes of data, the header claims 24"),
    "trailing": (VALID + b"x", "trailing bytes after the 24 bytes of data"),
    "absurd": (
        idx_bytes(MAX_SIZE, MAX_SIZE, MAX_SIZE, MAX_SIZE, data=b"x" * 9),
        f"claims {MAX_SIZE**4} bytes of data, but a file of this size holds at most 29",
    ),
    "product 0 mod 2**64": (
        idx_bytes(2**31, 2**31, 4, data=b""),
        f"claims {2**64} bytes of data",
    ),
    "gzip: empty": (gzip.compress(b""), "found 0 bytes, an IDX header starts with 4"),
    "gzip: short": (
        gzip.compress(VALID[:-1]),
        "found 23 bytes of data, the header claims 24",
    ),
    "gzip: trailing": (gzip.compress(VALID + b"x"), "trailing bytes after the 24"),
    "gzip: absurd": (
        gzip.compress(idx_bytes(MAX_SIZE, MAX_SIZE, data=b"")),
        f"claims {MAX_SIZE**2} bytes of data, but a file of this size",
    ),
    "gzip: truncated": (gzip.compress(VALID)[:-9], "damaged gzip data"),
    "gzip: header only": (gzip.compress(VALID)[:10], "damaged gzip data"),
    "gzip: magic only": (b"\x1f\x8b", "damaged gzip data"),
    "gzip: wrong checksum": (gzip.compress(VALID)[:-8] + bytes(8), "damaged gzip"),
    "gzip: garbage inside": (
        gzip.compress(VALID)[:10] + b"\xff" * 40,
        "damaged gzip data",
    ),
    "gzip: garbage after": (gzip.compress(VALID) + b"junk", "damaged gzip data"),
}


@pytest.mark.parametrize(
    ("content", "expected"), BAD_CONTENT.values(), ids=BAD_CONTENT.keys()
)
def test_bad_content_is_refused(tmp_path, content, expected):
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(content)
    check_refused(path, expected)


def check_refused(path: Path, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_idx(path)
    message = str(caught.value)
    assert repr(str(path)) in message
    assert expected in message
    assert len(message.splitlines()) == 1


def test_gz_name_without_gzip_content_is_refused(tmp_path):
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(VALID)
    check_refused(path, "not a gzip file, though its name says so")


def test_missing_file_is_refused(tmp_path):
    check_refused(tmp_path / "nothing", "cannot be read (No such file or directory)")


def test_directory_is_refused(tmp_path):
    check_refused(tmp_path, "found a folder, expected a regular file")


def test_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_refused(tmp_path / "pipe", "expected a regular file")


def test_nul_in_the_path_is_refused():
    with pytest.raises(InputError, match="cannot be read"):
        load_idx("a\0b")


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.write_bytes(VALID)

    def refuse(*args: object) -> None:  # root may read a file of mode 000
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    check_refused(path, "cannot be read (Permission denied)")


def test_message_stays_on_one_line_whatever_the_name(tmp_path):
    path = tmp_path / "two\nlines"
    path.write_bytes(b"x")
    check_refused(path, "too short")


# Any bytes at all load exactly or raise InputError: nothing else, ever.


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = draw(st.integers(start, min(len(content), start + 8)))
        content[start:stop] = draw(st.binary(max_size=8))
    return bytes(content)


@given(content=st.one_of(st.binary(max_size=64), mutations(VALID)))
@example(content=VALID)
@settings(deadline=None, max_examples=300)
def test_plain_bytes_load_exactly_or_are_refused(scratch, content):
    check_exact_or_refused(scratch, content, decoded=content)


@given(content=st.one_of(st.binary(max_size=64), mutations(VALID)))
@example(content=VALID)
@settings(deadline=None)
def test_gzipped_bytes_load_exactly_or_are_refused(scratch, content):
    check_exact_or_refused(scratch, gzip.compress(content, 1), decoded=content)


@given(content=mutations(gzip.compress(VALID)))
@settings(deadline=None, max_examples=300)
def test_damaged_gzip_loads_exactly_or_is_refused(scratch, content):
    try:
        decoded = gzip.decompress(content)
    except Exception:  # whatever gzip makes of it: then nothing may load
        decoded = content
    check_exact_or_refused(scratch, content, decoded=decoded)


def check_exact_or_refused(path: Path, content: bytes, *, decoded: bytes) -> None:
    path.write_bytes(content)
    try:
        array = load_idx(path)
    except InputError as error:
        message = str(error)
    else:
        # The header is the only freedom IDX leaves: all else must be the array.
        assert decoded == idx_bytes(*array.shape, data=array.tobytes())
        return
    assert len(message.splitlines()) == 1
    assert decoded != VALID


# Memory is bounded by the file, not by what its header claims.


def noise(num_bytes: int) -> bytes:
    return np.random.Philox(key=1).random_raw(num_bytes // 8).tobytes()


HOSTILE = {
    "absurd dimensions": (idx_bytes(MAX_SIZE, MAX_SIZE, data=b""), "claims"),
    "gzip bomb": (
        gzip.compress(idx_bytes(10, data=bytes(16 * MEBIBYTE)), 1),
        "trailing",
    ),
    "claim of a bomb": (
        gzip.compress(idx_bytes(64 * MEBIBYTE + 1, data=b"x")),
        "holds at most",
    ),
    "claim of no bomb, not there": (
        gzip.compress(idx_bytes(100 * MEBIBYTE, data=noise(MEBIBYTE)), 1),
        f"found {MEBIBYTE} bytes of data, the header claims {100 * MEBIBYTE}",
    ),
}


@pytest.mark.parametrize(("content", "expected"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_header_costs_little_memory(tmp_path, content, expected):
    path = tmp_path / "hostile"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        check_refused(path, expected)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MEBIBYTE
