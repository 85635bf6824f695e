"""How a directory is understood, checked and split."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mnist_dist.data import load_dataset
from mnist_dist.errors import InputError

TRAIN_IMAGES = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)
TRAIN_LABELS = np.array([0, 2, 1, 2, 0], dtype=np.uint8)
TEST_IMAGES = TRAIN_IMAGES[:2] + 100
TEST_LABELS = np.array([3, 1], dtype=np.uint8)

IDX_FILES = {
    "train-images-idx3-ubyte": TRAIN_IMAGES,
    "train-labels-idx1-ubyte": TRAIN_LABELS,
    "t10k-images-idx3-ubyte": TEST_IMAGES,
    "t10k-labels-idx1-ubyte": TEST_LABELS,
}
NPZ = {
    "x_train": TRAIN_IMAGES,
    "y_train": TRAIN_LABELS,
    "x_test": TEST_IMAGES,
    "y_test": TEST_LABELS,
}


def write_idx(directory: Path, files: Mapping[str, np.ndarray]) -> None:
    for name, array in files.items():
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        content = header + array.tobytes()
        (directory / name).write_bytes(
            gzip.compress(content) if name.endswith(".gz") else content
        )


def renamed(prefix: str = "", suffix: str = "", test: str = "t10k") -> dict:
    return {
        f"{prefix}{name.replace('t10k', test)}{suffix}": array
        for name, array in IDX_FILES.items()
    }


def check_refused(directory: Path, *expected: str, **keywords: int) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(str(directory), **keywords)
    message = str(caught.value)
    assert str(directory) in message
    for part in expected:
        assert part in message
    assert len(message.splitlines()) == 1


# What a directory may hold.

LAYOUTS = {
    "plain": IDX_FILES,
    "gzip": renamed(suffix=".gz"),
    "test-": renamed(test="test"),
    "prefix": renamed(prefix="emnist-letters-", suffix=".gz", test="test"),
    "dotted": {name.replace("-idx", ".idx"): a for name, a in IDX_FILES.items()},
    "mixed": {
        name + (".gz" if "images" in name else ""): array
        for name, array in IDX_FILES.items()
    },
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_idx_directory(tmp_path, files):
    write_idx(tmp_path, files)
    (tmp_path / "README.md").write_text("other files are ignored")
    check_loaded(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_directory(tmp_path, save):
    save(tmp_path / "mnist.npz", **NPZ)
    check_loaded(tmp_path)


def check_loaded(directory: Path) -> None:
    dataset = load_dataset(str(directory))
    assert dataset.source == str(directory)
    assert dataset.num_classes == 4
    assert dataset.image_shape == (3, 4, 1)
    assert dataset.validation is None
    assert dataset.evaluation is dataset.test
    for split, name, images, labels in (
        (dataset.train, "train", TRAIN_IMAGES, TRAIN_LABELS),
        (dataset.test, "test", TEST_IMAGES, TEST_LABELS),
    ):
        assert split.name == name
        np.testing.assert_array_equal(split.images, images[..., None], strict=True)
        np.testing.assert_array_equal(split.labels, labels.astype("i4"), strict=True)


def test_plain_file_is_preferred_to_its_gz(tmp_path):
    write_idx(tmp_path, IDX_FILES)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"not even gzip")
    check_loaded(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_channels(tmp_path, channels):
    train = np.arange(2 * 5 * 6 * channels, dtype=np.uint8).reshape(2, 5, 6, channels)
    files = IDX_FILES | {
        "train-images-idx3-ubyte": train,
        "train-labels-idx1-ubyte": TRAIN_LABELS[:2],
        "t10k-images-idx3-ubyte": train,
    }
    write_idx(tmp_path, files)
    dataset = load_dataset(tmp_path)
    assert dataset.image_shape == (5, 6, channels)
    np.testing.assert_array_equal(dataset.train.images, train)


@pytest.mark.parametrize("dtype", ["i1", "<i8", ">i4", "u2", "u8"])
def test_npz_labels_of_any_integer_type(tmp_path, dtype):
    labels = {
        "y_train": TRAIN_LABELS.astype(dtype),
        "y_test": TEST_LABELS.astype(dtype),
    }
    np.savez(tmp_path / "a.npz", **(NPZ | labels))
    check_loaded(tmp_path)


@pytest.mark.parametrize(
    ("train_label", "test_label", "num_classes"),
    [(0, 0, 2), (1, 0, 2), (7, 2, 8), (2, 7, 8), (65535, 0, 65536)],
)
def test_number_of_classes(tmp_path, train_label, test_label, num_classes):
    labels = {"y_train": np.full(5, train_label), "y_test": np.full(2, test_label)}
    np.savez(tmp_path / "a.npz", **(NPZ | labels))
    assert load_dataset(tmp_path).num_classes == num_classes


# Validation.


def test_validation_is_the_last_training_examples(tmp_path):
    np.savez(tmp_path / "a.npz", **NPZ)
    whole = load_dataset(tmp_path)
    dataset = load_dataset(tmp_path, validation_examples=2)

    assert dataset.validation is not None
    assert dataset.evaluation is dataset.validation
    assert dataset.validation.name == "validation"
    np.testing.assert_array_equal(dataset.train.images, whole.train.images[:3])
    np.testing.assert_array_equal(dataset.train.labels, [0, 2, 1])
    np.testing.assert_array_equal(dataset.validation.images, whole.train.images[3:])
    np.testing.assert_array_equal(dataset.validation.labels, [2, 0])
    np.testing.assert_array_equal(dataset.test.labels, TEST_LABELS)


def test_validation_changes_neither_classes_nor_checksum(tmp_path):
    labels = {"y_train": np.array([0, 1, 2, 3, 9])}  # 9 is in validation alone
    np.savez(tmp_path / "a.npz", **(NPZ | labels))
    whole = load_dataset(tmp_path)
    dataset = load_dataset(tmp_path, validation_examples=1)
    assert dataset.num_classes == whole.num_classes == 10
    assert dataset.checksum == whole.checksum


def test_one_training_example_may_be_left(tmp_path):
    np.savez(tmp_path / "a.npz", **NPZ)
    assert len(load_dataset(tmp_path, validation_examples=4).train.labels) == 1


@pytest.mark.parametrize("count", [-1, 5, 6])
def test_validation_out_of_range_is_refused(tmp_path, count):
    np.savez(tmp_path / "a.npz", **NPZ)
    check_refused(
        tmp_path,
        f"--validation_examples: found {count}, expected 0 to 4",
        validation_examples=count,
    )


# The checksum.


def test_checksum_is_of_the_data_and_not_of_the_container(tmp_path):
    checksums = set()
    for name, files in LAYOUTS.items():
        (tmp_path / name).mkdir()
        write_idx(tmp_path / name, files)
        checksums.add(load_dataset(tmp_path / name).checksum)
    (tmp_path / "npz").mkdir()
    wide_labels = {"y_train": TRAIN_LABELS.astype(">i8")}
    np.savez_compressed(tmp_path / "npz" / "a.npz", **(NPZ | wide_labels))
    checksums.add(load_dataset(tmp_path / "npz").checksum)
    assert len(checksums) == 1


def test_checksum_depends_on_every_array_and_on_the_shape(tmp_path):
    def flipped(array: np.ndarray) -> np.ndarray:
        copy = array.copy()
        copy.flat[-1] ^= 1
        return copy

    reshaped = {key: NPZ[key].reshape(-1, 4, 3) for key in ("x_train", "x_test")}
    swapped = {"x_train": TEST_IMAGES, "y_train": TEST_LABELS} | {
        "x_test": TRAIN_IMAGES,
        "y_test": TRAIN_LABELS,
    }
    variants = [{}, reshaped, swapped, *({key: flipped(NPZ[key])} for key in NPZ)]
    checksums = set()
    for changed in variants:
        np.savez(tmp_path / "a.npz", **(NPZ | changed))
        checksums.add(load_dataset(tmp_path).checksum)
    assert len(checksums) == len(variants)


# Bad directories.


def test_empty_directory_is_refused(tmp_path):
    check_refused(tmp_path, "train-images-idx3-ubyte", ".npz", "found nothing")


def test_directory_of_something_else_is_refused_naming_what_is_there(tmp_path):
    for number in range(20):
        (tmp_path / f"photo{number:02}.png").touch()
    check_refused(tmp_path, "expected IDX files", "'photo00.png'", "and 12 more")


def test_missing_directory_is_refused(tmp_path):
    check_refused(tmp_path / "nothing", "No such file or directory")


def test_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    check_refused(tmp_path / "file", "Not a directory")


@pytest.mark.parametrize("data_dir", ["", "a\0b"])
def test_impossible_directory_name_is_refused(data_dir):
    with pytest.raises(InputError, match="cannot list the data directory"):
        load_dataset(data_dir)


@pytest.mark.parametrize("missing", IDX_FILES)
def test_missing_idx_file_is_refused_naming_it(tmp_path, missing):
    write_idx(tmp_path, {n: a for n, a in IDX_FILES.items() if n != missing})
    split = "train" if missing.startswith("train") else "test"
    kind = "images" if "images" in missing else "labels"
    present = next(name for name in IDX_FILES if name != missing)
    check_refused(tmp_path, f"expected one IDX file of {split} {kind}, found", present)


def test_two_candidates_for_one_file_are_refused(tmp_path):
    write_idx(tmp_path, IDX_FILES | renamed(test="test"))
    check_refused(
        tmp_path,
        "expected one IDX file of test images, found "
        "'t10k-images-idx3-ubyte', 'test-images-idx3-ubyte'",
    )


def test_several_prefixes_are_refused_listing_them(tmp_path):
    write_idx(tmp_path, renamed(prefix="emnist-letters-"))
    write_idx(tmp_path, renamed(prefix="emnist-digits-"))
    check_refused(tmp_path, "with the prefixes 'emnist-digits-', 'emnist-letters-'")


def test_several_npz_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **NPZ)
    np.savez(tmp_path / "b.npz", **NPZ)
    check_refused(tmp_path, "found 'a.npz', 'b.npz', expected either one .npz file")


def test_npz_beside_idx_is_refused(tmp_path):
    write_idx(tmp_path, IDX_FILES)
    np.savez(tmp_path / "a.npz", **NPZ)
    check_refused(tmp_path, "'a.npz', 'train-images-idx3-ubyte'", "expected either")


def test_damaged_file_is_named(tmp_path):
    write_idx(tmp_path, IDX_FILES)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    check_refused(tmp_path, path.name, "found 1 bytes of data, the header claims 2")


# Inconsistent data: one changed array each; the message names it.

INCONSISTENT = {
    "fewer labels": (
        "train-labels-idx1-ubyte",
        TRAIN_LABELS[:4],
        "found 4 labels, expected one for each of the 5 images in",
    ),
    "fewer test images": (
        "t10k-images-idx3-ubyte",
        TEST_IMAGES[:1],
        "found 2 labels, expected one for each of the 1 images in",
    ),
    "flat images": (
        "train-images-idx3-ubyte",
        TRAIN_IMAGES.reshape(5, 12),
        "found shape (5, 12), expected images of shape (n, height, width)",
    ),
    "two channels": (
        "t10k-images-idx3-ubyte",
        TEST_IMAGES.reshape(2, 3, 2, 2),
        "found shape (2, 3, 2, 2), expected images of shape (n, height, width)",
    ),
    "labels of rank 2": (
        "t10k-labels-idx1-ubyte",
        TEST_LABELS.reshape(2, 1),
        "found shape (2, 1), expected labels of shape (n,)",
    ),
    "two image shapes": (
        "t10k-images-idx3-ubyte",
        TEST_IMAGES.reshape(2, 4, 3),
        "training images have the shape (3, 4, 1), test images (4, 3, 1)",
    ),
}


@pytest.mark.parametrize(
    ("name", "array", "expected"), INCONSISTENT.values(), ids=INCONSISTENT.keys()
)
def test_inconsistent_data_are_refused(tmp_path, name, array, expected):
    write_idx(tmp_path, IDX_FILES | {name: array})
    check_refused(tmp_path, expected, "" if "have the shape" in expected else name)


@pytest.mark.parametrize(
    ("label", "dtype"), [(-1, "i8"), (65536, "i8"), (-128, "i1"), (2**64 - 1, "u8")]
)
def test_label_out_of_range_is_refused(tmp_path, label, dtype):
    np.savez(tmp_path / "a.npz", **(NPZ | {"y_test": np.array([1, label], dtype)}))
    check_refused(
        tmp_path,
        "a.npz': y_test: found labels from",
        str(label),
        "expected 0 to 65535",
    )
