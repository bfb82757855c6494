"""Gaussians as OpenUSD: what the schema holds, validators, the way up, odd stages."""

import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import gaussian
from pmsplat.io.gaussians import load_gaussians, save_gaussians, usd
from tests.scenes import random_cameras, random_gaussians

from .test_gltf import look, same


@pytest.fixture
def pxr() -> Any:
    for name in ("Gf", "Usd", "UsdGeom", "UsdValidation", "UsdVol", "Vt"):
        pytest.importorskip(f"pxr.{name}")
    return importlib.import_module("pxr")


FILES = [(".usd", 3), (".usda", 3), (".usdz", 3), (".usdc", 0), (".usdc", 3), (".usdc", 4)]


@pytest.mark.parametrize(("suffix", "degree"), FILES)
def test_round_trip_is_exact_and_looks_the_same(
    tmp_path: Path, generator: torch.Generator, pxr: Any, suffix: str, degree: int
) -> None:
    gaussians = random_gaussians(40, generator, degree=degree)
    cameras = random_cameras(2, generator)
    save_gaussians(gaussians, tmp_path / f"a{suffix}")
    back = load_gaussians(tmp_path / f"a{suffix}")
    same(back, gaussians)
    torch.testing.assert_close(look(back, cameras), look(gaussians, cameras), rtol=0, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_what_the_schema_holds(tmp_path: Path, generator: torch.Generator, pxr: Any) -> None:
    gaussians = random_gaussians(5, generator, degree=2)
    usd.write(gaussians, tmp_path / "a.usdc")
    stage = pxr.Usd.Stage.Open(str(tmp_path / "a.usdc"))
    assert pxr.UsdGeom.GetStageUpAxis(stage) == "Y"
    assert pxr.UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    (prim,) = [p for p in stage.Traverse() if p.GetTypeName() == "ParticleField3DGaussianSplat"]
    half_turn = np.diag([1.0, -1, -1])

    def value(name: str) -> np.ndarray:
        return np.array(prim.GetAttribute(name).Get())

    means = gaussians.means[0].numpy() @ half_turn
    np.testing.assert_array_equal(value("positions"), means.astype(np.float32))
    np.testing.assert_array_equal(value("scales"), gaussians.scales[0])
    np.testing.assert_array_equal(value("opacities"), gaussians.opacities[0])
    quats = [(q.GetReal(), *q.GetImaginary()) for q in prim.GetAttribute("orientations").Get()]
    rotation = gaussian.quat_to_rotation(torch.tensor(quats)).numpy()
    expected = half_turn @ gaussian.quat_to_rotation(gaussians.quats_wxyz[0]).numpy()
    np.testing.assert_allclose(rotation, expected, atol=1e-6)
    assert value("radiance:sphericalHarmonicsDegree") == 2
    coefficients = prim.GetAttribute("radiance:sphericalHarmonicsCoefficients")
    assert coefficients.GetMetadata("elementSize") == 9
    assert coefficients.GetMetadata("interpolation") == "vertex"
    stored = value("radiance:sphericalHarmonicsCoefficients").reshape(5, 9, 3)
    signs = np.array([1, -1, -1, 1, -1, 1, 1, -1, 1])  # of 1, y, z, x, xy, yz, zz, xz, xx-yy
    np.testing.assert_array_equal(stored, gaussians.sh[0].numpy() * signs[:, None])
    low, high = value("extent")
    assert (low < means.min(axis=0)).all() and (high > means.max(axis=0)).all()


@pytest.mark.parametrize("suffix", [".usda", ".usdc", ".usdz"])
def test_usd_validation_finds_nothing(
    tmp_path: Path, generator: torch.Generator, pxr: Any, suffix: str
) -> None:
    usd.write(random_gaussians(20, generator, degree=3), tmp_path / f"a{suffix}")
    registry = pxr.UsdValidation.ValidationRegistry()
    validators = registry.GetOrLoadAllValidators()
    assert len(validators) > 5
    context = pxr.UsdValidation.ValidationContext(validators)
    errors = context.Validate(pxr.Usd.Stage.Open(str(tmp_path / f"a{suffix}")))
    assert [error.GetMessage() for error in errors] == []


def test_z_up_halves_and_transforms(tmp_path: Path, generator: torch.Generator, pxr: Any) -> None:
    """A stage of another writer: z up, half precision, a field under a moved and scaled prim."""
    gaussians = random_gaussians(6, generator, degree=1)
    stage = pxr.Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    pxr.UsdGeom.SetStageUpAxis(stage, "Z")
    parent = pxr.UsdGeom.Xform.Define(stage, "/World")
    parent.AddTranslateOp().Set(pxr.Gf.Vec3d(1, 2, 3))
    parent.AddScaleOp().Set(pxr.Gf.Vec3f(2, 2, 2))
    field = pxr.UsdVol.ParticleField3DGaussianSplat.Define(stage, "/World/Splats")
    one, Vt = gaussians.to(torch.float16), pxr.Vt
    field.CreatePositionshAttr(Vt.Vec3hArray.FromNumpy(one.means[0].numpy()))
    field.CreateScaleshAttr(Vt.Vec3hArray.FromNumpy(one.scales[0].numpy()))
    field.CreateOpacitieshAttr(Vt.HalfArray.FromNumpy(one.opacities[0].numpy()))
    quats_xyzw = one.quats_wxyz[0].roll(-1, dims=-1).contiguous()
    field.CreateOrientationshAttr(Vt.QuathArray.FromNumpy(quats_xyzw.numpy()))
    field.CreateRadianceSphericalHarmonicsDegreeAttr(1)
    field.CreateRadianceSphericalHarmonicsCoefficientshAttr(
        Vt.Vec3hArray.FromNumpy(one.sh[0].flatten(0, 1).numpy())
    )
    stage.Save()
    del stage
    back = usd.read(tmp_path / "a.usda")
    halved = gaussians.map(lambda t: t.half().float())
    up = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # what was up, z, is now -y
    placed = (2 * halved.means + torch.tensor([1.0, 2, 3])) @ up.T
    torch.testing.assert_close(back.means, placed)
    torch.testing.assert_close(back.scales, 2 * halved.scales)
    torch.testing.assert_close(back.opacities, halved.opacities)
    rotation = gaussian.quat_to_rotation(back.quats_wxyz)
    expected = up @ gaussian.quat_to_rotation(halved.quats_wxyz)
    torch.testing.assert_close(rotation, expected, rtol=0, atol=1e-6)
    y, z, x = halved.sh[0, :, 1:].unbind(dim=1)  # C1 (-y, z, -x): with up, z -> -y and y -> z
    torch.testing.assert_close(back.sh[0, :, 1:], torch.stack([z, -y, x], dim=1))


def test_zero_gaussians(tmp_path: Path, generator: torch.Generator, pxr: Any) -> None:
    none = random_gaussians(1, generator).map(lambda t: t[:, :0])
    usd.write(none, tmp_path / "a.usdc")
    assert usd.read(tmp_path / "a.usdc").means.shape == (1, 0, 3)


def test_stages_that_cannot_be_used(tmp_path: Path, generator: torch.Generator, pxr: Any) -> None:
    for name, data in (
        ("a.usda", b""), ("b.usda", b"#usda 1.0\n("), ("c.usdc", b"PXR-USDC" + bytes(90)),
        ("d.usdz", b"PK\3\4" + bytes(60)), ("e.usdc", b"#usda 1.0\n"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="cannot open it"):
            usd.read(tmp_path / name)
    (tmp_path / "f.usda").write_text("#usda 1.0\n")
    with pytest.raises(UserError, match="has no Gaussians"):
        usd.read(tmp_path / "f.usda")
    with pytest.raises(UserError, match="no file"):
        usd.read(tmp_path / "absent.usdc")
    usd.write(random_gaussians(3, generator, degree=1), tmp_path / "g.usda")
    text = (tmp_path / "g.usda").read_text()
    for old, new, fault in (
        ("HarmonicsDegree = 1", "HarmonicsDegree = 2", r"has 12 radiance:\S+ for 3 .*; wanted 27"),
        ("HarmonicsDegree = 1", "HarmonicsDegree = -7", "degree -7"),
        ("HarmonicsDegree = 1", "HarmonicsDegree = 40000", "degree 40000"),
        ("def Xform \"Scene\"\n{", 'def Xform "Scene"\n{\nfloat3 xformOp:scale = (1, 1, 2)\n'
         'uniform token[] xformOpOrder = ["xformOp:scale"]\n', "stretches Gaussians"),
    ):  # fmt: skip
        assert old in text
        (tmp_path / "h.usda").write_text(text.replace(old, new))
        with pytest.raises(UserError, match=fault):
            usd.read(tmp_path / "h.usda")


def test_what_cannot_be_written(tmp_path: Path, generator: torch.Generator, pxr: Any) -> None:
    gaussians = random_gaussians(2, generator)
    bad = gaussians.opacities.clone()
    bad[0, 1] = float("inf")
    with pytest.raises(UserError, match="1 of 2 Gaussians are not finite"):
        usd.write(replace(gaussians, opacities=bad), tmp_path / "a.usdc")
    assert not list(tmp_path.iterdir())


def test_the_missing_package_is_named(
    tmp_path: Path, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pxr"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(UserError, match=r"usd-core is not installed.*pip install"):
        usd.write(random_gaussians(2, generator), tmp_path / "a.usdz")


def test_a_parser_that_crashes_is_an_error(
    tmp_path: Path, generator: torch.Generator, pxr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usd.write(random_gaussians(2, generator), tmp_path / "a.usdc")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(UserError, match="OpenUSD fails on it"):
        usd.read(tmp_path / "a.usdc")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".usda", ".usdc", ".usdz"])
def test_mutated_files_never_escape(
    tmp_path: Path, generator: torch.Generator, pxr: Any, suffix: str
) -> None:
    """Flipped bytes, of which OpenUSD's parser dies now and then, and truncation; half a second
    each, so there are few."""
    usd.write(random_gaussians(5, generator, degree=1), tmp_path / f"a{suffix}")
    source = (tmp_path / f"a{suffix}").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for trial in range(200):
        data = bytearray(source)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] = rng.integers(256)
        if trial % 7 == 0:
            del data[int(rng.integers(1, len(data))) :]
        (tmp_path / f"b{suffix}").write_bytes(data)
        try:
            usd.read(tmp_path / f"b{suffix}")
        except UserError:
            refused += 1
    assert refused > 100
