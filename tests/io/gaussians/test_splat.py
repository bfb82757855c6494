"""The .splat of Gaussians: its 32 bytes, its precision, a real file, other programs."""

import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry.sh import C0
from pmsplat.io.gaussians import splat
from tests.scenes import random_gaussians


def test_layout(tmp_path: Path, generator: torch.Generator) -> None:
    gaussians = random_gaussians(7, generator, degree=0)
    splat.write(gaussians, tmp_path / "a.splat")
    content = (tmp_path / "a.splat").read_bytes()
    assert len(content) == 7 * 32
    for g in range(7):
        *numbers, r, gr, b, a, q0, q1, q2, q3 = struct.unpack_from("<6f8B", content, 32 * g)
        assert numbers[:3] == gaussians.means[0, g].tolist()
        assert numbers[3:] == gaussians.scales[0, g].tolist()
        for byte, dc in zip((r, gr, b), gaussians.sh[0, g, 0].tolist(), strict=True):
            assert abs(byte / 255 - min(max(0.5 + C0 * dc, 0), 1)) <= 0.5 / 255 + 1e-7
        assert abs(a / 255 - gaussians.opacities[0, g].item()) <= 0.5 / 255 + 1e-7
        quat = gaussians.quats_wxyz[0, g]
        expected = (-quat.sign()[0] * quat).tolist()
        for byte, value in zip((q0, q1, q2, q3), expected, strict=True):
            assert abs((byte - 128) / 128 - value) <= 1 / 128


def test_no_rotation_is_exactly_one(tmp_path: Path, generator: torch.Generator) -> None:
    """A byte holds -1, not 1, and Spark takes the length of a quaternion for granted."""
    gaussians = random_gaussians(3, generator, degree=0)
    for quat in ([1.0, 0, 0, 0], [-1.0, 0, 0, 0]):
        still = replace(gaussians, quats_wxyz=torch.tensor(quat).expand(1, 3, 4))
        splat.write(still, tmp_path / "a.splat")
        assert (tmp_path / "a.splat").read_bytes()[28:32] == bytes([0, 128, 128, 128])


def test_round_trip_to_its_precision(tmp_path: Path, generator: torch.Generator) -> None:
    gaussians = random_gaussians(500, generator, degree=0)
    splat.write(gaussians, tmp_path / "a.splat")
    back = splat.read(tmp_path / "a.splat")
    assert torch.equal(back.means, gaussians.means) and torch.equal(back.scales, gaussians.scales)
    half = 0.5 / 255
    torch.testing.assert_close(back.opacities, gaussians.opacities, rtol=0, atol=half + 1e-6)
    shown = (gaussians.sh * C0 + 0.5).clamp(0, 1)
    torch.testing.assert_close(back.sh * C0 + 0.5, shown, rtol=0, atol=half + 1e-6)
    # each of four numbers is off by 1/128 at most; the length by that of the error, 2/128
    sign = (back.quats_wxyz * gaussians.quats_wxyz).sum(-1, keepdim=True).sign()
    error = (sign * back.quats_wxyz - gaussians.quats_wxyz).norm(dim=-1)
    assert error.max() <= 2 * (2 / 128)
    splat.write(back, tmp_path / "b.splat")
    again = splat.read(tmp_path / "b.splat")
    assert torch.equal(again.opacities, back.opacities)
    torch.testing.assert_close(again.sh, back.sh, rtol=0, atol=1e-6)


def test_harmonics_are_lost_with_a_warning(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    gaussians = random_gaussians(5, generator, degree=2)
    splat.write(gaussians, tmp_path / "a.splat")
    assert "no harmonics beyond degree 0" in caplog.text
    assert splat.read(tmp_path / "a.splat").sh_degree == 0


def test_a_real_file(shared: Path) -> None:
    path = shared / "scenes/pretrained_3dgs/bonsai-7k-mini.splat"
    found = splat.read(path)
    content = path.read_bytes()
    for g in (0, 1, 100_000, 272_955):
        numbers = struct.unpack_from("<6f8B", content, 32 * g)
        assert found.means[0, g].tolist() == list(numbers[:3])
        assert found.scales[0, g].tolist() == list(numbers[3:6])
        assert found.opacities[0, g].item() == pytest.approx(numbers[9] / 255, rel=1e-6)
        quat = [(byte - 128) / 128 for byte in numbers[10:]]
        expected = [value / math.hypot(*quat) for value in quat]
        assert found.quats_wxyz[0, g].tolist() == pytest.approx(expected, abs=1e-6)


def test_half_a_gaussian(tmp_path: Path, generator: torch.Generator) -> None:
    splat.write(random_gaussians(5, generator, degree=0), tmp_path / "a.splat")
    content = (tmp_path / "a.splat").read_bytes()
    (tmp_path / "a.splat").write_bytes(content[:-1])
    with pytest.raises(UserError, match="159 bytes is not a multiple of 32"):
        splat.read(tmp_path / "a.splat")
    (tmp_path / "a.splat").write_bytes(content[:12] + struct.pack("<f", math.nan) + content[16:])
    assert splat.read(tmp_path / "a.splat").means.shape == (1, 4, 3)
