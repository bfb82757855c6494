"""Photographs as scenes: real ones of every kind, and the ways in which a folder can be wrong."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample

import pmsplat
from pmsplat.data import synthetic, to_chunk_scene
from pmsplat.errors import UserError
from pmsplat.geometry import camera, se3
from pmsplat.io import chunks, images
from pmsplat.io.cameras import colmap
from pmsplat.io.cameras.ours import write_cameras
from pmsplat.io.cameras.survey import Lens, Shot, Survey
from pmsplat.scene import PhotoOptions, chunk_scene, open_scene, read_views
from pmsplat.scene.bounds import depth_range, ranges
from pmsplat.scene.photos import Scene
from pmsplat.types import Views
from tests.io.cameras.test_survey import transforms, write_text_model
from tests.io.test_chunks import ours

REAL = {
    "hololens_office": (80, (360, 540)),
    "bonsai": (40, (533, 800)),
    "south_building": (43, (768, 1024)),
    "fern": (20, (529, 706)),
    "fox": (50, (960, 540)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_scenes_open(shared: Path, name: str) -> None:
    scene = open_scene(shared / "scenes" / name)
    count, size = REAL[name]
    assert (len(scene), scene.size, scene.name) == (count, size, name)
    cameras = scene.cameras
    assert bool(se3.is_rigid(cameras.c2w).all())
    assert bool((cameras.near > 0).all()) and bool((cameras.far > 1.5 * cameras.near).all())
    views = scene.views([1, 0], (96, 128))
    assert views.images.shape == (1, 2, 3, 96, 128) and 0.1 < float(views.images.mean()) < 0.9
    assert views.names == ((scene.names[1], scene.names[0]),)
    assert (views.depth is not None) == (name == "hololens_office")


def sample(values: Tensor, xy: Tensor, mode: str = "bilinear") -> Tensor:
    """[channel, h, w] at normalised [point, 2]."""
    grid = (2 * xy - 1)[None, None]
    return grid_sample(values[None], grid, mode, "border", align_corners=False)[0, :, 0].T


@pytest.mark.parametrize("name", ["bonsai", "south_building", "fern"])
def test_sparse_points_have_one_colour_in_all_photos(shared: Path, name: str) -> None:
    """Points that two photos observe, projected with our cameras into our pixels, look alike.

    That holds only if poses, intrinsics, undistortion and crop belong together: moved by four
    pixels, the colours disagree clearly more.
    """
    path = shared / "scenes" / name
    scene, survey = open_scene(path), colmap.read(path / "sparse" / "0")
    a, b = 4, 5
    first, second = survey.shots[a].seen, survey.shots[b].seen
    assert first is not None and second is not None and scene.points is not None
    common = np.intersect1d(first, second)
    points = scene.points[torch.from_numpy(common)]
    views = scene.views([a, b], (320, 320))

    def difference(shift: float) -> float:
        colors = []
        for v in (0, 1):
            seen = camera.project_world(points, views.cameras.c2w[0, v], views.cameras.K[0, v])
            xy = seen[:, :2] + v * shift / 320
            colors.append((sample(views.images[0, v], xy), ((xy > 0) & (xy < 1)).all(dim=1)))
        inside = colors[0][1] & colors[1][1]
        assert int(inside.sum()) > 40
        return float((colors[0][0] - colors[1][0])[inside].abs().mean(dim=1).median())

    assert difference(0.0) < 0.6 * difference(4.0)
    assert difference(0.0) < 0.06


def consistency(views: Views) -> float:
    """Median relative error of one view's depth warped into the next."""
    assert views.depth is not None
    points = camera.unproject_depth(
        views.depth[0, 0], views.cameras.c2w[0, 0], views.cameras.K[0, 0]
    ).reshape(-1, 3)
    seen = camera.project_world(points, views.cameras.c2w[0, 1], views.cameras.K[0, 1])
    other = sample(views.depth[0, 1][None], seen[:, :2], "nearest")[:, 0]
    known = (views.depth[0, 0].reshape(-1) > 0) & (other > 0)
    known &= ((seen[:, :2] > 0) & (seen[:, :2] < 1)).all(dim=1) & (seen[:, 2] > 0)
    assert known.float().mean() > 0.2
    return float(((seen[:, 2] - other).abs() / other)[known].median())


def test_sensor_depth_agrees_between_views(shared: Path) -> None:
    scene = open_scene(shared / "scenes" / "hololens_office")
    assert consistency(scene.views([10, 12])) < 0.02
    assert consistency(scene.views([10, 12], (128, 128))) < 0.02
    near, far = float(scene.cameras.near[0, 0]), float(scene.cameras.far[0, 0])
    assert 0.5 < near < 1.5 and 4 < far < 9  # metres; the sensor sees 0.7 to 6.6


def test_a_fox_straightened_matches_its_neighbour(shared: Path) -> None:
    """A plane sweep between two undistorted photos finds more agreement than wrong poses do."""
    views = open_scene(shared / "scenes" / "fox").views([0, 1], (120, 68))
    c2w, K = views.cameras.c2w[0], views.cameras.K[0]
    rays = camera.rays(c2w[0], K[0], 120, 68).reshape(-1, 3)

    def best(other: Tensor) -> float:
        errors = []
        for inverse in torch.linspace(1 / 15.0, 1 / 2.0, 32):
            points = c2w[0, :3, 3] + rays / inverse
            xy = camera.project_world(points, other, K[1])[:, :2]
            error = (sample(views.images[0, 1], xy) - views.images[0, 0].reshape(3, -1).T).abs()
            inside = ((xy > 0) & (xy < 1)).all(dim=1)
            errors.append(torch.where(inside, error.mean(dim=1), torch.inf))
        lowest = torch.stack(errors).amin(dim=0)
        return float(lowest[lowest.isfinite()].median())

    wrong = c2w[1].clone()
    wrong[:3, 3] = 2 * c2w[0, :3, 3] - c2w[1, :3, 3]  # it went the other way
    assert best(c2w[1]) < 0.5 * best(wrong)


@pytest.fixture
def room(tmp_path: Path) -> Scene:
    return chunk_scene(synthetic.scene("a room", 4, (24, 36)))


def test_public_name_reads_a_chunk_scene(tmp_path: Path) -> None:
    scenes = [synthetic.scene(key, 3, (24, 36)) for key in ("one", "two")]
    path = chunks.append(tmp_path / "test", scenes)
    for place in (f"{path}:two", f"{tmp_path / 'test'}:two"):
        views = pmsplat.read_views(place, indices=[2])
        assert views.images.shape == (1, 1, 3, 24, 36)
        assert torch.equal(
            views.images[0, 0], torch.from_numpy(scenes[1].image(2)).permute(2, 0, 1) / 255
        )
        torch.testing.assert_close(views.cameras.K[0, 0], scenes[1].K[2])
        assert scenes[1].near is not None and views.depth is not None
        torch.testing.assert_close(views.cameras.near[0], scenes[1].near[2:])
        torch.testing.assert_close(views.depth[0, 0], torch.from_numpy(scenes[1].depth(2)))
    for place, told in (
        (str(path), "has 2 scenes; wanted one of one, two"),
        (f"{path}:three", "has no scene 'three'"),
        (f"{tmp_path / 'test'}", "has 2 scenes"),
        (f"{tmp_path / 'test' / '000009.torch'}:a", "there is no chunk"),
    ):
        with pytest.raises(UserError, match=told):
            open_scene(place)


def test_a_published_chunk_gets_the_published_range(tmp_path: Path) -> None:
    scene = ours("a", 3)
    bare = chunks.ChunkScene("a", scene.c2w, scene.K, scene.images, scene.timestamps)
    views = read_views(chunks.append(tmp_path, [bare]))
    assert views.cameras.near.unique().tolist() == [0.5]
    assert views.cameras.far.unique().tolist() == [100.0]


def test_our_cameras_json_opens_with_its_photos(tmp_path: Path, room: Scene) -> None:
    for i, name in enumerate(("x.png", "y.png")):
        images.write_image(tmp_path / "images" / name, room.photos[i].pixels())
    cameras = room.cameras.at([0, 1])
    write_cameras(tmp_path / "cameras.json", cameras, ["x.png", "y.png"], room.size)
    views = read_views(tmp_path)
    assert torch.equal(views.images, room.views([0, 1]).images)
    torch.testing.assert_close(views.cameras.c2w, cameras.c2w)
    torch.testing.assert_close(views.cameras.far, cameras.far)


def test_photos_through_chunks_and_back(tmp_path: Path, shared: Path) -> None:
    """Converting keeps cameras, range and depth counts, and the photo up to JPEG."""
    scene = open_scene(shared / "scenes" / "hololens_office")
    size = (120, 160)
    converted = to_chunk_scene(scene, "office", size, range(0, 9, 4))
    chunks.write_chunk(tmp_path / "0.torch", [converted])
    back = open_scene(tmp_path / "0.torch").views()
    want = scene.views([0, 4, 8], size)
    torch.testing.assert_close(back.cameras.K, want.cameras.K, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.cameras.c2w, want.cameras.c2w, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.cameras.near, want.cameras.near)
    assert back.depth is not None and want.depth is not None
    torch.testing.assert_close(back.depth, want.depth)
    assert float((back.images - want.images).abs().mean()) < 0.01


def test_jpegs_that_need_no_change_are_taken_over(tmp_path: Path, room: Scene) -> None:
    def name_jpegs(content: dict) -> None:
        for i, frame in enumerate(content["frames"]):
            frame["file_path"] = f"images/{i}.jpg"
            images.write_image(tmp_path / "images" / f"{i}.jpg", np.full((8, 12, 3), 99, np.uint8))

    transforms(tmp_path, name_jpegs)
    (tmp_path / "transforms.json").write_text(
        json.dumps(json.loads((tmp_path / "transforms.json").read_text()) | {"near": 1, "far": 9})
    )
    converted = to_chunk_scene(open_scene(tmp_path), "a")
    assert converted.images[1].numpy().tobytes() == (tmp_path / "images" / "1.jpg").read_bytes()


def posed(tmp_path: Path, change=lambda content: None) -> Path:
    def with_range(content: dict) -> None:
        content |= {"near": 1.0, "far": 9.0}
        change(content)

    return transforms(tmp_path, with_range).parent


def test_only_the_photos_asked_for_are_decoded(tmp_path: Path) -> None:
    path = posed(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    data = bytearray(images.encode_image(pixels))
    data[100:200] = bytes(100)  # its head and its end are whole
    (path / "images" / "1.png").write_bytes(data)
    assert read_views(path, indices=[0]).images.shape == (1, 1, 3, 8, 12)
    with pytest.raises(UserError, match=r"1\.png cannot be read as an image"):
        read_views(path)


def test_wrong_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no scene at"):
        open_scene(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither a camera file .* nor photos"):
        open_scene(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"a\.txt is no scene"):
        open_scene(tmp_path / "a.txt")
    path = posed(tmp_path / "missing")
    (path / "images" / "0.png").unlink()
    assert open_scene(path).names == ("1.png",)
    (path / "images" / "1.png").unlink()
    with pytest.raises(UserError, match=r"none of the 2 photos .* images/0\.png in"):
        open_scene(path)
    with pytest.raises(UserError, match="view 2 of few is asked for; wanted views from 0 to 1"):
        read_views(posed(tmp_path / "few"), indices=[0, 2])
    with pytest.raises(UserError, match="view -1 of few"):
        read_views(tmp_path / "few", indices=[-1])
    with pytest.raises(UserError, match="no view of few"):
        read_views(tmp_path / "few", indices=[])


def test_photos_that_do_not_fit_their_lens_are_told(tmp_path: Path) -> None:
    path = posed(tmp_path, lambda content: content.update(h=9))
    with pytest.raises(UserError, match=r"0\.png has 8x12 pixels, but the camera file 9x12"):
        open_scene(path)


def test_smaller_copies_of_the_photos_fit(tmp_path: Path) -> None:
    """images_4 beside cameras of the full photos: normalised intrinsics stay."""
    path = posed(tmp_path, lambda content: content.update(w=48, h=32, fl_x=40.0, cx=26.0))
    (path / "images").rename(path / "images_4")
    scene = open_scene(path, PhotoOptions("images_4"))
    assert scene.size == (8, 12)
    assert float(scene.cameras.K[0, 0, 0, 2]) == pytest.approx(26 / 48)


def test_photos_of_different_sizes_want_a_size(tmp_path: Path) -> None:
    def change(content: dict) -> None:
        content["frames"][1] |= {"w": 24, "h": 16, "fl_x": 20.0, "fl_y": 22.0, "cx": 13, "cy": 8}
        images.write_image(tmp_path / "images" / "1.png", np.zeros((16, 24, 3), np.uint8))

    path = posed(tmp_path, change)
    with pytest.raises(UserError, match=r"different sizes \(8x12 and 16x24\)"):
        read_views(path)
    K = read_views(path, size=(8, 8)).cameras.K[0]
    torch.testing.assert_close(K[0], K[1])


def turn(path: Path) -> None:
    """Stores a photo on its side, with the EXIF note that turns it upright."""
    with Image.open(path) as image:
        stored, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    stored.save(path, exif=exif)


def test_exif_orientation_follows_what_was_posed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    upright = posed(tmp_path / "upright")
    images.write_image(upright / "images" / "0.png", pixels)
    turn(upright / "images" / "0.png")
    views = read_views(upright, indices=[0])  # cameras of the upright photo, 8x12
    assert np.array_equal((views.images[0, 0] * 255).byte().permute(1, 2, 0), pixels)

    swapped = {"w": 8, "h": 12, "cx": 4.0, "cy": 6.5}
    stored = posed(tmp_path / "stored", lambda content: content.update(swapped))
    for i in range(2):
        images.write_image(stored / "images" / f"{i}.png", pixels)
        turn(stored / "images" / f"{i}.png")
    views = read_views(stored, indices=[0])  # cameras of the pixels as stored, 12x8
    assert np.array_equal((views.images[0, 0] * 255).byte().permute(1, 2, 0), np.rot90(pixels))


def test_colmap_looks_at_pixels_as_stored(tmp_path: Path) -> None:
    rows = "1 1 0 0 0 0 0 0 1 a.png\n0 0 7\n2 1 0 0 0 1 0 0 1 b.png\n0 0 7"
    write_text_model(tmp_path / "sparse" / "0", "PINHOLE 8 8 9 9 4 4", rows)
    points = "".join(f"{i} {i % 3} 0 {2 + i} 9 9 9 .5\n" for i in range(7, 30))
    (tmp_path / "sparse" / "0" / "points3D.txt").write_text(points)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        images.write_image(tmp_path / "images" / name, pixels)
    turn(tmp_path / "images" / "a.png")
    views = read_views(tmp_path)
    assert np.array_equal((views.images[0, 0] * 255).byte().permute(1, 2, 0), np.rot90(pixels))
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"none of the 2 photos .* a\.png in"):
        open_scene(tmp_path)


def test_depth_files_of_all_kinds(tmp_path: Path) -> None:
    depth = np.random.default_rng(0).uniform(1, 5, (4, 6)).astype(np.float32)
    depth[0, 0] = np.nan

    def change(content: dict) -> None:
        content["depth_unit_scale_factor"] = 0.01
        content["frames"][0]["depth_file_path"] = "d.npy"
        content["frames"][1]["depth_file_path"] = "d.png"

    path = posed(tmp_path, change)
    np.save(path / "d.npy", depth)
    images.write_depth(path / "d.png", np.full((8, 12), 250, np.uint16))
    views = read_views(path)
    assert views.depth is not None
    want = np.repeat(np.repeat(np.nan_to_num(depth), 2, axis=0), 2, axis=1)
    torch.testing.assert_close(views.depth[0, 0], torch.from_numpy(want))
    torch.testing.assert_close(views.depth[0, 1], torch.full((8, 12), 2.5))
    converted = to_chunk_scene(open_scene(path), "a")
    again = converted.depth(0)
    assert again is not None
    np.testing.assert_allclose(again, want, atol=1e-4)
    (path / "d.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"1 of 2 depth maps .*d\.npy cannot be read as depth"):
        read_views(path, indices=[0], options=PhotoOptions(strict=True))
    assert open_scene(path).photos[0].depth() is None


def shots(c2w: Tensor, **more) -> tuple[Shot, ...]:
    lens = Lens((10, 10), (10.0, 10.0), (5.0, 5.0))
    return tuple(Shot("", lens, pose.double().numpy(), **more) for pose in c2w)


def test_range_from_points_is_percentiles_with_margin() -> None:
    depths = np.linspace(2, 4, 201)
    assert depth_range(depths) == pytest.approx((2.02 / 1.25, 3.98 * 1.25))
    c2w = torch.eye(4).repeat(2, 1, 1)
    c2w[1, 2, 3] = -1.0
    points = np.stack([0 * depths, 0 * depths, depths], axis=1)
    found = ranges(Survey(shots(c2w), points), None).bounds
    assert found[0] == pytest.approx(depth_range(depths))
    assert found[1] == pytest.approx(depth_range(depths + 1))
    nothing = np.empty(0, np.int64)
    unseen = ranges(Survey(shots(c2w, seen=nothing), points), None).bounds  # without observations
    assert unseen == found
    outside = np.concatenate([points, points + np.array([90, 0, 0]), points * [1, 1, -1]])
    assert ranges(Survey(shots(c2w), outside), None).bounds[0] == pytest.approx(found[0])


def test_range_from_cameras_alone() -> None:
    """Cameras around a point know its distance; cameras in a row know their step."""
    angles = torch.linspace(0, 2, 9)
    eyes = 5 * torch.stack([angles.sin(), 0 * angles, angles.cos()], dim=1)
    around = se3.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]))
    for near, far in ranges(Survey(shots(around)), None).bounds:
        assert near == pytest.approx(1.25, rel=1e-4) and far == pytest.approx(20, rel=1e-4)
    row = torch.eye(4).repeat(5, 1, 1)
    row[:, 0, 3] = 0.2 * torch.arange(5)
    assert ranges(Survey(shots(row)), None).bounds[0] == pytest.approx((0.6, 60.0))
    with pytest.raises(UserError, match="cameras stand at one place"):
        ranges(Survey(shots(row[:1])), None)
    with pytest.raises(UserError, match="near=3 and far=2"):
        ranges(Survey(shots(row, near=3.0, far=2.0)), None)


def test_a_range_that_only_some_cameras_state_is_estimated_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    depths = np.linspace(2, 4, 201)
    points = np.stack([0 * depths, 0 * depths, depths], axis=1)
    plain, half = shots(torch.eye(4)[None]), shots(torch.eye(4)[None], near=1.0)
    whole = shots(torch.eye(4)[None], near=1.0, far=9.0)
    wanted = ranges(Survey(plain, points), None).bounds[0]
    assert not caplog.records
    for some, count in (((*whole, *plain, *half), "1 of 3"), (half, "0 of 1")):
        caplog.clear()
        assert ranges(Survey(some, points), None).bounds == [wanted] * len(some)
        (record,) = caplog.records
        assert record.levelname == "WARNING" and count in record.getMessage()
    caplog.clear()
    assert ranges(Survey(whole, points), None).bounds == [(1.0, 9.0)] and not caplog.records


def test_cameras_that_turn_their_back_on_the_points_are_told() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3)) * 0.1 - [0, 0, 5]
    with pytest.raises(UserError, match="no sparse point lies in front"):
        ranges(Survey(shots(torch.eye(4)[None]), points), None)


def test_bare_photos_are_posed_and_remembered(shared: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((shared / "scenes" / "sceaux_photos").iterdir())[4:8]:
        with Image.open(path) as image:
            image.resize((500, 375)).save(photos / path.name, quality=95)
    images.write_image(photos / "black.jpg", np.zeros((375, 500, 3), np.uint8))
    if not _has_pycolmap():
        pytest.skip("pycolmap is not installed")
    cache = tmp_path / "cache"
    scene = open_scene(photos, cache=cache)
    assert scene.names == tuple(sorted(path.name for path in photos.glob("1*.jpg")))
    (black,) = scene.left_out
    assert black.name == "black.jpg" and "hardly any detail: 0 points" in black.reason
    assert len(scene) == 4 and scene.points is not None and len(scene.points) > 100
    assert [path.name for path in photos.iterdir() if path.suffix != ".jpg"] == []
    stamp = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    again = open_scene(photos, cache=cache)
    assert torch.equal(again.cameras.c2w, scene.cameras.c2w) and again.left_out == scene.left_out
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == stamp


def _has_pycolmap() -> bool:
    return importlib.util.find_spec("pycolmap") is not None


def test_photos_of_nothing_cannot_be_posed(tmp_path: Path) -> None:
    if not _has_pycolmap():
        pytest.skip("pycolmap is not installed")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        images.write_image(tmp_path / "photos" / f"{i}.png", pixels)
    with pytest.raises(
        UserError, match=r"could pose 0 of 3 photos .*: no two .* the same; wanted at least 2"
    ):
        open_scene(tmp_path / "photos", cache=tmp_path / "cache")
    assert not any((tmp_path / "cache").iterdir())


def test_without_pycolmap_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images.write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pycolmap, .* is not installed.*pmsplat\[pose\]"):
        open_scene(tmp_path, cache=tmp_path / "cache")
