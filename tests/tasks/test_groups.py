"""Many photos: groups of them through a network, and their Gaussians as one scene."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pmsplat
from pmsplat import cli
from pmsplat.errors import UserError
from pmsplat.models import depthsplat
from pmsplat.scene import open_scene
from pmsplat.scene.overlap import Group, group_views, overlaps
from pmsplat.tasks._context import describe_context
from pmsplat.tasks._fused import Fusing, describe_fusion
from pmsplat.tasks.predict import Options, choose_views, group_context, predict
from pmsplat.zoo.fusion import Fused, fuse_parts, predict_groups
from pmsplat.zoo.infer import fill_range, reconstruct
from pmsplat.zoo.load import save
from pmsplat.zoo.trained import TrainedOn
from tests.scenes import random_gaussians

CONFIG = depthsplat.Config(
    vit="none", width=16, planes=8, transformer_layers=1, head_width=16, sh_degree=1
)
SIZE = (48, 64)
QUICK = Options(views=8, size=SIZE, held_out=1, fps=1, seconds=0.5, device="cpu")
PIXELS = SIZE[0] * SIZE[1]


@pytest.fixture(scope="module")
def model() -> depthsplat.DepthSplat:
    torch.manual_seed(0)
    return depthsplat.build(CONFIG).eval()


def test_many_photos_end_to_end(model: depthsplat.DepthSplat, room: str, tmp_path: Path) -> None:
    """8 of 10 photos in groups of 3: what is written is what Python fuses."""
    said: list[str] = []
    options = replace(QUICK, group=3, gaussians=9000)
    summary = predict(room, model, tmp_path / "out", options, tell=said.append)
    scene = open_scene(room)
    overlap = overlaps(scene.cameras)
    context = choose_views(scene, overlap, options)
    names = [scene.names[i] for i in context]
    assert len(names) == 8 and summary.context == tuple(names)

    groups = group_views(overlap[context][:, context], 3)
    assert len(groups) >= 3
    scene = replace(scene, cameras=fill_range(model, scene.cameras, context, scene.ranged))
    parts = list(predict_groups(model, scene.views(context, SIZE), groups))
    fused = fuse_parts(parts, "voxels", 9000)
    written = pmsplat.load_ply(tmp_path / "out/gaussians.ply")
    assert torch.equal(written.means, fused.gaussians.means)
    assert summary.gaussians == written.means.shape[1] <= 9000

    told = json.loads((tmp_path / "out/metrics.json").read_text())["fusion"]
    assert told["groups"] == [[names[i] for i in group.views] for group in groups]
    given = sum(len(group.views) for group in groups) * PIXELS
    assert (told["fuse"], told["given"], told["budget"]) == ("voxels", given, 9000)
    assert (told["floaters"], told["full"]) == (fused.floaters, fused.full) and fused.full > 9000
    assert any(f"{len(groups)} groups of" in line and f"{given} Gau" in line for line in said)
    kept = next(line for line in said if line.endswith(f": {fused.full} are left."))
    assert "about a pixel wide, became one" in kept
    assert any(f"{fused.full} Gaussians became {summary.gaussians}:" in line for line in said)
    again = sum(sum(view in group.views for group in groups) > 1 for view in range(8))
    assert again and any(f"; {again} of the 8 views are in several" in line for line in said)

    # Every view has the depth of the group in which it was fresh
    for group, part in zip(groups, parts, strict=True):
        for at, view in enumerate(group.views):
            if view in group.fresh:
                depth = np.load(tmp_path / "out/depth" / f"{names[view]}.npy")
                assert np.array_equal(depth, part.depth[0, at].numpy())
    report = json.loads((tmp_path / "out/metrics.json").read_text())["report"]
    assert report["views"] == max(len(group.views) for group in groups)
    for name in ("sheet.png", "video.mp4", "cameras.json"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    cameras = json.loads((tmp_path / "out/cameras.json").read_text())
    assert [frame["name"] for frame in cameras["frames"]][:8] == names


def test_what_fits_into_one_group_is_as_it_was(
    model: depthsplat.DepthSplat, room: str, tmp_path: Path
) -> None:
    said: list[str] = []
    options = replace(QUICK, views=3, fuse="shares")
    predict(room, model, tmp_path / "out", options, tell=said.append)
    scene = open_scene(room)
    views = scene.views(choose_views(scene, overlaps(scene.cameras), options), SIZE)
    found = reconstruct(model, views).prediction.gaussians[-1]
    pmsplat.save_ply(found, tmp_path / "expected.ply")
    expected = (tmp_path / "expected.ply").read_bytes()
    assert (tmp_path / "out/gaussians.ply").read_bytes() == expected
    assert json.loads((tmp_path / "out/metrics.json").read_text())["fusion"] is None
    assert any("`fuse=shares` has nothing to do" in line for line in said)


def test_a_budget_for_one_group(model: depthsplat.DepthSplat, room: str, tmp_path: Path) -> None:
    said: list[str] = []
    options = replace(QUICK, views=2, gaussians=1000)
    summary = predict(room, model, tmp_path / "out", options, tell=said.append)
    assert 500 <= summary.gaussians <= 1000 and summary.fusion is not None
    assert summary.fusion.fuse is None and summary.fusion.given == 2 * PIXELS
    plenty = replace(options, gaussians=2 * PIXELS, overwrite=True)
    summary = predict(room, model, tmp_path / "out", plenty, tell=said.append)
    assert summary.gaussians == 2 * PIXELS and summary.fusion is None
    assert said.count(
        f"`gaussians={2 * PIXELS}` changes nothing: there are {2 * PIXELS} Gaussians."
    )


def test_which_views_go_together() -> None:
    overlap = torch.ones(12, 12)
    context = list(range(1, 11))

    def sizes(options: Options, learned: TrainedOn | None = None) -> set[int]:
        return {len(group.views) for group in group_context(overlap, context, options, learned)}

    assert max(sizes(Options(views=10))) == 4
    assert max(sizes(Options(views=10), TrainedOn((2, 6), None, "rooms"))) == 6
    assert max(sizes(Options(views=10), TrainedOn((2, 2), None, "rooms"))) == 4
    assert sizes(Options(views=10), TrainedOn((8, 10), None, "rooms")) == {10}
    assert sizes(Options(context=tuple(context))) == {10}  # named views stay together
    assert max(sizes(Options(context=tuple(context), group=3))) == 3
    assert sizes(Options(views=10, group=64)) == {10}
    gathering = group_context(overlap, context, Options(views=10), anchors=3)
    assert [group.views for group in gathering] == [list(range(10))]
    learned = TrainedOn((5, 5), None, "rooms")
    gathering = group_context(overlap, context, Options(views=10), learned, anchors=3)
    assert max(len(group.views) for group in gathering) == 5


def test_all_photos(room: str) -> None:
    scene = open_scene(room)
    assert choose_views(scene, overlaps(scene.cameras), Options(views="all")) == list(range(10))


def test_odd_contexts_are_told(room: str) -> None:
    scene = open_scene(room)
    overlap = overlaps(scene.cameras)
    context = [0, 3, 4]
    one, several = [Group([0, 1, 2], [0, 1, 2])], [Group([0, 1], [0, 1]), Group([1, 2], [2])]
    assert len(describe_context(scene, context, overlap, one)) == 1

    cameras = scene.cameras.map(lambda tensor: tensor.clone())
    for tensor in vars(cameras).values():
        tensor[:, 4] = tensor[:, 0]
    twice = replace(scene, cameras=cameras)
    said = describe_context(twice, context, overlaps(cameras), one)
    wanted = f"{scene.names[0]} and {scene.names[4]} have the same camera: two such"
    assert len(said) == 2 and said[1].startswith(wanted)

    cameras = scene.cameras.map(lambda tensor: tensor.clone())
    cameras.c2w[:, :, :3, 3] = cameras.c2w[:, :1, :3, 3]
    standing = replace(scene, cameras=cameras)
    with pytest.raises(UserError, match="3 photos that are all taken from one place"):
        describe_context(standing, context, overlaps(cameras), several)
    describe_context(standing, context, overlaps(cameras), one)  # the report says it

    with pytest.raises(UserError, match="no two show the same"):
        describe_context(scene, context, torch.eye(10), several)
    little = 0.1 + 0.9 * torch.eye(10)
    said = describe_context(scene, context, little, several)
    assert said[1].startswith("3 of the 3 views share less than 30% of their picture with any")
    assert said[1].endswith(", ".join(f"{i} ({scene.names[i]})" for i in context) + ".")
    assert len(said) == 2

    cameras = scene.cameras.map(lambda tensor: tensor.clone())
    for tensor in vars(cameras).values():
        tensor[:, 5:7] = tensor[:, :2]
    some = [0, 1, 5, 6]
    said = describe_context(replace(scene, cameras=cameras), some, overlaps(cameras), one)
    assert "have the same camera, and so have 1 more pair: two such" in said[1]
    said = describe_context(scene, list(range(10)), overlap, one)
    assert said[-1].endswith("none is left to compare with.")


@pytest.mark.parametrize("floaters, told", [(50, False), (51, True)])
def test_groups_that_contradict_each_other_are_told(
    floaters: int, told: bool, generator: torch.Generator
) -> None:
    left = random_gaussians(100 - floaters, generator)
    groups = [Group([0, 1], [0, 1]), Group([2, 3], [2, 3])]
    fused = Fused(left, given=100, floaters=0, contradicted=floaters, full=100 - floaters)
    said = describe_fusion(fused, groups, Fusing("shares", None, False, False))
    found = [line for line in said if "contradict" in line]
    assert len(found) == told and all("51%" in line and "`fuse=union`" in line for line in found)


def test_bad_options(model: depthsplat.DepthSplat, room: str, tmp_path: Path) -> None:
    for more, wanted in (
        ({"fuse": "voxel"}, "`fuse=voxel`; wanted one of voxels, shares, union; did you mean"),
        ({"gaussians": 0}, "`gaussians=0`; wanted a whole number from 1"),
        ({"group": 1}, "`group=1`; wanted two views or more"),
        ({"views": "some"}, "`views=some`; wanted a number or all"),
        ({"views": 11}, "`views=11` of a scene of 10 photos"),
    ):
        with pytest.raises(UserError, match=wanted):
            predict(room, model, tmp_path / "out", replace(QUICK, **more))
    assert not [*tmp_path.iterdir()]


def test_command_line(
    model: depthsplat.DepthSplat, room: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(model, tmp_path / "tiny.safetensors", "depthsplat")
    words = ["predict", room, "--model", str(tmp_path / "tiny.safetensors"), "--device", "cpu"]
    words += ["--output", str(tmp_path / "out"), "--size", "32x48", "--fps", "1"]
    assert cli.main([*words, "--views", "all", "--group", "2", "--fuse", "shares"]) == 0
    said = capsys.readouterr().err
    assert "Context: 10 of 10 photos" in said and "groups of 2 views gave" in said
    assert cli.main([*words, "--overwrite", "--fuse", "share"]) == 2
    assert "--fuse share; wanted one of voxels, shares, union" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*words, "--views", "many"])
    assert "'many'; wanted a number of photos, or all" in capsys.readouterr().err
