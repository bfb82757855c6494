"""PlayCanvas' compressed .ply: a real file, its precision, another reader, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry.sh import C0
from pmsplat.io.gaussians import compressed_ply, load_gaussians, save_gaussians
from pmsplat.io.gaussians.ply import load_ply
from pmsplat.types import Gaussians
from tests.scenes import random_gaussians


def in_order(gaussians: Gaussians) -> Gaussians:
    """Sorted along the curve that the writer follows, as the file has them."""
    order = compressed_ply._sort_along_curve(gaussians.means[0].double().numpy())
    return gaussians.map(lambda tensor: tensor[:, order])


def extents(values: torch.Tensor) -> torch.Tensor:
    """Of each row's 256 neighbours: largest less smallest, [gaussian, 3]."""
    spans = [(part.amax(0) - part.amin(0)).expand_as(part) for part in values.split(256)]
    return torch.cat(spans)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip_to_its_precision(
    tmp_path: Path, generator: torch.Generator, degree: int
) -> None:
    gaussians = in_order(random_gaussians(700, generator, degree=degree))
    save_gaussians(gaussians, tmp_path / "a.compressed.ply")
    back = load_gaussians(tmp_path / "a.compressed.ply")
    half_steps = 0.5 / torch.tensor([2047.0, 1023.0, 2047.0])
    slack = 2e-6
    for ours, theirs in (
        (gaussians.means[0], back.means[0]),
        (gaussians.scales[0].log(), back.scales[0].log()),
    ):
        assert ((ours - theirs).abs() <= extents(ours) * half_steps + slack).all()
    ours, theirs = (0.5 + C0 * g.sh[0, :, 0] for g in (gaussians, back))
    assert ((ours - theirs).abs() <= extents(ours) * 0.5 / 255 + slack).all()
    torch.testing.assert_close(back.opacities, gaussians.opacities, rtol=0, atol=0.5 / 255 + slack)
    # three numbers off by √2/2046 each; the fourth, at least as large as each, by √3 times √3
    same = (back.quats_wxyz * gaussians.quats_wxyz).sum(-1).abs().clamp(max=1)
    assert (2 * (1 - same)).sqrt().max() <= 2**0.5 / 2046 * (3 + 9) ** 0.5 + 1e-3 * slack
    inside = gaussians.sh[0, :, 1:].abs() < 3.9
    assert inside.float().mean() > 0.99 or degree == 0
    error = (back.sh - gaussians.sh)[0, :, 1:].abs()
    assert (error[inside] <= 1 / 64 + slack).all()


def test_ends_of_the_ranges(tmp_path: Path, generator: torch.Generator) -> None:
    one = random_gaussians(3, generator, degree=1)
    sh = one.sh.clone()
    sh[0, :, 1, 0] = torch.tensor([-9.0, 9.0, 0.0])
    extreme = replace(
        one,
        means=torch.zeros(1, 3, 3),  # a chunk without extent
        scales=torch.tensor([[[0.0, 1.0, 1e20]] * 3]),
        opacities=torch.tensor([[0.0, 0.5, 1.0]]),
        quats_wxyz=torch.tensor([[[1.0, 0, 0, 0], [0, -1, 0, 0], [0.5, 0.5, -0.5, 0.5]]]),
        sh=sh,
    )
    save_gaussians(extreme, tmp_path / "a.compressed.ply")
    back = load_gaussians(tmp_path / "a.compressed.ply")
    assert torch.equal(back.means, extreme.means)
    assert back.opacities[0, 0] == 0 and back.opacities[0, 2] == 1
    torch.testing.assert_close(back.scales[0, 0].log(), torch.tensor([-20.0, 0, 20]))
    turned = (back.quats_wxyz * extreme.quats_wxyz).sum(-1).abs()
    torch.testing.assert_close(turned, torch.ones(1, 3), rtol=0, atol=3e-6)
    torch.testing.assert_close(
        back.sh[0, :, 1, 0], torch.tensor([-4.0, 4.0, 0.0]), rtol=0, atol=1 / 64
    )


def test_gsply_reads_the_same(tmp_path: Path, shared: Path, generator: torch.Generator) -> None:
    gsply = pytest.importorskip("gsply")
    ours = tmp_path / "a.compressed.ply"
    save_gaussians(random_gaussians(700, generator, degree=3), ours)
    for path in (ours, shared / "scenes/pretrained_3dgs/guitar.compressed.ply"):
        found, other = load_ply(path), gsply.plyread(str(path))
        tensors = {
            name: torch.as_tensor(np.array(getattr(other, name)))
            for name in ("means", "scales", "quats", "opacities", "sh0")
        }
        torch.testing.assert_close(tensors["means"], found.means[0])
        torch.testing.assert_close(tensors["scales"].exp(), found.scales[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(tensors["opacities"].sigmoid(), found.opacities[0],
                                   rtol=0, atol=1e-4)  # fmt: skip
        torch.testing.assert_close(tensors["sh0"], found.sh[0, :, 0])
        unit = torch.nn.functional.normalize(tensors["quats"], dim=-1)
        torch.testing.assert_close(unit, found.quats_wxyz[0])
        if path == ours:
            torch.testing.assert_close(
                torch.as_tensor(np.array(other.shN)), found.sh[0, :, 1:], rtol=0, atol=1e-5
            )


def test_degree_four_is_cut(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    save_gaussians(random_gaussians(9, generator, degree=4), tmp_path / "a.compressed.ply")
    assert "harmonics beyond degree 3 are left out" in caplog.text
    assert load_gaussians(tmp_path / "a.compressed.ply").sh_degree == 3


def test_neighbours_share_a_chunk(generator: torch.Generator) -> None:
    """The curve makes chunks of 256 of points in a cube small: a fifth of its edge and less."""
    points = torch.rand(64 * 256, 3, generator=generator).double().numpy()
    order = compressed_ply._sort_along_curve(points)
    assert sorted(order.tolist()) == list(range(len(points)))
    boxes = points[order].reshape(64, 256, 3)
    volume = np.prod(boxes.max(axis=1) - boxes.min(axis=1), axis=-1)
    assert np.median(volume) < 1 / 5**2
    assert len(compressed_ply._sort_along_curve(points[:0])) == 0


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (b"element chunk 3", b"element chunk 2", "without a chunk for each 256"),
        (b"element chunk 3", b"element lump  3", "without a chunk for each 256"),
        (b"uint packed_color", b"int  packed_color", "packed_color is missing or of another type"),
        (b"float max_z", b"float max_q", "max_z is missing or of another type"),
        (b"uchar f_rest_0\n", b"uchar f_rest_x\n", "f_rest_0 is missing or of another type"),
        (b"element sh 700", b"element sh 699", "harmonics of 699 Gaussians"),
        (b"element vertex 700", b"element vertex 999", "rows of 'sh' in"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path, generator: torch.Generator, old: bytes, new: bytes, fault: str
) -> None:
    save_gaussians(random_gaussians(700, generator, degree=1), tmp_path / "a.compressed.ply")
    content = (tmp_path / "a.compressed.ply").read_bytes()
    assert content.count(old) == 1
    (tmp_path / "a.compressed.ply").write_bytes(content.replace(old, new))
    with pytest.raises(UserError, match=fault):
        load_gaussians(tmp_path / "a.compressed.ply")


def test_without_bounds_of_color(tmp_path: Path, generator: torch.Generator) -> None:
    """Older files have none: colours are then in [0, 1]."""
    plyfile = pytest.importorskip("plyfile")
    path = tmp_path / "a.compressed.ply"
    save_gaussians(random_gaussians(300, generator, degree=0), path)
    found = load_gaussians(path)
    data = plyfile.PlyData.read(str(path))
    names = compressed_ply.BOUNDS[:12]
    chunk = np.array(data["chunk"].data[list(names)], dtype=[(name, "<f4") for name in names])
    vertex = np.array(data["vertex"].data)
    elements = [
        plyfile.PlyElement.describe(t, n) for t, n in ((chunk, "chunk"), (vertex, "vertex"))
    ]
    plyfile.PlyData(elements, byte_order="<").write(str(tmp_path / "b.ply"))
    back = load_gaussians(tmp_path / "b.ply")
    assert torch.equal(back.means, found.means)
    red = (vertex["packed_color"] >> 24) / 255
    np.testing.assert_allclose(0.5 + C0 * back.sh[0, :, 0, 0].numpy(), red, atol=1e-6)
