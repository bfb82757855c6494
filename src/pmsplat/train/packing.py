"""Batches on their way to a GPU: photographs as bytes, in memory that it copies by itself."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data import collate
from ..types import Batch


@dataclass(frozen=True)
class Packed:
    """A batch on its way to a GPU, photographs as the bytes that they were.

    `tensors` are those of the batch, images as bytes where nothing is lost: that is a quarter of
    the way. `layout` is the batch without their content, on the device "meta".
    """

    tensors: tuple[Tensor, ...]
    layout: Batch

    @classmethod
    def of(cls, batch: Batch) -> "Packed":
        photographs = [batch.context.images, batch.target.images]
        tensors: list[Tensor] = []

        def take(tensor: Tensor) -> Tensor:
            is_photograph = any(tensor is images for images in photographs)
            tensors.append(_as_bytes(tensor) if is_photograph else tensor)
            return tensor.to("meta")

        layout = batch.map(take)
        return cls(tuple(tensors), layout)

    def pin_memory(self) -> "Packed":
        """In page-locked memory, which a GPU copies while the host goes on; for the DataLoader."""
        return replace(self, tensors=tuple(tensor.pin_memory() for tensor in self.tensors))

    def unpack(self, device: torch.device) -> Batch:
        """The batch on `device`, to the bit what it was."""
        moved = (tensor.to(device, non_blocking=True) for tensor in self.tensors)
        return self.layout.map(lambda _: _as_floats(next(moved)))


def collate_packed(batches: list[Batch]) -> Packed:
    """As `collate`, for a GPU."""
    return Packed.of(collate(batches))


def _as_bytes(images: Tensor) -> Tensor:
    """Images that are bytes divided by 255 as those bytes; others as they are."""
    levels = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return levels if torch.equal(_as_floats(levels), images) else images


def _as_floats(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.uint8:
        return tensor
    # By a tensor: CUDA multiplies by the rounded reciprocal of a plain number
    return tensor / torch.full((), 255.0, device=tensor.device)
