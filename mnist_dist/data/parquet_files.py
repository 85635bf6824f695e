"""Data sets in Parquet files, as the Hugging Face Hub keeps them.

A row holds an encoded picture (PNG, JPEG) and its label. Reading needs `pyarrow`,
which `pip install 'mnist-dist[parquet]'` brings.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mnist_dist.data.encoded_images import decode_images, with_equal_channels
from mnist_dist.data.stored import (
    Candidate,
    StoredDataset,
    StoredSplit,
    choose_by_split,
    listed,
)
from mnist_dist.errors import InputError
from mnist_dist.files.untrusted import (
    MAX_IMAGES_RATIO,
    max_unpacked_bytes,
    open_file,
    quoted,
)

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_IMAGES = ("image", "img")
_LABELS = ("label", "labels")
_ROWS_AT_A_TIME = 1000
# train-00000-of-00002.parquet, train-00001-of-00002-8f3c0a.parquet
_SHARD = re.compile(r"-\d+-of-(\d+)(?:-\w+)?(?=\.parquet$)")


class _Part(NamedTuple):
    """One file: uint8 [n, height, width, channels], int [n], and names if it has any."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] | None


def find_parquet(directory: str, files: Mapping[str, str]) -> Candidate | None:
    """Finds `train-*.parquet` and `test-*.parquet`, in one file or several each.

    Args:
      directory: for error messages.
      files: path by name.

    Raises:
      InputError: there are several data sets, or parts of one are missing.
    """
    shards: dict[str, list[str]] = {}  # name without its number -> names
    for name in sorted(files):
        if name.endswith(".parquet"):
            shards.setdefault(_SHARD.sub("", name), []).append(name)
    chosen = choose_by_split(directory, list(shards), what="set of Parquet files")
    if chosen is None:
        return None
    for whole in chosen.values():
        match = _SHARD.search(shards[whole][0])
        if match and int(match[1]) != len(shards[whole]):
            raise InputError(
                f"{quoted(directory)}: found {listed(shards[whole])}, expected "
                f"{int(match[1])} files, as their names say"
            )
    names = {split: shards[whole] for split, whole in chosen.items()}
    paths = {split: [files[name] for name in names[split]] for split in names}
    return Candidate(
        list(itertools.chain(*names.values())), lambda: read_parquet(paths)
    )


def read_parquet(paths: Mapping[str, list[str]]) -> StoredDataset:
    """Reads the Parquet files of a data set.

    Args:
      paths: by split, in order; `train` must be there.

    Raises:
      InputError: `pyarrow` is not installed, or a file is damaged or has other
        columns than an image (`image` or `img`) and a label (`label` or `labels`).
    """
    splits, class_names = {}, None
    for split, files in paths.items():
        images, labels = [], []
        for path in files:
            part = _read_file(path)
            images.append(part.images)
            labels.append(part.labels)
            class_names = class_names or part.class_names
        shapes = sorted({part.shape[1:] for part in images})
        if len(shapes) > 1:
            raise InputError(
                f"{quoted(files[0])}: found images of the shapes {shapes} in it and the "
                "files beside it, expected one shape"
            )
        name = quoted(files[0])
        splits[split] = StoredSplit(
            np.concatenate(images), np.concatenate(labels), name, name
        )
    splits = with_equal_channels(splits)
    return StoredDataset(
        train=splits["train"],
        test=splits.get("test"),
        validation=splits.get("validation"),
        class_names=class_names,
    )


def _read_file(path: str) -> _Part:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(
            f"{quoted(path)}: reading Parquet needs pyarrow, which is not installed: "
            "pip install 'mnist-dist[parquet]'"
        ) from error
    name = quoted(path)
    with open_file(path) as (file, size):
        try:
            with pq.ParquetFile(file) as table:
                return _read_table(table, num_bytes=size, name=name)
        # Damaged data raise nearly anything.
        except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{name}: not a Parquet file that can be read ({reason})"
            ) from error


def _read_table(table: pq.ParquetFile, *, num_bytes: int, name: str) -> _Part:
    image, label = _find_columns(table, name=name)
    metadata = table.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    limit = max_unpacked_bytes(num_bytes, max_ratio=MAX_IMAGES_RATIO)
    if (claimed := sum(group.total_byte_size for group in groups)) > limit:
        raise InputError(
            f"{name}: claims {claimed} bytes of data, but a file of this size holds at "
            f"most {limit}"
        )
    if metadata.num_rows < 1:
        raise InputError(f"{name}: found no rows, expected one an image")
    labels: list[int] = []

    def pictures() -> Iterator[tuple[str, bytes]]:
        for batch in table.iter_batches(_ROWS_AT_A_TIME, columns=[image, label]):
            rows = zip(
                *(batch.column(c).to_pylist() for c in (image, label)), strict=True
            )
            for picture, number in rows:
                where = f"{name}: row {len(labels)}"
                content = picture["bytes"] if isinstance(picture, dict) else picture
                if not isinstance(content, bytes) or not isinstance(number, int):
                    raise InputError(f"{where}: found no picture or label in it")
                labels.append(number)
                yield where, content

    images = decode_images(
        pictures(), count=metadata.num_rows, num_bytes=num_bytes, name=name
    )
    return _Part(images, np.array(labels), _find_class_names(table, label))


def _find_columns(table: pq.ParquetFile, *, name: str) -> tuple[str, str]:
    names = table.schema_arrow.names
    images = [column for column in names if column in _IMAGES]
    labels = [column for column in names if column in _LABELS]
    if len(images) != 1 or len(labels) != 1:
        raise InputError(
            f"{name}: found the columns {listed(names)}, expected one of encoded "
            f"pictures ({' or '.join(_IMAGES)}) and one of labels "
            f"({' or '.join(_LABELS)})"
        )
    return images[0], labels[0]


def _find_class_names(table: pq.ParquetFile, label: str) -> tuple[str, ...] | None:
    """Returns the names that the Hub's `ClassLabel` keeps beside the schema, if any."""
    metadata = table.schema_arrow.metadata or {}
    try:
        features: Any = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        return tuple(map(str, names)) if isinstance(names, list) else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
