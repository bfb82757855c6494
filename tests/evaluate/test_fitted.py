"""Predicted cameras in the world of the given ones: a stand-in network that knows the truth."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pmsplat.errors import UserError
from pmsplat.evaluate import protocol, report
from pmsplat.evaluate.fitted import PoseProtocol, check_left_out
from pmsplat.evaluate.protocol import Result, Row
from pmsplat.scene import open_scene
from pmsplat.types import Batch, Gaussians, PosedDepth, Views
from pmsplat.zoo.poses import search_cameras
from tests.evaluate.standins import StandIn, Sweep

SIZE = (40, 56)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes(room: str) -> list[Batch]:
    scene = open_scene(room)
    return [
        Batch(scene.views([at, at + 4], SIZE), scene.views([at + 1, at + 3], SIZE), [f"from {at}"])
        for at in (0, 4)
    ]


def test_exact_cameras_of_another_world_become_the_given_ones(scenes: list[Batch]) -> None:
    fitted = PoseProtocol(StandIn(scenes)).scenes(scenes, CPU)
    for given, found in zip(scenes, fitted, strict=True):
        pairs = ((given.context, found.context), (given.target, found.target))
        for wanted, got in ((one.cameras, other.cameras) for one, other in pairs):
            torch.testing.assert_close(got.c2w, wanted.c2w, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(got.K, wanted.K)
        assert torch.equal(found.context.images, given.context.images)
        assert found.context.depth is given.context.depth
    assert list(fitted.errors) == ["from 0", "from 4"]
    for errors in fitted.errors.values():
        assert errors["rotation_deg"] < 0.01 and errors["auc_5"] > 0.99


def test_near_and_far_are_those_of_the_predicted_depth_in_the_given_unit(
    scenes: list[Batch],
) -> None:
    (found,) = PoseProtocol(StandIn(scenes[:1])).scenes(scenes[:1], CPU)
    depth, cameras = scenes[0].context.depth, found.context.cameras
    assert depth is not None
    for view in range(2):
        known = depth[0, view][depth[0, view] > 0]
        assert cameras.near[0, view] == pytest.approx(known.quantile(0.01).item() / 1.25, rel=1e-4)
        assert cameras.far[0, view] == pytest.approx(known.quantile(0.99).item() * 1.25, rel=1e-4)
    assert found.target.cameras.near.unique() == cameras.near.min()


def test_optimized_targets_beat_fitted_ones(scenes: list[Batch]) -> None:
    teacher = StandIn(scenes, turn=0.5, shift=0.01)

    def aim(gaussians: Gaussians, views: Views):
        return search_cameras(gaussians, views, 50, "cpu")

    psnr = {}
    for name, protocol_, aimed in (
        ("given", PoseProtocol(), None),
        ("fitted", PoseProtocol(teacher), None),
        ("optimized-50", PoseProtocol(teacher, 50), aim),
    ):
        assert protocol_.name == name
        batches = protocol_.scenes(scenes, CPU)
        run = protocol.pipeline(Sweep(), "cpu", scale_near=True, drawn=protocol.Drawn(aim=aimed))
        result = protocol.evaluate(run, batches, known=batches.errors)
        psnr[name] = result.means["psnr"]
        assert ("auc_5" in result.means) == (name != "given")
    assert psnr["fitted"] < psnr["optimized-50"] - 0.5
    assert psnr["fitted"] < psnr["given"]


class Broken(StandIn):
    """Finds nothing of some scenes."""

    def pose(self, images: Tensor) -> PosedDepth:
        found = super().pose(images)
        if self.seen == 1:
            found.c2w[:, 1] = found.c2w[:, 0]
        if self.seen == 2:
            found = replace(found, depth=0 * found.depth)
        if self.seen == 3:
            found = replace(found, K=found.K * torch.nan)
        return found


def test_scenes_without_cameras_are_left_out_and_counted(scenes: list[Batch]) -> None:
    many = [*scenes, *scenes, scenes[0]]
    fitted = PoseProtocol(Broken(many)).scenes(many, CPU)
    assert len(list(fitted)) == 2
    assert fitted.notes == (
        "1 scene could not be measured: the network found all cameras at one place.",
        "1 scene could not be measured: the network found no depth.",
        "1 scene could not be measured: the network found no cameras.",
    )


def test_where_no_scene_is_left_the_reason_is_said(scenes: list[Batch]) -> None:
    c2w = scenes[0].context.cameras.c2w[:, :1].expand(-1, 2, -1, -1)
    cameras = replace(scenes[0].context.cameras, c2w=c2w)
    still = replace(scenes[0], context=replace(scenes[0].context, cameras=cameras))
    fitted = PoseProtocol(StandIn(scenes)).scenes([still], CPU)
    assert not list(fitted)
    with pytest.raises(
        UserError, match=r"no scene that can be measured .*the given cameras are at"
    ):
        check_left_out(fitted.left_out, measured=0)
    check_left_out(fitted.left_out, measured=1)
    check_left_out({}, measured=0)


def test_results_say_their_protocol_and_do_not_share_a_table() -> None:
    teacher = StandIn([])
    facts = {"protocol": "optimized-20", "poses": "stand_in 7", "optimize_poses": 20}
    assert PoseProtocol(teacher, 20).facts == facts
    assert PoseProtocol().facts == {}
    rows = [Row("a", 1, {"psnr": 20.0})]
    results = {"one": Result(rows), "other": Result(rows, protocol="fitted")}
    with pytest.raises(UserError, match="results of the protocols fitted and given for one table"):
        report.table(results)
    report.table({name: replace(result, protocol="fitted") for name, result in results.items()})
