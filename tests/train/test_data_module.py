"""How batches reach the device: as bytes where nothing is lost, pinned, while the host goes on."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pmsplat import registry
from pmsplat.train import Experiment
from pmsplat.train.data_module import DataModule
from pmsplat.train.packing import collate_packed
from pmsplat.types import Batch
from tests.models.tiny import views
from tests.waits import no_waits


def photographs(generator: torch.Generator) -> Batch:
    """Images that were bytes, all 256 of them among the context's."""
    context, target = views(generator), views(generator, 3)
    levels = torch.arange(context.images.numel()).remainder(256).view_as(context.images)
    context = replace(
        context, images=levels.to(torch.uint8).float() / 255, depth=context.images[:, :, 0]
    )
    target = replace(target, images=(255 * target.images).byte().float() / 255)
    return Batch(context, target, ["a"])


def test_photographs_travel_as_bytes_and_come_back_to_the_bit(generator: torch.Generator) -> None:
    batch = photographs(generator)
    packed = collate_packed([batch, batch])
    size = batch.context.images.numel() + batch.target.images.numel()
    sent = [tensor.numel() for tensor in packed.tensors if tensor.dtype == torch.uint8]
    assert sum(sent) == 2 * size and len(sent) == 2  # not the depth, whose values are bytes too
    found = packed.unpack(torch.device("cpu"))
    assert found.context.depth is not None and batch.context.depth is not None
    assert torch.equal(found.context.depth, batch.context.depth.repeat(2, 1, 1, 1))
    assert found.scene == ["a", "a"]
    for one, other in ((found.context, batch.context), (found.target, batch.target)):
        assert one.images.dtype == torch.float32
        assert torch.equal(one.images, other.images.repeat(2, 1, 1, 1, 1))


@pytest.mark.parametrize("value", [0.3, 1.5, -0.1, float("nan")])
def test_other_images_travel_as_they_are(value: float, generator: torch.Generator) -> None:
    batch = photographs(generator)
    batch.context.images[0, 1, 2, 3, 4] = value
    packed = collate_packed([batch])
    assert packed.tensors[0].dtype == torch.float32
    assert [t.shape for t in packed.tensors if t.dtype == torch.uint8] == [
        batch.target.images.shape
    ]
    found = packed.unpack(torch.device("cpu")).context.images
    assert torch.equal(found.nan_to_num(7), batch.context.images.nan_to_num(7))


@pytest.mark.parametrize(("device", "packed"), [("cpu", False), ("cuda", True)])
def test_only_for_cuda_are_batches_packed_and_pinned(
    device: str, packed: bool, setting: Callable[..., Experiment]
) -> None:
    experiment = setting("trainer.workers=0")
    dataset = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    data = DataModule(dataset, experiment)
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(strategy=strategy, global_step=0, world_size=1)  # pyright: ignore
    loader = data.train_dataloader()
    assert loader.pin_memory is packed
    assert (loader.collate_fn is collate_packed) is packed


def test_workers_hand_over_packed_batches(generator: torch.Generator) -> None:
    examples: Any = [photographs(generator)]
    loader = DataLoader(
        examples, 1, num_workers=1, collate_fn=collate_packed,
        multiprocessing_context="spawn",
    )  # fmt: skip
    (found,) = (packed.unpack(torch.device("cpu")) for packed in loader)
    wanted = photographs(torch.Generator().manual_seed(0))
    assert torch.equal(found.context.images, wanted.context.images)
    assert torch.equal(found.target.cameras.c2w, wanted.target.cameras.c2w)


@pytest.mark.cuda
def test_batches_are_pinned_and_bytes_are_divided_on_the_device_to_the_same_bits(
    setting: Callable[..., Experiment],
) -> None:
    experiment = setting("trainer.workers=0")
    dataset = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    data, found = DataModule(dataset, experiment), {}
    for device in ("cpu", "cuda"):
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(strategy=strategy, global_step=0, world_size=1)  # pyright: ignore
        batch = next(iter(data.train_dataloader()))
        if device == "cuda":
            assert batch.tensors[0].dtype == torch.uint8
            assert all(tensor.is_pinned() for tensor in batch.tensors)
        with no_waits():
            found[device] = data.transfer_batch_to_device(batch, torch.device(device), 0)
    for part in ("context", "target"):
        one, other = (getattr(found[device], part) for device in ("cpu", "cuda"))
        assert other.images.is_cuda and torch.equal(one.images, other.images.cpu())
        assert torch.equal(one.cameras.c2w, other.cameras.c2w.cpu())
