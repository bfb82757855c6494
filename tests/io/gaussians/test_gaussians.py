"""Loading and saving of Gaussians: formats by content and by suffix, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pmsplat
from pmsplat.errors import UserError
from pmsplat.io.gaussians import _blocks, load_gaussians, save_gaussians
from pmsplat.types import Gaussians
from tests.scenes import are_equal, random_gaussians

OURS = [".ply", ".compressed.ply", ".splat", ".spz"]


def empty(degree: int = 0) -> Gaussians:
    means, sh = torch.zeros(1, 0, 3), torch.zeros(1, 0, (degree + 1) ** 2, 3)
    return Gaussians(means, means, torch.zeros(1, 0, 4), torch.zeros(1, 0), sh)


def test_they_are_public() -> None:
    assert pmsplat.load_gaussians is load_gaussians and pmsplat.save_gaussians is save_gaussians


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("luigi.ply", 14526),
        ("biker.spz", 152746),
        ("guitar.compressed.ply", 90854),
        ("bonsai-7k-mini.splat", 272956),
    ],
)
def test_real_files(shared: Path, name: str, count: int) -> None:
    if name.endswith(".spz"):
        pytest.importorskip("zstandard")
    found = load_gaussians(shared / "scenes/pretrained_3dgs" / name)
    assert found.means.shape == (1, count, 3) and found.means.dtype == torch.float32
    for tensor in (found.means, found.scales, found.opacities, found.sh):
        assert tensor.isfinite().all()
    torch.testing.assert_close(found.quats_wxyz.norm(dim=-1), torch.ones(1, count))
    assert (found.scales >= 0).all()
    assert found.opacities.min() >= 0 and found.opacities.max() <= 1


@pytest.mark.parametrize("suffix", [*OURS, ".glb", ".usda", ".usdc", ".usdz"])
def test_content_comes_before_the_suffix(
    tmp_path: Path, generator: torch.Generator, suffix: str
) -> None:
    if suffix.startswith(".usd"):
        pytest.importorskip("pxr")
    gaussians = random_gaussians(300, generator, degree=1)
    save_gaussians(gaussians, tmp_path / f"a{suffix}")
    before = load_gaussians(tmp_path / f"a{suffix}")
    if suffix != ".splat" and not suffix.startswith(".usd"):  # nothing to know them by
        (tmp_path / f"a{suffix}").rename(tmp_path / "a.download")
        suffix = ".download"
    assert torch.equal(load_gaussians(str(tmp_path / f"a{suffix}")).means, before.means)


@pytest.mark.parametrize("suffix", OURS)
def test_no_gaussians_are_a_valid_file(tmp_path: Path, suffix: str) -> None:
    save_gaussians(empty(degree=1), tmp_path / f"a{suffix}")
    back = load_gaussians(tmp_path / f"a{suffix}")
    assert back.means.shape == (1, 0, 3) and back.opacities.shape == (1, 0)
    assert back.sh_degree == (0 if suffix == ".splat" else 1)


@pytest.mark.parametrize("suffix", OURS)
def test_more_than_one_block(
    tmp_path: Path, generator: torch.Generator, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes of a file does not depend on the size of the blocks."""
    gaussians = random_gaussians(1300, generator, degree=1)
    save_gaussians(gaussians, tmp_path / f"a{suffix}")
    whole = load_gaussians(tmp_path / f"a{suffix}")
    for module in ("_blocks", "compressed_ply"):
        monkeypatch.setattr(f"pmsplat.io.gaussians.{module}.BLOCK", 512)
    save_gaussians(gaussians, tmp_path / f"b{suffix}")
    assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()
    assert are_equal(load_gaussians(tmp_path / f"b{suffix}"), whole)


@pytest.mark.parametrize("suffix", OURS)
def test_what_is_refused_on_saving(tmp_path: Path, generator: torch.Generator, suffix: str) -> None:
    with pytest.raises(UserError, match="2 scenes"):
        save_gaussians(random_gaussians(4, generator, batch=2), tmp_path / f"a{suffix}")
    good = random_gaussians(4, generator)
    for name, value in (("means", torch.nan), ("scales", -1.0), ("opacities", 1.5)):
        tensor = getattr(good, name).clone()
        tensor[0, 1] = value
        with pytest.raises(UserError, match="1 of 4 Gaussians are not finite"):
            save_gaussians(replace(good, **{name: tensor}), tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", OURS)
def test_gradients_and_other_precisions_do_not_matter(
    tmp_path: Path, generator: torch.Generator, suffix: str
) -> None:
    gaussians = random_gaussians(40, generator)
    save_gaussians(gaussians, tmp_path / f"a{suffix}")
    save_gaussians(
        gaussians.map(lambda tensor: tensor.double().requires_grad_()), tmp_path / f"b{suffix}"
    )
    assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", OURS)
def test_a_missing_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match="no file"):
        load_gaussians(tmp_path / f"a{suffix}")


def test_unknown_kinds(tmp_path: Path, generator: torch.Generator) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\n")
    with pytest.raises(UserError, match=r"no known file of Gaussians.*\.spz"):
        load_gaussians(tmp_path / "a.obj")
    with pytest.raises(UserError, match=f"{tmp_path} is a folder; wanted a file"):
        load_gaussians(tmp_path)
    with pytest.raises(UserError, match="NoneType to save; wanted Gaussians"):
        save_gaussians(None, tmp_path / "b.ply")  # pyright: ignore
    with pytest.raises(UserError, match=r"no known file of Gaussians.*choose another name"):
        save_gaussians(random_gaussians(4, generator), tmp_path / "b.obj")


def test_only_what_can_be_drawn_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Not finite, of negative size, of impossible opacity; a missing rotation is none."""
    good = random_gaussians(6, torch.Generator().manual_seed(0))
    good.means[0, 0, 0] = torch.inf
    good.scales[0, 1, 2] = -1e-3
    good.opacities[0, 2] = 1.01
    good.sh[0, 3, 1, 1] = torch.nan
    good.quats_wxyz[0, 4] = 0
    found = _blocks.read_blocks("a.x", 6, 9, lambda i, j: good.map(lambda tensor: tensor[:, i:j]))
    assert torch.equal(found.means, good.means[:, 4:])
    assert found.quats_wxyz[0, 0].tolist() == [1, 0, 0, 0]
    assert "a.x: 4 of 6 Gaussians are left out" in caplog.text
    with pytest.raises(UserError, match="not one of 3 Gaussians is usable"):
        _blocks.read_blocks("a.x", 3, 9, lambda i, j: good.map(lambda tensor: tensor[:, i:j]))
