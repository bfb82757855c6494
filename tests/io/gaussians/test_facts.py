"""What a file says of all its Gaussians: rules, origin, what is up; kept, or named when lost."""

import gzip
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pmsplat.io.gaussians import _facts, load_gaussians, ply, save_gaussians
from pmsplat.types import CLASSIC, MIP, RESPLAT, DrawingRules, Gaussians
from tests.scenes import random_gaussians

ALL = [".ply", ".compressed.ply", ".splat", ".spz", ".glb", ".usda", ".usdc", ".usdz"]
UTM = (431234.5, 5412345.75, 512.25)


def skip_without(suffix: str) -> None:
    if suffix.startswith(".usd"):
        pytest.importorskip("pxr.UsdVol")


def comments(path: Path) -> list[str]:
    head = path.read_bytes().partition(b"end_header\n")[0].decode()
    return [line.partition(" ")[2] for line in head.splitlines() if line.startswith("comment ")]


def add_comment(path: Path, comment: str) -> Path:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"element", f"comment {comment}\nelement".encode(), 1))
    return path


@pytest.mark.parametrize("suffix", ALL)
def test_antialiased_survives_or_is_said(
    tmp_path: Path, generator: torch.Generator, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    skip_without(suffix)
    scene = random_gaussians(20, generator, degree=0)
    plain, path = tmp_path / f"plain{suffix}", tmp_path / f"mip{suffix}"
    save_gaussians(scene, plain)
    assert "antialiased" not in caplog.text and load_gaussians(plain).rules == CLASSIC
    save_gaussians(replace(scene, rules=MIP), path)
    lost = suffix == ".splat"
    assert load_gaussians(path).rules == (CLASSIC if lost else MIP)
    assert ("cannot say that these Gaussians are antialiased" in caplog.text) == lost
    # By the bytes.
    if suffix.endswith(".ply"):
        assert comments(plain) == [] and comments(path) == ["SplatRenderMode: mip"]
    if suffix == ".spz":
        assert [gzip.decompress(p.read_bytes())[14] for p in (plain, path)] == [0, 1]
    if suffix == ".glb":
        data = path.read_bytes()
        tree = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
        extensions = tree["meshes"][0]["primitives"][0]["extensions"]
        assert extensions["KHR_gaussian_splatting"]["extras"] == {"SplatRenderMode": "mip"}
    if suffix == ".usda":
        assert 'string SplatRenderMode = "mip"' in path.read_text()


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply"])
def test_ply_keeps_the_blur(
    tmp_path: Path, generator: torch.Generator, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = random_gaussians(4, generator, degree=0)
    for rules in (DrawingRules(blur=0.1, antialiased=True), DrawingRules(blur=0.5)):
        caplog.clear()
        save_gaussians(replace(scene, rules=rules), tmp_path / f"a{suffix}")
        assert load_gaussians(tmp_path / f"a{suffix}").rules == rules
        assert f"a blur of {rules.blur} px²; only pmsplat reads it" in caplog.text
    assert _facts.read_comments("a.ply", ["SplatBlur: -1"]) == _facts.Facts()
    assert "SplatBlur: -1" in caplog.text


@pytest.mark.parametrize("suffix", ALL)
def test_rules_of_resplat_survive_or_are_said(
    tmp_path: Path, generator: torch.Generator, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    skip_without(suffix)
    path = tmp_path / f"a{suffix}"
    save_gaussians(replace(random_gaussians(20, generator, degree=0), rules=RESPLAT), path)
    said = (
        "a blur of 0.1 px², alpha up to 0.999, nothing nearer than 1 times near, "
        "nothing beyond 1 times far, the Jacobian clamped about the image"
    )
    assert caplog.text.count(said) == 1
    if suffix.endswith(".ply"):
        assert load_gaussians(path).rules == RESPLAT
        assert comments(path) == [
            "SplatRenderMode: mip", "SplatBlur: 0.1", "SplatAlphaCap: 0.999", "SplatNear: 1.0",
            "SplatFar: 1.0", "SplatClamp: image",
        ]  # fmt: skip
        assert "only pmsplat reads it, others take a blur of 0.3" in caplog.text
    else:
        assert load_gaussians(path).rules == (CLASSIC if suffix == ".splat" else MIP)
        assert "a .ply keeps it for pmsplat" in caplog.text


@pytest.mark.parametrize(
    "said", ["SplatBlur: nan", "SplatAlphaCap: 2", "SplatNear -1", "SplatFar=0", "SplatClamp: x"]
)
def test_rules_that_nobody_can_follow_are_named(
    said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert _facts.read_comments("a.ply", [said]) == _facts.Facts()
    assert said in caplog.text


@pytest.mark.parametrize("suffix", [".spz", ".glb"])
def test_rules_of_no_format_are_said(
    tmp_path: Path, generator: torch.Generator, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = random_gaussians(4, generator, degree=0)
    save_gaussians(
        replace(scene, rules=DrawingRules(blur=0.1, antialiased=True)), tmp_path / f"a{suffix}"
    )
    assert caplog.text.count("cannot say that these Gaussians are drawn with a blur of 0.1") == 1
    assert "readers take a blur of 0.3 px²; a .ply keeps it" in caplog.text
    assert load_gaussians(tmp_path / f"a{suffix}").rules == MIP
    caplog.clear()
    save_gaussians(replace(scene, rules=DrawingRules(alpha_cap=0.9)), tmp_path / f"b{suffix}")
    assert "alpha up to 0.9" in caplog.text
    assert load_gaussians(tmp_path / f"b{suffix}").rules == CLASSIC


@pytest.mark.parametrize(
    ("said", "rules"),
    [
        (["SplatRenderMode: mip"], MIP),
        (["  SPLATRENDERMODE:  Mip "], MIP),
        (["SplatRenderMode: default"], CLASSIC),
        (["antialiased 1"], MIP),  # Postshot
        (["antialiased: true"], MIP),
        (["SplatRenderMode mip"], MIP),
        (["splatrendermode = mip"], MIP),
        (["antialiased 1", "SplatRenderMode: default"], CLASSIC),  # the last counts
        (["SH degree: 3"], None),
    ],
)
def test_dialects_of_antialiased(said: list[str], rules: DrawingRules | None) -> None:
    assert _facts.read_comments("a.ply", said).rules == rules


@pytest.mark.parametrize(
    ("said", "up"),
    [
        ("Vertical Axis: z", (0, 0, 1)),  # nerfstudio
        ("Vertical axis: y", None),  # Brush, for OpenCV's axes
        ("Vertical axis: 0 0 -2", (0, 0, -1)),
        ("vertical axis: x", (1, 0, 0)),
        ("Vertical Axis: 0 0 0", None),
    ],
)
def test_dialects_of_up(said: str, up: tuple[float, ...] | None) -> None:
    assert _facts.read_comments("a.ply", [said]).up == up


def test_what_comments_say_is_never_dropped_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    said = ["SplatRenderMode: banana", "Vertical Axis: w", "EPSG: 32632", "up is z", "by me"]
    assert _facts.read_comments("a.ply", said) == _facts.Facts()
    assert caplog.text.count("\n") == 1
    assert all(text in caplog.text for text in said[:4]) and "by me" not in caplog.text


@pytest.mark.parametrize("said", ["origin 1 2.5 -3", "Origin: 1 2.5 -3", "origin=1 2.5 -3"])
def test_dialects_of_the_origin(said: str) -> None:
    assert _facts.read_comments("a.ply", [said]).origin == (1, 2.5, -3)


def far_off(generator: torch.Generator, count: int = 40) -> Gaussians:
    """A scene on a map: what its means are there is `means.double() + UTM`."""
    scene = random_gaussians(count, generator, degree=1)
    middle = torch.tensor([0.0, 0.0, 4.0])
    return replace(scene, means=scene.means - middle, origin=UTM)


def world(gaussians: Gaussians) -> torch.Tensor:
    return gaussians.means[0].double() + torch.tensor(gaussians.origin, dtype=torch.float64)


@pytest.mark.parametrize("suffix", ALL)
def test_origin_survives_or_is_said(
    tmp_path: Path, generator: torch.Generator, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    skip_without(suffix)
    scene = far_off(generator)
    save_gaussians(scene, tmp_path / f"a{suffix}")
    told = caplog.text
    back = load_gaussians(tmp_path / f"a{suffix}")
    off = {".compressed.ply": 5e-3, ".spz": 1e-5}.get(suffix, 1e-6)
    if suffix in (".splat", ".spz"):
        signs = (1, -1, -1) if suffix == ".spz" else (1, 1, 1)  # in the axes of the file
        numbers = ", ".join(repr(s * v) for s, v in zip(signs, UTM, strict=True))
        assert f"add ({numbers}) to its positions" in told
        assert back.origin == (0, 0, 0)
        torch.testing.assert_close(back.means, scene.means, rtol=0, atol=off)
        return
    assert told == "" and back.origin != (0, 0, 0)
    found, expected = world(back), world(scene)
    if suffix == ".compressed.ply":  # which sorts them
        found, expected = (p[p[:, 0].argsort()] for p in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=off)


def test_doubles_far_off_get_a_local_origin(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of doubles by hand: nothing of them is lost, and that is said once."""
    names = ply._list_properties(0)
    exact = torch.tensor(UTM, dtype=torch.float64) + torch.rand(
        30, 3, generator=generator, dtype=torch.float64
    )
    lines = ["ply", "format binary_little_endian 1.0", "element vertex 30"]
    lines += [f"property double {name}" for name in names] + ["end_header"]
    rows = torch.zeros(30, len(names), dtype=torch.float64)
    rows[:, :3], rows[:, names.index("rot_0")] = exact, 1
    body = rows.numpy().astype("<f8").tobytes()
    (tmp_path / "a.ply").write_bytes("\n".join([*lines, ""]).encode() + body)
    found = load_gaussians(tmp_path / "a.ply")
    assert (world(found) - exact).abs().max() < 1e-7 and found.means.dtype == torch.float32
    assert caplog.text.count("positions are counted from") == 1
    assert "lost the digits" not in caplog.text


@pytest.mark.parametrize("shift", [2e5, 2e3, 0.0])
def test_digits_that_were_lost_before_are_said(
    tmp_path: Path, generator: torch.Generator, shift: float, caplog: pytest.LogCaptureFixture
) -> None:
    """float32 at 200,000 steps by 1/64, at 2,000 by 1/8192: of a scene of about one."""
    scene = random_gaussians(50, generator, degree=0)
    save_gaussians(replace(scene, means=scene.means + shift), tmp_path / "a.ply")
    load_gaussians(tmp_path / "a.ply")
    assert ("exact to 0.015625 only" in caplog.text) == (shift == 2e5)
    assert ("lost the digits" in caplog.text) == (shift > 0)


@pytest.mark.parametrize("suffix", [".spz", ".glb", ".usdc"])
def test_what_is_up_is_up_in_formats_with_axes(
    tmp_path: Path, generator: torch.Generator, suffix: str
) -> None:
    """z of the file becomes +y of glTF: (x, z, -y) there, so (x, -z, y) in OpenCV axes."""
    skip_without(suffix)
    scene = random_gaussians(30, generator, degree=1)
    save_gaussians(scene, tmp_path / "a.ply")
    scene = load_gaussians(add_comment(tmp_path / "a.ply", "Vertical Axis: z"))
    save_gaussians(scene, tmp_path / f"a{suffix}")
    back = load_gaussians(tmp_path / f"a{suffix}")
    x, y, z = scene.means.unbind(dim=-1)
    torch.testing.assert_close(
        back.means, torch.stack([x, -z, y], dim=-1), rtol=0, atol=1e-5 if suffix == ".spz" else 0
    )
    if suffix == ".glb":
        data = (tmp_path / "a.glb").read_bytes()
        start = 28 + struct.unpack_from("<I", data, 12)[0]
        first = struct.unpack_from("<3f", data, start)
        assert first == (x[0, 0].item(), z[0, 0].item(), -y[0, 0].item())


@pytest.mark.parametrize("suffix", [".ply", ".compressed.ply", ".splat"])
def test_up_stays_a_comment(
    tmp_path: Path, generator: torch.Generator, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = replace(random_gaussians(9, generator, degree=0), up=(0.0, 0.0, 1.0))
    path = tmp_path / f"a{suffix}"
    save_gaussians(scene, path)
    assert ("cannot say that up is" in caplog.text) == (suffix == ".splat")
    if suffix != ".splat":
        assert comments(path) == ["Vertical Axis: z"] and load_gaussians(path).up == (0, 0, 1)
    if suffix == ".ply":
        assert torch.equal(load_gaussians(path).means, scene.means)
        save_gaussians(replace(scene, up=(0.0, 0.6, 0.8)), path)
        assert comments(path) == ["Vertical Axis: 0.0 0.6 0.8"]
        assert load_gaussians(path).up == pytest.approx((0, 0.6, 0.8))


@pytest.mark.parametrize("suffix", [".glb", ".usdc"])
def test_a_map_that_says_what_is_up(
    tmp_path: Path, generator: torch.Generator, suffix: str
) -> None:
    """Origin and means turn alike: (x, y, z) of the world becomes (x, -z, y)."""
    skip_without(suffix)
    scene = replace(far_off(generator), up=(0.0, 0.0, 1.0))
    save_gaussians(scene, tmp_path / f"a{suffix}")
    found = world(load_gaussians(tmp_path / f"a{suffix}"))
    x, y, z = world(scene).unbind(dim=-1)
    torch.testing.assert_close(found, torch.stack([x, -z, y], dim=-1), rtol=0, atol=1e-6)
