"""The .ksplat of Gaussians: three levels of compression, sections, buckets, and files that lie."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import sh
from pmsplat.io.gaussians import load_gaussians
from pmsplat.types import Gaussians
from tests.io.gaussians.encoders import write_ksplat
from tests.scenes import random_gaussians

STEP = 0.75 / 32767  # of positions in the test files of levels 1 and 2


def apart(count: int, generator: torch.Generator, degree: int) -> Gaussians:
    """Gaussians whose order by x does not depend on the precision."""
    gaussians = random_gaussians(count, generator, degree=degree)
    gaussians.means[0, :, 0] = torch.linspace(-2, 2, count)[torch.randperm(count)]
    return gaussians


def in_order(gaussians: Gaussians) -> Gaussians:
    """Sorted by x, because buckets change the order."""
    order = gaussians.means[0, :, 0].argsort()
    return gaussians.map(lambda tensor: tensor[:, order])


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_values_come_back_to_the_precision_of_the_level(
    tmp_path: Path, generator: torch.Generator, level: int, degree: int
) -> None:
    gaussians = apart(300, generator, degree)
    write_ksplat(gaussians, tmp_path / "a.ksplat", level)
    found, expected = in_order(load_gaussians(tmp_path / "a.ksplat")), in_order(gaussians)
    place = 1e-6 if level == 0 else STEP / 2 + 1e-6
    torch.testing.assert_close(found.means, expected.means, rtol=0, atol=place)
    real = 1e-6 if level == 0 else 2.0**-11
    torch.testing.assert_close(found.scales, expected.scales, rtol=real, atol=0)
    same = (found.quats_wxyz * expected.quats_wxyz).sum(-1)
    torch.testing.assert_close(same, torch.ones_like(same), rtol=0, atol=4 * real**2 + 1e-6)
    torch.testing.assert_close(found.opacities, expected.opacities, rtol=0, atol=0.51 / 255)
    colors = (0.5 + sh.C0 * expected.sh[:, :, 0]).clamp(0, 1)
    torch.testing.assert_close(0.5 + sh.C0 * found.sh[:, :, 0], colors, rtol=0, atol=0.51 / 255)
    rest = expected.sh[:, :, 1:]
    if degree:
        span = float(rest.max() - rest.min())
        error = {0: 1e-7, 1: 2.0**-11 * float(rest.abs().max()), 2: 0.51 * span / 255}[level]
        torch.testing.assert_close(found.sh[:, :, 1:], rest, rtol=0, atol=error)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_several_sections(tmp_path: Path, generator: torch.Generator, level: int) -> None:
    gaussians = apart(100, generator, degree=1)
    write_ksplat(gaussians, tmp_path / "a.ksplat", level, sections=3)
    found = in_order(load_gaussians(tmp_path / "a.ksplat"))
    torch.testing.assert_close(found.means, in_order(gaussians).means, rtol=0, atol=STEP)


def test_bytes_of_one_gaussian(tmp_path: Path) -> None:
    """Every field by hand, from the description of the format."""
    head = struct.pack("<BBxxIIIIHxx5f", 0, 1, 1, 1, 1, 1, 1, 9, 9, 9, 0, 0).ljust(4096, b"\0")
    section = struct.pack("<IIIIfHxxIIIIH", 1, 1, 256, 1, 5.0, 12, 0, 40, 0, 1, 1)
    lead = struct.pack("<I3f", 1, 10, 20, 30)  # one Gaussian in the bucket at (10, 20, 30)
    halves = np.array([1, 2, 0.5, 0, 0, 1, 0], "<f2").tobytes()  # half a turn about y
    harmonics = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], "<f2").tobytes()
    row = struct.pack("<3H", 32767, 0, 65534) + halves + bytes([255, 0, 51, 102]) + harmonics
    (tmp_path / "a.ksplat").write_bytes(head + section.ljust(1024, b"\0") + lead + row)
    found = load_gaussians(tmp_path / "a.ksplat")
    assert found.means.tolist() == [[[10.0, 17.5, 32.5]]]  # the cube has sides of 5
    assert found.scales.tolist() == [[[1.0, 2.0, 0.5]]]
    assert found.quats_wxyz.tolist() == [[[0.0, 0.0, 1.0, 0.0]]]
    assert found.opacities.item() == pytest.approx(0.4)
    dc = [(value - 0.5) / 0.28209479 for value in (1.0, 0.0, 0.2)]
    assert found.sh[0, 0, 0].tolist() == pytest.approx(dc)
    # all of red, then of green, then of blue
    assert found.sh[0, 0, 1].tolist() == pytest.approx([0.1, 0.4, 0.7], rel=1e-3)
    assert found.sh[0, 0, 3].tolist() == pytest.approx([0.3, 0.6, 0.9], rel=1e-3)


def test_room_that_is_not_used(tmp_path: Path, generator: torch.Generator) -> None:
    """A loader that streams a scene reserves rows for all of it; the header counts those there."""
    path = tmp_path / "a.ksplat"
    write_ksplat(random_gaussians(20, generator, degree=0), path, level=0)
    whole, content = load_gaussians(path), bytearray(path.read_bytes())
    struct.pack_into("<I", content, 16, 12)
    struct.pack_into("<I", content, 4096, 12)
    path.write_bytes(content)
    assert torch.equal(load_gaussians(path).means, whole.means[:, :12])


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (0, 1, "version 1.1 of .ksplat"),
        (4, 2**32 - 1, "4294967295 sections in"),
        (16, 7, "do not hold its 7 Gaussians"),
        (20, 3, "compression level 3"),
        (4096, 2**31, "2147483648 Gaussians of section 0"),
        (4100, 2**31, "50 Gaussians of section 0"),
        (4104, 1, "buckets for 50 Gaussians"),
        (4108, 0, "Gaussians of section 0|buckets for 50"),
        (4112, 0x7FC00000, "buckets of size nan"),
        (4116, 8, "buckets for 50 Gaussians"),
        (4132, 2**32 - 1, "section 0 in"),
        (4136, 3, "harmonics of degree 3"),
    ],
)
def test_files_that_lie(
    tmp_path: Path, generator: torch.Generator, place: int, value: int, fault: str
) -> None:
    path = tmp_path / "a.ksplat"
    write_ksplat(random_gaussians(50, generator, degree=1), path, level=1, capacity=4)
    content = bytearray(path.read_bytes())
    kind = {0: "<B", 20: "<H", 4116: "<H", 4136: "<H"}.get(place, "<I")
    struct.pack_into(kind, content, place, value)
    path.write_bytes(content)
    with pytest.raises(UserError, match=fault):
        load_gaussians(path)


def test_cut_short(tmp_path: Path, generator: torch.Generator) -> None:
    path = tmp_path / "a.ksplat"
    write_ksplat(random_gaussians(50, generator, degree=1), path, level=2)
    content = path.read_bytes()
    for size in (0, 4095, 4096, 5119, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"cut short|sections in|Gaussians of section 0 in"):
            load_gaussians(path)
    path.write_bytes(content[:4] + bytes(len(content) - 4))
    with pytest.raises(UserError, match="holds no Gaussians"):
        load_gaussians(path)
