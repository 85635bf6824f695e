"""Layers in files: what is written comes back; damage and malice cost one line."""

import io
import os
import time
import zipfile

import numpy as np
import pytest
from array_checks import assert_same_bytes
from full_disk import file_size_limit

from mnist_dist.errors import InputError, RunError
from mnist_dist.layer_weights.layer_files import (
    load_folder,
    load_npz,
    save_folder,
    save_npz,
)
from mnist_dist.layer_weights.weight_sources import load_weights

RNG = np.random.default_rng(0)
ARRAYS = {
    "dense/kernel": RNG.normal(size=(4, 3)).astype(np.float32),
    "dense/bias": np.array([0.0, -0.0, np.nan], np.float32),
    "outer/inner/kernel": np.asfortranarray(RNG.normal(size=(2, 5)).astype(np.float32)),
    "scale/scale": np.array(3.5, np.float32),
    "scale/empty": np.zeros((0, 2), np.float32),
}


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_layer_files_are_read_by_us_and_by_numpy_bit_for_bit(form, tmp_path):
    path = str(tmp_path / ("f.npz" if form == "npz" else "f"))
    (save_npz if form == "npz" else save_folder)(ARRAYS, path)
    assert_same_bytes(load_weights(path).arrays, ARRAYS)
    if form == "npz":
        with np.load(path) as file:
            assert_same_bytes(dict(file), ARRAYS)
    else:
        assert_same_bytes({n: np.load(f"{path}/{n}.npy") for n in ARRAYS}, ARRAYS)
    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_what_numpy_wrote_is_read(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "f.npz", **ARRAYS)
        assert_same_bytes(load_npz(str(tmp_path / "f.npz")), ARRAYS)


def test_folder_that_holds_something_is_not_touched(tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(InputError, match="new or empty folder"):
        save_folder(ARRAYS, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("save", [save_npz, save_folder])
def test_full_disk_is_told_as_that_and_leaves_nothing(save, tmp_path):
    arrays = {"dense/kernel": np.ones((99, 99), np.float32)}
    with (
        file_size_limit(8192),
        pytest.raises(RunError, match=r"cannot be written \(File too large\)"),
    ):
        save(arrays, str(tmp_path / "layers"))
    assert os.listdir(tmp_path) == []


def npy(array, **kwargs):
    data = io.BytesIO()
    np.save(data, array, **kwargs)
    return data.getvalue()


def bomb():
    """A valid array of 4 GB of zeros, in 4 MB."""
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (1 << 30,)}
    np.lib.format.write_array_header_1_0(header, claim)
    return header.getvalue() + bytes(1 << 27)


ONE = npy(np.ones(3, np.float32))
HOSTILE = {
    "up": ({"../x/kernel.npy": ONE}, r"'\.\./x/kernel'"),
    "absolute": ({"/etc/kernel.npy": ONE}, "'/etc/kernel'"),
    "no layer": ({"kernel.npy": ONE}, "'kernel'"),
    "newline": ({"a\nb/kernel.npy": ONE}, r"a\\nb/kernel"),
    "not an array": ({"a/readme.txt": b"x"}, "readme.txt"),
    "pickle": ({"a/b.npy": npy(np.array([{}]), allow_pickle=True)}, "pickled"),
    "text": ({"a/b.npy": npy(np.array(["x"]))}, "expected numbers"),
    "short": ({"a/b.npy": ONE[:-1]}, "too short"),
    "long": ({"a/b.npy": ONE + b"x"}, "trailing bytes"),
    "bomb": ({"a/b.npy": bomb()}, "the header claims 4294967296 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_npz_is_one_clear_error_in_bounded_time(case, tmp_path):
    members, message = HOSTILE[case]
    path = str(tmp_path / "f.npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    began = time.monotonic()
    with pytest.raises(InputError, match=message) as error:
        load_weights(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 2


def test_nul_in_a_member_name_is_refused(tmp_path):
    path = tmp_path / "f.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/bXc.npy", ONE)
    path.write_bytes(path.read_bytes().replace(b"bXc", b"b\0c"))
    with pytest.raises(InputError, match=r"f\.npz"):
        load_npz(str(path))


@pytest.mark.parametrize("cut", [0, 1, 30, 200, -30, -1])
def test_damaged_npz_is_an_input_error(cut, tmp_path):
    path = tmp_path / "f.npz"
    save_npz(ARRAYS, str(path))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"f\.npz"):
        load_npz(str(path))


def test_folder_without_end_is_refused(tmp_path):
    (tmp_path / "/".join("abcdefghijk")).mkdir(parents=True)
    with pytest.raises(InputError, match="levels"):
        load_folder(str(tmp_path))
