"""VGGT's adapter: against a stand-in with its documented interface, whose answers are exact, and
against the authors' own code with random weights, where that is installed."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pmsplat import registry
from pmsplat.contracts import check_pose_teacher
from pmsplat.errors import UserError
from pmsplat.foundation.teachers import _network, vggt
from pmsplat.geometry import align, camera, gaussian, se3
from pmsplat.types import Views
from tests.foundation.teachers.scene import known_views, world_points

UNIT = 0.37  # of the world's, in VGGT's frame


class Truth:
    """What an infallible VGGT would say: the frame of the first camera, in a unit of its own."""

    def __init__(self, views: Views) -> None:
        rows, columns = (side // 14 * 14 for side in views.size)
        assert views.depth is not None
        depth = views.depth[..., :rows, :columns] if rows < views.size[0] else views.depth
        w2c = se3.invert(views.cameras.c2w[:, :1])
        world = camera.unproject_depth(depth, views.cameras.c2w, views.cameras.K)
        first = se3.transform(w2c, world.flatten(2, 3)).view_as(world)
        poses = se3.invert(w2c @ views.cameras.c2w)
        quats = gaussian.rotation_to_quat(poses[..., :3, :3]).roll(-1, dims=-1)  # scalar last
        focal = torch.stack([views.cameras.K[..., 1, 1], views.cameras.K[..., 0, 0]], dim=-1)
        fields = 2 * (0.5 / focal).atan()  # vertical, horizontal
        self.points, self.depth = UNIT * first, UNIT * depth[..., None]
        self.poses = torch.cat([UNIT * poses[..., :3, 3], quats, fields], dim=-1)
        self.confidence = 1 + world[..., 0].exp()


class Part(nn.Module):
    """A part of the stand-in; has a parameter, and answers what it was told to."""

    def __init__(self, answer: tuple[Tensor, Tensor] | list[Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.answer = answer
        self.seen: list[Tensor] = []

    def forward(self, tokens, images=None, patch_start_idx=None):
        self.seen.append(tokens if isinstance(tokens, Tensor) else tokens[0])
        if images is not None:
            assert patch_start_idx == 5 and self.seen[-1].dtype == torch.float32
        return self.answer


def installed(monkeypatch: pytest.MonkeyPatch, truth: Truth) -> None:
    """Puts packages into place that look like facebookresearch/vggt and know the truth."""

    class VGGT(nn.Module):
        def __init__(
            self,
            enable_camera: bool = True,
            enable_point: bool = True,
            enable_depth: bool = True,
            enable_track: bool = True,
        ) -> None:
            super().__init__()
            self.aggregator = Aggregator()
            self.camera_head = Part([truth.poses]) if enable_camera else None
            self.point_head = Part((truth.points, truth.confidence)) if enable_point else None
            self.depth_head = Part((truth.depth, truth.confidence)) if enable_depth else None
            self.track_head = Part([]) if enable_track else None

    class Aggregator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, images: Tensor) -> tuple[list[Tensor | None], int]:
            assert images.shape[-2:] == truth.points.shape[2:4]
            return [images, None], 5

    def pose_encoding_to_extri_intri(
        pose_encoding: Tensor, image_size_hw: Any = None, build_intrinsics: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        rotation = gaussian.quat_to_rotation(pose_encoding[..., 3:7].roll(1, dims=-1))
        w2c = torch.cat([rotation, pose_encoding[..., :3, None]], dim=-1)
        if not build_intrinsics:
            return w2c, None
        height, width = image_size_hw
        y, x = (0.5 / (pose_encoding[..., 7:] / 2).tan()).unbind(dim=-1)
        one, none = torch.ones_like(x), torch.zeros_like(x)
        K = [x * width, none, width / 2 * one, none, y * height, height / 2 * one, none, none, one]
        return w2c, torch.stack(K, dim=-1).unflatten(-1, (3, 3))

    for name in ("vggt", "vggt.models", "vggt.models.vggt", "vggt.utils", "vggt.utils.pose_enc"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["vggt.models.vggt"], "VGGT", VGGT, raising=False)
    monkeypatch.setattr(
        sys.modules["vggt.utils.pose_enc"],
        "pose_encoding_to_extri_intri",
        pose_encoding_to_extri_intri,
        raising=False,
    )


@pytest.fixture
def views(generator: torch.Generator) -> Views:
    return known_views(42, 56, generator)


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Weights of the stand-in where a released file would lie."""
    parts = ("camera_head", "point_head", "depth_head", "track_head")
    state = {f"{part}.weight": torch.full((2,), 2.0) for part in parts}
    path = tmp_path / "VGGT-1B" / "model.safetensors"
    path.parent.mkdir()
    save_file({"aggregator.weight": torch.arange(3.0), **state}, path)
    monkeypatch.setattr(_network, "pretrained_folder", lambda: tmp_path)
    source = replace(vggt.SOURCES["VGGT-1B"], sha256="")
    monkeypatch.setitem(vggt.SOURCES, "VGGT-1B", source)
    return path


@pytest.mark.filterwarnings("ignore:the teacher VGGT-1B is under")
class TestStandIn:
    def test_points_are_a_similarity_away_from_the_world(
        self, views: Views, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed(monkeypatch, Truth(views))
        teacher = vggt.build(vggt.Config())
        answer = teacher(views)
        there, here = answer.points.flatten(1, 3), world_points(views).flatten(1, 3)
        similarity = align.umeyama(there, here)
        torch.testing.assert_close(se3.transform(similarity, there), here, atol=2e-5, rtol=0)
        torch.testing.assert_close(
            se3.similarity_scale(similarity), torch.full((2,), 1 / UNIT), atol=1e-4, rtol=0
        )
        assert not teacher.posed
        names = [name for name, _ in teacher.network.named_parameters()]
        assert names == ["aggregator.weight", "point_head.weight"], "other heads cost for nothing"
        assert teacher.network.get_parameter("aggregator.weight").tolist() == [0, 1, 2]
        assert not any(p.requires_grad for p in teacher.network.parameters())

    def test_depth_is_unprojected_by_our_cameras_exactly(
        self, views: Views, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its unit is told by its own cameras; pixel centres are ours."""
        installed(monkeypatch, Truth(views))
        teacher = vggt.build(vggt.Config(head="depth"))
        answer = teacher(views)
        torch.testing.assert_close(answer.points, world_points(views), atol=2e-5, rtol=0)
        assert teacher.posed and "head=depth" in teacher.revision

    def test_cameras_of_images_alone(
        self, views: Views, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the frame of the first, in its unit; principal points are in the middle."""
        installed(monkeypatch, Truth(views))
        teacher = check_pose_teacher(vggt.build(vggt.Config(head="depth")))
        found = teacher.pose(views.images)
        expected = torch.linalg.inv(views.cameras.c2w[:, :1]) @ views.cameras.c2w
        expected[..., :3, 3] *= UNIT
        torch.testing.assert_close(found.c2w, expected, atol=2e-5, rtol=0)
        assert views.depth is not None
        torch.testing.assert_close(found.depth, UNIT * views.depth)
        K = views.cameras.K.clone()
        K[..., :2, 2] = 0.5
        torch.testing.assert_close(found.K, K)
        assert teacher.choose_size(1.0) == (518, 518)
        with pytest.raises(UserError, match="`head=point`, which finds no cameras"):
            vggt.build(vggt.Config()).prepare()

    def test_one_view_keeps_the_unit_of_the_network(
        self, generator: torch.Generator, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Free then: a similarity about the only camera."""
        single = known_views(28, 28, generator, views=1)
        installed(monkeypatch, Truth(single))
        answer = vggt.build(vggt.Config(head="depth"))(single)
        centre = single.cameras.c2w[:, :, None, None, :3, 3]
        expected = centre + UNIT * (world_points(single) - centre)
        torch.testing.assert_close(answer.points, expected, atol=1e-5, rtol=0)

    def test_other_sizes_go_down_to_the_multiple_of_14_and_come_back(
        self, generator: torch.Generator, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every pixel has the answer of a pixel of the smaller image, as published."""
        views = known_views(45, 63, generator)
        truth = Truth(views)
        installed(monkeypatch, truth)
        answer = vggt.build(vggt.Config())(views)
        rows, columns = torch.arange(45) * 42 // 45, torch.arange(63) * 56 // 63
        expected = truth.points[:, :, rows[:, None], columns[None, :]]
        assert torch.equal(answer.points, expected)
        with pytest.raises(UserError, match="images of 13 by 63 pixels"):
            vggt.build(vggt.Config())(views.map(lambda tensor: tensor[..., :13, :]))

    def test_nothing_is_known_where_the_network_overflows(
        self, views: Views, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        truth = Truth(views)
        truth.points[0, 0, 20, 20, 1] = torch.inf
        truth.confidence[1, 2, 3, 4] = torch.nan
        installed(monkeypatch, truth)
        answer = vggt.build(vggt.Config())(views)
        assert not answer.mask[0, 0, 20, 20] and not answer.mask[1, 2, 3, 4]
        assert answer.mask.sum() == answer.mask.numel() - 2
        assert answer.points.isfinite().all() and answer.confidence.isfinite().all()

    def test_no_gradients(
        self, views: Views, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed(monkeypatch, Truth(views))
        images = views.images.clone().requires_grad_()
        answer = vggt.build(vggt.Config())(replace(views, images=images))
        assert not answer.points.requires_grad and not answer.points.is_inference()

    def test_another_networks_file_is_told(
        self, views: Views, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed(monkeypatch, Truth(views))
        save_file({"aggregator.weight": torch.zeros(4)}, pretrained)
        with pytest.raises(UserError, match=r"has \[4\] at 'aggregator.weight'; wanted \[3\]"):
            vggt.build(vggt.Config())(views)

    def test_absent_weights_and_no_network_are_one_sentence(
        self, views: Views, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed(monkeypatch, Truth(views))
        pretrained.unlink()
        with pytest.raises(UserError, match=r"is not in .*VGGT-1B, and .*; try again, or put http"):
            vggt.build(vggt.Config())(views)

    def test_an_absent_package_is_told_with_the_line_that_installs_it(
        self, views: Views, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "vggt", None)
        with pytest.raises(UserError, match=r"pip install --no-deps git\+https://github.com/faceb"):
            vggt.build(vggt.Config())(views)


def test_licenses_are_said_and_settings_are_checked() -> None:
    with pytest.warns(UserWarning, match="VGGT-1B is under CC BY-NC 4.0: no commercial use"):
        registry.build("foundation.teachers", "vggt")
    with pytest.warns(UserWarning, match="the VGGT License: no military use"):
        registry.build("foundation.teachers", "vggt", {"model": "VGGT-1B-Commercial"})
    with pytest.raises(UserError, match="vggt model 'VGGT-2B'; wanted one of VGGT-1B, VGGT-1B-Com"):
        vggt.build(vggt.Config(model="VGGT-2B"))
    with pytest.raises(UserError, match="vggt head 'track'; wanted one of point, depth"):
        vggt.build(vggt.Config(head="track"))


@pytest.mark.filterwarnings(
    "ignore:the teacher VGGT-1B is under", "ignore:.*autocast:FutureWarning"
)
@pytest.mark.parametrize("head", ["point", "depth"])
def test_the_authors_own_code_answers_the_same(
    head: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own forward pass and its own cameras, all heads, against the adapter with one."""
    pytest.importorskip("vggt.models.vggt", reason="the package vggt is not installed")
    network = small_vggt(monkeypatch)
    views = known_views(45, 63, generator)
    teacher = vggt.build(vggt.Config(head=head))
    monkeypatch.setattr(_network, "load", lambda *_: network)
    monkeypatch.setattr(vggt, "_import_network", lambda: lambda **_: network)
    answer = teacher(views)
    with torch.no_grad():
        images = _network.reduce_images(views.images)
        told = network(images)
    points = told["world_points"]
    if head == "depth":
        from vggt.utils.pose_enc import pose_encoding_to_extri_intri

        w2c, _ = pose_encoding_to_extri_intri(told["pose_enc"], images.shape[-2:])
        centres = -torch.einsum("bvji,bvj->bvi", w2c[..., :3], w2c[..., 3])
        unit = spread(views.cameras.c2w[..., :3, 3]) / spread(centres)
        depth = told["depth"][..., 0] * unit[:, None, None, None]
        full = _network.restore_size(depth[..., None], *views.size)[..., 0]
        points = camera.unproject_depth(full, views.cameras.c2w, views.cameras.K)
    else:
        points = _network.restore_size(points, *views.size, floor=True)
    torch.testing.assert_close(answer.points, points, atol=1e-5, rtol=1e-4)
    confidence = told["world_points_conf" if head == "point" else "depth_conf"]
    floor = head == "point"
    expected = _network.restore_size(confidence[..., None], *views.size, floor)[..., 0]
    torch.testing.assert_close(answer.confidence, expected, atol=1e-5, rtol=1e-5)
    alone = teacher(views.map(lambda tensor: tensor[1:]))
    torch.testing.assert_close(alone.points, answer.points[1:], atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings(
    "ignore:the teacher VGGT-1B is under", "ignore:.*autocast:FutureWarning"
)
def test_the_authors_own_code_finds_cameras(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vggt.models.vggt", reason="the package vggt is not installed")
    from vggt.utils.pose_enc import pose_encoding_to_extri_intri

    network = small_vggt(monkeypatch)
    images = known_views(45, 63, generator).images
    monkeypatch.setattr(_network, "load", lambda *_: network)
    monkeypatch.setattr(vggt, "_import_network", lambda: lambda **_: network)
    found = vggt.build(vggt.Config(head="depth")).pose(images)
    with torch.no_grad():
        told = network(_network.reduce_images(images))
    w2c = torch.eye(4).repeat(2, 3, 1, 1)
    w2c[..., :3, :], K = pose_encoding_to_extri_intri(told["pose_enc"], (42, 56))
    torch.testing.assert_close(found.c2w, torch.linalg.inv(w2c), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(camera.K_px(found.K, 42, 56), K, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.depth, told["depth"][..., 0], atol=1e-5, rtol=1e-4)


def spread(centres: Tensor) -> Tensor:
    return (centres - centres.mean(dim=1, keepdim=True)).norm(dim=(1, 2))


def small_vggt(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The official network at 4 of 24 blocks and 64 of 1024 channels, weights random."""
    from vggt.models import vggt as official

    torch.manual_seed(0)
    trunk = {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_embed": "conv"}
    sizes = {"features": 16, "out_channels": [16] * 4, "intermediate_layer_idx": [0, 1, 2, 3]}
    aggregator, head = official.Aggregator, official.DPTHead
    monkeypatch.setattr(official, "Aggregator", lambda **_: aggregator(**trunk))
    monkeypatch.setattr(official, "DPTHead", lambda **given: head(**given, **sizes))
    network = official.VGGT(embed_dim=64, enable_track=False)
    for parameter in network.parameters():  # the released ones are no zeros either
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False).eval()
