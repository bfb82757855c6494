"""Gaussians as glTF: bytes by an independent reader, the way up, other writers, hostile files."""

import base64
import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import gaussian, sh
from pmsplat.io.gaussians import gltf, load_gaussians, ply, save_gaussians
from pmsplat.render import rasterize
from pmsplat.types import Cameras, Gaussians
from tests.scenes import random_cameras, random_gaussians

PREFIX = "KHR_gaussian_splatting:"
TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5126: np.float32}
WIDTH = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def same(a: Gaussians, b: Gaussians, tolerance: float = 0.0) -> None:
    """Equal but for the sign of quaternions, which are also allowed the rounding of their norm."""
    for name in ("means", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=tolerance)
    sign = (a.quats_wxyz * b.quats_wxyz).sum(-1, keepdim=True).sign()
    torch.testing.assert_close(a.quats_wxyz, sign * b.quats_wxyz, rtol=0, atol=tolerance + 2e-7)


def look(gaussians: Gaussians, cameras: Cameras) -> torch.Tensor:
    return rasterize(gaussians, cameras, (32, 40), backend="reference").color


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """The two chunks of a .glb, by nothing but `struct`."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    start = 20 + size
    binary, kind = struct.unpack_from("<I4s", data, start)
    assert kind == b"BIN\0" and binary % 4 == 0 and start + 8 + binary == len(data)
    return json.loads(data[20:start]), data[start + 8 :]


def attributes(path: Path) -> dict[str, np.ndarray]:
    """The attributes of the one primitive, and every claim of their accessors checked."""
    tree, data = split(path)
    (mesh,) = tree["meshes"]
    (primitive,) = mesh["primitives"]
    found = {}
    for name, index in primitive["attributes"].items():
        accessor = tree["accessors"][index]
        view = tree["bufferViews"][accessor["bufferView"]]
        dtype, width = np.dtype(TYPES[accessor["componentType"]]), WIDTH[accessor["type"]]
        assert view["byteLength"] == accessor["count"] * width * dtype.itemsize
        assert view["byteOffset"] % 4 == 0
        rows = np.frombuffer(data, dtype, accessor["count"] * width, view["byteOffset"])
        found[name] = rows.reshape(-1, width)
        if "min" in accessor:
            np.testing.assert_array_equal(accessor["min"], found[name].min(axis=0))
            np.testing.assert_array_equal(accessor["max"], found[name].max(axis=0))
    assert "min" in tree["accessors"][primitive["attributes"]["POSITION"]]
    return found


def pack(path: Path, tree: dict[str, Any], data: bytes) -> Path:
    """A .glb of any JSON and bytes."""
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(data))
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    path.write_bytes(head + chunks + struct.pack("<I4s", len(data), b"BIN\0") + data)
    return path


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_an_independent_reader_finds_the_extension(
    tmp_path: Path, generator: torch.Generator, degree: int
) -> None:
    gaussians = random_gaussians(7, generator, degree=degree)
    gltf.write(gaussians, tmp_path / "a.glb")
    tree, _ = split(tmp_path / "a.glb")
    assert tree["asset"]["version"] == "2.0"
    assert tree["extensionsUsed"] == ["KHR_gaussian_splatting"]
    primitive = tree["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    assert primitive["extensions"]["KHR_gaussian_splatting"] == {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    found = attributes(tmp_path / "a.glb")
    bands = [(d, n) for d in range(degree + 1) for n in range(2 * d + 1)]
    expected = {"POSITION", "COLOR_0", *(PREFIX + n for n in ("ROTATION", "SCALE", "OPACITY"))}
    assert set(found) == expected | {f"{PREFIX}SH_DEGREE_{d}_COEF_{n}" for d, n in bands}
    x, y, z = gaussians.means[0].numpy().T
    np.testing.assert_array_equal(found["POSITION"], np.stack([x, -y, -z], axis=1))
    np.testing.assert_array_equal(found[f"{PREFIX}SCALE"], gaussians.scales[0])
    np.testing.assert_array_equal(found[f"{PREFIX}OPACITY"][:, 0], gaussians.opacities[0])
    turned = np.diag([1.0, -1, -1]) @ gaussian.quat_to_rotation(gaussians.quats_wxyz[0]).numpy()
    xyzw = torch.from_numpy(found[f"{PREFIX}ROTATION"].copy())
    rotation = gaussian.quat_to_rotation(xyzw[:, [3, 0, 1, 2]]).numpy()
    np.testing.assert_allclose(rotation, turned, atol=1e-6)
    color = 255 * np.clip(0.5 + 0.28209479 * gaussians.sh[0, :, 0].numpy(), 0, 1)
    assert np.abs(found["COLOR_0"][:, :3] - color).max() <= 0.51
    assert np.abs(found["COLOR_0"][:, 3] - 255 * gaussians.opacities[0].numpy()).max() <= 0.51


def test_harmonics_are_evaluated_in_the_axes_of_the_file(
    tmp_path: Path, generator: torch.Generator
) -> None:
    """The extension's own basis at turned directions gives the colours of ours at ours."""
    gaussians = random_gaussians(6, generator, degree=3)
    gltf.write(gaussians, tmp_path / "a.glb")
    found = attributes(tmp_path / "a.glb")
    directions = torch.nn.functional.normalize(torch.randn(6, 3, generator=generator), dim=-1)
    expected = sh.color(gaussians.sh[0], directions).numpy()
    x, y, z = (directions.numpy() * [1, -1, -1]).T
    basis = {  # appendix A of the extension's text
        (0, 0): 0.2820947917738781 * np.ones(6), (1, 0): -0.4886025119029199 * y,
        (1, 1): 0.4886025119029199 * z, (1, 2): -0.4886025119029199 * x,
        (2, 0): 1.092548430592079 * x * y, (2, 1): -1.092548430592079 * y * z,
        (2, 2): 0.31539156525252 * (2 * z * z - x * x - y * y),
        (2, 3): -1.092548430592079 * x * z, (2, 4): 0.5462742152960395 * (x * x - y * y),
        (3, 0): -0.5900435899266435 * y * (3 * x * x - y * y),
        (3, 1): 2.890611442640554 * x * y * z,
        (3, 2): -0.4570457994644657 * y * (4 * z * z - x * x - y * y),
        (3, 3): 0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
        (3, 4): -0.4570457994644657 * x * (4 * z * z - x * x - y * y),
        (3, 5): 1.445305721320277 * z * (x * x - y * y),
        (3, 6): -0.5900435899266435 * x * (x * x - 3 * y * y),
    }  # fmt: skip
    color = 0.5 + sum(
        weight[:, None] * found[f"{PREFIX}SH_DEGREE_{d}_COEF_{n}"]
        for (d, n), weight in basis.items()
    )
    np.testing.assert_allclose(np.maximum(color, 0), expected, atol=1e-5)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip_is_exact_and_looks_the_same(
    tmp_path: Path, generator: torch.Generator, degree: int
) -> None:
    gaussians, cameras = (
        random_gaussians(60, generator, degree=degree),
        random_cameras(3, generator),
    )
    save_gaussians(gaussians, tmp_path / "a.glb")
    back = load_gaussians(tmp_path / "a.glb")
    same(back, gaussians)
    torch.testing.assert_close(look(back, cameras), look(gaussians, cameras), rtol=0, atol=1e-6)


def test_degree_4_is_cut_with_a_warning(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    gaussians = random_gaussians(4, generator, degree=4)
    gltf.write(gaussians, tmp_path / "a.glb")
    assert "degree 4 are left out" in caplog.text
    same(gltf.read(tmp_path / "a.glb"), replace(gaussians, sh=gaussians.sh[:, :, :16]))


def test_what_cannot_be_written(tmp_path: Path, generator: torch.Generator) -> None:
    gaussians = random_gaussians(2, generator)
    with pytest.raises(UserError, match=r"ends in \.glb"):
        gltf.write(gaussians, tmp_path / "a.gltf")
    with pytest.raises(UserError, match="no Gaussians for"):
        gltf.write(gaussians.map(lambda t: t[:, :0]), tmp_path / "a.glb")
    with pytest.raises(UserError, match="1 of 2 Gaussians are not finite"):
        bad = gaussians.means.clone()
        bad[0, 1, 2] = float("nan")
        gltf.write(replace(gaussians, means=bad), tmp_path / "a.glb")
    assert not list(tmp_path.iterdir())


def quantised(gaussians: Gaussians, kind: type) -> tuple[dict[str, Any], bytes]:
    """A file as another writer may make it: interleaved integers, two nodes, a data URI's bytes."""
    top = np.iinfo(kind).max
    xyzw = gaussians.quats_wxyz[0].numpy()[:, [1, 2, 3, 0]]
    columns = {
        "POSITION": (gaussians.means[0].numpy(), 5126, "VEC3", False),
        f"{PREFIX}SCALE": (gaussians.scales[0].numpy(), 5126, "VEC3", False),
        f"{PREFIX}SH_DEGREE_0_COEF_0": (gaussians.sh[0, :, 0].numpy(), 5126, "VEC3", False),
        f"{PREFIX}ROTATION": (
            np.round(xyzw * top).astype(kind), 5120 if kind is np.int8 else 5122, "VEC4", True,
        ),
        f"{PREFIX}OPACITY": (
            np.round(gaussians.opacities[0].numpy()[:, None] * 65535).astype(np.uint16),
            5123, "SCALAR", True,
        ),
    }  # fmt: skip
    widths = [c[0].shape[1] * c[0].dtype.itemsize for c in columns.values()]
    stride = -(-sum(widths) // 4) * 4
    count = gaussians.means.shape[1]
    data, accessors, offset = np.zeros((count, stride), np.uint8), [], 0
    for (array, code, shape, normal), width in zip(columns.values(), widths, strict=True):
        data[:, offset : offset + width] = np.ascontiguousarray(array).view(np.uint8)
        accessors.append(
            {"bufferView": 0, "byteOffset": offset, "count": count, "type": shape}
            | {"componentType": code, "normalized": normal}
        )
        offset += width
    primitive = {
        "attributes": {name: i for i, name in enumerate(columns)},
        "mode": 0,
        "extensions": {"KHR_gaussian_splatting": {"kernel": "ellipse"}},
    }
    tree = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [
            {"children": [1], "translation": [1, 2, 3]},
            {"mesh": 0, "rotation": [0, 0, 0.6, 0.8], "scale": [2, 2, 2]},
        ],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": data.size}],
        "bufferViews": [{"buffer": 0, "byteLength": data.size, "byteStride": stride}],
        "accessors": accessors,
    }
    return tree, data.tobytes()


@pytest.mark.parametrize(("kind", "step"), [(np.int8, 1 / 127), (np.int16, 1 / 32767)])
def test_integers_strides_and_nodes(
    tmp_path: Path, generator: torch.Generator, kind: type, step: float
) -> None:
    gaussians = random_gaussians(9, generator, degree=0)
    tree, data = quantised(gaussians, kind)
    back = gltf.read(pack(tmp_path / "a.glb", tree, data))
    quat = torch.tensor([0.8, 0, 0, 0.6])
    half = torch.tensor([1.0, -1, -1])
    placed = 2 * gaussians.means @ gaussian.quat_to_rotation(quat).T + torch.tensor([1.0, 2, 3])
    torch.testing.assert_close(back.means, placed * half, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.scales, 2 * gaussians.scales)
    torch.testing.assert_close(back.opacities, gaussians.opacities, rtol=0, atol=0.6 / 65535)
    turn = torch.diag(half) @ gaussian.quat_to_rotation(quat)
    expected = turn @ gaussian.quat_to_rotation(gaussians.quats_wxyz)
    rotation = gaussian.quat_to_rotation(back.quats_wxyz)
    torch.testing.assert_close(rotation, expected, rtol=0, atol=4 * step)

    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    changed = tree | {"buffers": [{"byteLength": len(data), "uri": uri}]}
    (tmp_path / "b.gltf").write_text(json.dumps(changed))
    (tmp_path / "c d.bin").write_bytes(data)
    changed = tree | {"buffers": [{"byteLength": len(data), "uri": "c%20d.bin"}]}
    (tmp_path / "c.gltf").write_text(json.dumps(changed))
    for name in ("b.gltf", "c.gltf"):
        same(load_gaussians(tmp_path / name), back)


def test_primitives_of_different_degree_are_joined(
    tmp_path: Path, generator: torch.Generator
) -> None:
    gaussians = random_gaussians(3, generator, degree=1)
    gltf.write(gaussians, tmp_path / "a.glb")
    tree, data = split(tmp_path / "a.glb")
    first = tree["meshes"][0]["primitives"][0]
    names = {k: v for k, v in first["attributes"].items() if "DEGREE_1" not in k}
    tree["meshes"][0]["primitives"].append(first | {"attributes": names})
    back = gltf.read(pack(tmp_path / "b.glb", tree, data))
    same(back.map(lambda t: t[:, :3]), gaussians)
    assert torch.equal(back.sh[:, 3:, :1], gaussians.sh[:, :, :1])
    assert not back.sh[:, 3:, 1:].any()


def access(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"][name]]


def pile(tree: dict[str, Any]) -> None:
    """The same mesh at many places: more memory than the file could ever hold."""
    tree["nodes"] = [{"mesh": 0}] * 100
    tree["scenes"] = [{"nodes": list(range(100))}]


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "count": (lambda t: access(t, "POSITION").update(count=2**40), "rows of POSITION in"),
    "one more": (lambda t: access(t, "POSITION").update(count=6), "rows of POSITION in 60"),
    "other count": (lambda t: access(t, "POSITION").update(count=4), "attributes of"),
    "negative": (lambda t: access(t, "POSITION").update(count=-1), "count is -1"),
    "text": (lambda t: access(t, "POSITION").update(count="5"), "count is '5'"),
    "view": (lambda t: access(t, "POSITION").update(bufferView=-1), "no entry -1"),
    "type": (lambda t: access(t, "POSITION").update(type="VEC2"), "is 'VEC2'"),
    "sparse": (lambda t: access(t, "POSITION").update(sparse={}), "sparse or compressed"),
    "offset": (lambda t: t["bufferViews"][0].update(byteOffset=2**70), "rows of POSITION in"),
    "stride": (lambda t: t["bufferViews"][0].update(byteStride=2), "rows of POSITION in"),
    "buffer": (lambda t: t["buffers"][0].update(byteLength=10**15), "buffer 0 has"),
    "buffers": (lambda t: t.update(buffers={}), "buffers is not a list"),
    "outside": (lambda t: t["buffers"][0].update(uri="../x.bin"), "there is no buffer"),
    "absolute": (lambda t: t["buffers"][0].update(uri="/etc/passwd"), "there is no buffer"),
    "odd name": (lambda t: t["buffers"][0].update(uri="a\0b" * 300), "there is no buffer"),
    "base64": (lambda t: t["buffers"][0].update(uri="data:;base64,*"), "not base64"),
    "attribute": (
        lambda t: t["meshes"][0]["primitives"][0]["attributes"].pop(f"{PREFIX}SCALE"),
        "has no KHR_gaussian_splatting:SCALE",
    ),
    "half a degree": (
        lambda t: t["meshes"][0]["primitives"][0]["attributes"].pop(f"{PREFIX}SH_DEGREE_1_COEF_2"),
        "has no KHR_gaussian_splatting:SH_DEGREE_1_COEF_2",
    ),
    "kernel": (
        lambda t: t["meshes"][0]["primitives"][0]["extensions"].update(
            KHR_gaussian_splatting={"kernel": "box"}
        ),
        "kernel 'box'",
    ),
    "no splats": (lambda t: t["meshes"][0]["primitives"][0].pop("extensions"), "no Gaussians"),
    "compressed": (lambda t: t.update(extensionsRequired=["EXT_meshopt_compression"]), "needs EXT"),
    "node": (lambda t: t["scenes"][0].update(nodes=[7]), "nodes has no entry 7"),
    "circle": (lambda t: t["nodes"][0].update(children=[0]), "child of two"),
    "stretch": (lambda t: t["nodes"][0].update(scale=[1, 2, 1]), "mirrors, shears or stretches"),
    "mirror": (lambda t: t["nodes"][0].update(scale=[1, 1, -1]), "mirrors, shears or stretches"),
    "nan": (lambda t: t["nodes"][0].update(scale=[1, 1, float("nan")]), "3 finite numbers"),
    "huge": (lambda t: t["nodes"][0].update(matrix=[10**400] * 16), "16 finite numbers"),
    "pile": (pile, "more Gaussians than its bytes can hold"),
    "list": (lambda t: t["meshes"].__setitem__(0, []), "meshes has no entry 0"),
}


@pytest.mark.parametrize("case", LIES)
def test_files_that_lie(tmp_path: Path, generator: torch.Generator, case: str) -> None:
    gltf.write(random_gaussians(5, generator, degree=1), tmp_path / "a.glb")
    tree, data = split(tmp_path / "a.glb")
    change, fault = LIES[case]
    change(tree)
    with pytest.raises(UserError, match=fault):
        gltf.read(pack(tmp_path / "b.glb", tree, data))


def test_truncated_files(tmp_path: Path, generator: torch.Generator) -> None:
    gltf.write(random_gaussians(5, generator), tmp_path / "a.glb")
    data = (tmp_path / "a.glb").read_bytes()
    for length in (3, 4, 11, 19, 20, 200, len(data) - 1):
        (tmp_path / "b.glb").write_bytes(data[:length])
        with pytest.raises(UserError):
            gltf.read(tmp_path / "b.glb")
    (tmp_path / "c.gltf").write_text("[" * 100_000)
    with pytest.raises(UserError, match="JSON cannot be read"):
        gltf.read(tmp_path / "c.gltf")
    with pytest.raises(UserError, match="no file"):
        gltf.read(tmp_path / "absent.glb")


@pytest.mark.slow
def test_mutated_files_never_escape(tmp_path: Path, generator: torch.Generator) -> None:
    """10,000 files with flipped, cut and repeated bytes, most of them in the JSON."""
    gltf.write(random_gaussians(5, generator, degree=1), tmp_path / "a.glb")
    source = (tmp_path / "a.glb").read_bytes()
    text = 20 + struct.unpack_from("<I", source, 12)[0]
    rng, refused = np.random.default_rng(0), 0
    for trial in range(10_000):
        data = bytearray(source)
        for at in rng.integers(0 if trial % 4 == 0 else 20, text, rng.integers(1, 6)):
            data[at] = rng.choice(list(b'0123456789-"{}[]:,.eE')) if at >= 20 else rng.integers(256)
        if trial % 7 == 0:
            del data[int(rng.integers(1, len(data))) :]
        (tmp_path / "b.glb").write_bytes(data)
        try:
            gltf.read(tmp_path / "b.glb")
        except UserError:
            refused += 1
    assert refused > 5000


@pytest.mark.slow
def test_splat_transform_writes_the_same_scene(tmp_path: Path, generator: torch.Generator) -> None:
    """Its .glb of our .ply: the same but for half a turn about y, since it takes a .ply's up for
    -y by half a turn about z, where COLMAP's axes become glTF's about x."""
    if shutil.which("npx") is None:
        pytest.skip("no npx")
    gaussians = random_gaussians(50, generator, degree=3)
    ply.save_ply(gaussians, tmp_path / "a.ply")
    command = ["npx", "--yes", "@playcanvas/splat-transform@2.7.1", "a.ply", "a.glb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if not (tmp_path / "a.glb").is_file():
        pytest.skip(f"splat-transform did not run: {done.stderr[-200:]}")
    about_y = torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    back = gltf.read(tmp_path / "a.glb").transformed(about_y)
    order = [t.means[0, :, 0].argsort() for t in (back, gaussians)]  # it sorts along a curve
    ours, theirs = gaussians, back
    same(
        theirs.map(lambda t: t[:, order[0]]),
        ours.map(lambda t: t[:, order[1]]),
        tolerance=2e-6,
    )
