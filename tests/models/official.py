"""The official formulas of harmonics, written out again, and the reference's own scripts."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def script(path: Path) -> ModuleType:
    """A script of the reference as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    searched = list(sys.path)
    spec.loader.exec_module(found)
    sys.path[:] = searched
    return found


def key_shapes(folder: Path, name: str) -> dict[str, list[int]]:
    """The keys of a released file, and the shapes of their tensors."""
    same = {"mvsplat-re10k-baseline-n200-256x256": "mvsplat-re10k"}
    described = json.loads((folder / f"{same.get(name, name)}.keys.json").read_text())
    return {key: shape for key, (shape, _) in described["keys"].items()}


def checker(folder: Path) -> ModuleType:
    """The reference's check of whole encoders; cases that do not say so are of eval mode."""

    def loads(text: str) -> dict[str, Any]:
        return {"train_mode": False, **json.loads(text)}

    found = script(folder / "check.py")
    found.__dict__["json"] = SimpleNamespace(loads=loads, dumps=json.dumps)
    return found


def renderer_basis(directions: Tensor) -> Tensor:
    """The 16 functions that the official rasteriser's forward kernel evaluates along directions
    from camera to Gaussian; the 15th has z where symmetry wants y."""
    x, y, z = directions.unbind(-1)
    c1, c2, c3 = 0.4886025119029199, 1.0925484305920792, 0.5900435899266435
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            -c1 * x,
            c1 * y,
            -c1 * z,
            c2 * z * x,
            -c2 * x * y,
            0.31539156525252005 * (2 * y * y - z * z - x * x),
            -c2 * z * y,
            0.5 * c2 * (z * z - x * x),
            -c3 * x * (3 * z * z - x * x),
            2.890611442640554 * z * x * y,
            -0.4570457994644658 * x * (4 * y * y - z * z - x * x),
            0.3731763325901154 * y * (2 * y * y - 3 * z * z - 3 * x * x),
            -0.4570457994644658 * z * (4 * y * y - z * z - x * x),
            1.445305721320277 * z * (z * z - x * x),
            -c3 * z * (z * z - 3 * x * x),
        ],
        dim=-1,
    )


def e3nn_basis(directions: Tensor, degree: int) -> Tensor:
    """e3nn's harmonics of one degree, each up to the same positive factor: associated Legendre
    functions about y, sines before cosines, by recurrence in the angle from z towards x."""
    x, y, z = directions.unbind(-1)
    cosines, sines = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(degree):
        cosines.append(z * cosines[-1] - x * sines[-1])
        sines.append(z * sines[-1] + x * cosines[-2])
    out = []
    for m in range(-degree, degree + 1):
        k = abs(m)
        before, legendre = torch.zeros_like(y), torch.ones_like(y)
        for i in range(1, 2 * k, 2):
            legendre = legendre * i
        for n in range(k, degree):
            following = ((2 * n + 1) * y * legendre - (n + k) * before) / (n - k + 1)
            before, legendre = legendre, following
        norm = 2.0 if m else 1.0
        for i in range(degree - k + 1, degree + k + 1):
            norm /= i
        out.append(norm**0.5 * legendre * (sines[k] if m < 0 else cosines[k]))
    return torch.stack(out, dim=-1)


def wigner(rotation: Tensor, degree: int) -> Tensor:
    """e3nn's matrix [..., 2·degree+1, 2·degree+1] of rotations, float64: Y(R d) = D Y(d)."""
    rotation = rotation.double()
    generator = torch.Generator().manual_seed(degree)
    samples = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    samples = samples / samples.norm(dim=-1, keepdim=True)
    turned = e3nn_basis(samples @ rotation.transpose(-1, -2), degree)
    return (torch.linalg.pinv(e3nn_basis(samples, degree)) @ turned).transpose(-1, -2)


def world_harmonics(raw: Tensor, images: Tensor | None, rotation: Tensor) -> Tensor:
    """The official world-frame coefficients [batch, gaussian, 3, sh] of all degrees, from the
    head's channels [batch, view, 3·sh, height, width]: damped by degree, the colour of the image
    added to degree 0, turned."""
    degree = int((raw.shape[2] // 3) ** 0.5) - 1
    channels = raw.unflatten(2, (3, -1))
    bands = []
    for band in range(degree + 1):
        factor = 0.1 * 0.25**band if band else 1.0
        here = channels[:, :, :, band**2 : (band + 1) ** 2] * factor
        if band == 0 and images is not None:
            here = here + ((images - 0.5) / 0.28209479177387814)[:, :, :, None]
        turn = wigner(rotation, band).to(raw)
        bands.append(torch.einsum("bvij,bvcjhw->bvhwci", turn, here))
    return torch.cat(bands, dim=-1).flatten(1, 3)
