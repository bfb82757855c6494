"""The .ply of Gaussians: its bytes, what comes back, what other programs write, what is refused."""

import logging
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import sh
from pmsplat.io.gaussians import ply
from pmsplat.types import Gaussians
from tests.scenes import random_gaussians


def read_with_struct(path: Path) -> tuple[list[str], list[dict[str, float]]]:
    """Property names and rows, by nothing but the text of the header and `struct`."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[0] == "ply" and lines[1] == "format binary_little_endian 1.0"
    assert [line for line in lines if line.startswith("element")] == [lines[2]]
    count = int(lines[2].removeprefix("element vertex "))
    names = []
    for line in lines[3:]:
        assert line.startswith("property float ")
        names.append(line.removeprefix("property float "))
    size = struct.calcsize(f"<{len(names)}f")
    assert len(body) == count * size
    rows = [struct.unpack_from(f"<{len(names)}f", body, i * size) for i in range(count)]
    return names, [dict(zip(names, row, strict=True)) for row in rows]


def write_ascii(
    path: Path, properties: list[str], rows: list[list[float]], extra: str = ""
) -> None:
    """A text .ply, written without the package."""
    lines = ["ply", "format ascii 1.0", extra, f"element vertex {len(rows)}"]
    lines += [f"property float {name}" for name in properties] + ["end_header"]
    lines += [" ".join(f"{value:.9g}" for value in row) for row in rows]
    path.write_text("\n".join(line for line in lines if line) + "\n")


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_layout_is_inrias(tmp_path: Path, generator: torch.Generator, degree: int) -> None:
    gaussians = random_gaussians(5, generator, degree=degree)
    ply.save_ply(gaussians, tmp_path / "a.ply")
    names, rows = read_with_struct(tmp_path / "a.ply")
    rest = (degree + 1) ** 2 - 1
    expected = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    expected += [f"f_rest_{i}" for i in range(3 * rest)]
    expected += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert names == expected
    for g, row in enumerate(rows):
        assert [row[c] for c in "xyz"] == gaussians.means[0, g].tolist()
        assert [row[f"n{c}"] for c in "xyz"] == [0, 0, 0]
        for channel in range(3):
            assert row[f"f_dc_{channel}"] == gaussians.sh[0, g, 0, channel].item()
            for k in range(rest):  # channel by channel
                value = gaussians.sh[0, g, 1 + k, channel].item()
                assert row[f"f_rest_{channel * rest + k}"] == value
        sigmoid = 1 / (1 + np.exp(-row["opacity"]))
        assert sigmoid == pytest.approx(gaussians.opacities[0, g].item(), rel=1e-6)
        for axis in range(3):
            scale = gaussians.scales[0, g, axis].item()
            assert row[f"scale_{axis}"] == pytest.approx(np.log(scale), rel=1e-6)
        assert [row[f"rot_{i}"] for i in range(4)] == gaussians.quats_wxyz[0, g].tolist()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip(tmp_path: Path, generator: torch.Generator, degree: int) -> None:
    gaussians = random_gaussians(300, generator, degree=degree)
    ply.save_ply(gaussians, tmp_path / "a.ply")
    back = ply.load_ply(tmp_path / "a.ply")
    assert torch.equal(back.means, gaussians.means) and torch.equal(back.sh, gaussians.sh)
    for name in ("scales", "quats_wxyz", "opacities"):
        torch.testing.assert_close(
            getattr(back, name), getattr(gaussians, name), rtol=1e-6, atol=2e-7
        )
    ply.save_ply(back, tmp_path / "b.ply")
    again = ply.load_ply(tmp_path / "b.ply")
    torch.testing.assert_close(again.opacities, back.opacities, rtol=1e-6, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ply", "b.ply"]


def test_a_color_survives_the_file(tmp_path: Path, generator: torch.Generator) -> None:
    gaussians = random_gaussians(50, generator, degree=3)
    ply.save_ply(gaussians, tmp_path / "a.ply")
    back = ply.load_ply(tmp_path / "a.ply")
    direction = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=-1)
    assert torch.equal(sh.color(back.sh[0], direction), sh.color(gaussians.sh[0], direction))


def test_the_ends_of_the_ranges_stay_finite(tmp_path: Path, generator: torch.Generator) -> None:
    gaussians = random_gaussians(3, generator)
    gaussians = replace(
        gaussians,
        opacities=torch.tensor([[0.0, 1.0, 0.5]]),
        scales=torch.tensor([[[0.0, 1e-20, 1e20]] * 3]),
    )
    ply.save_ply(gaussians, tmp_path / "a.ply")
    _, rows = read_with_struct(tmp_path / "a.ply")
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    back = ply.load_ply(tmp_path / "a.ply")
    torch.testing.assert_close(back.opacities, gaussians.opacities, rtol=0, atol=1e-7)
    torch.testing.assert_close(back.scales, gaussians.scales, rtol=1e-5, atol=1e-30)


def test_degree_four_is_cut_with_one_warning(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    gaussians = random_gaussians(4, generator, degree=4)
    ply._warn_once_about_degree.cache_clear()
    with caplog.at_level(logging.WARNING):
        for name in ("a.ply", "b.ply"):
            ply.save_ply(gaussians, tmp_path / name)
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "those of degree 4 are left out" in caplog.text
    assert torch.equal(ply.load_ply(tmp_path / "a.ply").sh, gaussians.sh[:, :, :16])


def test_real_file_of_another_program(shared: Path) -> None:
    path = shared / "scenes/pretrained_3dgs/luigi.ply"
    gaussians = ply.load_ply(path)
    names, rows = read_with_struct(path)
    assert gaussians.means.shape == (1, len(rows), 3) == (1, 14526, 3)
    for g in (0, 777, 14525):
        assert gaussians.means[0, g].tolist() == [rows[g][c] for c in "xyz"]
        quat = np.array([rows[g][f"rot_{i}"] for i in range(4)])
        torch.testing.assert_close(
            gaussians.quats_wxyz[0, g].double(), torch.tensor(quat / np.linalg.norm(quat))
        )
        assert gaussians.opacities[0, g].item() == pytest.approx(
            1 / (1 + np.exp(-rows[g]["opacity"])), rel=1e-6
        )
    assert "nx" in names and gaussians.sh_degree == 0


def test_text_without_normals_and_unnormalised_rotation(tmp_path: Path) -> None:
    """As gsplat (no normals) and nerfstudio (comments) write it, in any order of properties."""
    properties = ["opacity", "x", "y", "z", "rot_0", "rot_1", "rot_2", "rot_3"]
    properties += [f"f_dc_{i}" for i in range(3)] + [f"scale_{i}" for i in range(3)]
    properties += [f"f_rest_{i}" for i in range(9)]
    row = [0.0, 1, 2, 3, 2, 0, 0, 0, 0.1, 0.2, 0.3, 0, 1, 2, *range(9)]
    write_ascii(tmp_path / "a.ply", properties, [row], "comment Vertical Axis: z")
    got = ply.load_ply(tmp_path / "a.ply")
    assert got.means.tolist() == [[[1, 2, 3]]] and got.opacities.tolist() == [[0.5]]
    assert got.quats_wxyz.tolist() == [[[1, 0, 0, 0]]]
    torch.testing.assert_close(got.scales, torch.tensor([[[1, np.e, np.e**2]]]).float())
    assert got.sh[0, 0, 1:, 0].tolist() == [0, 1, 2] and got.sh[0, 0, 1:, 2].tolist() == [6, 7, 8]


def test_gaussians_that_are_not_finite_are_counted(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    ply.save_ply(random_gaussians(4, generator, degree=0), tmp_path / "a.ply")
    data = bytearray((tmp_path / "a.ply").read_bytes())
    body = data.index(b"end_header\n") + len(b"end_header\n")
    struct.pack_into("<f", data, body + 17 * 4, float("nan"))  # x of the second
    (tmp_path / "a.ply").write_bytes(data)
    assert ply.load_ply(tmp_path / "a.ply").means.shape == (1, 3, 3)
    assert "1 of 4 Gaussians are left out" in caplog.text


def test_refused_on_saving(tmp_path: Path, generator: torch.Generator) -> None:
    with pytest.raises(UserError, match="2 scenes"):
        ply.save_ply(random_gaussians(4, generator, batch=2), tmp_path / "a.ply")
    gaussians = random_gaussians(4, generator)
    gaussians.means[0, 1, 2] = torch.nan
    with pytest.raises(UserError, match="1 of 4 Gaussians are not finite"):
        ply.save_ply(gaussians, tmp_path / "a.ply")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaussians = random_gaussians(4, generator)
    ply.save_ply(gaussians, tmp_path / "a.ply")
    before = (tmp_path / "a.ply").read_bytes()

    def full(self: object, path: str) -> None:
        Path(path).write_bytes(b"ply half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ply.PlyData, "write", full)
    with pytest.raises(OSError, match="No space"):
        ply.save_ply(gaussians, tmp_path / "a.ply")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
    assert (tmp_path / "a.ply").read_bytes() == before


def gaussian_header(count: int, form: str = "binary_little_endian") -> bytes:
    names = [n for n in ply._list_properties(0) if not n.startswith("n")]
    lines = ["ply", f"format {form} 1.0", f"element vertex {count}"]
    lines += [f"property float {name}" for name in names] + ["end_header"]
    return ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "no .ply header"),
        (b"not a ply at all", "no .ply header"),
        (b"ply\n" + b"comment x\n" * 10_000, "no .ply header"),
        (gaussian_header(10**15), "1000000000000000 Gaussians in 0 bytes"),
        (gaussian_header(10**15, "ascii"), "1000000000000000 Gaussians in 0 bytes"),
        (gaussian_header(10) + b"\0" * 559, "10 Gaussians in 559 bytes"),
        (gaussian_header(1, "ascii") + b"word " * 20 + b"\n", "malformed"),
        (
            b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
            b"property float z\nelement face 1\nproperty list uchar int vertex_indices\n"
            b"end_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n",
            "a mesh or a point cloud",
        ),
    ],
)
def test_what_is_no_gaussians_is_one_sentence(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(UserError, match=fault):
        ply.load_ply(tmp_path / "a.ply")


def test_number_of_coefficients_must_be_a_degree(tmp_path: Path) -> None:
    properties = [*ply._list_properties(0), "f_rest_0", "f_rest_1", "f_rest_2"]
    write_ascii(tmp_path / "a.ply", properties, [[0.0] * len(properties)])
    with pytest.raises(UserError, match="3 properties f_rest"):
        ply.load_ply(tmp_path / "a.ply")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        ply.load_ply(tmp_path / "absent.ply")


@pytest.mark.parametrize("degree", [0, 3])
def test_gsply_reads_the_same(tmp_path: Path, generator: torch.Generator, degree: int) -> None:
    gsply = pytest.importorskip("gsply")
    gaussians: Gaussians = random_gaussians(64, generator, degree=degree)
    ply.save_ply(gaussians, tmp_path / "a.ply")
    data = gsply.plyread(str(tmp_path / "a.ply"))
    back = {name: torch.as_tensor(np.array(getattr(data, name))) for name in ("means", "sh0")}
    torch.testing.assert_close(back["means"], gaussians.means[0])
    torch.testing.assert_close(back["sh0"], gaussians.sh[0, :, 0])
    opacities = torch.as_tensor(np.array(data.opacities)).sigmoid()
    torch.testing.assert_close(opacities, gaussians.opacities[0])
    torch.testing.assert_close(torch.as_tensor(np.array(data.quats)), gaussians.quats_wxyz[0])
    torch.testing.assert_close(
        torch.as_tensor(np.array(data.scales)).exp(), gaussians.scales[0], rtol=1e-5, atol=0
    )
    if degree:
        torch.testing.assert_close(torch.as_tensor(np.array(data.shN)), gaussians.sh[0, :, 1:])


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_other_orders_types_and_properties(
    tmp_path: Path, generator: torch.Generator, byte_order: str
) -> None:
    """Big-endian, doubles, and properties and elements that mean nothing to us."""
    gaussians = random_gaussians(50, generator, degree=2)
    ply.save_ply(gaussians, tmp_path / "a.ply")
    vertex = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    types = [(name, "f8" if name in "xyz" else "f4") for name in vertex.dtype.names]
    types.insert(3, ("label", "u1"))
    wider = np.zeros(50, types)
    for name in vertex.dtype.names:
        wider[name] = vertex[name]
    rows = np.zeros(3, [("near", "f4"), ("far", "i2")])
    elements = [plyfile.PlyElement.describe(t, n) for t, n in ((rows, "camera"), (wider, "vertex"))]
    plyfile.PlyData(elements, byte_order=byte_order).write(str(tmp_path / "b.ply"))
    found, expected = ply.load_ply(tmp_path / "b.ply"), ply.load_ply(tmp_path / "a.ply")
    for name in ("means", "scales", "quats_wxyz", "opacities", "sh"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_degree_four_is_read(tmp_path: Path) -> None:
    properties = [*ply._list_properties(24)]
    row = [0.0] * len(properties)
    row[properties.index("rot_0")] = 1
    for i in range(72):
        row[properties.index(f"f_rest_{i}")] = float(i)
    write_ascii(tmp_path / "a.ply", properties, [row, row])
    found = ply.load_ply(tmp_path / "a.ply")
    assert found.sh_degree == 4
    assert found.sh[0, 1, 1:, 1].tolist() == list(range(24, 48))  # green


def test_lists_and_odd_headers_are_refused(tmp_path: Path) -> None:
    good = gaussian_header(1) + bytes(56)
    names = b"property float x\n"
    for old, new, fault in (
        (names, names + b"property list uchar int more\n", "element 'vertex' has lists"),
        (names, names + names, "two properties of one name"),
        (names, b"property quaternion x\n", "the line 'property quaternion x'"),
        (b"element vertex 1\n", b"element vertex many\n", "the line 'element vertex many'"),
        (b"element vertex", b"element vertex 1\nelement vertex", "two elements of one name"),
        (b"format binary_little_endian 1.0\n", b"", "no format"),
        (b"end_header", b"element x 1099511627776\nend_header", "1099511627776 rows of 'x' in"),
    ):
        assert good.count(old) == 1
        (tmp_path / "a.ply").write_bytes(good.replace(old, new))
        with pytest.raises(UserError, match=fault):
            ply.load_ply(tmp_path / "a.ply")
    (tmp_path / "a.ply").write_bytes(good)
    assert ply.load_ply(tmp_path / "a.ply").opacities.tolist() == [[0.5]]
