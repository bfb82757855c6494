"""The .ply of other programs: their columns, their elements, what is named and left out."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.io.gaussians import load_gaussians, ply, save_gaussians
from pmsplat.types import CLASSIC, DrawingRules, Gaussians
from tests.scenes import random_gaussians

FORMS = ["text", "<", ">"]


@pytest.fixture
def scene(generator: torch.Generator) -> Gaussians:
    return random_gaussians(30, generator, degree=1)


def columns(gaussians: Gaussians, folder: Path) -> dict[str, np.ndarray]:
    """The columns of INRIA's layout, by plyfile."""
    save_gaussians(gaussians, folder / "plain.ply")
    data = plyfile.PlyData.read(str(folder / "plain.ply"))["vertex"].data
    return {name: np.array(data[name]) for name in data.dtype.names or ()}


def write(
    path: Path, table: dict[str, np.ndarray], form: str = "<", before: Any = (), after: Any = ()
) -> Path:
    """A .ply of these columns, with elements before and after."""
    rows = np.zeros(len(table["x"]), [(name, values.dtype) for name, values in table.items()])
    for name, values in table.items():
        rows[name] = values
    elements = [*before, plyfile.PlyElement.describe(rows, "vertex"), *after]
    order = "=" if form == "text" else form
    plyfile.PlyData(elements, text=form == "text", byte_order=order).write(str(path))
    return path


def element(name: str, **values: Any) -> Any:
    table = np.zeros(
        len(next(iter(values.values()))), [(n, np.asarray(v).dtype) for n, v in values.items()]
    )
    for key, value in values.items():
        table[key] = value
    return plyfile.PlyElement.describe(table, name)


def faces(count: int) -> Any:
    table = np.empty(count, dtype=[("vertex_indices", object)])
    for i in range(count):
        table["vertex_indices"][i] = np.array([0, 1, 2], np.int32)
    kinds = {"vertex_indices": "i4"}
    return plyfile.PlyElement.describe(
        table, "face", val_types=kinds, len_types={"vertex_indices": "u1"}
    )


def same(found: Gaussians, expected: Gaussians, tolerance: float = 1e-6) -> None:
    for name in ("means", "scales", "quats_wxyz", "opacities", "sh"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-5, atol=tolerance
        )


@pytest.mark.parametrize("form", FORMS)
def test_the_3d_filter_of_mip_splatting(
    tmp_path: Path, scene: Gaussians, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = columns(scene, tmp_path)
    table["filter_3D"] = np.linspace(0.001, 0.2, 30).astype(np.float32)
    found = load_gaussians(write(tmp_path / "a.ply", table, form))
    f = table["filter_3D"].astype(np.float64)
    s = np.exp(np.stack([table[f"scale_{i}"] for i in range(3)], 1).astype(np.float64))
    wider = np.sqrt(s**2 + f[:, None] ** 2)
    o = 1 / (1 + np.exp(-table["opacity"].astype(np.float64)))
    o = o * np.sqrt(np.prod(s**2, axis=1) / np.prod(wider**2, axis=1))
    np.testing.assert_allclose(found.scales[0], wider, rtol=1e-5)
    np.testing.assert_allclose(found.opacities[0], o, rtol=1e-4)
    assert found.rules == DrawingRules(blur=0.1, antialiased=True)
    assert caplog.text.count("filter_3D is Mip-Splatting's") == 1


def test_a_filter_of_zero_changes_nothing(tmp_path: Path, scene: Gaussians) -> None:
    table = columns(scene, tmp_path)
    table["filter_3D"] = np.zeros(30, np.float32)
    same(load_gaussians(write(tmp_path / "a.ply", table)), load_gaussians(tmp_path / "plain.ply"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "full"), [("u1", 255), ("u2", 65535), ("f4", 1.0), ("f4", 255.0)])
def test_colors_without_harmonics(
    tmp_path: Path, scene: Gaussians, form: str, kind: str, full: float
) -> None:
    table = columns(scene, tmp_path)
    table = {name: values for name, values in table.items() if not name.startswith("f_")}
    share = np.linspace(0, 1, 30)
    for name, values in (("red", share), ("green", share[::-1]), ("blue", share * 0.5)):
        table[name] = (full * values).astype(kind)
    found = load_gaussians(write(tmp_path / "a.ply", table, form))
    assert found.sh.shape == (1, 30, 1, 3)
    c = np.stack([table[name] for name in ("red", "green", "blue")], axis=1) / full
    np.testing.assert_allclose(found.sh[0, :, 0], (c - 0.5) / 0.28209479, atol=1e-5)


def test_colors_beside_harmonics_are_named(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    table = columns(scene, tmp_path)
    table |= {name: np.full(30, 7, np.uint8) for name in ("red", "green", "blue")}
    same(load_gaussians(write(tmp_path / "a.ply", table)), load_gaussians(tmp_path / "plain.ply"))
    assert "left out: the columns red, green, blue" in caplog.text


@pytest.mark.parametrize("names", [("r", "g", "b"), tuple(f"diffuse_{c}" for c in ply.RGB[0])])
def test_other_names_of_colors(tmp_path: Path, scene: Gaussians, names: tuple[str, ...]) -> None:
    table = columns(scene, tmp_path)
    table = {name: values for name, values in table.items() if not name.startswith("f_")}
    table |= {name: np.full(30, 51 * i, np.uint8) for i, name in enumerate(names)}
    found = load_gaussians(write(tmp_path / "a.ply", table))
    expected = (np.array([0, 51, 102]) / 255 - 0.5) / 0.28209479
    np.testing.assert_allclose(found.sh[0, :, 0], np.tile(expected, (30, 1)), atol=1e-5)


def test_linear_columns_are_suspected(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    table = columns(scene, tmp_path)
    load_gaussians(tmp_path / "plain.ply")
    assert "look linear" not in caplog.text
    table["opacity"] = 1 / (1 + np.exp(-table["opacity"]))
    load_gaussians(write(tmp_path / "a.ply", table))
    assert caplog.text.count("its opacities look linear") == 1
    table |= {f"scale_{i}": np.exp(table[f"scale_{i}"]) for i in range(3)}
    load_gaussians(write(tmp_path / "b.ply", table))
    assert caplog.text.count("its opacities and scales look linear") == 1


def test_gaussians_in_part_are_no_mesh(tmp_path: Path, scene: Gaussians) -> None:
    for gone in (["opacity"], ["scale_1", "scale_2"], [f"rot_{i}" for i in range(4)]):
        table = {k: v for k, v in columns(scene, tmp_path).items() if k not in gone}
        with pytest.raises(UserError, match=f"holds Gaussians without all .*no {gone[0]}"):
            load_gaussians(write(tmp_path / "a.ply", table))


def test_whole_numbers_are_no_logits(tmp_path: Path, scene: Gaussians) -> None:
    for name in ("opacity", "scale_1", "rot_3"):
        table = columns(scene, tmp_path) | {name: np.arange(30, dtype=np.uint8)}
        with pytest.raises(UserError, match=f"whole numbers for {name}"):
            load_gaussians(write(tmp_path / "a.ply", table))


def test_two_scales(tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture) -> None:
    table = columns(scene, tmp_path)
    del table["scale_2"]
    found = load_gaussians(write(tmp_path / "a.ply", table))
    torch.testing.assert_close(found.scales[..., :2], scene.scales[..., :2], rtol=1e-5, atol=0)
    assert torch.equal(found.scales[..., 2], torch.full((1, 30), 1e-6))
    assert found.rules == CLASSIC and caplog.text.count("2D Gaussian Splatting") == 1
    del table["scale_1"]
    with pytest.raises(UserError, match="no scale_1"):
        load_gaussians(write(tmp_path / "b.ply", table))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [0, 3])
def test_faces_are_no_fault(
    tmp_path: Path, scene: Gaussians, form: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    table = columns(scene, tmp_path)
    expected = load_gaussians(tmp_path / "plain.ply")
    found = load_gaussians(write(tmp_path / "a.ply", table, form, after=[faces(count)]))
    same(found, expected)
    assert ("left out: the elements face" in caplog.text) == (count > 0)
    before = write(tmp_path / "b.ply", table, form, before=[faces(count)])
    if count:
        with pytest.raises(UserError, match="'face' has lists"):
            load_gaussians(before)
    else:
        same(load_gaussians(before), expected)


@pytest.mark.parametrize("form", FORMS)
def test_comments_of_any_script(tmp_path: Path, scene: Gaussians, form: str) -> None:
    """Also such as break lines in Unicode, but not in a .ply; and bytes that are no UTF-8."""
    table = columns(scene, tmp_path)
    path = write(tmp_path / "a.ply", table, form)
    said = (
        "comment 由 训练 C:/用户/场景 \u2028element\nobj_info Ω\n".encode() + b"comment \xff\xe9\n"
    )
    path.write_bytes(path.read_bytes().replace(b"element", said + b"element", 1))
    same(load_gaussians(path), load_gaussians(tmp_path / "plain.ply"))


def test_what_is_not_read_is_named_once(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    table = columns(scene, tmp_path)
    load_gaussians(tmp_path / "plain.ply")
    assert not caplog.records  # zero normals are nothing
    table |= {f"semantic_{i}": np.ones(30, np.float32) for i in range(16)}
    table |= {"segment": np.ones(30, np.float32), "nz": np.ones(30, np.float32)}
    extra = element("intrinsic", intrinsic=np.ones(9, np.float32))
    write(tmp_path / "a.ply", table, after=[extra])
    with caplog.at_level(logging.WARNING):
        load_gaussians(tmp_path / "a.ply")
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "left out: the columns nz, semantic_* (16), segment and the elements intrinsic"
    )


@pytest.mark.parametrize("form", FORMS)
def test_linear_colors_are_refused(tmp_path: Path, scene: Gaussians, form: str) -> None:
    """Apple SHARP's element: 0 is sRGB."""
    table = columns(scene, tmp_path)
    spaces = [element("color_space", color_space=np.array([i], np.uint8)) for i in range(2)]
    same(
        load_gaussians(write(tmp_path / "a.ply", table, form, after=[spaces[0]])),
        load_gaussians(tmp_path / "plain.ply"),
    )
    with pytest.raises(UserError, match="linear colours"):
        load_gaussians(write(tmp_path / "b.ply", table, form, after=[spaces[1]]))


def test_tables_are_not_read_with_lists_inside(tmp_path: Path, scene: Gaussians) -> None:
    columns(scene, tmp_path)
    content = (tmp_path / "plain.ply").read_bytes()
    listed = content.replace(b"property float nx\n", b"property list uchar int nx\n")
    (tmp_path / "a.ply").write_bytes(listed)
    with pytest.raises(UserError, match=r"'vertex' has lists \(nx\)"):
        ply.load_ply(tmp_path / "a.ply")


def test_bytes_behind_the_last_row_are_named(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    """A writer that did not know its count in time."""
    save_gaussians(scene, tmp_path / "a.ply")
    content = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(content + b"\n")
    same(load_gaussians(tmp_path / "a.ply"), scene)
    assert "behind the rows" not in caplog.text
    (tmp_path / "a.ply").write_bytes(content + bytes(640))
    same(load_gaussians(tmp_path / "a.ply"), scene)
    assert "640 bytes behind the rows that its header counts" in caplog.text


def test_headers_may_be_long(tmp_path: Path, scene: Gaussians) -> None:
    save_gaussians(scene, tmp_path / "a.ply")
    content = (tmp_path / "a.ply").read_bytes()
    comment = b"comment thumbnail " + b"A" * 200_000 + b"\nelement"
    (tmp_path / "a.ply").write_bytes(content.replace(b"element", comment, 1))
    same(load_gaussians(tmp_path / "a.ply"), scene)


@pytest.mark.parametrize("odd", ["unusable", "near zero"])
def test_the_origin_is_not_that_of_the_first_gaussians_alone(
    tmp_path: Path, generator: torch.Generator, odd: str
) -> None:
    """A first block that says nothing, in a file in the coordinates of a map."""
    scene = random_gaussians(70_000, generator, degree=0)
    table = columns(scene, tmp_path)
    place, first = np.array([431234.567, 5412345.678, 512.25]), np.arange(70_000) < 17_000
    exact = (
        scene.means[0].double().numpy()
        + np.where(first & (odd == "near zero"), 0, 1)[:, None] * place
    )
    table |= dict(zip("xyz", exact.T, strict=True))
    if odd == "unusable":
        table["opacity"] = np.where(first, np.nan, table["opacity"])
    found = load_gaussians(write(tmp_path / "a.ply", table))
    world = found.means[0].double().numpy() + np.array(found.origin)
    np.testing.assert_allclose(world[-50_000:], exact[-50_000:], rtol=0, atol=1e-6)
