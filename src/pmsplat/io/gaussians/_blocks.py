"""Block-wise reading and writing, shared by the readers and writers of Gaussians.

Readers decode block by block into tensors of the final size. So beside the file itself they need
memory for the result (44 + 12·sh bytes for each Gaussian: 236 at degree 3) and for one block.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...errors import UserError
from ...geometry.origin import local_origin
from ...types import NO_OFFSET, Gaussians, as_triple
from ._facts import tell_origin, tell_steps

log = logging.getLogger(__name__)

MAX_SIZE, MAX_RATIO = 1 << 26, 100  # a file may unpack to 64 MiB, or to 100 times its size
SOME = 5  # blocks that tell where all Gaussians lie
BLOCK = 1 << 14  # Gaussians: a few megabytes, which stay in the processor's cache


def read_blocks(
    path: str | Path,
    count: int,
    coefficients: int,
    decode: Callable[[int, int], Gaussians],
    placed: bool = True,
) -> Gaussians:
    """Reads `count` Gaussians as one float32 scene on the CPU; `decode(start, stop)` reads a block.

    Blocks are float64. Where their means lie far from the origin, they are counted from a local
    origin: that of the blocks, if the file says one, else one that is found (`local_origin`) for
    some blocks, spread over the file. A warning says so, unless they are not `placed` yet (`join`
    says it then), and where digits were lost before. `rules` and `up` are those of the blocks, and
    they have confidence where the blocks do.
    Quaternions are normalised; one of length 0 becomes the identity. A Gaussian with a value that
    is not finite, a negative scale or an opacity outside [0, 1] is left out; a warning counts them.
    Raises UserError if `count` is positive and no Gaussian is usable.
    """
    whole = Gaussians(
        means=torch.empty(1, count, 3),
        scales=torch.empty(1, count, 3),
        quats_wxyz=torch.empty(1, count, 4),
        opacities=torch.empty(1, count),
        sh=torch.empty(1, count, coefficients, 3),
    )
    if count:
        some = [_decode(decode, i, count) for i in _spread(count)]
        whole = _describe_whole(path, whole, some, placed)
    kept = 0
    for start in range(0, count, BLOCK):
        block = _decode(decode, start, count).at_origin(whole.origin).to(torch.float32)
        end = kept + block.means.shape[1]
        whole.means[:, kept:end] = block.means
        whole.scales[:, kept:end] = block.scales
        whole.quats_wxyz[:, kept:end] = _normalize_quats(block.quats_wxyz)
        whole.opacities[:, kept:end] = block.opacities
        whole.sh[:, kept:end] = block.sh
        if whole.confidence is not None and block.confidence is not None:
            whole.confidence[:, kept:end] = block.confidence
        kept = end
    if kept == count:
        return whole
    _tell_unusable(path, count - kept, count)
    return whole.map(lambda tensor: tensor[:, :kept])


def _decode(decode: Callable[[int, int], Gaussians], start: int, count: int) -> Gaussians:
    """The usable Gaussians of the block that begins at `start`, float64."""
    with np.errstate(all="ignore"):  # values that are not finite are left out
        block = decode(start, min(start + BLOCK, count)).to(torch.float64)
        usable = _find_usable(block.to(torch.float32))
    return block if usable.all() else block.map(lambda tensor: tensor[:, usable])


def _spread(count: int) -> list[int]:
    """Where blocks begin that stand for all: the first ones of a file may be out of the way."""
    blocks = -(-count // BLOCK)
    chosen = torch.linspace(0, blocks - 1, min(SOME, blocks)).long().tolist()
    return [BLOCK * block for block in chosen]


def _describe_whole(
    path: str | Path, whole: Gaussians, some: list[Gaussians], placed: bool
) -> Gaussians:
    """The same Gaussians, with rules, up, origin and room for confidence by some blocks.

    Says where digits were lost.
    """
    means = torch.cat([block.means[0] for block in some])
    said = some[0].origin
    tell_steps(path, means + means.new_tensor(said))
    origin = said if said != NO_OFFSET else as_triple(local_origin(means))
    if origin != NO_OFFSET and placed:
        tell_origin(path, origin, said=said != NO_OFFSET)
    sure = None if some[0].confidence is None else torch.empty_like(whole.opacities)
    return replace(whole, rules=some[0].rules, origin=origin, up=some[0].up, confidence=sure)


def drop_unusable(path: str | Path, gaussians: Gaussians) -> Gaussians:
    """Leaves out what is no longer usable after it was moved, as `read_blocks` does before."""
    usable = _find_usable(gaussians)
    if usable.all():
        return gaussians
    _tell_unusable(path, int((~usable).sum()), len(usable))
    return gaussians.map(lambda tensor: tensor[:, usable])


def _tell_unusable(path: str | Path, left: int, count: int) -> None:
    """Says how many Gaussians are left out; raises UserError where that is all of them."""
    why = "not finite, a negative scale, or an opacity outside [0, 1]"
    if left == count:
        raise damage_error(path, f"not one of {count} Gaussians is usable: {why}")
    log.warning("%s: %d of %d Gaussians are left out: %s", path, left, count, why)


def write_blocks(gaussians: Gaussians, path: str | Path) -> Iterator[Gaussians]:
    """Checks `gaussians` and returns its scene in blocks on the CPU: float64 of float32 precision.

    Raises UserError for a batch of several scenes, and for values that are not finite.
    """
    check(gaussians, path)
    return _split_blocks(gaussians)


def check(gaussians: Gaussians, path: str | Path) -> None:
    """Raises UserError unless `gaussians` is one scene of finite values."""
    if gaussians.means.shape[0] != 1:
        raise UserError(
            f"Gaussians of {gaussians.means.shape[0]} scenes for {path}",
            "one scene per file",
            "save them one at a time: gaussians.map(lambda t: t[i : i + 1])",
        )
    bad = sum(int((~_find_usable(block)).sum()) for block in _split_blocks(gaussians))
    if bad:
        sure = "" if gaussians.confidence is None else ", confidence in [0, 1]"
        raise UserError(
            f"{bad} of {gaussians.means.shape[1]} Gaussians are not finite or out of range",
            f"finite means, rotations and colours, scales >= 0, opacities in [0, 1]{sure}",
            "check the loss curve of the training run, and near and far of the cameras",
        )


def _split_blocks(gaussians: Gaussians) -> Iterator[Gaussians]:
    for start in range(0, gaussians.means.shape[1], BLOCK):
        block = gaussians.map(lambda tensor, first=start: tensor[:, first : first + BLOCK])
        yield block.detach().to("cpu").to(torch.float32).to(torch.float64)


def is_plausible(claimed: int, size: int) -> bool:
    """Returns whether `size` compressed bytes may unpack to `claimed` bytes; no bomb does."""
    return claimed <= max(MAX_SIZE, MAX_RATIO * size)


def damage_error(path: str | Path, fault: str) -> UserError:
    """Returns the error for a damaged file; `fault` says what is wrong with it."""
    return UserError(f"{path}: {fault}", "a whole file of Gaussians", "copy or export it again")


def _find_usable(block: Gaussians) -> Tensor:
    """Returns a mask [gaussian]: finite values, scales >= 0, opacity and confidence in [0, 1]."""
    finite = block.opacities.isfinite()
    for values in (block.means, block.scales, block.quats_wxyz, block.sh.flatten(2)):
        finite = finite & values.isfinite().all(dim=-1)
    inside = (block.opacities >= 0) & (block.opacities <= 1) & (block.scales >= 0).all(dim=-1)
    if block.confidence is not None:
        inside = inside & (block.confidence >= 0) & (block.confidence <= 1)
    return (finite & inside)[0]


def _normalize_quats(quats_wxyz: Tensor) -> Tensor:
    """Normalises quaternions; those of length 0 become the identity."""
    none = (quats_wxyz == 0).all(dim=-1, keepdim=True)
    identity = quats_wxyz.new_tensor([1.0, 0.0, 0.0, 0.0])
    return torch.where(none, identity, normalize(quats_wxyz, dim=-1))
