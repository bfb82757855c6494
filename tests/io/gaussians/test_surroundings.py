"""What files say around their Gaussians, at any level, and what people have in their place."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.io.gaussians import load_gaussians, save_gaussians
from pmsplat.types import CLASSIC, MIP, Gaussians
from tests.io.gaussians.encoders import sog_files
from tests.scenes import are_equal, random_gaussians

from .test_facts import add_comment
from .test_gltf import PREFIX, pack, same, split
from .test_scene_graphs import edited, primitive, pxr, remade

__all__ = ["pxr"]  # a fixture

Tree = dict[str, Any]


@pytest.fixture
def scene(generator: torch.Generator) -> Gaussians:
    return random_gaussians(12, generator, degree=0)


# --- glTF


@pytest.mark.parametrize("where", ["primitive", "mesh", "node", "above", "scene", "asset", "file"])
def test_the_nearest_extras_say_how_gaussians_are_drawn(
    tmp_path: Path, scene: Gaussians, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def say(tree: Tree) -> None:
        tree["nodes"] = [{"mesh": 0}, {"children": [0]}]
        tree["scenes"] = [{"nodes": [1]}]
        holders = {
            "primitive": primitive(tree), "mesh": tree["meshes"][0], "node": tree["nodes"][0],
            "above": tree["nodes"][1], "scene": tree["scenes"][0], "asset": tree["asset"],
            "file": tree,
        }  # fmt: skip
        holders[where]["extras"] = {"SplatRenderMode": "mip", "author": "x"}
        if where != "file":
            tree["extras"] = {"SplatRenderMode": "default"}

    assert load_gaussians(remade(tmp_path, scene, say)).rules == MIP
    assert caplog.text.count("the extras author") == 1


def test_extras_that_are_not_known_are_named(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    def say(tree: Tree) -> None:
        tree["nodes"][0]["extras"] = {"SplatRenderMode": 3}

    assert load_gaussians(remade(tmp_path, scene, say)).rules == CLASSIC
    assert "SplatRenderMode '3' is not known" in caplog.text


def test_extensions_that_no_list_declares_are_named(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    def copies(tree: Tree) -> None:
        tree["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": {}}}

    same(load_gaussians(remade(tmp_path, scene, copies)), scene)
    assert "the extensions EXT_mesh_gpu_instancing" in caplog.text


def test_parts_of_different_rules_are_told_with_the_file(tmp_path: Path, scene: Gaussians) -> None:
    def two(tree: Tree) -> None:
        first = tree["meshes"][0]["primitives"][0]
        tree["meshes"].append({"primitives": [first], "extras": {"SplatRenderMode": "mip"}})
        tree["nodes"] = [{"mesh": 0}, {"mesh": 1}]
        tree["scenes"] = [{"nodes": [0, 1]}]
        tree["buffers"][0]["byteLength"] *= 2

    save_gaussians(scene, tmp_path / "a.glb")
    tree, data = split(tmp_path / "a.glb")
    two(tree)
    with pytest.raises(UserError, match=r"b\.glb holds Gaussians .* different rules"):
        load_gaussians(pack(tmp_path / "b.glb", tree, data + bytes(len(data))))


LOGITS = np.linspace(-3, 4, 12, dtype=np.float32)


def check_logits(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A writer that forgot the sigmoid; the logarithm of o / (1 - o) is negative below a half."""
    found = load_gaussians(path)
    np.testing.assert_allclose(found.opacities[0], 1 / (1 + np.exp(-LOGITS)), atol=1e-6)
    assert "are logits" in caplog.text


def test_logits_of_gltf_are_recognised(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    save_gaussians(scene, tmp_path / "a.glb")
    tree, data = split(tmp_path / "a.glb")
    accessor = tree["accessors"][primitive(tree)["attributes"][f"{PREFIX}OPACITY"]]
    start = tree["bufferViews"][accessor["bufferView"]]["byteOffset"]
    data = data[:start] + LOGITS.tobytes() + data[start + LOGITS.nbytes :]
    check_logits(pack(tmp_path / "b.glb", tree, data), caplog)


# --- USD


def test_logits_of_usd_are_recognised(
    tmp_path: Path, scene: Gaussians, pxr: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def forget(stage: Any, prim: Any) -> None:
        prim.GetAttribute("opacities").Set(LOGITS.tolist())

    check_logits(edited(tmp_path, scene, pxr, forget), caplog)


@pytest.mark.parametrize("where", ["above", "file"])
def test_custom_data_above_says_how_gaussians_are_drawn(
    tmp_path: Path, scene: Gaussians, pxr: Any, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def say(stage: Any, prim: Any) -> None:
        prim.SetCustomDataByKey("author", "x")
        if where == "above":
            prim.GetParent().SetCustomDataByKey("SplatRenderMode", "mip")
        else:
            stage.GetRootLayer().customLayerData = {"SplatRenderMode": "mip", "crs": "EPSG:1"}

    assert load_gaussians(edited(tmp_path, scene, pxr, say)).rules == MIP
    assert "customData author" in caplog.text
    assert ("customData crs" in caplog.text) == (where == "file")


def test_absent_parts_of_a_stage_are_named(
    tmp_path: Path, scene: Gaussians, pxr: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refer(stage: Any, prim: Any) -> None:
        stage.DefinePrim("/Scene/More").GetReferences().AddReference("./lost.usda", "/G")

    same(load_gaussians(edited(tmp_path, scene, pxr, refer)), scene)
    assert "parts of it are absent" in caplog.text and "lost.usda" in caplog.text


def test_layers_of_another_unit_are_named(
    tmp_path: Path, scene: Gaussians, pxr: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenUSD takes their numbers as they are, so they count in the unit of the file."""
    path = edited(tmp_path, scene, pxr, lambda s, p: pxr.UsdGeom.SetStageMetersPerUnit(s, 0.01))
    stage = pxr.Usd.Stage.CreateNew(str(tmp_path / "c.usda"))
    pxr.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    pxr.UsdGeom.SetStageUpAxis(stage, "Y")
    stage.DefinePrim("/W").GetReferences().AddReference(f"./{path.name}", "/Scene")
    stage.Save()
    same(load_gaussians(tmp_path / "c.usda"), scene)
    assert "b.usda with metersPerUnit 0.01, which OpenUSD does not convert" in caplog.text


def test_prims_that_are_copied_or_switched_off_are_not_drawn_in_place(
    tmp_path: Path, scene: Gaussians, pxr: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def copy(stage: Any, prim: Any) -> None:
        pxr.UsdGeom.PointInstancer.Define(stage, "/Scene/Many")
        for path in ("/Scene/Many/G", "/Scene/Off"):
            pxr.Sdf.CopySpec(stage.GetRootLayer(), prim.GetPath(), stage.GetRootLayer(), path)
        stage.GetPrimAtPath("/Scene/Off").SetActive(False)

    pytest.importorskip("pxr.Sdf")
    same(load_gaussians(edited(tmp_path, scene, pxr, copy)), scene)
    assert "1 Gaussians that a PointInstancer copies" in caplog.text
    assert "1 hidden Gaussians" in caplog.text


# --- other files


@pytest.mark.parametrize(("kind", "name"), [(".usda", "a.ply"), (".usdc", "a.usda"),
                                            (".usdz", "a.spz")])  # fmt: skip
def test_openusd_under_another_suffix(
    tmp_path: Path, scene: Gaussians, pxr: Any, kind: str, name: str
) -> None:
    save_gaussians(scene, tmp_path / f"right{kind}")
    (tmp_path / f"right{kind}").rename(tmp_path / name)
    with pytest.raises(UserError, match=rf"of the kind \{kind}; .*rename it to a\{kind}"):
        load_gaussians(tmp_path / name)


@pytest.mark.parametrize("suffix", [".ply", ".splat", ".glb"])
def test_what_people_download_in_place_of_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".ljust(128))
    with pytest.raises(UserError, match="is a git-LFS pointer"):
        load_gaussians(path)
    path.write_bytes(b"\n<!DOCTYPE html><html>".ljust(128))
    with pytest.raises(UserError, match="is a web page"):
        load_gaussians(path)


def test_warnings_from_inside_a_gzip_name_the_file_of_the_user(
    tmp_path: Path, scene: Gaussians, caplog: pytest.LogCaptureFixture
) -> None:
    save_gaussians(scene, tmp_path / "a.ply")
    plain = add_comment(tmp_path / "a.ply", "SplatRenderMode: banana").read_bytes()
    (tmp_path / "b.ply.gz").write_bytes(gzip.compress(plain))
    with caplog.at_level(logging.WARNING):
        load_gaussians(tmp_path / "b.ply.gz")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'b.ply.gz'}: comments")
    caplog.clear()
    load_gaussians(tmp_path / "a.ply")  # and later ones are as they were
    assert caplog.records[0].getMessage().startswith(f"{tmp_path / 'a.ply'}: comments")


def test_files_beside_a_gzip_are_not_said_to_be_lost(tmp_path: Path, scene: Gaussians) -> None:
    save_gaussians(scene, tmp_path / "a.glb")
    tree, data = split(tmp_path / "a.glb")
    tree["buffers"][0]["uri"] = "a.bin"
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    same(load_gaussians(tmp_path / "a.gltf"), scene)
    (tmp_path / "a.gltf.gz").write_bytes(gzip.compress(json.dumps(tree).encode()))
    with pytest.raises(UserError, match=r"unpack a\.gltf\.gz: files beside it are not looked for"):
        load_gaussians(tmp_path / "a.gltf.gz")


def test_a_folder_of_sog_opens(tmp_path: Path, scene: Gaussians) -> None:
    for name, content in sog_files(scene).items():
        (tmp_path / name).write_bytes(content)
    assert are_equal(load_gaussians(tmp_path), load_gaussians(tmp_path / "meta.json"))


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".compressed.ply"])
def test_means_in_double_keep_their_digits(tmp_path: Path, scene: Gaussians, suffix: str) -> None:
    """Gaussians that a program made in float64, in coordinates of a map."""
    place = torch.tensor([431234.567, 5412345.678, 512.25], dtype=torch.float64)
    far = scene.to(torch.float64)
    far = Gaussians(far.means + place, far.scales, far.quats_wxyz, far.opacities, far.sh)
    save_gaussians(far, tmp_path / f"a{suffix}")
    found = load_gaussians(tmp_path / f"a{suffix}")
    world = found.means[0].double() + torch.tensor(found.origin, dtype=torch.float64)
    nearest = torch.cdist(far.means[0], world).amin(dim=1)
    assert nearest.max() < (2e-2 if "compressed" in suffix else 1e-6)
