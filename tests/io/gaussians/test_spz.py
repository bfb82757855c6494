"""The .spz of Gaussians: bytes, precision, axes, other readers, and files that lie."""

import gzip
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.io.gaussians import load_gaussians, spz
from pmsplat.render import rasterize
from pmsplat.types import Gaussians
from tests.scenes import are_equal, random_cameras, random_gaussians

TURN = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))  # right, up, back to right, down, front


def tame(count: int, generator: torch.Generator, degree: int) -> Gaussians:
    """Gaussians with nothing that the format would cut."""
    gaussians = random_gaussians(count, generator, degree=degree)
    return replace(gaussians, sh=gaussians.sh.clamp(-0.95, 0.95))


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_round_trip_to_its_precision(
    tmp_path: Path, generator: torch.Generator, degree: int, version: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    gaussians = tame(500, generator, degree)
    spz.write(gaussians, tmp_path / "a.spz", version)
    assert not caplog.records
    back = spz.read(tmp_path / "a.spz")
    eps = 2e-6
    torch.testing.assert_close(back.means, gaussians.means, rtol=0, atol=2**-17 + eps)
    torch.testing.assert_close(back.scales.log(), gaussians.scales.log(), rtol=0, atol=1 / 32 + eps)
    torch.testing.assert_close(back.opacities, gaussians.opacities, rtol=0, atol=1 / 510 + eps)
    first, rest = (back.sh - gaussians.sh)[0, :, 0], (back.sh - gaussians.sh)[0, :, 1:]
    assert first.abs().max() <= 0.5 / (255 * 0.15) + eps
    if degree >= 1:
        assert rest[:, :3].abs().max() <= 1 / 32 + eps
    if degree >= 2:
        assert rest[:, 3:].abs().max() <= 1 / 16 + eps
    # three numbers off by √½/1022 each; the fourth, at least as large as each, by √3 times √3
    same = (back.quats_wxyz * gaussians.quats_wxyz).sum(-1).abs().double().clamp(max=1)
    assert (2 * (1 - same)).sqrt().max() <= 0.5**0.5 / 1022 * (3 + 9) ** 0.5 + 1e-3
    spz.write(back, tmp_path / "b.spz", version)
    again = spz.read(tmp_path / "b.spz")
    assert torch.equal(again.means, back.means) and torch.equal(again.opacities, back.opacities)
    torch.testing.assert_close(again.sh, back.sh, rtol=0, atol=eps)


def test_bytes_of_one_gaussian(tmp_path: Path) -> None:
    """Every field by hand, from the description of the format."""
    one = Gaussians(
        means=torch.tensor([[[1.5, -2.0, 3.0]]]),
        scales=torch.tensor([[[1.0, np.exp(-1), np.exp(2)]]]),
        quats_wxyz=torch.tensor([[[1.0, 0, 0, 0]]]),
        opacities=torch.tensor([[0.2]]),
        sh=torch.tensor([[[[0.0, 1, -1], [0.25, 0, -0.25], [0.5, 0.5, 0.5], [0, 0, 0]]]]),
    )
    spz.write(one, tmp_path / "a.spz")
    content = gzip.decompress((tmp_path / "a.spz").read_bytes())
    assert struct.unpack("<4sIIBBBB", content[:16]) == (b"NGSP", 3, 1, 1, 16, 0, 0)
    body = content[16:]
    fixed = [int.from_bytes(body[3 * i : 3 * i + 3], "little", signed=True) for i in range(3)]
    assert [value / 2**16 for value in fixed] == [1.5, 2.0, -3.0]  # right, up, back
    assert body[9] == 51 and list(body[10:13]) == [128, 166, 89]
    assert list(body[13:16]) == [160, 144, 192]
    # no rotation, then half a turn about x: xyzw = (1, 0, 0, 0), whose largest is the first
    assert struct.unpack("<I", body[16:20])[0] in (0, 512 << 20, 512 << 10, 512)
    # degree 1 is C1·(-y, z, -x): y and z change sign; half of 256 is 0
    assert list(body[20:]) == [128 - 32, 128, 128 + 32, 64, 64, 64, 128, 128, 128]


def test_version_two(tmp_path: Path) -> None:
    """Rotations of three bytes; positions with the 12 bits of the reference writer."""
    xyz = [0.3, -0.5, 0.6]
    body = b"".join(value.to_bytes(3, "little", signed=True) for value in (4096, -8192, 2048))
    body += bytes([255, 128, 128, 128, 160, 160, 160])
    body += bytes(round(127.5 * value + 127.5) for value in xyz)
    header = struct.pack("<4sIIBBBB", b"NGSP", 2, 1, 0, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(header + body))
    found = spz.read(tmp_path / "a.spz")
    assert found.means.tolist() == [[[1.0, 2.0, -0.5]]]
    assert found.opacities.tolist() == [[1.0]] and found.scales.tolist() == [[[1.0, 1.0, 1.0]]]
    stored = replace(found, quats_wxyz=torch.tensor([[[0.3**0.5, *xyz]]]))
    expected = stored.transformed(TURN).covariances
    torch.testing.assert_close(found.covariances, expected, rtol=0, atol=1e-2)


def test_version_one(tmp_path: Path) -> None:
    """Positions in half precision, as bytes by hand; the rest is that of version 2."""
    halves = bytes([0x00, 0x3C, 0x00, 0xC0, 0x01, 0x00])  # 1, -2 and the least number, 2^-24
    body = halves + bytes([51, 166, 128, 89, 160, 144, 192, 128, 128, 255])
    header = struct.pack("<4sIIBBBB", b"NGSP", 1, 1, 0, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(header + body))
    found = load_gaussians(tmp_path / "a.spz")
    assert found.means.tolist() == [[[1.0, 2.0, -(2.0**-24)]]]
    assert found.opacities.item() == pytest.approx(0.2)
    assert found.scales[0, 0].log().tolist() == pytest.approx([0, -1, 2], abs=1e-6)
    assert found.sh[0, 0, 0].tolist() == pytest.approx(
        [(byte / 255 - 0.5) / 0.15 for byte in (166, 128, 89)], rel=1e-6
    )


@pytest.mark.parametrize("version", [1, 2, 3])
def test_bare_bytes_without_gzip(tmp_path: Path, version: int) -> None:
    """Some tools leave the compression out; the same bytes mean the same Gaussians."""
    count, chance = 50, np.random.default_rng(0)
    size = (
        count
        * {1: 6 + 1 + 3 + 3 + 3 + 9, 2: 9 + 1 + 3 + 3 + 3 + 9, 3: 9 + 1 + 3 + 3 + 4 + 9}[version]
    )
    bare = (
        header(version, count, degree=1) + (chance.integers(0, 60, size).astype(np.uint8)).tobytes()
    )
    (tmp_path / "bare.spz").write_bytes(bare)
    (tmp_path / "packed.spz").write_bytes(gzip.compress(bare))
    one, other = (load_gaussians(tmp_path / name) for name in ("bare.spz", "packed.spz"))
    assert one.means.shape == (1, count, 3) and one.sh_degree == 1
    assert are_equal(one, other)


def test_what_is_left_out_is_named(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.spz"
    spz.write(tame(5, generator, degree=0), path)
    content = path.read_bytes()
    spz.read(path)
    assert not caplog.records
    path.write_bytes(with_record(with_record(content, 0xADBE0002, bytes(12)), 0x12340001, b"x"))
    spz.read(path)
    assert "extension records ['0x12340001', '0xadbe0002'] are left out" in caplog.text
    plain = bytearray(gzip.decompress(content))
    plain[14] |= 0x48
    path.write_bytes(gzip.compress(plain))
    spz.read(path)
    assert "flags 0x48 have no known meaning" in caplog.text


def test_the_bare_case(shared: Path) -> None:
    folder = shared / "cases/gaussians"
    path, plain = folder / "31_v2_raw_uncompressed.spz", folder / "00_plain.ply"
    if not path.is_file():
        pytest.skip("no cases")
    found, expected = load_gaussians(path), load_gaussians(plain)
    torch.testing.assert_close(found.opacities, expected.opacities, rtol=0, atol=1 / 500)
    torch.testing.assert_close(found.scales.log(), expected.scales.log(), rtol=0, atol=1 / 30)


@pytest.mark.parametrize("version", [3, 4])
def test_axes_are_turned_with_rotations_and_harmonics(
    tmp_path: Path, generator: torch.Generator, version: int
) -> None:
    """What gsply finds in the file, unturned, looks to turned cameras as the scene does to ours."""
    gsply = pytest.importorskip("gsply")
    path = tmp_path / "a.spz"
    spz.write(tame(250, generator, degree=3), path, version)
    data = gsply.read_spz(str(path))
    arrays = {
        name: torch.as_tensor(np.array(getattr(data, name)))[None]
        for name in ("means", "scales", "quats", "opacities", "sh0", "shN")
    }
    theirs = Gaussians(
        means=arrays["means"],
        scales=arrays["scales"].exp(),
        quats_wxyz=torch.nn.functional.normalize(arrays["quats"], dim=-1),
        opacities=arrays["opacities"].sigmoid(),
        sh=torch.cat([arrays["sh0"][:, :, None], arrays["shN"]], dim=2),
    )
    cameras = random_cameras(2, generator)
    turned = replace(cameras, c2w=TURN @ cameras.c2w)
    ours = rasterize(spz.read(path), cameras, (40, 56), backend="reference")
    seen = rasterize(theirs, turned, (40, 56), backend="reference")
    assert (seen.alpha.mean() > 0.2) and ours.color.std() > 0.1
    torch.testing.assert_close(seen.color, ours.color, rtol=0, atol=1e-4)
    torch.testing.assert_close(seen.depth, ours.depth, rtol=0, atol=1e-3)
    unturned = replace(spz.read(path), sh=theirs.sh)
    wrong = rasterize(unturned, cameras, (40, 56), backend="reference")
    assert (wrong.color - ours.color).abs().max() > 0.05  # what a forgotten turn would look like


def test_before_and_after_look_alike(tmp_path: Path, generator: torch.Generator) -> None:
    gaussians = tame(60, generator, degree=1)
    cameras = random_cameras(2, generator)
    spz.write(gaussians, tmp_path / "a.spz")
    before = rasterize(gaussians, cameras, (40, 56), backend="reference")
    after = rasterize(spz.read(tmp_path / "a.spz"), cameras, (40, 56), backend="reference")
    assert (before.color - after.color).square().mean().sqrt() < 0.01
    assert (before.depth - after.depth).abs().median() < 0.01


def with_record(content: bytes, kind: int, payload: bytes) -> bytes:
    """A file of version 3 with a record of an extension."""
    plain = bytearray(gzip.decompress(content))
    plain[14] |= 2
    return gzip.compress(bytes(plain) + struct.pack("<II", kind, len(payload)) + payload)


def test_axes_named_by_the_file(tmp_path: Path, generator: torch.Generator) -> None:
    path = tmp_path / "a.spz"
    spz.write(tame(20, generator, degree=1), path)
    ours, content = spz.read(path), path.read_bytes()
    stored = ours.transformed(TURN)
    path.write_bytes(with_record(content, 0xADBE0003, struct.pack("<I", 6)))  # right, down, front
    torch.testing.assert_close(spz.read(path).means, stored.means)
    torch.testing.assert_close(spz.read(path).sh, stored.sh, rtol=0, atol=1e-6)
    path.write_bytes(with_record(content, 0xADBE0003, struct.pack("<I", 14)))  # right, back, down
    x, y, z = stored.means.unbind(-1)
    torch.testing.assert_close(spz.read(path).means, torch.stack([x, z, -y], dim=-1))
    path.write_bytes(with_record(content, 0x12340001, b"whatever"))
    torch.testing.assert_close(spz.read(path).means, ours.means)
    path.write_bytes(with_record(content, 0xADBE0003, struct.pack("<I", 8)))
    with pytest.raises(UserError, match="left-handed axes RUF"):
        spz.read(path)
    path.write_bytes(with_record(content, 0xADBE0003, struct.pack("<I", 99)))
    with pytest.raises(UserError, match="unknown kind 99"):
        spz.read(path)


def test_axes_named_by_version_four(tmp_path: Path, generator: torch.Generator) -> None:
    pytest.importorskip("zstandard")
    path = tmp_path / "a.spz"
    spz.write(tame(20, generator, degree=1), path, version=4)
    stored, content = spz.read(path).transformed(TURN), bytearray(path.read_bytes())
    content[14] |= 2
    struct.pack_into("<I", content, 16, 32 + 12)
    record = struct.pack("<III", 0xADBE0003, 4, 6)
    path.write_bytes(content[:32] + record + content[32:])
    torch.testing.assert_close(spz.read(path).means, stored.means)


def test_real_file_against_gsply(shared: Path) -> None:
    gsply = pytest.importorskip("gsply")
    path = shared / "scenes/pretrained_3dgs/biker.spz"
    found, other = load_gaussians(path), gsply.read_spz(str(path))
    flip = torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(found.means[0], torch.as_tensor(np.array(other.means)) * flip)
    scales = torch.as_tensor(np.array(other.scales)).exp()
    torch.testing.assert_close(found.scales[0], scales, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.sh[0, :, 0], torch.as_tensor(np.array(other.sh0)))


def test_large_scenes_lose_bits_and_larger_ones_are_refused(
    tmp_path: Path, generator: torch.Generator
) -> None:
    one = tame(50, generator, degree=0)
    far = one.means * (1e5 / one.means.abs().max())
    spz.write(replace(one, means=far), tmp_path / "a.spz")
    error = (spz.read(tmp_path / "a.spz").means - far).abs().max()
    assert 2**-9 < error <= 2**-8 + 1e-2  # 17 bits before the point leave 6 behind
    with pytest.raises(UserError, match="from the origin"):
        spz.write(replace(one, means=far * 1e3), tmp_path / "b.spz")


def test_what_is_cut_is_counted(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    one = tame(5, generator, degree=1)
    one.scales[0, 0] = 1e-9
    one.sh[0, 1, 0, 0] = 7
    one.sh[0, 2, 2, 2] = -3
    spz.write(one, tmp_path / "a.spz")
    assert "3 of 5 Gaussians" in caplog.text
    assert "clamped: 1 too thin, 2 too colourful" in caplog.text
    one.scales[0, :2, 1] = 1e4
    spz.write(one, tmp_path / "b.spz")
    assert "4 of 5" not in caplog.text  # one Gaussian can be too much in several ways
    assert "clamped: 1 too thin, 2 too large, 2 too colourful" in caplog.text
    back = spz.read(tmp_path / "a.spz")
    assert back.scales[0, 0, 0].item() == pytest.approx(np.exp(-10), rel=1e-5)
    assert back.sh[0, 1, 0, 0].item() == pytest.approx(0.5 / 0.15, rel=1e-5)


@pytest.fixture
def content(tmp_path: Path, generator: torch.Generator) -> Callable[[int], bytes]:
    def make(version: int) -> bytes:
        spz.write(tame(50, generator, degree=1), tmp_path / "made.spz", version)
        return (tmp_path / "made.spz").read_bytes()

    return make


def header(version: int, count: int, degree: int = 0, fraction: int = 12) -> bytes:
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, fraction, 0, 0)


def packed(content: bytes) -> bytes:
    """Compressed without the time of day, which would name these tests differently in each run."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (b"", "no .spz header"),
        (packed(b""), "no .spz header"),
        (packed(b"x" * 100), "no .spz header"),
        (packed(header(1, 1)), "1 Gaussians in 0 unpacked bytes"),
        (packed(header(0, 1)), "version 0 of .spz"),
        (packed(header(4, 1)), "version 4 of .spz as versions 1 to 3"),
        (header(0, 1), "version 0 of .spz"),
        (header(2, 1) + bytes(18), "1 Gaussians in 18 unpacked bytes"),
        (header(2, 1) + bytes(20), "not at its end after 1 Gaussians"),
        (packed(header(3, 2**32 - 1)), "4294967295 Gaussians in"),
        (packed(header(3, 1000)), "1000 Gaussians in 0 unpacked bytes"),
        (packed(header(3, 1, degree=9)), "degree 9"),
        (packed(header(3, 1, fraction=200)), "200 bits after the point"),
        (packed(header(3, 1) + bytes(10**6)), "not at its end after 1 Gaussians"),
        (packed(header(3, 1) + bytes(20))[:-5], "not at its end"),
        (header(7, 1) + bytes(16), "version 7 of .spz"),
        (header(4, 1), "header is cut short"),
        (header(4, 2**32 - 1) + bytes(16), "4294967295 Gaussians in"),
        (header(4, 5) + bytes(16), "table of 0 streams"),
    ],
)
def test_files_that_lie(tmp_path: Path, broken: bytes, fault: str) -> None:
    (tmp_path / "a.spz").write_bytes(broken)
    with pytest.raises(UserError, match=fault):
        spz.read(tmp_path / "a.spz")


def test_damage_is_seen(tmp_path: Path, content: Callable[[int], bytes]) -> None:
    path = tmp_path / "a.spz"
    good = bytearray(content(3))
    good[-6] ^= 1  # the checksum of gzip
    path.write_bytes(good)
    with pytest.raises(UserError, match="gzip stream is damaged"):
        spz.read(path)
    pytest.importorskip("zstandard")
    good = bytearray(content(4))
    for offset, fault in ((12, "degree"), (15, "table of"), (32, "zstd stream"),
                         (40, "Gaussians in a stream"), (32 + 6 * 16, "damaged")):  # fmt: skip
        bad = bytearray(good)
        bad[offset] ^= 0xFF
        path.write_bytes(bad)
        with pytest.raises(UserError, match=fault):
            spz.read(path)
    path.write_bytes(good[:-3])
    with pytest.raises(UserError, match="Gaussians in a stream"):
        spz.read(path)


def test_a_zstd_stream_that_unpacks_to_more(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    bomb = zstandard.ZstdCompressor().compress(bytes(10**7))
    sizes = (9, 1, 3, 3, 4)
    streams = [bomb] + [zstandard.ZstdCompressor().compress(bytes(size)) for size in sizes[1:]]
    table = b"".join(struct.pack("<QQ", len(s), n) for s, n in zip(streams, sizes, strict=True))
    head = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 1, 0, 12, 0, 5, 32)
    (tmp_path / "a.spz").write_bytes(head + table + b"".join(streams))
    with pytest.raises(UserError, match="does not unpack to 9 bytes"):
        spz.read(tmp_path / "a.spz")


def test_without_zstandard(
    tmp_path: Path, content: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zstandard")
    (tmp_path / "a.spz").write_bytes(content(4))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="pip install zstandard"):
        spz.read(tmp_path / "a.spz")
    with pytest.raises(UserError, match="version 5 of"):
        spz.write(random_gaussians(2, torch.Generator()), tmp_path / "b.spz", version=5)
