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
from ...types import NO_OFFSET, Gaussians, Origin
from ._facts import tell_origin, tell_steps

log = logging.getLogger(__name__)

MAX_SIZE, MAX_RATIO = 1 << 26, 100  # a file may unpack to 64 MiB, or to 100 times its size
BLOCK = 1 << 14  # Gaussians: a few megabytes, which stay in the processor's cache


def read_blocks(
    path: str | Path, count: int, coefficients: int, decode: Callable[[int, int], Gaussians]
) -> Gaussians:
    """Reads `count` Gaussians as one float32 scene on the CPU; `decode(start, stop)` reads a block.

    Blocks are float64. Where their means lie far from the origin, they are counted from a local
    origin: that of the first block, if the file says one, else one that is found (`local_origin`).
    A warning says so, and where digits were lost before. `rules` and `up` are those of the first
    block. Quaternions are normalised; a quaternion of length 0 becomes the identity. A Gaussian
    with a value that is not finite, a negative scale or an opacity outside [0, 1] is left out; a
    warning counts them. Raises UserError if `count` is positive and no Gaussian is usable.
    """
    whole = Gaussians(
        means=torch.empty(1, count, 3),
        scales=torch.empty(1, count, 3),
        quats_wxyz=torch.empty(1, count, 4),
        opacities=torch.empty(1, count),
        sh=torch.empty(1, count, coefficients, 3),
    )
    kept = 0
    for start in range(0, count, BLOCK):
        with np.errstate(all="ignore"):  # values that are not finite are counted below
            block = decode(start, min(start + BLOCK, count)).to(torch.float64)
            usable = _find_usable(block.to(torch.float32))
        if not usable.all():
            block = block.map(lambda tensor, chosen=usable: tensor[:, chosen])
        if start == 0:
            tell_steps(path, block.at_origin(NO_OFFSET).means[0])
            origin = _find_origin(block)
            if origin != NO_OFFSET:
                tell_origin(path, origin)
            whole = replace(whole, rules=block.rules, origin=origin, up=block.up)
        block = block.at_origin(whole.origin).to(torch.float32)
        end = kept + block.means.shape[1]
        whole.means[:, kept:end] = block.means
        whole.scales[:, kept:end] = block.scales
        whole.quats_wxyz[:, kept:end] = _normalize_quats(block.quats_wxyz)
        whole.opacities[:, kept:end] = block.opacities
        whole.sh[:, kept:end] = block.sh
        kept = end
    if kept == count:
        return whole
    _tell_unusable(path, count - kept, count)
    return whole.map(lambda tensor: tensor[:, :kept])


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


def _find_origin(block: Gaussians) -> Origin:
    """The origin that the file says, or else one in the midst of means that lie far off."""
    if block.origin != NO_OFFSET:
        return block.origin
    x, y, z = local_origin(block.means[0]).tolist()
    return x, y, z


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
        raise UserError(
            f"{bad} of {gaussians.means.shape[1]} Gaussians are not finite",
            "finite means, rotations and colours, scales >= 0, opacities in [0, 1]",
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
    """Returns a mask [gaussian]: finite values, scales >= 0 and an opacity in [0, 1]."""
    finite = block.opacities.isfinite()
    for values in (block.means, block.scales, block.quats_wxyz, block.sh.flatten(2)):
        finite = finite & values.isfinite().all(dim=-1)
    inside = (block.opacities >= 0) & (block.opacities <= 1) & (block.scales >= 0).all(dim=-1)
    return (finite & inside)[0]


def _normalize_quats(quats_wxyz: Tensor) -> Tensor:
    """Normalises quaternions; those of length 0 become the identity."""
    none = (quats_wxyz == 0).all(dim=-1, keepdim=True)
    identity = quats_wxyz.new_tensor([1.0, 0.0, 0.0, 0.0])
    return torch.where(none, identity, normalize(quats_wxyz, dim=-1))
