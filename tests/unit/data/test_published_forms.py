"""Data sets are read in the forms in which they are published, with every value."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tracemalloc

import data_sets
import numpy as np
import pytest
from PIL import Image

from mnist_dist.data import load_dataset
from mnist_dist.data.loading import dataset_from_arrays
from mnist_dist.errors import InputError

RNG = np.random.default_rng(0)


def create_arrays(labels=(0, 3, 1, 2, 3, 0, 1, 2), *, splits=("train", "test")):
    """Images of 6x6 and labels; from two to eight examples a split."""
    arrays = {}
    for number, split in enumerate(splits):
        chosen = np.array(labels[: len(labels) - number], np.uint8)
        shape = (len(chosen), 6, 6)
        arrays[f"{split}_images"] = RNG.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = chosen
    return arrays


ARRAYS = create_arrays()


def check(dataset, arrays=ARRAYS, *, num_classes=4):
    """Every image and label is the one that was written, in its place."""
    for split in (dataset.train, dataset.validation, dataset.test):
        if split is None:
            assert "val_images" not in arrays
            continue
        name = split.name.replace("validation", "val")
        expected = arrays[f"{name}_images"]
        expected = expected if expected.ndim == 4 else expected[..., np.newaxis]
        np.testing.assert_array_equal(split.images, expected, strict=True)
        assert split.images.flags.c_contiguous
        np.testing.assert_array_equal(
            split.labels, arrays[f"{name}_labels"].astype(np.int32), strict=True
        )
    assert dataset.num_classes == num_classes
    # Whatever the form, the same data have the same checksum.
    if "val_images" not in arrays:
        plain = dataset_from_arrays(
            (arrays["train_images"], arrays["train_labels"]),
            (arrays["test_images"], arrays["test_labels"]),
        )
        assert dataset.checksum == plain.checksum


def check_refused(path, *expected):
    with pytest.raises(InputError) as caught:
        load_dataset(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in expected:
        assert part in message


# IDX.


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4"])
@pytest.mark.parametrize("rank", [1, 2])
def test_idx_labels_of_any_integer_type_and_as_a_column(tmp_path, dtype, rank):
    arrays = dict(ARRAYS)
    for part in ("train_labels", "test_labels"):
        arrays[part] = ARRAYS[part].astype(dtype).reshape((-1, 1)[:rank])
    data_sets.write_mnist(tmp_path, arrays)
    check(load_dataset(tmp_path))


def test_idx_images_of_another_type_are_refused(tmp_path):
    wide = {**ARRAYS, "train_images": ARRAYS["train_images"].astype("i4")}
    data_sets.write_mnist(tmp_path, wide)
    check_refused(tmp_path, "found values of type int32", "expected unsigned bytes")


def test_qmnist(tmp_path):
    data_sets.write_qmnist(tmp_path, ARRAYS)
    check(load_dataset(tmp_path))


def test_several_columns_of_labels_are_refused_but_for_qmnist(tmp_path):
    rows = np.ones((8, 8), np.int32)
    data_sets.write_mnist(tmp_path, {**ARRAYS, "train_labels": rows})
    check_refused(tmp_path, "found int32 of shape (8, 8), expected labels")


def test_emnist_is_turned_upright_and_its_letters_have_names(tmp_path):
    arrays = create_arrays(labels=(1, 26, 2, 13, 1, 26))
    data_sets.write_emnist(tmp_path, arrays)
    dataset = load_dataset(tmp_path)
    check(dataset, arrays, num_classes=27)
    assert dataset.notes == (
        "images turned upright: EMNIST's files hold them transposed",
    )
    assert dataset.class_names is not None
    assert len(dataset.class_names) == 27
    assert "".join(dataset.class_names[1:]) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def test_emnist_without_its_mapping_has_no_names(tmp_path):
    data_sets.write_emnist(tmp_path, ARRAYS, subset="digits")
    (tmp_path / "emnist-digits-mapping.txt").unlink()
    dataset = load_dataset(tmp_path)
    check(dataset)
    assert dataset.class_names is None


@pytest.mark.parametrize("text", ["1 65\nx\n", "1\n", "1 7\n", "-1 65\n", " \n"])
def test_damaged_mapping_of_emnist_is_refused(tmp_path, text):
    data_sets.write_emnist(tmp_path, ARRAYS)
    (tmp_path / "emnist-letters-mapping.txt").write_text(text)
    check_refused(tmp_path, "emnist-letters-mapping.txt': found", "expected")


@pytest.mark.parametrize("beside", [True, False])
def test_kaggles_folders_beside_and_around_the_files(tmp_path, beside):
    """Each file lies in a folder of its name; some lie there under a dot, too."""
    names = data_sets.idx_names()
    data_sets.write_idx(
        tmp_path, {f"{name}/{name}": ARRAYS[part] for part, name in names.items()}
    )
    if beside:
        for part, name in names.items():
            files = {name.replace("-idx", ".idx"): ARRAYS[part]}
            data_sets.write_idx(tmp_path, files)
    check(load_dataset(tmp_path))


def test_data_set_in_a_folder_below_is_found_and_named(tmp_path):
    """As torchvision unpacks it."""
    data_sets.write_mnist(tmp_path / "MNIST" / "raw", ARRAYS)
    (tmp_path / "notes").mkdir()
    dataset = load_dataset(tmp_path)
    check(dataset)
    assert dataset.source == str(tmp_path / "MNIST" / "raw")


def test_data_sets_in_two_folders_are_refused(tmp_path):
    for name in ("a", "b"):
        data_sets.write_mnist(tmp_path / name, ARRAYS)
    check_refused(tmp_path, "found several data sets, in", "/a'", "/b'")


# NumPy's files.


def test_medmnist_with_its_validation_split(tmp_path):
    arrays = create_arrays(splits=("train", "val", "test"))
    data_sets.write_medmnist(tmp_path / "pathmnist.npz", arrays)
    dataset = load_dataset(tmp_path)
    check(dataset, arrays)
    assert dataset.evaluation is dataset.validation

    changed = dict(arrays)
    changed["val_labels"] = arrays["val_labels"][::-1]
    data_sets.write_medmnist(tmp_path / "pathmnist.npz", changed)
    assert load_dataset(tmp_path).checksum != dataset.checksum

    with pytest.raises(
        InputError, match=r"expected 0: .* has 7 validation examples of"
    ):
        load_dataset(tmp_path, validation_examples=2)


def test_data_dir_may_name_the_npz_file(tmp_path):
    data_sets.write_medmnist(tmp_path / "a.npz", ARRAYS)
    data_sets.write_medmnist(tmp_path / "b.npz", create_arrays())
    dataset = load_dataset(tmp_path / "a.npz")
    check(dataset)
    assert dataset.source == str(tmp_path / "a.npz")
    check_refused(tmp_path, "found 'a.npz', 'b.npz'", "--data_dir may also name")


def test_missing_npz_file_is_refused(tmp_path):
    check_refused(tmp_path / "a.npz", "a.npz': cannot be read (No such file")


def test_labels_of_several_classes_at_once_are_refused(tmp_path):
    scores = np.zeros((8, 14), np.uint8)  # as ChestMNIST's
    np.savez(tmp_path / "a.npz", **{**ARRAYS, "train_labels": scores})
    check_refused(tmp_path, "train_labels: found uint8 of shape (8, 14)", "argmax")


def test_kmnist(tmp_path):
    data_sets.write_kmnist(tmp_path, ARRAYS)
    check(load_dataset(tmp_path))


def test_four_npy_files(tmp_path):
    for part, array in ARRAYS.items():
        split, kind = part.split("_")
        np.save(
            tmp_path / f"{kind[0].replace('i', 'X').replace('l', 'y')}_{split}", array
        )
    check(load_dataset(tmp_path))


def test_flat_images_of_a_square_are_read(tmp_path):
    flat = {**ARRAYS}
    for part in ("train_images", "test_images"):
        flat[part] = ARRAYS[part].reshape(-1, 36)
    data_sets.write_medmnist(tmp_path / "a.npz", flat)
    check(load_dataset(tmp_path))


# CSV.


def write_tables(directory, *, train="train.csv", test="test.csv", **keywords):
    for split, name in (("train", train), ("test", test)):
        data_sets.write_csv(
            directory / name,
            ARRAYS[f"{split}_images"],
            ARRAYS[f"{split}_labels"],
            **keywords,
        )


@pytest.mark.parametrize("header", [(), None])
@pytest.mark.parametrize("prefix", ["", "sign_mnist_", "fashion-mnist_"])
def test_csv_with_and_without_names_of_its_columns(tmp_path, prefix, header):
    names = {"train": f"{prefix}train.csv", "test": f"{prefix}test.csv"}
    write_tables(tmp_path, **names, header=header)
    (tmp_path / "amer_sign2.png").touch()
    check(load_dataset(tmp_path))


def test_csv_in_kaggles_folders(tmp_path):
    for folder in ("sign_mnist_train", "sign_mnist_test"):
        (tmp_path / folder).mkdir()
    names = {s: f"sign_mnist_{s}/sign_mnist_{s}.csv" for s in ("train", "test")}
    write_tables(tmp_path, **names)
    check(load_dataset(tmp_path))


def test_csv_with_quotes_floats_blank_lines_and_a_byte_order_mark(tmp_path):
    write_tables(tmp_path)
    for name in ("train.csv", "test.csv"):
        lines = (tmp_path / name).read_text().splitlines()
        rows = [line.split(",") for line in lines[1:]]
        text = [
            ",".join([f'"{label}"', *(f"{pixel}.0" for pixel in pixels)])
            for label, *pixels in rows
        ]
        (tmp_path / name).write_text(
            "\ufeff" + "\r\n\r\n".join([lines[0], *text]) + "\n", encoding="utf-8"
        )
    check(load_dataset(tmp_path))


def test_columns_of_line_numbers_are_not_pixels_and_the_label_stands_anywhere(tmp_path):
    write_tables(tmp_path)
    for name in ("train.csv", "test.csv"):
        rows = [line.split(",") for line in (tmp_path / name).read_text().split()]
        text = [",".join(["", *rows[0][1:], "Class"])] + [
            ",".join([str(1000 + i), *pixels, label])
            for i, (label, *pixels) in enumerate(rows[1:])
        ]
        (tmp_path / name).write_text("\n".join(text))
    check(load_dataset(tmp_path))


def test_kaggles_digit_recognizer_gives_a_tenth_for_the_test_set(tmp_path):
    images = RNG.integers(0, 256, (100, 6, 6), dtype=np.uint8)
    labels = np.repeat(np.arange(5), 20)
    data_sets.write_csv(tmp_path / "train.csv", images, labels)
    data_sets.write_csv(tmp_path / "test.csv", images[:9], None)
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    dataset = load_dataset(tmp_path)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [18] * 5)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [2] * 5)
    assert "test.csv' has no labels and is not used" in dataset.notes[0]
    assert dataset.notes[1] == "10 of 100 examples drawn as the test set"
    together = [*dataset.train.images, *dataset.test.images]
    assert {i.tobytes() for i in together} == {i.tobytes() for i in images}
    again = load_dataset(tmp_path)
    np.testing.assert_array_equal(again.test.images, dataset.test.images)


def test_csv_of_emnist_is_turned_upright(tmp_path):
    for split in ("train", "test"):
        stored = ARRAYS[f"{split}_images"].swapaxes(1, 2)
        path = tmp_path / f"emnist-digits-{split}.csv"
        data_sets.write_csv(path, stored, ARRAYS[f"{split}_labels"], header=None)
    (tmp_path / "emnist-digits-mapping.txt").write_text("0 48\n1 49\n2 50\n3 51\n")
    dataset = load_dataset(tmp_path)
    check(dataset)
    assert dataset.class_names == ("0", "1", "2", "3")


def test_csv_labels_may_be_names(tmp_path):
    names = ["cat", "dog", "eel, electric", "fox"]
    for split in ("train", "test"):
        labels = [names[label] for label in ARRAYS[f"{split}_labels"]]
        data_sets.write_csv(
            tmp_path / f"{split}.csv", ARRAYS[f"{split}_images"], labels
        )
    dataset = load_dataset(tmp_path)
    check(dataset)
    assert dataset.class_names == tuple(names)


PIXELS = "1,2,3,4"
BAD_TABLES = {
    "no labels": (
        "a,b,c,d\n1,2,3,4\n",
        "found no column of labels, expected one named",
    ),
    "no square": ("label,a,b,c\n1,2,3,4\n", "found 4 columns, 'label', 'a', 'b', 'c'"),
    "no square, no names": ("1,2,3,4\n", "found 4 columns without names"),
    "two labels": (f"label,class,a,b,c,d\n1,1,{PIXELS}\n", "found 6 columns"),
    "colour": (f"label,{','.join('abcdefghijkl')}\n", "the pixels of a square grey"),
    "only names": ("label,a,b,c,d\n", "found no line of pixels"),
    "ragged": (f"label,a,b,c,d\n1,{PIXELS}\n\n1,2,3\n", "found 3 columns in line 4"),
    "too long": (f"label,a,b,c,d\n1,{PIXELS}\n1,{PIXELS},5\n", "6 columns in line 3"),
    "text": ("label,a,b,c,d\n1,2,x,4,5\n", "found 'x' in line 2, column 3"),
    "empty field": ("label,a,b,c,d\n1,2,,4,5\n", "found '' in line 2, column 3"),
    "negative": ("1,2,-3,4,5\n", "found '-3' in line 1, column 3, expected a pixel"),
    "too bright": ("1,2,256,4,5\n", "found '256' in line 1, column 3"),
    "fraction": ("1,2,0.5,4,5\n", "found '0.5' in line 1, column 3"),
    "not a number": ("label,a,b,c,d\n1,2,nan,4,5\n", "found 'nan' in line 2, column 3"),
    "mixed labels": (
        "label,a,b,c,d\n1,1,2,3,4\nO,1,2,3,4\n",
        "found the labels '1', 'O'",
    ),
    "fraction as label": ("label,a,b,c,d\n1.5,1,2,3,4\n1,1,2,3,4\n", "'1', '1.5'"),
    "negative label": ("label,a,b,c,d\n-1,1,2,3,4\n1,1,2,3,4\n", "labels from -1 to 1"),
    "label last": ("0,1,2,3,4\n0,1,2,3,5\n", "expected the labels first"),
    "not text": ("label,a,b,c,d\n\udcff,1,2,3,4\n", "not a text file"),
    "open quote": ('label,a,b,c,d\n1,"2,3,4,5\n1,2,3,4,5\n', "line 2"),
}


@pytest.mark.parametrize(("text", "expected"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_csv_is_refused(tmp_path, text, expected):
    path = tmp_path / "train.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    check_refused(tmp_path, f"{str(path)!r}: ", expected)


def test_csv_of_other_images_is_refused(tmp_path):
    write_tables(tmp_path)
    (tmp_path / "test.csv").write_text(f"1,{PIXELS}\n")
    check_refused(tmp_path, "test.csv': found 4 columns of pixels, expected 36")


def test_several_csv_files_for_one_split_are_refused(tmp_path):
    write_tables(tmp_path)
    write_tables(tmp_path, train="b_train.csv", test="b_test.csv")
    check_refused(
        tmp_path, "one CSV file of test images, found 'b_test.csv', 'test.csv'"
    )


def test_csv_beside_an_older_form_is_ignored(tmp_path):
    """What could be read before CSV was, is still read."""
    data_sets.write_mnist(tmp_path, ARRAYS)
    (tmp_path / "train.csv").write_text("my notes")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    check(load_dataset(tmp_path))


# Folders of pictures.


def ordered(arrays, names):
    """As folders give them: class by class, in the order of their numbers."""
    result = {}
    for split in ("train", "test"):
        order = np.argsort(arrays[f"{split}_labels"], kind="stable")
        for kind in ("images", "labels"):
            result[f"{split}_{kind}"] = arrays[f"{split}_{kind}"][order]
    return result


@pytest.mark.parametrize(
    "splits",
    [
        {"train": "train", "test": "test"},
        {"train": "training", "test": "testing"},
        {"train": "seg_train/seg_train", "test": "seg_test/seg_test"},
        {"train": "mnist_png/Training", "test": "mnist_png/Testing"},
    ],
)
def test_class_folders(tmp_path, splits):
    names = ["0", "2", "10", "100"]  # in the order of the numbers
    data_sets.write_class_folders(tmp_path, ARRAYS, names, splits=splits)
    for folder in splits.values():
        (tmp_path / folder / "10" / "Thumbs.db").write_bytes(b"no picture")
        (tmp_path / folder / ".ipynb_checkpoints").mkdir()
    dataset = load_dataset(tmp_path)
    check(dataset, ordered(ARRAYS, names))
    assert dataset.class_names == tuple(names)


def test_class_folders_of_jpeg_in_colour(tmp_path):
    colour = dict(ARRAYS)
    for part in ("train_images", "test_images"):
        flat = ARRAYS[part].mean(axis=(1, 2)).astype(np.uint8)
        colour[part] = np.broadcast_to(
            flat[:, None, None, None], (len(flat), 8, 8, 3)
        ).copy()
    names = ["cat", "dog", "eel", "fox"]
    data_sets.write_class_folders(tmp_path, colour, names, suffix=".JPG")
    dataset = load_dataset(tmp_path)
    assert dataset.image_shape == (8, 8, 3)
    assert dataset.class_names == tuple(names)
    expected = ordered(colour, names)
    np.testing.assert_allclose(dataset.train.images, expected["train_images"], atol=2)
    np.testing.assert_array_equal(dataset.train.labels, expected["train_labels"])


def test_grey_and_coloured_pictures_together_are_coloured(tmp_path):
    data_sets.write_class_folders(tmp_path, ARRAYS, list("abcd"))
    colour = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "train" / "d" / "z.png")
    images = load_dataset(tmp_path).train.images
    np.testing.assert_array_equal(images[-1], colour)
    np.testing.assert_array_equal(
        images[:-1],
        np.repeat(ordered(ARRAYS, "abcd")["train_images"][..., None], 3, axis=3),
    )


def test_class_folders_without_splits_give_a_tenth_for_the_test_set(tmp_path):
    images = RNG.integers(0, 256, (40, 6, 6), dtype=np.uint8)
    arrays = {"train_images": images, "train_labels": np.repeat([0, 1], 20)}
    data_sets.write_class_folders(
        tmp_path, arrays, ["no", "yes"], splits={"train": "."}
    )
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("no", "yes")
    assert dataset.notes == ("4 of 40 examples drawn as the test set",)
    np.testing.assert_array_equal(dataset.test.labels, [0, 0, 1, 1])


def test_class_that_only_one_split_has_keeps_its_number(tmp_path):
    data_sets.write_class_folders(tmp_path, ARRAYS, list("abcd"))
    for path in (tmp_path / "test" / "b").iterdir():
        path.unlink()
    (tmp_path / "test" / "b").rmdir()
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == tuple("abcd")
    assert set(dataset.test.labels) == {0, 2, 3}


def test_pictures_of_several_sizes_are_refused(tmp_path):
    data_sets.write_class_folders(tmp_path, ARRAYS, list("abcd"))
    path = tmp_path / "train" / "c" / "z.png"
    Image.fromarray(np.zeros((7, 6), np.uint8)).save(path)
    check_refused(
        tmp_path, f"{str(path)!r}: found 6x7 pixels, expected 6x6 as in", "size"
    )


def test_damaged_picture_is_refused(tmp_path):
    data_sets.write_class_folders(tmp_path, ARRAYS, list("abcd"))
    path = tmp_path / "test" / "a" / "00000.png"
    path.write_bytes(path.read_bytes()[:-20])
    check_refused(tmp_path, f"{str(path)!r}: a picture that cannot be read")


def test_folders_in_a_class_folder_are_refused(tmp_path):
    data_sets.write_class_folders(tmp_path, ARRAYS, list("abcd"))
    (tmp_path / "train" / "a" / "more").mkdir()
    check_refused(tmp_path, "/train/a': found the folders 'more', expected pictures")


def test_small_files_of_large_pictures_are_refused_before_they_are_kept(tmp_path):
    data_sets.write_class_folders(tmp_path, ARRAYS, list("abcd"))
    content = data_sets.png_bytes(np.zeros((3000, 3000), np.uint8))
    for number in range(9):
        (tmp_path / "train" / "a" / f"{number}.png").write_bytes(content)
    tracemalloc.start()
    try:
        check_refused(tmp_path, "pictures of 3000x3000 pixels in", "expected at most")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 << 20  # one of them


def test_link_to_nothing_is_refused(tmp_path):
    data_sets.write_class_folders(tmp_path, ARRAYS, list("abcd"))
    (tmp_path / "train" / "a" / "z.png").symlink_to(tmp_path / "nothing")
    check_refused(tmp_path, "/train/a/z.png': No such file")


# Parquet.


def write_parquets(directory, class_names=None):
    for split in ("train", "test"):
        data_sets.write_parquet(
            directory / f"{split}-00000-of-00001.parquet",
            ARRAYS[f"{split}_images"],
            ARRAYS[f"{split}_labels"],
            class_names,
        )


def test_parquet_as_the_hub_keeps_it(tmp_path):
    (tmp_path / "mnist").mkdir()
    write_parquets(tmp_path / "mnist", class_names=["zero", "one", "two", "three"])
    dataset = load_dataset(tmp_path)
    check(dataset)
    assert dataset.class_names == ("zero", "one", "two", "three")


def test_parquet_in_several_files(tmp_path):
    write_parquets(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    for number, part in enumerate((slice(0, 3), slice(3, 8))):
        data_sets.write_parquet(
            tmp_path / f"train-{number:05}-of-00002-8f3c0a.parquet",
            ARRAYS["train_images"][part],
            ARRAYS["train_labels"][part],
        )
    check(load_dataset(tmp_path))
    (tmp_path / "train-00001-of-00002-8f3c0a.parquet").unlink()
    check_refused(tmp_path, "found 'train-00000-of-00002-8f3c0a.parquet', expected 2")


def test_parquet_of_other_columns_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"img": [b"x"], "fine_label": [1]}), tmp_path / "train.parquet"
    )
    check_refused(tmp_path, "found the columns 'img', 'fine_label', expected one of")


def test_damaged_parquet_is_refused(tmp_path):
    write_parquets(tmp_path)
    path = tmp_path / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    for length in (4, 100, len(content) - 9):
        path.write_bytes(content[:length])
        check_refused(tmp_path, f"{str(path)!r}: not a Parquet file that can be read (")
    rng = np.random.default_rng(1)
    for _ in range(50):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 5):
            damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            load_dataset(tmp_path)


def test_parquet_without_pyarrow_is_refused_with_the_cure(tmp_path, monkeypatch):
    write_parquets(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    check_refused(tmp_path, "needs pyarrow, which is not installed: pip install")


def test_other_forms_need_no_pyarrow():
    program = "import sys, mnist_dist.data; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
