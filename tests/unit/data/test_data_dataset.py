"""How a directory is understood, checked and split."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mnist_dist.data import dataset_from_arrays, load_dataset
from mnist_dist.data.drawing import draw_stratified
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


def test_edges_tell_which_shade_is_usual_and_how_many_images_are_the_inverse():
    light_on_dark = np.zeros((199, 6, 5), np.uint8)
    light_on_dark[:, 2:4, 2:4] = 255
    images = np.concatenate([light_on_dark, 255 - light_on_dark[:1]])
    labels = np.arange(200) % 2
    dataset = dataset_from_arrays((images, labels), (images[:2], labels[:2]))
    assert dataset.edge_shade == pytest.approx(255 / 200)
    assert dataset.inverse_share == 1 / 200


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
    "prefix": renamed(prefix="other-letters-", suffix=".gz", test="test"),
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


def test_validation_of_older_runs_is_the_last_training_examples(tmp_path):
    np.savez(tmp_path / "a.npz", **NPZ)
    whole = load_dataset(tmp_path)
    dataset = load_dataset(tmp_path, validation_examples=2, validation_split="last")

    assert dataset.validation is not None
    assert dataset.evaluation is dataset.validation
    assert dataset.validation.name == "validation"
    np.testing.assert_array_equal(dataset.train.images, whole.train.images[:3])
    np.testing.assert_array_equal(dataset.train.labels, [0, 2, 1])
    np.testing.assert_array_equal(dataset.validation.images, whole.train.images[3:])
    np.testing.assert_array_equal(dataset.validation.labels, [2, 0])
    np.testing.assert_array_equal(dataset.test.labels, TEST_LABELS)


def save_sorted_by_class(directory: Path) -> np.ndarray:
    """900 training examples of three classes, one after the other; their images."""
    labels = np.repeat(np.arange(3), [300, 500, 100])
    images = np.arange(900 * 4, dtype=np.uint32).view(np.uint8).reshape(900, 4, 4)
    np.savez(
        directory / "a.npz",
        **NPZ
        | {"x_train": images, "y_train": labels}
        | {"x_test": images[:2], "y_test": labels[:2]},
    )
    return images


def test_validation_has_each_class_in_its_share(tmp_path):
    images = save_sorted_by_class(tmp_path)
    dataset = load_dataset(tmp_path, validation_examples=90)
    assert dataset.validation is not None
    np.testing.assert_array_equal(np.bincount(dataset.validation.labels), [30, 50, 10])
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [270, 450, 90])
    # Every example is in one of the two, with its label, in the order of the file.
    numbers = {image.tobytes(): number for number, image in enumerate(images)}
    found = []
    for split in (dataset.train, dataset.validation):
        indices = [numbers[i[..., 0].tobytes()] for i in split.images]
        assert indices == sorted(indices)
        np.testing.assert_array_equal(
            split.labels, np.searchsorted([300, 800], indices, side="right")
        )
        found += indices
    assert sorted(found) == list(range(900))


def test_validation_is_the_same_at_every_start_and_another_with_another_seed(tmp_path):
    save_sorted_by_class(tmp_path)

    def chosen(**keywords: int) -> bytes:
        dataset = load_dataset(tmp_path, validation_examples=90, **keywords)
        assert dataset.validation is not None
        return dataset.validation.images.tobytes()

    assert chosen() == chosen() == chosen(validation_seed=0)
    assert chosen(validation_seed=1) != chosen()


def test_draw_of_validation_examples_never_changes():
    """Runs rely on it: an evaluation must take the examples that were set apart."""
    labels = np.arange(40) % 4
    found = draw_stratified(labels, count=8, seed=7)
    np.testing.assert_array_equal(found, [1, 10, 14, 16, 19, 27, 32, 37])


@pytest.mark.parametrize("count", [1, 2, 3, 17, 26, 27, 28])
def test_draw_of_any_number_is_within_one_of_each_share(count):
    labels = np.repeat(np.arange(4), [20, 5, 3, 1])
    found = draw_stratified(labels, count=count, seed=count)
    assert len(set(found)) == count
    shares = np.bincount(labels) * count / len(labels)
    drawn = np.bincount(labels[found], minlength=4)
    if count <= 25:  # more are only had from classes that have one example left
        assert (np.abs(drawn - shares) <= 1).all()
        assert (drawn < np.bincount(labels)).all()


def test_unknown_way_to_choose_validation_examples_is_an_error():
    with pytest.raises(ValueError, match="validation_split is 'first', expected one"):
        load_dataset(validation_split="first")


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


def test_checksum_is_what_it_always_was(tmp_path):
    """Runs record it: a change would keep every old run from being resumed."""
    np.savez(tmp_path / "a.npz", **NPZ)
    assert load_dataset(tmp_path).checksum == (
        "b69baa37bb6361746bd022ca4a817697068ec71dadbecef9911182ceabb7fbe8"
    )


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
    check_refused(tmp_path / "file", "found a file, expected a directory, or a file")


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
    check_refused(tmp_path, "found 'a.npz', 'b.npz', expected one .npz file")


def test_npz_beside_idx_is_refused(tmp_path):
    write_idx(tmp_path, IDX_FILES)
    np.savez(tmp_path / "a.npz", **NPZ)
    check_refused(
        tmp_path, "'a.npz', 'train-images-idx3-ubyte'", "expected one data set alone"
    )


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
        "found uint8 of shape (5, 12), expected images: uint8 of shape (n, height, width)",
    ),
    "two channels": (
        "t10k-images-idx3-ubyte",
        TEST_IMAGES.reshape(2, 3, 2, 2),
        "found uint8 of shape (2, 3, 2, 2), expected images: uint8 of shape (n, height",
    ),
    "labels of rank 2": (
        "t10k-labels-idx1-ubyte",
        TEST_LABELS.reshape(1, 2),
        "found uint8 of shape (1, 2), expected labels: integers of shape (n,) or",
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


# What is valid but looks wrong is warned of.

ROWS = np.arange(256, dtype=np.uint8)
SUSPECT = {
    "0 and 1": (ROWS % 2, "are 0 to 1, expected 0 to 255"),
    "0 to 16": (ROWS % 17, "are 0 to 16, expected"),
    "all black": (ROWS * 0, "are 0 to 0, expected"),
    # (x - mean) / deviation, cut to uint8: -1 became 255.
    "cut floats": (np.array([0, 1, 2, 255] * 64, np.uint8), "are only 0, 1, 2, 255"),
    "photographs": (ROWS, None),
    "black and white": (ROWS // 128 * 255, None),
    "four shades": (ROWS // 64 * 85, None),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("row", "expected"), SUSPECT.values(), ids=SUSPECT.keys())
def test_pixels_in_another_range_are_warned_of(caplog, row, expected, split):
    images = {"train": np.tile(ROWS, (4, 2, 1)), "test": np.tile(ROWS, (4, 2, 1))}
    images[split] = np.tile(row, (4, 2, 1))
    labels = np.array([0, 1, 2, 1])
    dataset = dataset_from_arrays((images["train"], labels), (images["test"], labels))
    np.testing.assert_array_equal(dataset.train.images[..., 0], images["train"])
    if expected is None:
        assert not caplog.messages
    else:
        (message,) = caplog.messages
        assert f"arrays: the pixels of the {split} images {expected}" in message


def test_classes_without_a_training_example_are_warned_of(caplog):
    images = np.tile(ROWS, (4, 2, 1))
    labels = np.array([1, 3, 4, 1])
    dataset = dataset_from_arrays((images, labels), (images, labels))
    assert caplog.messages == [
        "arrays: 2 of 5 classes have no training example: '0', '2' (the labels are 1 to 4)"
    ]
    assert dataset.num_classes == 5
    names = ["zero", "one", "two", "three", "four"]
    dataset_from_arrays((images, labels), (images, labels), class_names=names)
    assert "no training example: 'zero', 'two' (" in caplog.messages[1]


def test_data_that_are_well_are_not_warned_of(caplog):
    load_dataset(validation_examples=5000)
    assert not caplog.messages


# Arrays.


def test_arrays_are_the_data_set_of_files(tmp_path):
    np.savez(tmp_path / "a.npz", **NPZ)
    stored = load_dataset(tmp_path, validation_examples=2)
    dataset = dataset_from_arrays(
        (TRAIN_IMAGES, TRAIN_LABELS.astype(np.int64)[:, np.newaxis]),
        (TEST_IMAGES, TEST_LABELS),
        class_names=list("abcd"),
        validation_examples=2,
    )
    assert dataset.checksum == stored.checksum
    assert dataset.class_names == tuple("abcd")
    for name in ("train", "validation", "test"):
        found, expected = getattr(dataset, name), getattr(stored, name)
        np.testing.assert_array_equal(found.images, expected.images, strict=True)
        np.testing.assert_array_equal(found.labels, expected.labels, strict=True)


BAD_ARRAYS = {
    "floats": (
        {"train": TRAIN_IMAGES / 255},
        "train images: found float64 of shape (5,",
    ),
    "hint": ({"train": TRAIN_IMAGES / 255}, "numpy.rint(255 * x).astype(numpy.uint8)"),
    "channels first": (
        {"test": np.zeros((2, 1, 3, 4), np.uint8)},
        "of channels that come first: x.transpose(0, 2, 3, 1)",
    ),
    "one-hot": (
        {"labels": np.eye(5, dtype=int)},
        "train labels: found int64 of shape (5",
    ),
    "few labels": (
        {"labels": TRAIN_LABELS[:2]},
        "train labels: found 2 labels, expected",
    ),
    "names": (
        {"class_names": ["a", "b"]},
        "found label 3, expected at most 1: there are 2",
    ),
    "validation": ({"validation_examples": 5}, "found 5, expected 0 to 4"),
}


@pytest.mark.parametrize(("changed", "expected"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_are_refused(changed, expected):
    names = changed.keys() & {"class_names", "validation_examples"}
    with pytest.raises(InputError) as caught:
        dataset_from_arrays(
            (changed.get("train", TRAIN_IMAGES), changed.get("labels", TRAIN_LABELS)),
            (changed.get("test", TEST_IMAGES), TEST_LABELS),
            **{name: changed[name] for name in names},
        )
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
