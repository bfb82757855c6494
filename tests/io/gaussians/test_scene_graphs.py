"""glTF and USD beside the Gaussians: nodes, units, colour spaces, what is hidden or left out."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.geometry import gaussian
from pmsplat.io.gaussians import gltf, load_gaussians, save_gaussians, usd
from pmsplat.types import MIP, Gaussians
from tests.scenes import random_gaussians

from .test_gltf import PREFIX, pack, same, split

HALF = torch.tensor([1.0, -1.0, -1.0])
Tree = dict[str, Any]


@pytest.fixture
def scene(generator: torch.Generator) -> Gaussians:
    return random_gaussians(12, generator, degree=0)


def remade(tmp_path: Path, scene: Gaussians, change: Callable[[Tree], Any]) -> Path:
    """A .glb of ours, with its JSON changed."""
    save_gaussians(scene, tmp_path / "a.glb")
    tree, data = split(tmp_path / "a.glb")
    change(tree)
    return pack(tmp_path / "b.glb", tree, data)


def primitive(tree: Tree) -> Tree:
    return tree["meshes"][0]["primitives"][0]


# --- glTF


@pytest.mark.parametrize("above", [False, True])
def test_hidden_nodes_are_left_out_and_said(
    tmp_path: Path, scene: Gaussians, above: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A hidden node hides all below it, also what says that it is visible."""

    def hide(tree: Tree) -> None:
        hidden = {"extensions": {"KHR_node_visibility": {"visible": False}}}
        shown = {"extensions": {"KHR_node_visibility": {"visible": True}}}
        child = {"mesh": 0, "translation": [10, 0, 0], **(shown if above else hidden)}
        tree["nodes"] = [
            {"mesh": 0, **shown},
            child,
            {"children": [1], **(hidden if above else {})},
        ]
        tree["scenes"] = [{"nodes": [0, 2]}]
        tree["extensionsRequired"] = ["KHR_node_visibility"]

    same(load_gaussians(remade(tmp_path, scene, hide)), scene)
    assert caplog.text.count("left out: 1 hidden primitives of Gaussians") == 1

    def hide_all(tree: Tree) -> None:
        tree["nodes"] = [{"mesh": 0, "extensions": {"KHR_node_visibility": {"visible": False}}}]

    with pytest.raises(UserError, match="no Gaussians that are shown"):
        load_gaussians(remade(tmp_path, scene, hide_all))


def test_things_beside_gaussians_are_named(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    def add(tree: Tree) -> None:
        position = primitive(tree)["attributes"]["POSITION"]
        primitive(tree)["attributes"]["_CONFIDENCE"] = position
        primitive(tree)["extras"] = {"source": "x"}
        surface = {"attributes": {"POSITION": position}, "material": 0}
        tree["meshes"].append({"primitives": [surface, surface]})
        tree["nodes"].append({"mesh": 1, "skin": 0})
        tree["scenes"] = [{"nodes": [0, 1]}, {"nodes": [1]}]
        tree["skins"] = [{"joints": [0]}]
        tree["animations"] = [{"channels": [], "samplers": []}] * 3
        tree["materials"] = [{"extensions": {"KHR_materials_unlit": {}}}]
        tree["extensionsUsed"].append("KHR_materials_unlit")
        tree["extensionsRequired"] = ["KHR_materials_unlit"]

    same(load_gaussians(remade(tmp_path, scene, add)), scene)
    assert caplog.text.count("left out") == 1
    told = ["2 primitives without Gaussians", "3 animations", "1 skins", "1 scenes that"]
    told += ["the attributes _CONFIDENCE", "KHR_materials_unlit", "the extras source"]
    assert all(what in caplog.text for what in told)


def test_required_extensions_count_where_gaussians_are(tmp_path: Path, scene: Gaussians) -> None:
    """A compressed view of another mesh does not matter; one of Gaussians does."""

    def compress(tree: Tree, ours: bool) -> None:
        tree["extensionsRequired"] = ["EXT_meshopt_compression"]
        view = dict(tree["bufferViews"][0], extensions={"EXT_meshopt_compression": {}})
        tree["bufferViews"].append(view)
        tree["accessors"].append(
            dict(tree["accessors"][0], bufferView=len(tree["bufferViews"]) - 1)
        )
        last = len(tree["accessors"]) - 1
        tree["meshes"].append({"primitives": [{"attributes": {"POSITION": last}}]})
        if ours:
            primitive(tree)["attributes"]["POSITION"] = last

    same(load_gaussians(remade(tmp_path, scene, lambda tree: compress(tree, False))), scene)
    with pytest.raises(UserError, match="needs EXT_meshopt_compression"):
        load_gaussians(remade(tmp_path, scene, lambda tree: compress(tree, True)))


def test_logarithms_of_scales_are_recognised(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    """As drafts of the extension had them; one negative scale is damage, not a logarithm."""
    logs = replace(scene, scales=scene.scales.log())
    save_gaussians(scene, tmp_path / "a.glb")
    tree, data = split(tmp_path / "a.glb")
    view = tree["bufferViews"][
        tree["accessors"][primitive(tree)["attributes"][f"{PREFIX}SCALE"]]["bufferView"]
    ]
    start, stop = view["byteOffset"], view["byteOffset"] + view["byteLength"]
    stored = logs.scales.numpy().astype("<f4").tobytes()
    found = load_gaussians(pack(tmp_path / "b.glb", tree, data[:start] + stored + data[stop:]))
    torch.testing.assert_close(found.scales, scene.scales, rtol=1e-5, atol=0)
    assert caplog.text.count("its scales are logarithms") == 1
    caplog.clear()
    broken = scene.scales.clone()
    broken[0, 3, 1] *= -1
    stored = broken.numpy().astype("<f4").tobytes()
    found = load_gaussians(pack(tmp_path / "c.glb", tree, data[:start] + stored + data[stop:]))
    assert found.means.shape[1] == 11 and "1 of 12 Gaussians are left out" in caplog.text


def covariances(scene: Gaussians) -> torch.Tensor:
    return scene.map(lambda tensor: tensor.double()).covariances[0]


@pytest.mark.parametrize("scale", [[1, 2, 0.5], [1, 1, -1], [-3, 2, 1]])
def test_nodes_that_stretch_gaussians_without_harmonics(
    tmp_path: Path, scene: Gaussians, scale: list[float]
) -> None:
    """Σ' = A Σ Aᵀ, and the means by A."""
    turn = gaussian.quat_to_rotation(torch.tensor([0.8, 0, 0, 0.6])).double()
    A = turn @ torch.diag(torch.tensor(scale, dtype=torch.float64))

    def stretch(tree: Tree) -> None:
        tree["nodes"] = [{"mesh": 0, "rotation": [0, 0, 0.6, 0.8], "scale": scale}]

    found = load_gaussians(remade(tmp_path, scene, stretch))
    flip = torch.diag(HALF.double())
    whole = flip @ A @ flip  # ours to glTF's axes, the node, and back
    torch.testing.assert_close(
        covariances(found), whole @ covariances(scene) @ whole.T, rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        found.means[0].double(), scene.means[0].double() @ whole.T, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(found.quats_wxyz.norm(dim=-1), torch.ones(1, 12))
    with pytest.raises(UserError, match="flat"):
        load_gaussians(remade(tmp_path, scene, lambda t: t["nodes"][0].update(scale=[1, 0, 1])))


def test_nodes_far_off_are_placed_in_double(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    """Two nodes, one below the other: sums that float32 cannot hold."""
    first, second = [431234.567, 5412345.678, 512.25], [0.0625, 0.03125, 0.015625]

    def move(tree: Tree) -> None:
        tree["nodes"] = [
            {"translation": first, "children": [1]},
            {"mesh": 0, "translation": second},
        ]

    found = load_gaussians(remade(tmp_path, scene, move))
    place = torch.tensor([first, second], dtype=torch.float64).sum(dim=0) * HALF
    world = found.means[0].double() + torch.tensor(found.origin, dtype=torch.float64)
    torch.testing.assert_close(world, scene.means[0].double() + place, rtol=0, atol=1e-6)
    assert caplog.text.count("positions are counted from") == 1
    # What is said of positions that are far off themselves is where they are in the end.
    caplog.clear()
    save_gaussians(replace(scene, means=scene.means + 2**20), tmp_path / "a.glb")
    found = load_gaussians(tmp_path / "a.glb")
    told = f"positions are counted from ({', '.join(map(repr, found.origin))})"
    assert found.origin[1] > 0 and caplog.text.count(told) == 1
    assert caplog.text.count("positions are counted from") == 1


def test_what_a_node_makes_too_large_is_left_out(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    huge = scene.means.clone()
    huge[0, 3, 1] = 3e38
    path = remade(
        tmp_path, replace(scene, means=huge), lambda t: t["nodes"][0].update(scale=[2] * 3)
    )
    found = load_gaussians(path)
    assert found.means.shape[1] == 11 and found.means.isfinite().all()
    assert "1 of 12 Gaussians are left out" in caplog.text


@pytest.mark.parametrize("space", ["lin_rec709_display", "srgb_p3d65_display", 7])
def test_other_color_spaces_of_gltf_are_refused(
    tmp_path: Path, scene: Gaussians, space: Any
) -> None:
    def change(tree: Tree) -> None:
        primitive(tree)["extensions"]["KHR_gaussian_splatting"]["colorSpace"] = space

    with pytest.raises(UserError, match="colours"):
        load_gaussians(remade(tmp_path, scene, change))


# --- USD


@pytest.fixture
def pxr() -> Any:
    for name in ("Gf", "Usd", "UsdGeom", "UsdVol", "Vt"):
        pytest.importorskip(f"pxr.{name}")
    return importlib.import_module("pxr")


def edited(tmp_path: Path, scene: Gaussians, pxr: Any, change: Callable[[Any, Any], Any]) -> Path:
    """A .usda of ours, with its stage and the prim of Gaussians changed."""
    path = tmp_path / "a.usda"
    save_gaussians(scene, path)
    stage = pxr.Usd.Stage.Open(str(path))
    change(stage, stage.GetPrimAtPath(usd.PRIM))
    stage.GetRootLayer().Export(str(tmp_path / "b.usda"))
    return tmp_path / "b.usda"


@pytest.mark.parametrize("unit", [0.01, 0.0254, 1000.0])
def test_units_become_meters(
    tmp_path: Path, scene: Gaussians, pxr: Any, unit: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = edited(tmp_path, scene, pxr, lambda s, p: pxr.UsdGeom.SetStageMetersPerUnit(s, unit))
    found = load_gaussians(path)
    torch.testing.assert_close(found.means, unit * scene.means, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.scales, unit * scene.scales, rtol=1e-6, atol=0)
    assert caplog.text.count("is converted to meters") == 1
    save_gaussians(found, tmp_path / "c.usda")
    assert "metersPerUnit = 1\n" in (tmp_path / "c.usda").read_text()


def test_a_stage_without_a_unit(
    tmp_path: Path, scene: Gaussians, pxr: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = edited(tmp_path, scene, pxr, lambda s, p: s.ClearMetadata("metersPerUnit"))
    same(load_gaussians(path), scene)
    assert "says no unit" in caplog.text


@pytest.mark.parametrize("where", ["prim", "parent", "attribute"])
@pytest.mark.parametrize(
    ("space", "opens"),
    [("srgb_rec709_display", True), ("lin_rec709_scene", False), ("lin_ap1_scene", False)],
)
def test_color_spaces(
    tmp_path: Path, scene: Gaussians, pxr: Any, where: str, space: str, opens: bool
) -> None:
    def change(stage: Any, prim: Any) -> None:
        if where == "attribute":
            prim.GetAttribute("radiance:sphericalHarmonicsCoefficients").SetColorSpace(space)
            return
        tagged = prim if where == "prim" else prim.GetParent()
        pxr.Usd.ColorSpaceAPI.Apply(tagged).CreateColorSpaceNameAttr(space)

    path = edited(tmp_path, scene, pxr, change)
    if opens:
        same(load_gaussians(path), scene)
    else:
        with pytest.raises(UserError, match=f"colours in the space '{space}'"):
            load_gaussians(path)


NEEDED = ("positions", "orientations", "opacities", "scales",
          "radiance:sphericalHarmonicsCoefficients")  # fmt: skip


def test_absent_attributes_are_named(tmp_path: Path, scene: Gaussians, pxr: Any) -> None:
    for name in NEEDED:
        path = edited(tmp_path, scene, pxr, lambda s, p, name=name: p.RemoveProperty(name))
        with pytest.raises(UserError, match=f"has no {name} for 12 Gaussians"):
            load_gaussians(path)
    balls = replace(scene, scales=scene.scales[..., :1].expand(-1, -1, 3))
    path = edited(tmp_path, balls, pxr, lambda s, p: p.RemoveProperty("orientations"))
    found = load_gaussians(path)
    assert torch.equal(found.scales, balls.scales)
    torch.testing.assert_close(found.covariances, balls.covariances)


def test_the_degree_that_is_not_said_is_counted(
    tmp_path: Path, generator: torch.Generator, pxr: Any
) -> None:
    scene = random_gaussians(5, generator, degree=1)
    name = "radiance:sphericalHarmonicsDegree"
    same(load_gaussians(edited(tmp_path, scene, pxr, lambda s, p: p.RemoveProperty(name))), scene)


@pytest.mark.parametrize("how", ["invisible", "guide", "parent"])
def test_prims_that_are_not_shown(
    tmp_path: Path, scene: Gaussians, pxr: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def change(stage: Any, prim: Any) -> None:
        copy = stage.DefinePrim("/Scene/Group/Other", "ParticleField3DGaussianSplat")
        for attribute in prim.GetAuthoredAttributes():
            copy.CreateAttribute(attribute.GetName(), attribute.GetTypeName()).Set(attribute.Get())
        hidden = pxr.UsdGeom.Imageable(copy.GetParent() if how == "parent" else copy)
        if how == "guide":
            hidden.CreatePurposeAttr("guide")
        else:
            hidden.CreateVisibilityAttr("invisible")

    def prepare(stage: Any, prim: Any) -> None:
        pxr.UsdGeom.Xform.Define(stage, "/Scene/Group")
        change(stage, prim)

    same(load_gaussians(edited(tmp_path, scene, pxr, prepare)), scene)
    assert caplog.text.count("left out: 1 hidden Gaussians") == 1


def test_what_a_stage_holds_besides_is_named(
    tmp_path: Path, scene: Gaussians, pxr: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def change(stage: Any, prim: Any) -> None:
        pxr.UsdGeom.Mesh.Define(stage, "/Scene/Floor")
        pxr.UsdGeom.Camera.Define(stage, "/Scene/Eye")
        prim.GetAttribute("projectionModeHint").Set("tangential")
        prim.CreateAttribute("confidence", pxr.Sdf.ValueTypeNames.FloatArray).Set([1.0])
        opacities = prim.GetAttribute("opacities")
        opacities.Set(opacities.Get(), 1.0)
        opacities.Set(opacities.Get(), 2.0)

    same(load_gaussians(edited(tmp_path, scene, pxr, change)), scene)
    assert caplog.text.count("left out") == 1
    for what in ("1 Mesh", "1 Camera", "tangential", "confidence", "times but the first"):
        assert what in caplog.text


def test_rules_and_origin_are_read_from_other_writers(
    tmp_path: Path, scene: Gaussians, pxr: Any
) -> None:
    """A translation above, in double, and the customData of a prim."""

    def change(stage: Any, prim: Any) -> None:
        pxr.UsdGeom.Xformable(prim.GetParent()).AddTranslateOp(
            pxr.UsdGeom.XformOp.PrecisionDouble
        ).Set(pxr.Gf.Vec3d(431234.567, 512.25, -5412345.678))
        prim.SetCustomDataByKey("SplatRenderMode", "mip")

    found = load_gaussians(edited(tmp_path, scene, pxr, change))
    assert found.rules == MIP
    place = np.array([431234.567, -512.25, 5412345.678])
    world = found.means[0].double().numpy() + np.array(found.origin)
    np.testing.assert_allclose(world, scene.means[0].double().numpy() + place, rtol=0, atol=1e-6)


def test_joined_parts_of_gltf_share_an_origin(tmp_path: Path, scene: Gaussians) -> None:
    """One node on the map, one a hundred meters on: both exact."""
    tree_change = {"nodes": [{"mesh": 0, "translation": [500000, 0, 0]},
                             {"mesh": 0, "translation": [500100, 0, 0]}],
                   "scenes": [{"nodes": [0, 1]}]}  # fmt: skip
    save_gaussians(scene, tmp_path / "a.glb")
    tree, data = split(tmp_path / "a.glb")
    tree["buffers"][0]["byteLength"] *= 2  # room for two places of the same bytes
    path = pack(tmp_path / "b.glb", tree | tree_change, data * 2)
    found = gltf.read(path)
    world = found.means[0].double() + torch.tensor(found.origin, dtype=torch.float64)
    off = world[:, 0] - scene.means[0, :, 0].double().repeat(2)
    assert sorted(set(off.round().tolist())) == [500000, 500100]
    assert (off - off.round()).abs().max() < 1e-5


def test_the_largest_part_of_gltf_has_the_origin(tmp_path: Path, scene: Gaussians) -> None:
    """A thing at zero beside a scene on a map, whatever their order."""
    save_gaussians(scene, tmp_path / "a.glb")
    tree, data = split(tmp_path / "a.glb")
    few = {name: len(tree["accessors"]) + i for i, name in enumerate(primitive(tree)["attributes"])}
    tree["accessors"] += [
        {k: v for k, v in tree["accessors"][i].items() if k not in ("min", "max")} | {"count": 2}
        for i in primitive(tree)["attributes"].values()
    ]
    tree["meshes"].append({"primitives": [primitive(tree) | {"attributes": few}]})
    tree["nodes"] = [{"mesh": 0, "translation": [500000.25, 0, 0]}, {"mesh": 1}]
    for order in ([0, 1], [1, 0]):
        tree["scenes"] = [{"nodes": order}]
        tree["buffers"][0]["byteLength"] = 2 * len(data)
        found = load_gaussians(pack(tmp_path / "b.glb", tree, data * 2))
        world = found.means[0].double() + torch.tensor(found.origin, dtype=torch.float64)
        far = world[world[:, 0] > 1000] - torch.tensor([500000.25, 0, 0]).double()
        torch.testing.assert_close(far, scene.means[0].double(), rtol=0, atol=1e-6)
