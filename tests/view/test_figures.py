"""Pictures: depth colours follow inverse depth, sheets hold every image where the label says."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat.io.images import to_uint8
from pmsplat.view import figures


def test_depth_colours_are_even_in_inverse_depth() -> None:
    near, far = 0.5, 20.0
    inverse = torch.linspace(1 / far, 1 / near, 256)
    colors = figures.colorize_depth((1 / inverse)[None, :], near, far)
    table = matplotlib.colormaps["viridis"](np.arange(256))[:, :3].T
    assert colors.shape == (3, 1, 256)
    assert np.abs(colors[:, 0].numpy() - table).max() < 0.02


def test_no_depth_is_black_and_the_range_clips() -> None:
    depth = torch.tensor([[[0.0, 0.1, 1.0, 50.0, 1000.0]]])
    colors = figures.colorize_depth(depth, 1.0, 50.0)[0, :, 0]
    assert (colors[:, 0] == 0).all()
    assert torch.equal(colors[:, 1], colors[:, 2])
    assert torch.equal(colors[:, 3], colors[:, 4])
    assert not torch.equal(colors[:, 2], colors[:, 3])


def test_confidence_is_even_from_violet_to_yellow() -> None:
    levels = torch.cat([torch.linspace(0, 1, 256), torch.tensor([-1.0, 2.0, torch.nan])])
    colors = figures.colorize_confidence(levels[None, None])[0, :, 0].numpy()
    table = matplotlib.colormaps["viridis"](np.arange(256))[:, :3].T
    assert np.abs(colors[:, :256] - table).max() < 1e-6
    assert np.array_equal(colors[:, 256], colors[:, 0]) and (colors[:, 258] == 0).all()
    assert np.array_equal(colors[:, 257], colors[:, 255])


def test_range_of_depths_leaves_out_unknown_and_outliers() -> None:
    depth = torch.cat([torch.zeros(500), torch.linspace(1, 3, 1000), torch.tensor([1e6])])
    near, far = figures.color_range(depth)
    assert 1.0 <= near < 1.1 and 2.9 < far <= 3.0
    assert figures.color_range(torch.zeros(4, 4)) == (1.0, 2.0)


def test_a_sheet_holds_its_images(tmp_path: Path, generator: torch.Generator) -> None:
    images = [torch.rand(3, 20, 30 + i, generator=generator) for i in range(3)]
    figures.contact_sheet(
        [("a", images[:2]), ("a much longer label", images[2:])], tmp_path / "s.png"
    )
    sheet = np.array(Image.open(tmp_path / "s.png"))
    top, left = figures.LABEL, figures.MARGIN
    got = sheet[top : top + 20, left : left + 30]
    assert np.array_equal(got, to_uint8(images[0]))
    second = 2 * figures.LABEL + 20
    assert np.array_equal(sheet[second : second + 20, left : left + 32], to_uint8(images[2]))
    assert [p.name for p in tmp_path.iterdir()] == ["s.png"]


def test_a_sheet_can_be_scaled(tmp_path: Path) -> None:
    figures.contact_sheet([("a", [torch.ones(3, 20, 30)])], tmp_path / "s.png", height=40)
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (60 + 2 * figures.MARGIN, 40 + figures.LABEL + figures.MARGIN)


def test_bar_runs_from_near_to_far() -> None:
    bar = figures.color_bar(0.5, 10.0, height=100)
    ends = figures.colorize_depth(torch.tensor([[0.5], [10.0]]), 0.5, 10.0)
    assert torch.allclose(bar[:, [0, -1], 0], ends[..., 0], atol=1 / 255)


def test_a_legend_stands_beside() -> None:
    colored = figures.colorize_depth(torch.linspace(1, 4, 60).reshape(6, 10), 1, 4)
    both = figures.beside_bar(colored, 1, 4)
    assert torch.equal(both[:, :, :10], colored)
    assert torch.equal(both[:, :, 10 + figures.MARGIN :], figures.color_bar(1, 4, 6))


def test_errors_run_from_white_to_red() -> None:
    truth = torch.tensor([[2.0, 2.0, 2.0, 2.0, 0.0]])
    depth = torch.tensor([[2.0, 2.25, 1.5, 9.0, 1.0]])
    colors = figures.colorize_error(depth, truth, most=0.25)[:, 0]
    reds = torch.tensor(matplotlib.colormaps["Reds"](np.array([0, 128, 255]))[:, :3].T)
    assert torch.allclose(colors[:, :3].double(), reds, atol=0.02)  # none, an eighth, a quarter
    assert torch.equal(colors[:, 3], colors[:, 2]) and (colors[:, 4] == 0).all()


def test_normals_as_textures_have_them() -> None:
    normals = torch.tensor([[[1.0, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 0]]])
    colors = figures.colorize_normals(normals)[:, 0].T
    wanted = [[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1], [0, 0, 0]]  # right, up, at us, none
    assert torch.equal(colors, torch.tensor(wanted))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        figures.contact_sheet([("a", [torch.ones(3, 4, 4)])], tmp_path / "s.png")
    assert not list(tmp_path.iterdir())


def test_a_curve_with_equal_ratios_has_equal_distances(tmp_path: Path) -> None:
    """Marks of a flat line are where it is thickest."""
    figures.draw_curve(
        tmp_path / "curve.png", [(10, 5), (100, 5), (1000, 5)], ("x", "y"), "flat", log=True
    )
    pixels = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB")).astype(int)
    blue = pixels[..., 2] - pixels[..., 0] > 100
    marks = np.flatnonzero(blue.sum(axis=0) >= blue.sum(axis=0).max() - 1)
    groups = np.split(marks, np.flatnonzero(np.diff(marks) > 5) + 1)
    first, middle, last = (group.mean() for group in groups)
    assert abs((middle - first) - (last - middle)) <= 1 and last - first > 300
