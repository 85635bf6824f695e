"""The sides that PyTorch computes: eager, compiled, and two workers under DDP."""

import functools
import os

import numpy as np
import torch
import torch.distributed

from benchmarks.side import CreateSide, Rank, Side
from benchmarks.work import (
    EPSILON,
    LEARNING_RATE,
    NUM_CLASSES,
    Case,
    first_weights,
    training_batches,
)


def create_sides(rank: Rank) -> dict[str, CreateSide]:
    """Returns how each side is made in this process."""
    if rank.is_alone:
        return {
            "PyTorch eager": functools.partial(pytorch, is_compiled=False),
            "PyTorch compiled": functools.partial(pytorch, is_compiled=True),
        }
    host, _, port = rank.addresses[0].rpartition(":")
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
    torch.distributed.init_process_group(
        "gloo", rank=rank.number, world_size=len(rank.addresses)
    )
    return {"PyTorch DDP, gloo": functools.partial(ddp, rank=rank)}


def _kernel(weights: np.ndarray) -> torch.Tensor:
    """Turns [in, out] into [out, in], and [height, width, in, out] likewise."""
    axes = (1, 0) if weights.ndim == 2 else (3, 2, 0, 1)
    return torch.tensor(weights.transpose(axes).copy())


class _Same(torch.nn.Conv2d):
    """A convolution of stride 2 that pads as TensorFlow's `SAME` does."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pads = []
        for size, kernel in zip(images.shape[:1:-1], self.kernel_size, strict=True):
            total = max((-(-size // 2) - 1) * 2 + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(torch.nn.functional.pad(images, pads))


class _Network(torch.nn.Module):
    """`mlp` or `cnn`, from images [batch, height, width, 1] to logits."""

    def __init__(self, model: str) -> None:
        super().__init__()
        weights = first_weights(model)
        kernels, biases = weights[::2], weights[1::2]
        layers: list[torch.nn.Module] = []
        for kernel, bias in zip(kernels, biases, strict=True):
            *size, num_inputs, num_outputs = kernel.shape
            layer: torch.nn.Module = (
                _Same(num_inputs, num_outputs, size[0], stride=2)
                if size
                else torch.nn.Linear(num_inputs, num_outputs)
            )
            with torch.no_grad():
                layer.weight.copy_(_kernel(kernel))
                layer.bias.copy_(torch.tensor(bias))
            layers.append(layer)
        self.layers = torch.nn.ModuleList(layers)
        self.has_convolutions = kernels[0].ndim == 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # In memory this is [batch, height, width, channels], which is the faster.
        x = images.permute(0, 3, 1, 2) if self.has_convolutions else images.flatten(1)
        for number, layer in enumerate(self.layers):
            if number:
                x = torch.relu(x)
            if x.ndim == 4 and isinstance(layer, torch.nn.Linear):
                x = x.permute(0, 2, 3, 1).flatten(1)
            x = layer(x)
        assert x.shape[1] == NUM_CLASSES
        return x


def _compute_loss(
    network: torch.nn.Module, case: Case, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    is_mixed = case.dtype == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        logits = network(images.float() / 255.0)
    return torch.nn.functional.cross_entropy(logits.float(), labels)


def _predict_with(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.tensor(images)).numpy()


def pytorch(case: Case, *, is_compiled: bool) -> Side:
    """PyTorch as it comes, or its loss compiled and its optimizer fused."""
    network = _Network(case.model)
    if case.model == "cnn":
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        network.parameters(), LEARNING_RATE, eps=EPSILON, fused=is_compiled
    )
    compute_loss = functools.partial(_compute_loss, network, case)
    if is_compiled:
        compute_loss = torch.compile(compute_loss)
    images, labels = map(torch.tensor, training_batches(case))

    def train() -> None:
        for i in range(0, len(labels), case.batch):
            batch = slice(i, i + case.batch)
            optimizer.zero_grad()
            compute_loss(images[batch], labels[batch]).backward()
            optimizer.step()

    return Side(train, functools.partial(_predict_with, network))


def ddp(case: Case, *, rank: Rank) -> Side:
    """One of the workers of DistributedDataParallel, on its part of each batch."""
    network = _Network(case.model)
    parallel = torch.nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, eps=EPSILON)
    images, labels = map(torch.tensor, training_batches(case))
    share = case.batch // len(rank.addresses)

    def train() -> None:
        for i in range(rank.number * share, len(labels), case.batch):
            batch = slice(i, i + share)
            optimizer.zero_grad()
            _compute_loss(parallel, case, images[batch], labels[batch]).backward()
            optimizer.step()

    return Side(train, functools.partial(_predict_with, network))
