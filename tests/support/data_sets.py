"""Writes small data sets in the forms in which the famous ones are published."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

_IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}

# By part: train_images, train_labels, test_images, test_labels; perhaps val_*.
Arrays = Mapping[str, np.ndarray]


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of any of its types."""
    code = _IDX_TYPES[array.dtype.str[1:]]
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx(directory: Path, files: Arrays) -> None:
    """Writes each array under its name, compressed if the name ends in .gz."""
    for name, array in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = idx_bytes(array)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def idx_names(prefix: str = "", suffix: str = "", test: str = "t10k") -> dict:
    """The name of each part's file, as MNIST's are called."""
    return {
        f"{split}_{kind}": f"{prefix}{test if split == 'test' else split}-{kind}-{idx}"
        f"{suffix}"
        for split in ("train", "test")
        for kind, idx in (("images", "idx3-ubyte"), ("labels", "idx1-ubyte"))
    }


def write_mnist(directory: Path, arrays: Arrays, **naming: str) -> None:
    """As MNIST: four IDX files; `naming` as for `idx_names`."""
    names = idx_names(**naming)
    write_idx(directory, {name: arrays[part] for part, name in names.items()})


def write_qmnist(directory: Path, arrays: Arrays) -> None:
    """As QMNIST: labels are rows of eight numbers, the first of them the class."""
    files = {}
    for split in ("train", "test"):
        labels = arrays[f"{split}_labels"].astype(np.int32)
        rows = np.arange(8 * len(labels), dtype=np.int32).reshape(-1, 8) + 1000
        rows[:, 0] = labels
        files[f"qmnist-{split}-images-idx3-ubyte.gz"] = arrays[f"{split}_images"]
        files[f"qmnist-{split}-labels-idx2-int.gz"] = rows
    write_idx(directory, files)


def write_emnist(directory: Path, arrays: Arrays, *, subset: str = "letters") -> None:
    """As EMNIST: transposed images, and a list of the characters of each label."""
    stored = {
        part: array.swapaxes(1, 2) if part.endswith("images") else array
        for part, array in arrays.items()
    }
    prefix = f"emnist-{subset}-"
    write_mnist(directory, stored, prefix=prefix, suffix=".gz", test="test")
    (directory / f"{prefix}mapping.txt").write_text(
        "".join(f"{label} {64 + label} {96 + label}\n" for label in range(1, 27))
    )


def write_medmnist(path: Path, arrays: Arrays) -> None:
    """As MedMNIST: one .npz with val_*, labels of shape [n, 1]."""
    stored = {
        part: array[:, np.newaxis] if part.endswith("labels") else array
        for part, array in arrays.items()
    }
    np.savez_compressed(path, **stored)


def write_kmnist(directory: Path, arrays: Arrays) -> None:
    """As KMNIST: four .npz of one unnamed array each."""
    for part, array in arrays.items():
        name = part.replace("_images", "-imgs").replace("_labels", "-labels")
        np.savez_compressed(directory / f"kmnist-{name}.npz", array)


def write_csv(
    path: Path,
    images: np.ndarray,
    labels: Sequence[object] | np.ndarray | None,
    *,
    header: Sequence[str] | None = (),
) -> None:
    """A line an image: the label first, if there is one, then the pixels.

    With `header=None` without a line of names; () are Kaggle's names.
    """
    num_pixels = images[0].size
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if header is not None:
            first = [] if labels is None else ["label"]
            pixels = [f"pixel{i}" for i in range(num_pixels)]
            writer.writerow(header or [*first, *pixels])
        for i, image in enumerate(images):
            first = [] if labels is None else [labels[i]]
            writer.writerow([*first, *image.ravel().tolist()])


def write_class_folders(
    directory: Path,
    arrays: Arrays,
    class_names: Sequence[str],
    *,
    suffix: str = ".png",
    splits: Mapping[str, str] | None = None,
) -> None:
    """A folder a class in a folder a split (`splits`: part -> its folder's name)."""
    for split, folder in (splits or {"train": "train", "test": "test"}).items():
        for name in class_names:
            (directory / folder / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(arrays[f"{split}_images"]):
            name = class_names[arrays[f"{split}_labels"][i]]
            Image.fromarray(image).save(directory / folder / name / f"{i:05}{suffix}")


def png_bytes(image: np.ndarray) -> bytes:
    """One picture, encoded."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(
    path: str | os.PathLike[str],
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] | None = None,
) -> None:
    """As the Hugging Face Hub: a struct of an encoded picture, and a label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": png_bytes(image), "path": None} for image in images]
    table = pa.table({"image": rows, "label": pa.array(labels.tolist(), pa.int64())})
    if class_names is not None:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": list(class_names), "_type": "ClassLabel"},
        }
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    pq.write_table(table, path)
