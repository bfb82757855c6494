"""The .spz inside glTF: names of the extension, axes by the bounds, transforms, files that lie."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.io.gaussians import load_gaussians, spz
from pmsplat.types import Gaussians
from tests.scenes import random_gaussians

BASE, DRAFT = "KHR_gaussian_splatting", "KHR_gaussian_splatting_compression_spz_2"
TURN = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))  # from OpenCV axes to those of glTF


def write(
    path: Path, stream: bytes, position: dict[str, Any], name: str = DRAFT, nested: bool = True,
    node: dict[str, Any] | None = None, copies: int = 1,
) -> None:  # fmt: skip
    """A .glb as Cesium writes it: accessors without data, and a stream in a bufferView."""
    extension = {name: {"bufferView": 0}}
    primitive = {
        "attributes": {"POSITION": 0},
        "mode": 0,
        "extensions": {BASE: {"extensions": extension}} if nested else extension,
    }
    tree = {
        "asset": {"version": "2.0"},
        "extensionsUsed": [BASE, name],
        "extensionsRequired": ["KHR_materials_unlit", BASE, name],
        "accessors": [{"componentType": 5126, "type": "VEC3"} | position],
        "buffers": [{"byteLength": len(stream)}],
        "bufferViews": [{"buffer": 0, "byteLength": len(stream)}],
        "meshes": [{"primitives": [primitive] * copies}],
        "nodes": [{"mesh": 0} | (node or {})],
    }
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    stream += bytes(-len(stream) % 4)
    total = 28 + len(text) + len(stream)
    path.write_bytes(
        struct.pack("<4sIII4s", b"glTF", 2, total, len(text), b"JSON")
        + text + struct.pack("<I4s", len(stream), b"BIN\0") + stream
    )  # fmt: skip


@pytest.fixture
def scene(tmp_path: Path, generator: torch.Generator) -> tuple[bytes, Gaussians]:
    """A .spz, and what it holds in the axes that it is stored in (right, up, back)."""
    made = random_gaussians(200, generator, degree=2)
    spz.write(made.map(lambda t: t.clamp(-0.9, 0.9) if t.dim() == 4 else t), tmp_path / "a.spz")
    return (tmp_path / "a.spz").read_bytes(), load_gaussians(tmp_path / "a.spz").transformed(TURN)


def bounds(means: torch.Tensor) -> dict[str, Any]:
    low, high = means[0].amin(0).tolist(), means[0].amax(0).tolist()
    return {"count": means.shape[1], "min": low, "max": high}


def same(found: Gaussians, expected: Gaussians) -> None:
    for name in ("means", "scales", "opacities", "sh", "covariances"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "nested"),
    [
        (DRAFT, True),
        ("KHR_gaussian_splatting_compression_spz", True),
        ("KHR_spz_gaussian_splats_compression", False),
    ],
)
def test_every_name_of_the_draft(
    tmp_path: Path, scene: tuple[bytes, Gaussians], name: str, nested: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    stream, stored = scene
    write(tmp_path / "a.glb", stream, bounds(stored.means), name, nested)
    same(load_gaussians(tmp_path / "a.glb"), stored.transformed(TURN))
    assert not caplog.records


def test_the_bounds_decide_about_the_axes(
    tmp_path: Path, scene: tuple[bytes, Gaussians], caplog: pytest.LogCaptureFixture
) -> None:
    stream, stored = scene
    about_y = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    turned = stored.transformed(about_y)  # left, up, front
    write(tmp_path / "a.glb", stream, bounds(turned.means))
    same(load_gaussians(tmp_path / "a.glb"), turned.transformed(TURN))
    assert not caplog.records
    write(tmp_path / "a.glb", stream, {"count": 200})  # no bounds: as Cesium's engines draw it
    same(load_gaussians(tmp_path / "a.glb"), stored.transformed(TURN))
    assert not caplog.records
    write(tmp_path / "a.glb", stream, bounds(stored.means + 40))
    same(load_gaussians(tmp_path / "a.glb"), stored.transformed(TURN))
    assert "the bounds of POSITION are not those of its .spz" in caplog.text


def test_transforms_of_nodes(tmp_path: Path, scene: tuple[bytes, Gaussians]) -> None:
    stream, stored = scene
    half = 0.5**0.5
    node = {"rotation": [half, 0, 0, half], "scale": [2, 2, 2], "translation": [1, 2, 3]}
    write(tmp_path / "a.glb", stream, bounds(stored.means), node=node)
    quarter = torch.tensor([[2.0, 0, 0, 1], [0, 0, -2, 2], [0, 2, 0, 3], [0, 0, 0, 1]])
    same(load_gaussians(tmp_path / "a.glb"), stored.transformed(quarter).transformed(TURN))


def test_by_hand(tmp_path: Path) -> None:
    """One Gaussian at (1, 2, 3) of glTF, whose y is up and whose z looks back."""
    body = b"".join(value.to_bytes(3, "little") for value in (4096, 8192, 12288))
    body += bytes([51, 128, 128, 128, 160, 160, 160, 128, 128, 128])
    stream = struct.pack("<4sIIBBBB", b"NGSP", 2, 1, 0, 12, 0, 0) + body
    write(tmp_path / "a.glb", stream, {"count": 1, "min": [1, 2, 3], "max": [1, 2, 3]})
    assert load_gaussians(tmp_path / "a.glb").means.tolist() == [[[1.0, -2.0, -3.0]]]
    write(tmp_path / "a.glb", stream, {"count": 1, "min": [-1, 2, -3], "max": [-1, 2, -3]})
    assert load_gaussians(tmp_path / "a.glb").means.tolist() == [[[-1.0, -2.0, 3.0]]]


def test_files_that_lie(tmp_path: Path, scene: tuple[bytes, Gaussians]) -> None:
    stream, stored = scene
    path, good = tmp_path / "a.glb", bounds(stored.means)
    write(path, stream, good | {"count": 3})
    with pytest.raises(UserError, match=r"200 Gaussians in the \.spz of a primitive of 3"):
        load_gaussians(path)
    write(path, stream, good, copies=2)
    with pytest.raises(UserError, match="more Gaussians than its bytes can hold"):
        load_gaussians(path)
    write(path, stream[:-20], good)
    with pytest.raises(UserError, match=r"a\.glb: .*(gzip|not at its end|unpacked bytes)"):
        load_gaussians(path)
    write(path, stream, good | {"min": [0, 0, "0"]})
    with pytest.raises(UserError, match="min is not 3 finite numbers"):
        load_gaussians(path)
    content = path.read_bytes().replace(b'{"bufferView": 0}', b'{"bufferView": 9}')
    path.write_bytes(content)
    with pytest.raises(UserError, match="bufferViews has no entry 9"):
        load_gaussians(path)


@pytest.mark.parametrize("turned", [False, True])
def test_the_bounds_decide_far_from_the_origin_too(tmp_path: Path, turned: bool) -> None:
    points = torch.tensor([[1e5, 2e5, -3e5], [100010, 200020, -300030], [100005, 200001, -300007]])
    counts = [int(8 * value) & 0xFFFFFF for value in points.flatten().tolist()]
    body = b"".join(count.to_bytes(3, "little") for count in counts)
    body += bytes([51] * 3 + [128] * 9 + [160] * 9 + [128] * 9)  # opacity, color, scale, rotation
    stored = points.double() * points.new_tensor([-1.0, 1, -1] if turned else [1.0, 1, 1])
    stream = struct.pack("<4sIIBBBB", b"NGSP", 2, 3, 0, 3, 0, 0) + body
    write(tmp_path / "a.glb", stream, bounds(stored[None]))
    found = load_gaussians(tmp_path / "a.glb")
    there = found.means[0] + torch.tensor(found.origin, dtype=torch.float64)
    wanted = stored * stored.new_tensor([1.0, -1, -1])  # in OpenCV axes
    assert (there - wanted).abs().max() < 1e-2
