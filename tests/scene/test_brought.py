"""What people bring beside well-made files: other encodings, damaged photos, odd numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData, PlyElement

from pmsplat.errors import UserError
from pmsplat.io import depth_maps, images
from pmsplat.io.cameras.export import Points, write_colmap
from pmsplat.scene import PhotoOptions, Scene, open_scene
from tests.scene.test_found import LENS, NAMES, photos, places, points, shots

HEIGHT, WIDTH = LENS.size


def transforms(
    folder: Path,
    names: list[str] = NAMES,
    change: Callable[[dict[str, Any]], object] | None = None,
    file: str = "transforms.json",
) -> Path:
    """A camera file and photos; the camera of photo i is i steps to the right."""
    photos(folder, names)
    frames = [
        {"file_path": shot.file, "transform_matrix": (shot.c2w * [1, -1, -1, 1]).tolist()}
        for shot in shots(names)
    ]
    content = {"w": WIDTH, "h": HEIGHT, "fl_x": 30, "fl_y": 30, "near": 1, "far": 9}
    content |= {"frames": frames}
    if change is not None:
        change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def colmap(folder: Path, text: bool = False, cloud: Points | None = None) -> Path:
    photos(folder / "images", NAMES)
    write_colmap(folder / "sparse" / "0", shots(NAMES), cloud or points(), text)
    return folder


def brightness(scene: Scene) -> list[float]:
    """Which photo each is, by its red; see `photos`."""
    return [round(photo.pixels()[0, 0, 0] / 20, 1) for photo in scene.photos]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be", "latin-1"])
def test_json_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = transforms(tmp_path, [f"küche_{i}.png" for i in range(4)]) / "transforms.json"
    text = json.dumps(json.loads(path.read_text()), ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    scene = open_scene(tmp_path)
    assert places(scene) == [0, 1, 2, 3] and scene.names[0] == "küche_0.png"


def test_a_whole_number_beyond_all_floats_is_told(tmp_path: Path) -> None:
    transforms(tmp_path, change=lambda c: c.update(w=10**400))
    with pytest.raises(UserError, match=r"w=1000.*a finite number"):
        open_scene(tmp_path)
    transforms(
        tmp_path,
        change=lambda c: c["frames"][1].update(transform_matrix=[[10**400] * 4] * 4),
    )
    assert places(open_scene(tmp_path)) == [0, 2, 3]


def test_colmap_text_of_other_editors(tmp_path: Path) -> None:
    model = colmap(tmp_path, text=True) / "sparse" / "0"
    want = open_scene(tmp_path)
    for path in model.iterdir():
        lines = path.read_text().rstrip("\n").replace(" ", "\t").split("\n")
        lines.insert(1, "  # a remark")
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = open_scene(tmp_path)
    assert places(found) == places(want)
    assert found.points is not None and want.points is not None
    assert found.points.equal(want.points)


@pytest.mark.parametrize("kind", [".txt", ".ply"])
def test_points_of_another_kind_than_the_cameras(tmp_path: Path, kind: str) -> None:
    model = colmap(tmp_path) / "sparse" / "0"
    (model / "points3D.bin").unlink()
    cloud = points()
    if kind == ".txt":
        write_colmap(tmp_path / "text", shots(NAMES), cloud, text=True)
        (tmp_path / "text" / "points3D.txt").rename(model / "points3D.txt")
    else:
        table = np.array([tuple(xyz) for xyz in cloud.xyz], [(axis, "f8") for axis in "xyz"])
        PlyData([PlyElement.describe(table, "vertex")]).write(str(model / "points3D.ply"))
    check_range(open_scene(tmp_path), cloud.xyz)


def check_range(scene: Scene, xyz: np.ndarray) -> None:
    """Near and far of the first camera are those of the points in its picture."""
    x, y, z = (xyz - shots(NAMES)[0].c2w[:3, 3]).T
    seen = z[(abs(30 * x / z) < WIDTH / 2) & (abs(30 * y / z) < HEIGHT / 2) & (z > 0)]
    low, high = np.percentile(seen, (1, 99))
    assert scene.cameras.near[0, 0] == pytest.approx(low / 1.25, rel=1e-5)
    assert scene.cameras.far[0, 0] == pytest.approx(high * 1.25, rel=1e-5)


def test_points_that_are_not_finite_do_not_count(tmp_path: Path) -> None:
    cloud = points()
    broken = np.concatenate([cloud.xyz, [[np.inf] * 3, [0, np.nan, 4], [0, 0, np.inf]]])
    colmap(tmp_path, cloud=Points(broken, np.zeros((len(broken), 3), np.uint8)))
    scene = open_scene(tmp_path)
    check_range(scene, cloud.xyz)
    assert scene.points is not None and scene.points.isfinite().all()


@pytest.mark.parametrize("file", ["images.bin", "cameras.bin", "points3D.bin"])
def test_a_file_of_a_model_stands_for_the_model(tmp_path: Path, file: str) -> None:
    colmap(tmp_path)
    assert places(open_scene(tmp_path / "sparse" / "0" / file)) == [0, 1, 2, 3]


@pytest.mark.parametrize("file", ["poses.json", "TRANSFORMS.JSON", "nerfstudio/transforms.json"])
def test_cameras_of_any_name_are_not_passed_over(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = (tmp_path / file).parent
    transforms(place, file=Path(file).name)
    (place / "notes.json").write_text("{]")
    assert places(open_scene(tmp_path)) == [0, 1, 2, 3]
    assert f"the cameras are those of {tmp_path / file}" in caplog.text


def test_several_files_of_cameras(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    transforms(tmp_path, file="a.json")
    transforms(tmp_path, file="b.json")
    with pytest.raises(UserError, match=r"2 files of cameras \(a\.json, b\.json\).*name it"):
        open_scene(tmp_path)
    transforms(colmap(tmp_path))
    transforms(tmp_path, file="transforms_train.json")
    open_scene(tmp_path)
    assert "those of transforms.json are taken, not those of sparse/0, transforms_train.json" in (
        caplog.text
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut, make_folder, lambda path: path.write_bytes(b"")])
def test_a_damaged_photo_is_left_out(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    transforms(tmp_path)
    damage(tmp_path / NAMES[2])
    scene = open_scene(tmp_path)
    assert places(scene) == brightness(scene) == [0, 1, 3]
    assert [photo.name for photo in scene.left_out] == [NAMES[2]]
    with pytest.raises(UserError, match=r"1 of 4 photos .* cannot be used: 2\.png"):
        open_scene(tmp_path, PhotoOptions(strict=True))


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_the_end_of_a_photo_tells_whether_it_is_whole(tmp_path: Path, format: str) -> None:
    data = images.encode_image(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    if format == "jpeg":
        pixels = images.read_image(data)
        data = images.encode_image(pixels, format)
    path = tmp_path / f"a.{format}"
    for end in (b"", bytes(100), b"a trailer of some phone"):
        path.write_bytes(data + end)
        images.check_whole(path)
    for end in (b"", b"a trailer of some phone"):
        path.write_bytes(data[:-500] + end)
        with pytest.raises(UserError, match="cannot be read as an image"):
            images.check_whole(path)


def test_hidden_files_are_no_photos(tmp_path: Path) -> None:
    names = [f"f{i}.png" for i in range(3)]
    photos(tmp_path / "images", names)
    rows = []
    for i in range(3):
        right, down, forward, center = shots(names)[i].c2w[:3].T
        matrix = np.stack([down, right, -forward, center, [HEIGHT, WIDTH, 30]], axis=1)
        rows.append([*matrix.reshape(-1), 1, 9])
        (tmp_path / "images" / f"._f{i}.png").write_bytes(b"\0\5\x16\7")  # of macOS
    np.save(tmp_path / "poses_bounds.npy", rows)
    assert places(open_scene(tmp_path)) == [0, 1, 2]


def test_one_photo_is_never_two(tmp_path: Path) -> None:
    names = ["cam0/0.png", "cam1/0.png", "cam0/1.png"]
    transforms(tmp_path, names)
    (tmp_path / "cam0").rename(tmp_path / "images")
    (tmp_path / "cam1" / "0.png").unlink()
    scene = open_scene(tmp_path)
    assert scene.names == ("1.png",) and places(scene) == brightness(scene) == [2]
    assert "not certain which photo" in scene.left_out[0].reason


def test_a_lost_photo_does_not_make_the_others_small(tmp_path: Path) -> None:
    names = [f"images/{name}" for name in NAMES]
    transforms(tmp_path, names)
    for name in NAMES:
        path = tmp_path / "images_4" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(path)
    (tmp_path / names[1]).unlink()
    scene = open_scene(tmp_path)
    assert scene.size == LENS.size and places(scene) == [0, 2, 3]


def test_photos_of_two_folders_keep_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["left/0.png", "left/1.png", "right/0.png", "right/1.png"]
    scene = open_scene(transforms(tmp_path, names))
    assert scene.names == tuple(names) and brightness(scene) == places(scene)
    transforms(tmp_path, names, lambda c: c["frames"][3].update(file_path="right/0.png"))
    open_scene(tmp_path)
    assert "names 1 photos again, with another camera" in caplog.text


def depth(counts: float, kind: type = np.float32) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), counts, kind)


DEPTHS: dict[str, Callable[[Path], object]] = {
    "floats.npy": lambda path: np.save(path, depth(2)),
    "counts.npy": lambda path: np.save(path, depth(2000, np.uint16)),
    "channel.npy": lambda path: np.save(path, depth(2)[..., None]),
    "any.npz": lambda path: np.savez(path, depth=depth(2)),
    "floats.tiff": lambda path: Image.fromarray(depth(2)).save(path),
    "counts.tif": lambda path: Image.fromarray(depth(2000, np.uint16)).save(path),
    "counts.pgm": lambda path: Image.fromarray(depth(2000, np.uint16)).save(path),
    "small.png": lambda path: Image.fromarray(depth(2000, np.uint16)[::2, ::2]).save(path),
}


@pytest.mark.parametrize("file", DEPTHS)
@pytest.mark.parametrize("named", ["depth/{}", "depth\\{}", "/home/me/kitchen/depth/{}"])
def test_depth_of_every_kind_is_in_the_unit_of_the_scene(
    tmp_path: Path, file: str, named: str
) -> None:
    (tmp_path / "depth").mkdir()
    DEPTHS[file](tmp_path / "depth" / file)
    transforms(
        tmp_path,
        change=lambda c: c["frames"][1].update(depth_file_path=named.format(file)),
    )
    found = open_scene(tmp_path).photos[1].depth()
    assert found is not None
    np.testing.assert_allclose(found, depth(2), rtol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged tags
@pytest.mark.parametrize("file", ["floats.npy", "any.npz", "floats.tiff", "counts.pgm"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, on tags of TIFF
def test_damaged_depth_never_escapes(tmp_path: Path, file: str) -> None:
    path, refused = tmp_path / file, 0
    DEPTHS[file](path)
    data, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for at in random.integers(0, min(len(data), 200), 3):
            damaged[at] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            depth_maps.read_header(path)
            depth_maps.read_depth(path)
        except UserError:
            refused += 1
    assert refused > 0


def test_depth_is_none_where_it_is_no_distance(tmp_path: Path) -> None:
    holes = depth(2)
    holes[0, :4] = -1, np.nan, np.inf, 0
    np.save(tmp_path / "d.npy", holes)
    transforms(tmp_path, change=lambda c: c["frames"][0].update(depth_path="d.npy"))
    found = open_scene(tmp_path).photos[0].depth()
    assert found is not None and not found[0, :4].any()
    assert (np.delete(found.reshape(-1), slice(4)) == 2).all()


def test_a_unit_of_depth_that_is_stated(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", depth(200))
    for where in ("file", "frame"):

        def change(content: dict[str, Any], where: str = where) -> None:
            content["frames"][1]["depth_file_path"] = "d.npy"
            place = content if where == "file" else content["frames"][1]
            place["depth_unit_scale_factor"] = "0.01"

        found = open_scene(transforms(tmp_path, change=change)).photos[1].depth()
        assert found is not None
        np.testing.assert_allclose(found, depth(2), rtol=1e-6)
    with pytest.raises(UserError, match="a depth unit of 0"):
        open_scene(transforms(tmp_path, change=lambda c: c.update(integer_depth_scale=0)))


@pytest.mark.parametrize(
    ("file", "write", "told"),
    [
        ("d.exr", lambda path: path.write_bytes(b"v/1\1"), "is OpenEXR"),
        ("d.png", lambda path: path.write_bytes(images.encode_depth(depth(9, np.uint16))[:50]),
         "cannot be read as an image"),
        ("d.png", lambda path: Image.fromarray(depth(9, np.uint16)[:9]).save(path), "32"),
        ("d.png", lambda path: Image.new("RGB", (WIDTH, HEIGHT)).save(path), "of mode RGB"),
        ("d.npz", lambda path: np.savez(path, a=depth(1), b=depth(1)), "cannot be read as depth"),
        ("d.png", lambda path: None, "d.png is not there"),
    ],
)  # fmt: skip
def test_depth_that_cannot_be_used_costs_depth_alone(
    tmp_path: Path,
    file: str,
    write: Callable[[Path], object],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(tmp_path / file)
    transforms(tmp_path, change=lambda c: [f.update(depth_path=file) for f in c["frames"][:1]])
    scene = open_scene(tmp_path)
    assert len(scene) == 4 and scene.photos[0].depth() is None
    assert "1 of 1 depth maps cannot be used" in caplog.text and told in caplog.text
    with pytest.raises(UserError, match="depth maps cannot be used"):
        open_scene(tmp_path, PhotoOptions(strict=True))


def test_points_that_transforms_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cloud = points()
    table = np.array([tuple(xyz) for xyz in cloud.xyz], [(axis, "f8") for axis in "xyz"])
    PlyData([PlyElement.describe(table, "vertex")], text=True).write(str(tmp_path / "p.ply"))

    def change(named: str) -> Callable[[dict[str, Any]], object]:
        return lambda c: (c.pop("near"), c.pop("far"), c.update(ply_file_path=named))

    for named in ("p.ply", ".\\p.ply", "/home/me/kitchen/p.ply"):
        check_range(open_scene(transforms(tmp_path, change=change(named))), cloud.xyz)
    open_scene(transforms(tmp_path, change=change("q.ply")))
    assert "the sparse points, q.ply, are not there" in caplog.text
