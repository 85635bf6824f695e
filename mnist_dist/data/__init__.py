"""The data set, and the order in which its examples are seen.

`load_dataset` gives the bundled MNIST, or what a directory holds in one of the forms
in which data sets are published, as NumPy arrays in memory; `dataset_from_arrays`
takes arrays. `ExampleStream` says which example stands at each position of training.
What goes to the devices is decided elsewhere, and nothing here imports TensorFlow.

A directory is read in four steps, each a room: `search` finds the form; `idx_files`,
`npz_files`, `csv_files`, `parquet_files` and `class_folders` read one form each, to
the arrays of `stored`; `split_checks` checks these; `loading` divides them into the
splits of a `dataset`.
"""

from mnist_dist.data.dataset import MNIST_CHECKSUM, Dataset, Split
from mnist_dist.data.example_stream import ExampleStream
from mnist_dist.data.loading import dataset_from_arrays, load_dataset

__all__ = [
    "MNIST_CHECKSUM",
    "Dataset",
    "ExampleStream",
    "Split",
    "dataset_from_arrays",
    "load_dataset",
]
