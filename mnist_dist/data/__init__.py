"""The data set, and the order in which its examples are seen.

`load_dataset` gives the bundled MNIST, or what a directory holds, as NumPy arrays
in memory; `ExampleStream` says which example stands at each position of training.
What goes to the devices is decided elsewhere, and nothing here imports TensorFlow.

Read on in: `dataset` (what a data set is, how a directory is understood), `plan`
(the example order), `idx` and `npz` (the file formats), `reading` (why a damaged or
hostile file costs no more memory than an honest one).
"""

from mnist_dist.data.dataset import Dataset, Split, load_dataset
from mnist_dist.data.example_stream import ExampleStream

__all__ = ["Dataset", "ExampleStream", "Split", "load_dataset"]
