"""The image size, the unit and the file of weights of pretrained teachers.

The sizes are those of the published PM-Loss (aim-uofa/PM-Loss): images are reduced to the
multiples of the patch size below them, and maps are brought back up without mixing pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...errors import UserError
from ...geometry import camera
from ...io.weights import Source, check_same, fetch, pretrained_folder, read_checkpoint
from ...types import Cameras, Pointmap, PosedDepth

PATCH = 14  # pixels a side, of every ViT here


def reduce_images(images: Float[Tensor, "batch view 3 height width"]) -> Tensor:
    """The images at the multiples of 14 at or below their size, bilinearly."""
    height, width = images.shape[-2:]
    size = (height // PATCH * PATCH, width // PATCH * PATCH)
    if 0 in size:
        raise UserError(
            f"images of {height} by {width} pixels",
            f"at least {PATCH} by {PATCH} for this teacher",
            "use larger images",
        )
    if size == (height, width):
        return images
    small = interpolate(images.flatten(0, 1), size, mode="bilinear", align_corners=False)
    return small.unflatten(0, images.shape[:2])


def choose_size(aspect: float, longest: int) -> tuple[int, int]:
    """(height, width) nearest to an aspect ratio (width / height) whose longer side is `longest`.

    Both are multiples of 14.
    """
    height, width = (longest / aspect, longest) if aspect >= 1 else (longest, longest * aspect)
    return max(1, round(height / PATCH)) * PATCH, max(1, round(width / PATCH)) * PATCH


def restore_size(
    maps: Float[Tensor, "batch view rows columns channel"],
    height: int,
    width: int,
    floor: bool = False,
) -> Float[Tensor, "batch view {height} {width} channel"]:
    """Maps of the reduced images at the size of the images: each pixel takes its nearest value.

    With `floor` the one at or before its corner, half a pixel off on average, as the published loss
    does with points.
    """
    flat = maps.flatten(0, 1).permute(0, 3, 1, 2)
    mode = "nearest" if floor else "nearest-exact"
    full = interpolate(flat, (height, width), mode=mode).permute(0, 2, 3, 1)
    return full.unflatten(0, maps.shape[:2])


def unproject_depth(
    depth: Float[Tensor, "batch view rows columns"],
    c2w: Float[Tensor, "batch view 4 4"],
    cameras: Cameras,
    height: int,
    width: int,
) -> Float[Tensor, "batch view {height} {width} 3"]:
    """World points of depth that a network gives in its own unit, by known cameras.

    `c2w` is where the network thinks the cameras are, in any frame: how far they are apart tells
    its unit. Where all centers coincide the unit stays the network's; it is free then, being a
    similarity about that center.
    """
    spread, ours = _spread(c2w), _spread(cameras.c2w)
    apart = (spread > 0) & (ours > 0)
    unit = torch.where(apart, ours / torch.where(apart, spread, 1), 1)
    full = restore_size(depth[..., None], height, width)[..., 0] * unit[:, None, None, None]
    return camera.unproject_depth(full, cameras.c2w, cameras.K)


def _spread(c2w: Float[Tensor, "batch view 4 4"]) -> Float[Tensor, " batch"]:
    """Root mean square distance of the camera centers from their mean."""
    centers = c2w[..., :3, 3]
    return (centers - centers.mean(dim=1, keepdim=True)).square().sum(-1).mean(-1).sqrt()


def to_pointmap(points: Tensor, confidence: Tensor) -> Pointmap:
    """The pointmap in float32; its confidence is 0 where it is not finite."""
    known = points.isfinite().all(dim=-1) & confidence.isfinite()
    return Pointmap(
        torch.where(known[..., None], points, 0).float(), torch.where(known, confidence, 0).float()
    )


def to_posed_depth(c2w: Tensor, K: Tensor, depth: Tensor, confidence: Tensor) -> PosedDepth:
    """What a network found, in float32; depth and confidence are 0 where they are no numbers."""
    depth, confidence = depth.float(), confidence.float()
    known = depth.isfinite() & (depth > 0) & confidence.isfinite()
    known_depth, known_confidence = (torch.where(known, map, 0) for map in (depth, confidence))
    return PosedDepth(c2w.float(), K.float(), known_depth, known_confidence)


def load(network: nn.Module, source: Source, prefix: str, unused: tuple[str, ...]) -> nn.Module:
    """The network with its released weights, frozen, in eval mode, on the CPU.

    `prefix` is taken off the names of the file; names that then begin with one of `unused` belong
    to parts that are not built. Of a parameter with several names a file may have one alone. Each
    repository's file has a folder of its own, because they are all called alike. Raises UserError
    where the file cannot be had or is not this network's.
    """
    path = fetch(source, pretrained_folder() / source.repository.rpartition("/")[2])
    given = {name.removeprefix(prefix): tensor for name, tensor in read_checkpoint(path).items()}
    state = {name: tensor for name, tensor in given.items() if not name.startswith(unused)}
    for names in _find_tied_names(network):
        held = [state[name] for name in names if name in state]
        state |= dict.fromkeys(names, held[0]) if held else {}
    check_same(state, network.state_dict(), str(path), f"put {source.url} in its place")
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()


def _find_tied_names(network: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [known for known in names.values() if len(known) > 1]
