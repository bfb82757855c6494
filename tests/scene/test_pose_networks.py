"""Cameras that a network finds for photographs: the scene that they make, and what is refused."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat import scene as scenes
from pmsplat.errors import UserError
from pmsplat.foundation.teachers import depth_anything_3
from pmsplat.geometry import align, camera, se3
from pmsplat.io.images import write_image
from pmsplat.io.video import write_video
from pmsplat.scene import PhotoOptions, Scene, open_scene, pose_networks
from pmsplat.scene.bounds import depth_range
from pmsplat.scene.pose_networks import compare_cameras
from pmsplat.types import PosedDepth
from tests.lab.poses import StandIn

Open = Callable[..., Scene]


@pytest.fixture(scope="module")
def known(room: str) -> Scene:
    return open_scene(room)


@pytest.fixture
def bare(known: Scene, tmp_path: Path) -> Path:
    """The photos of the room without cameras."""
    return write_photos(known, tmp_path / "bare")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(tmp_path: Path, said: list[str]) -> Open:
    def open_with(path: Path | str, poses: object, **options: object) -> Scene:
        chosen = PhotoOptions(poses=poses, **options)  # type: ignore[arg-type]
        return open_scene(path, chosen, tmp_path / "cache", said.append, "cpu")

    return open_with


def write_photos(scene: Scene, folder: Path) -> Path:
    views = scene.views()
    for name, photo in zip(scene.names, views.images[0], strict=True):
        write_image(folder / f"{name}.png", photo)
    return folder


def test_the_scene_is_that_of_the_network(
    known: Scene, bare: Path, opened: Open, said: list[str]
) -> None:
    """Cameras a similarity away, in its unit; near and far of its depth; points on surfaces."""
    network = StandIn(known, unit=3.0)
    found = opened(bare, network)
    fit = align.cameras(found.cameras.c2w, known.cameras.c2w)
    assert se3.similarity_scale(fit).item() == pytest.approx(1 / 3, rel=1e-4)
    apart = compare_cameras(found.cameras.c2w[0], known.cameras.c2w[0])
    assert apart.angle < 0.05 and apart.distance < 1e-4  # acos of float32
    torch.testing.assert_close(found.cameras.K, known.cameras.K)
    for i in range(len(known)):
        depth = known.views([i]).depth
        assert depth is not None
        near, far = depth_range(3 * depth.numpy())
        assert found.cameras.near[0, i].item() == pytest.approx(near, rel=1e-5)
        assert found.cameras.far[0, i].item() == pytest.approx(far, rel=1e-5)
    assert found.range_source == "the depth of the network that found the cameras"
    assert found.poses == "stand_in 3,0,0,0" and found.ranged
    assert found.names == tuple(f"{name}.png" for name in known.names)
    assert torch.equal(found.views().images, known.views().images)
    assert said == [f"Finding the cameras of 10 photos of bare with {found.poses}."]
    # Each point projects to where the depth of some photo is its own
    assert found.points is not None and len(found.points) > 1000
    views = known.views()
    assert views.depth is not None
    errors = []
    for i in range(len(known)):
        seen = camera.project_world(found.points, found.cameras.c2w[0, i], found.cameras.K[0, i])
        x, y = (seen[:, 0] * 70).long().clamp(0, 69), (seen[:, 1] * 54).long().clamp(0, 53)
        inside = (seen[:, 2] > 0) & ((seen[:, :2] > 0) & (seen[:, :2] < 1)).all(-1)
        error = (seen[:, 2] / (3 * views.depth[0, i, y, x]) - 1).abs()
        errors.append(torch.where(inside, error, torch.inf))
    assert torch.stack(errors).amin(dim=0).max() < 1e-4


def test_what_was_found_is_kept_and_found_again(
    known: Scene, bare: Path, opened: Open, tmp_path: Path
) -> None:
    network = StandIn(known)
    first, again = opened(bare, network), opened(bare, network)
    assert network.answers == network.prepared == 1
    assert torch.equal(first.cameras.c2w, again.cameras.c2w)
    assert torch.equal(first.cameras.K, again.cameras.K)
    facts = json.loads(next((tmp_path / "cache").glob("*/network.json")).read_text())
    assert facts["poses"] == first.poses
    # Another network, and other photos, are other cameras
    other = StandIn(known, unit=2.0)
    opened(bare, other)
    assert other.answers == 1
    with Image.open(bare / "000003.png") as photo:
        photo.rotate(180).save(bare / "000003.png")
    opened(bare, network)
    assert network.answers == 2


def test_nothing_is_kept_of_what_failed(
    known: Scene, bare: Path, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = StandIn(known)
    monkeypatch.setattr(pose_networks, "write_text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opened(bare, network)
    assert list((tmp_path / "cache").iterdir()) == []


def test_photos_of_other_shapes_and_turned_ones_are_seen_upright(
    known: Scene, opened: Open, tmp_path: Path, said: list[str]
) -> None:
    """One lies, one is cut narrow and one is stored on its side: K is of each upright photo."""
    folder, views = tmp_path / "mixed", known.views([0, 1, 2])
    folder.mkdir()
    pictures = (views.images[0].movedim(1, -1) * 255).round().byte().numpy()
    Image.fromarray(pictures[0]).save(folder / "0.png")
    Image.fromarray(pictures[1][:, 20:50]).save(folder / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(pictures[2])))
    stored.save(folder / "2.png", exif=exif)
    K = views.cameras.K[0].clone()
    K[1] = camera.crop_K(K[1], (54, 70), (0, 20), (54, 30))
    photos = tuple(
        replace(photo, name=f"{i}.png", image=folder / f"{i}.png", lens=None)
        for i, photo in enumerate(known.photos[:3])
    )
    cameras = replace(known.cameras.at([0, 1, 2]), K=K[None])
    size = (42, 42)
    narrow = replace(known, photos=photos, cameras=cameras)
    network = StandIn(narrow, size=size)
    network._depth = lambda index: torch.full(size, 2.0)  # type: ignore[method-assign]
    found = opened(folder, network)
    assert network.aspect == pytest.approx((70 / 54 * 30 / 54 * 70 / 54) ** (1 / 3))
    torch.testing.assert_close(found.cameras.K[0], K)
    assert [photo.size for photo in found.photos] == [(54, 70), (54, 30), (54, 70)]
    assert "up to 45% of a photo of mixed is not shown to it" in said[1]
    assert network.images is not None  # the first and the third as they stand upright
    upright = found.views([0, 2], size).images
    torch.testing.assert_close(network.images[:, [0, 2]], upright)
    assert torch.equal(found.views([2]).images, views.images[:, 2:])


def test_the_frames_of_a_video(known: Scene, tmp_path: Path, opened: Open) -> None:
    pictures = (known.views().images[0].movedim(1, -1) * 255).round().byte().numpy()
    write_video(tmp_path / "walk.mp4", pictures, fps=10)
    network = StandIn(known)
    found = opened(tmp_path / "walk.mp4", network)
    assert len(found) == 10 and found.name == "walk" and found.size == (54, 70)
    assert compare_cameras(found.cameras.c2w[0], known.cameras.c2w[0]).distance < 1e-4
    assert (found.views().images - known.views().images).abs().mean() < 0.03
    opened(tmp_path / "walk.mp4", network)
    assert network.answers == 1


def test_of_many_photos_so_many_are_used(
    known: Scene, bare: Path, opened: Open, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pose_networks, "MOST", 4)
    network = StandIn(known)
    network.shown = [0, 3, 6, 9]
    found = opened(bare, network)
    assert found.names == ("000000.png", "000003.png", "000006.png", "000009.png")
    assert said[0].startswith("stand_in sees at most 4 photos at once: 4 of the 10 of bare are")


def test_cameras_that_there_are_stay_unless_the_user_chose(
    known: Scene, room: str, model_folder: Path, opened: Open, said: list[str]
) -> None:
    given = open_scene(model_folder)
    for poses in (None, "auto"):
        assert torch.equal(opened(model_folder, poses).cameras.c2w, given.cameras.c2w)
    assert said == [] and given.poses == "file"
    found = opened(model_folder, StandIn(known, unit=3.0, angle=2.0))
    assert found.poses.startswith("stand_in") and found.names == given.names
    fit = align.cameras(found.cameras.c2w, given.cameras.c2w)
    assert se3.similarity_scale(fit).item() == pytest.approx(1 / 3, rel=0.05)
    assert said[-1].startswith(
        f"The cameras of {given.name} are replaced by those of {found.poses}: after the best "
        "similarity they differ by 1."  # a part of 2 degrees is common to all
    )
    # A chunk too, whose sensor depth is in the old unit
    again = opened(room, StandIn(known, unit=3.0, angle=2.0))
    assert not again.has_depth and any("depth maps of the photos are left out" in s for s in said)
    assert said[-1].startswith(f"The cameras of {known.name} are replaced")


def test_a_network_that_contradicts_the_cameras_is_said(
    known: Scene, room: str, opened: Open, said: list[str]
) -> None:
    for network in (StandIn(known, angle=15.0), StandIn(known, shift=1.5)):
        said.clear()
        opened(room, network)
        assert said[-1].startswith("That is much (more than 10 degrees or 20%): one of both is wro")
    said.clear()
    opened(room, StandIn(known, angle=1.0, shift=0.02))
    assert "differ by 0.8 degrees (median) and 1% of the spread" in said[-1]


def test_the_disagreement_is_measured_after_a_similarity(known: Scene) -> None:
    """Against errors that are known: every second camera turned by 8 degrees, both ways."""
    c2w = known.cameras.c2w[0].double()
    exact = compare_cameras(c2w, c2w)
    assert exact.angle < 1e-4 and exact.distance < 1e-9
    half = np.radians(4.0)
    s, c = np.sin(half), np.cos(half)
    turn = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    turned = c2w.clone()
    turned[::2, :3, :3] = c2w[::2, :3, :3] @ turn
    turned[1::2, :3, :3] = c2w[1::2, :3, :3] @ turn.T
    assert compare_cameras(turned, c2w).angle == pytest.approx(4.0, abs=0.3)
    centers = c2w[:, :3, 3]
    moved = c2w.clone()
    moved[0, 0, 3] += 0.05
    spread = (centers - centers.mean(dim=0)).square().sum(-1).mean().sqrt()
    distance = compare_cameras(moved, c2w).distance
    most = 0.05 / spread.item() / 10**0.5
    assert 0.7 * most < distance <= most
    standing = c2w.clone()
    standing[:, :3, 3] = 0
    assert compare_cameras(standing, c2w).distance == 1.0


class Wrong(StandIn):
    """Answers with something changed."""

    def __init__(self, scene: Scene, **changes: Callable[[PosedDepth], torch.Tensor]) -> None:
        super().__init__(scene)
        self.changes = changes

    def pose(self, images: torch.Tensor) -> PosedDepth:
        found = super().pose(images)
        return replace(found, **{name: change(found) for name, change in self.changes.items()})


def standing(found: PosedDepth) -> torch.Tensor:
    c2w = found.c2w.clone()
    c2w[..., :3, 3] *= 1e-3
    return c2w


def holed(found: PosedDepth) -> torch.Tensor:
    c2w = found.c2w.clone()
    c2w[0, 3, 0, 0] = torch.nan
    return c2w


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"c2w": standing}, "all 10 photos of bare were taken from one place: the farthest two"),
        ({"c2w": holed}, "stand_in 1,0,0,0 found no camera for 000003.png; wanted cameras and dep"),
        ({"K": lambda found: -found.K}, "found no camera for 000000.png"),
        ({"depth": lambda found: 0 * found.depth}, "found no depth; wanted cameras and depth"),
        ({"confidence": lambda found: 0 * found.confidence}, "found no depth"),
    ],
)
def test_what_is_no_scene_is_refused(
    changes: dict, words: str, known: Scene, bare: Path, opened: Open
) -> None:
    with pytest.raises(UserError, match=words):
        opened(bare, Wrong(known, **changes))


def test_too_little_memory_is_said(known: Scene, bare: Path, opened: Open) -> None:
    def exhaust(found: PosedDepth) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(
        UserError, match="10 photos do not fit into the memory of cpu with stand_in"
    ):
        opened(bare, Wrong(known, depth=exhaust))


def test_photos_that_share_nothing_are_named(
    known: Scene, bare: Path, opened: Open, said: list[str]
) -> None:
    def away(found: PosedDepth) -> torch.Tensor:
        c2w = found.c2w.clone()
        c2w[0, 4, :3, 3] += 1000.0
        return c2w

    def unsure(found: PosedDepth) -> torch.Tensor:
        confidence = found.confidence.clone()
        confidence[0, 7] *= 0.4
        return confidence

    network = Wrong(known, c2w=away, confidence=unsure)
    for _ in range(2):  # found again, it is said again
        said.clear()
        opened(bare, network)
        assert any("1 of 10 photos share less than 30%" in s and "(000004.png)" in s for s in said)
        assert any(s.startswith("stand_in is unsure of 000007.png: less than 50%") for s in said)


def test_one_photo_is_no_scene(known: Scene, tmp_path: Path, opened: Open) -> None:
    first = replace(known, photos=known.photos[:1], cameras=known.cameras.at([0]))
    with pytest.raises(UserError, match="1 photo of alone; wanted two or more"):
        opened(write_photos(first, tmp_path / "alone"), StandIn(known))


def test_choices_that_are_none_are_told(known: Scene, room: str, bare: Path, opened: Open) -> None:
    for path in (room, bare):
        with pytest.raises(UserError, match="`poses=da4`; wanted one of da3, da3-small, vggt, col"):
            opened(path, "da4")
        with pytest.raises(
            UserError, match="a Cameras without `name` as `poses`; wanted a teacher"
        ):
            opened(path, known.cameras)
    with pytest.raises(UserError, match="a Given without `pose_revision` as `poses`"):
        opened(bare, "pmsplat.foundation.teachers.given")
    with pytest.raises(UserError, match=r"`poses=colmap` for .*, whose photos are in a chunk"):
        opened(room, "colmap")


class TestAuto:
    @pytest.fixture
    def colmap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """pycolmap, which says that it is there."""

        def pose_photos(*_: object) -> Path:
            raise UserError("pycolmap is at work")

        monkeypatch.setattr(scenes, "pose_photos", pose_photos)

    def test_nothing_is_installed(
        self,
        bare: Path,
        opened: Open,
        said: list[str],
        colmap: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(pose_networks, "_is_installed", lambda module: False)
        with pytest.raises(UserError, match="pycolmap is at work"):
            opened(bare, "auto")
        missing = "(da3 is not installed; vggt is not installed)"
        assert said == [f"`poses=auto`: pycolmap finds the cameras {missing}."]

    def test_weights_that_cannot_be_had_are_said(
        self,
        bare: Path,
        opened: Open,
        said: list[str],
        colmap: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(pose_networks, "_is_installed", lambda module: "3" in module)
        monkeypatch.setitem(sys.modules, "depth_anything_3.cfg", None)
        with pytest.raises(UserError, match="pycolmap is at work"):
            opened(bare, "auto")
        assert "pycolmap finds the cameras (da3 cannot be used: the teacher" in said[0]

    def test_the_first_that_can_be_had(
        self,
        known: Scene,
        bare: Path,
        opened: Open,
        said: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        network = StandIn(known)
        monkeypatch.setattr(pose_networks, "_is_installed", lambda module: True)
        monkeypatch.setattr(depth_anything_3, "build", lambda config: network)
        found = opened(bare, "auto")
        assert found.poses == "stand_in 1,0,0,0"
        assert said[0] == "`poses=auto`: stand_in 1,0,0,0 finds the cameras."

    def test_an_explicit_choice_never_falls_back(
        self, bare: Path, opened: Open, colmap: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "depth_anything_3.cfg", None)
        with pytest.raises(
            UserError,
            match=r"pip install --no-deps depth-anything-3==0\.1\.1 add.*; or `poses=colmap`",
        ):
            opened(bare, "da3")
        monkeypatch.setitem(sys.modules, "vggt", None)
        with (
            pytest.warns(UserWarning, match="no commercial use"),
            pytest.raises(UserError, match=r"pip install --no-deps git\+https://github.com/faceb"),
        ):
            opened(bare, "vggt")
