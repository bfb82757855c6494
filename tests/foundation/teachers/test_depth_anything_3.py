"""Depth Anything 3's adapter: against a stand-in with its documented interface, whose answers are
exact, and against the authors' own code with random weights, where that is installed."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from pmsplat import registry
from pmsplat.contracts import check_pose_teacher
from pmsplat.errors import UserError
from pmsplat.foundation.teachers import _network, depth_anything_3
from pmsplat.geometry import align, camera, se3
from pmsplat.types import Views
from tests.foundation.teachers.scene import known_views, world_points

UNIT = 2.6  # of the world's, in the network's frame
Config = depth_anything_3.Config


class Exact(nn.Module):
    """Knows the depth and the cameras: OpenCV world-to-camera, pixels, another frame and unit."""

    def __init__(self, views: Views) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.tied = self.weight  # a second name, which safetensors files leave out
        self.views = views
        self.given: list[Tensor] = []

    def forward(self, images: Tensor, *known: Tensor) -> dict[str, Tensor]:
        self.images, self.given = images, [*known]
        rows, columns = images.shape[-2:]
        cameras, depth = self.views.cameras, self.views.depth
        assert depth is not None and depth.shape[-2:] == (rows, columns)
        turn = torch.tensor([[0.0, -1, 0, 5], [1, 0, 0, 2], [0, 0, 1, -3], [0, 0, 0, 1]])
        w2c = se3.invert(turn @ cameras.c2w)[..., :3, :]
        w2c[..., 3] *= UNIT
        return {
            "depth": UNIT * depth,
            "depth_conf": torch.ones_like(depth),
            "extrinsics": w2c,
            "intrinsics": camera.K_px(cameras.K, rows, columns),
        }


@pytest.fixture
def views(generator: torch.Generator) -> Views:
    return known_views(42, 56, generator)


@pytest.fixture
def exact(views: Views, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exact:
    """The stand-in, installed, and weights where the released file would lie."""
    network = Exact(views)
    for name in ("depth_anything_3", "depth_anything_3.cfg", "depth_anything_3.registry"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    cfg, known = (sys.modules[f"depth_anything_3.{name}"] for name in ("cfg", "registry"))
    monkeypatch.setattr(cfg, "load_config", lambda path: path, raising=False)
    built = {"a.yaml": network}
    monkeypatch.setattr(cfg, "create_object", lambda config: built[config], raising=False)
    monkeypatch.setattr(known, "MODEL_REGISTRY", {"da3-base": "a.yaml"}, raising=False)
    path = tmp_path / "DA3-BASE" / "model.safetensors"
    path.parent.mkdir()
    save_file({"model.weight": torch.tensor([3.0, 4.0])}, path)
    monkeypatch.setattr(_network, "pretrained_folder", lambda: tmp_path)
    source = replace(depth_anything_3.SOURCES["DA3-BASE"], sha256="")
    monkeypatch.setitem(depth_anything_3.SOURCES, "DA3-BASE", source)
    return network


def test_known_poses_unproject_its_depth_exactly(views: Views, exact: Exact) -> None:
    teacher = depth_anything_3.build(Config())
    answer = teacher(views)
    torch.testing.assert_close(answer.points, world_points(views), atol=3e-5, rtol=0)
    assert exact.weight.tolist() == [3, 4] and not exact.weight.requires_grad
    assert teacher.posed


def test_it_is_given_our_cameras_in_its_convention(views: Views, exact: Exact) -> None:
    """World-to-camera relative to the first, in the median distance; pixels; ImageNet colours."""
    depth_anything_3.build(Config())(views)
    w2c, K = exact.given
    torch.testing.assert_close(w2c[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-6, rtol=0)
    for scene in range(2):
        relative = [torch.linalg.inv(views.cameras.c2w[scene, v].double()) for v in range(3)]
        relative = torch.stack([r @ views.cameras.c2w[scene, 0].double() for r in relative])
        far = torch.linalg.inv(relative)[:, :3, 3].norm(dim=-1).sort().values[1].clamp(min=0.1)
        relative[:, :3, 3] /= far
        torch.testing.assert_close(w2c[scene].double(), relative, atol=1e-5, rtol=0)
    focal = views.cameras.K[..., 0, 0] * 56
    torch.testing.assert_close(K[..., 0, 0], focal)
    white = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    depth_anything_3.build(Config())(replace(views, images=torch.ones_like(views.images)))
    torch.testing.assert_close(exact.images[0, 0, :, 0, 0], white)


def test_its_own_poses_are_a_similarity_away(views: Views, exact: Exact) -> None:
    teacher = depth_anything_3.build(Config(posed=False))
    wrong = replace(views.cameras, c2w=torch.eye(4).expand_as(views.cameras.c2w))
    answer = teacher(replace(views, cameras=wrong))
    assert exact.given == [] and not teacher.posed
    there, here = answer.points.flatten(1, 3), world_points(views).flatten(1, 3)
    similarity = align.umeyama(there, here)
    torch.testing.assert_close(se3.transform(similarity, there), here, atol=5e-5, rtol=0)
    scale = se3.similarity_scale(similarity)
    torch.testing.assert_close(scale, torch.full((2,), 1 / UNIT), atol=1e-4, rtol=0)


def test_cameras_of_images_alone_are_a_similarity_away(views: Views, exact: Exact) -> None:
    """Its own frame and unit; no camera of ours is shown to it, whatever the settings."""
    for posed in (False, True):
        teacher = check_pose_teacher(depth_anything_3.build(Config(posed=posed)))
        teacher.prepare()
        found = teacher.pose(views.images)
        assert exact.given == [] and teacher.pose_revision == "DA3-BASE@f4a6c9b3c95e"
        fit = align.cameras(found.c2w, views.cameras.c2w)
        scale = se3.similarity_scale(fit)
        torch.testing.assert_close(scale, torch.full((2,), 1 / UNIT), atol=1e-5, rtol=0)
        turned = (fit[:, None, :3, :3] * UNIT) @ found.c2w[..., :3, :3]
        torch.testing.assert_close(turned, views.cameras.c2w[..., :3, :3], atol=1e-5, rtol=0)
        centers = se3.transform(fit, found.c2w[..., :3, 3])
        torch.testing.assert_close(centers, views.cameras.c2w[..., :3, 3], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.K, views.cameras.K)
        assert views.depth is not None
        torch.testing.assert_close(found.depth, UNIT * views.depth)


def test_the_size_it_wants_has_the_aspect_of_the_photos() -> None:
    teacher = depth_anything_3.build(Config())
    assert teacher.choose_size(1.5) == (336, 504) and teacher.choose_size(9 / 16) == (504, 280)
    assert teacher.choose_size(1.0) == (504, 504) and teacher.choose_size(100.0) == (14, 504)


def test_what_is_missing_or_wrong_is_told(
    views: Views, exact: Exact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "DA3-BASE" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"is not in .*DA3-BASE, and .*; try again, or put http"):
        depth_anything_3.build(Config())(views)
    with pytest.raises(UserError, match=r"is not in .*DA3-BASE, and"):
        depth_anything_3.build(Config()).prepare()
    monkeypatch.setitem(sys.modules, "depth_anything_3.cfg", None)
    with pytest.raises(UserError, match=r"pip install --no-deps depth-anything-3==0\.1\.1 addict"):
        depth_anything_3.build(Config())(views)
    with pytest.raises(UserError, match="model 'DA3-HUGE'; wanted one of DA3-SMALL, DA3-BASE"):
        registry.build("foundation.teachers", "depth_anything_3", {"model": "DA3-HUGE"})
    with pytest.warns(UserWarning, match="DA3-LARGE-1.1 is under CC BY-NC 4.0"):
        depth_anything_3.build(Config(model="DA3-LARGE-1.1"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("posed", [True, False])
def test_the_authors_own_code_takes_and_gives_what_the_adapter_expects(
    posed: bool,
    generator: torch.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Depth of its smallest network, weights random, through a file of its own naming."""
    pytest.importorskip("depth_anything_3.cfg", reason="depth_anything_3 is not installed")
    torch.manual_seed(0)
    official = depth_anything_3._build_network("DA3-SMALL").eval()
    path = tmp_path / "model.safetensors"
    save_model(nn.ModuleDict({"model": official}), str(path))  # as its authors' class does
    monkeypatch.setattr(_network, "fetch", lambda *_: path)
    views = known_views(45, 63, generator)
    teacher = depth_anything_3.build(Config(model="DA3-SMALL", posed=posed))
    answer = teacher(views)
    with torch.no_grad():
        images = _network.reduce_images(views.images)
        mean, std = (
            torch.tensor(v)[:, None, None] for v in (depth_anything_3.MEAN, depth_anything_3.STD)
        )
        known = (depth_anything_3._normalize_poses(views.cameras.c2w),) if posed else ()
        known += (camera.K_px(views.cameras.K, 42, 56),) if posed else ()
        told = official((images - mean) / std, *known)
    depth = _network.restore_size(told["depth"][..., None], *views.size)[..., 0]
    w2c, pixels = told["extrinsics"], torch.tensor([56.0, 42.0, 1.0])[:, None]
    rotation = w2c[..., :3].mT
    centres = -(rotation @ w2c[..., 3:])[..., 0]
    if posed:
        unit = spread(views.cameras.c2w[..., :3, 3]) / spread(centres)
        depth = depth * unit[:, None, None, None]
        points = camera.unproject_depth(depth, views.cameras.c2w, views.cameras.K)
    else:
        K = told["intrinsics"] / pixels
        points = camera.unproject_depth(depth, se3.compose(rotation, centres), K)
    torch.testing.assert_close(answer.points, points, atol=1e-4, rtol=1e-3)
    assert answer.mask.all()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_the_authors_own_code_finds_cameras(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its smallest network, weights random, inverted and divided by the size."""
    pytest.importorskip("depth_anything_3.cfg", reason="depth_anything_3 is not installed")
    torch.manual_seed(0)
    official = depth_anything_3._build_network("DA3-SMALL").eval()
    path = tmp_path / "model.safetensors"
    save_model(nn.ModuleDict({"model": official}), str(path))
    monkeypatch.setattr(_network, "fetch", lambda *_: path)
    images = known_views(45, 63, generator).images
    found = depth_anything_3.build(Config(model="DA3-SMALL")).pose(images)
    with torch.no_grad():
        small = _network.reduce_images(images)
        mean, std = (
            torch.tensor(v)[:, None, None] for v in (depth_anything_3.MEAN, depth_anything_3.STD)
        )
        told = official((small - mean) / std)
    w2c = torch.eye(4).repeat(2, 3, 1, 1)
    w2c[..., :3, :] = told["extrinsics"]
    torch.testing.assert_close(found.c2w, torch.linalg.inv(w2c), atol=1e-5, rtol=1e-4)
    assert se3.is_rigid(found.c2w).all()
    pixels = camera.K_px(found.K, 42, 56)
    torch.testing.assert_close(pixels, told["intrinsics"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.depth, told["depth"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.confidence, told["depth_conf"], atol=1e-5, rtol=1e-4)


def spread(centres: Tensor) -> Tensor:
    return (centres - centres.mean(dim=1, keepdim=True)).norm(dim=(1, 2))
