"""Conversion from file to file: every format, what is kept, what is moved, what is told."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import pytest
import torch

from pmsplat import cli
from pmsplat.cli import convert as convert_options
from pmsplat.errors import UserError
from pmsplat.geometry import camera, gaussian, se3
from pmsplat.io.cameras import colmap, read_cameras
from pmsplat.io.cameras.ours import write_cameras
from pmsplat.io.gaussians import load_gaussians, save_gaussians
from pmsplat.render import rasterize
from pmsplat.tasks.convert import Box, Options, camera_folder, convert, find_seen
from pmsplat.types import Cameras, Gaussians
from tests.scenes import random_cameras, random_gaussians

SIZE = (32, 40)
FORMATS = (".ply", ".splat", ".spz", ".glb", ".usdc", ".compressed.ply")


def look(gaussians: Gaussians, cameras: Cameras) -> torch.Tensor:
    return rasterize(gaussians, cameras, SIZE, backend="reference").color


@pytest.fixture
def scene(generator: torch.Generator) -> Gaussians:
    """Asymmetric, of degree 3, in a range of colours that 8 bits can hold."""
    gaussians = random_gaussians(80, generator, degree=3)
    return replace(gaussians, sh=0.5 * gaussians.sh)


@pytest.fixture
def cameras(generator: torch.Generator) -> Cameras:
    return random_cameras(3, generator)


@pytest.fixture
def source(tmp_path: Path, scene: Gaussians) -> Path:
    save_gaussians(scene, tmp_path / "in.ply")
    return tmp_path / "in.ply"


@pytest.fixture
def camera_file(tmp_path: Path, cameras: Cameras) -> Path:
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / "cameras.json"
    write_cameras(path, cameras, ["a.png", "b.png", "c.png"], SIZE)
    return path


def skip_without(suffix: str) -> None:
    if suffix.startswith(".usd"):
        pytest.importorskip("pxr.UsdVol")


@pytest.mark.parametrize("there", FORMATS)
@pytest.mark.parametrize("back", [".ply", ".glb", ".usdc"])
def test_the_scene_looks_the_same_in_every_format(
    tmp_path: Path, source: Path, scene: Gaussians, cameras: Cameras, there: str, back: str
) -> None:
    """One way up and one handedness everywhere; errors are those of the coarser format
    (.spz keeps 4 bits of the higher harmonics)."""
    skip_without(there)
    skip_without(back)
    convert(source, tmp_path / f"there{there}")
    convert(tmp_path / f"there{there}", tmp_path / f"back{back}")
    result = load_gaussians(tmp_path / f"back{back}")
    if there == ".splat":  # which has no harmonics beyond the first
        scene = replace(scene, sh=scene.sh[:, :, :1])
    tolerance = {".splat": 0.04, ".spz": 0.12, ".compressed.ply": 0.06}.get(there, 2e-5)
    expected = look(scene, cameras)
    assert (look(result, cameras) - expected).abs().max() < tolerance
    assert expected.std() > 0.1
    upside_down = look(result.transformed(torch.diag(torch.tensor([1.0, -1, -1, 1]))), cameras)
    assert (upside_down - expected).abs().max() > 0.3


def test_box_opacity_and_degree(tmp_path: Path, source: Path, scene: Gaussians) -> None:
    told: list[str] = []
    options = Options(
        crop=Box((-1, -1, 3.5), (1, 0.5, 5)), min_opacity=0.4, sh_degree=1, spz_version=None
    )
    summary = convert(source, tmp_path / "out.ply", options, told.append)
    means, opacities = scene.means[0].numpy(), scene.opacities[0].numpy()
    inside = ((means >= [-1, -1, 3.5]) & (means <= [1, 0.5, 5])).all(axis=1)
    rows = torch.from_numpy(inside & (opacities >= 0.4))
    assert 0 < rows.sum() < inside.sum() < 80
    kept = load_gaussians(tmp_path / "out.ply")
    assert torch.equal(kept.means, scene.means[:, rows])
    assert torch.equal(kept.sh, scene.sh[:, rows, :4])
    assert (summary.read, summary.written) == (80, int(rows.sum()))
    assert told[0] == f"{80 - inside.sum()} of 80 Gaussians outside the box are left out."
    assert len(told) == 2 and "opacity below 0.4" in told[1]


def test_transform_moves_scene_and_cameras_together(
    tmp_path: Path, source: Path, scene: Gaussians, cameras: Cameras, camera_file: Path
) -> None:
    quat = torch.tensor([0.5, -0.1, 0.7, 0.3], dtype=torch.float64)
    turn = 2.5 * gaussian.quat_to_rotation(quat)
    similarity = se3.compose(turn, torch.tensor([1.0, -2, 3], dtype=torch.float64))
    options = Options(similarity=similarity, cameras=camera_file, colmap_text=True)
    summary = convert(source, tmp_path / "out.glb", options)
    assert summary.cameras == tmp_path / "out-cameras" == camera_folder(tmp_path / "out.glb")
    expected = look(scene, cameras)
    assert summary.cameras is not None
    model = colmap.read(summary.cameras / "sparse" / "0")
    frames = read_cameras(summary.cameras / "transforms.json")
    moved = load_gaussians(tmp_path / "out.glb")
    for survey in (model, frames):
        shots = survey.shots
        c2w, K = (np.stack(rows) for rows in zip(*((s.c2w, s.lens.K) for s in shots), strict=True))
        again = Cameras(
            torch.from_numpy(c2w)[None].float(),
            torch.from_numpy(K)[None].float(),
            2.5 * cameras.near,
            2.5 * cameras.far,
        )
        torch.testing.assert_close(look(moved, again), expected, rtol=0, atol=1e-4)
        assert survey.points is not None
        np.testing.assert_allclose(survey.points, moved.means[0].numpy(), atol=1e-5)
    assert frames.shots[0].far == pytest.approx(2.5 * float(cameras.far[0, 0]))


def test_seen_is_what_projects_into_the_image_and_a_margin(
    scene: Gaussians, cameras: Cameras, camera_file: Path, generator: torch.Generator
) -> None:
    """A point is seen where its projection is in an image; a ball also where it reaches in."""
    far = torch.randn(1, 4000, 3, generator=generator) * 4
    points = random_gaussians(4000, generator)
    points = replace(points, means=far, scales=points.scales * 0)
    shots = read_cameras(camera_file).shots
    expected = torch.zeros(4000, dtype=torch.bool)
    for i in range(3):
        xyz = camera.project_world(far[0], cameras.c2w[0, i], cameras.K[0, i])
        xy = xyz[:, :2]
        expected |= ((xy >= 0) & (xy <= 1)).all(dim=-1) & (xyz[:, 2] > 0)
    found = find_seen(points, shots)
    assert 100 < expected.sum() < 3900
    assert (found != expected).sum() <= 2  # on an edge, float32 and float64 may disagree
    balls = find_seen(replace(points, scales=points.scales + 0.2), shots)
    assert (balls | ~found).all() and balls.sum() > found.sum()
    drawn = rasterize(scene, cameras, SIZE, backend="reference", extras=("screen",)).screen
    assert drawn is not None
    visible = (drawn.radii[0] > 0).any(dim=0)
    assert find_seen(scene, shots)[visible].all()


def test_seen_by_drops_what_no_camera_sees(
    tmp_path: Path, scene: Gaussians, cameras: Cameras, camera_file: Path
) -> None:
    behind = replace(scene, means=scene.means * torch.tensor([1.0, 1, -1]))
    both = Gaussians.joined([scene, behind])
    save_gaussians(both, tmp_path / "both.ply")
    told: list[str] = []
    convert(tmp_path / "both.ply", tmp_path / "out.ply", Options(seen_by=camera_file), told.append)
    kept = load_gaussians(tmp_path / "out.ply")
    assert kept.means.shape[1] <= 80 and "none of 3 cameras sees" in told[0]
    torch.testing.assert_close(look(kept, cameras), look(scene, cameras), rtol=0, atol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "opacity": ({"min_opacity": 1.5}, r"`min_opacity=1\.5`"),
    "degree": ({"sh_degree": 5}, "`sh_degree=5`"),
    "mirror": ({"similarity": torch.diag(torch.tensor([1.0, 1, -1, 1]))}, "that mirrors"),
    "zero": ({"similarity": torch.diag(torch.tensor([0.0, 0, 0, 1]))}, "a point"),
    "flat": ({"similarity": torch.diag(torch.tensor([1.0, 1, 0, 1]))}, "flat"),
    "stretch": ({"similarity": torch.diag(torch.tensor([1.0, 1, 2, 1]))}, "axes by 1, 1, 2"),
    "shear": (
        {"similarity": torch.tensor([[1.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])},
        "shears",
    ),
    "last row": ({"similarity": 2 * torch.eye(4)}, "the row 0 0 0 1"),
    "text alone": ({"colmap_text": True}, "`colmap_text` without `cameras`"),
    "nan": ({"similarity": torch.full((4, 4), float("nan"))}, "not finite"),
    "nothing": ({"crop": Box((9, 9, 9), (10, 10, 10))}, "not one of 80 Gaussians is left"),
    "no cameras": ({"seen_by": "absent"}, "there is no scene at absent"),
    "spz": ({"spz_version": 4}, "`spz_version`; wanted an output in .spz"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, source: Path, case: str) -> None:
    change, told = REFUSED[case]
    with pytest.raises(UserError, match=told):
        convert(source, tmp_path / "out.ply", Options(**change))
    assert [path.name for path in tmp_path.iterdir()] == ["in.ply"]


def test_names_that_are_refused(tmp_path: Path, source: Path, camera_file: Path) -> None:
    before = source.read_bytes()
    (tmp_path / "link.ply").symlink_to(source)
    for name, told in (
        ("in.ply", "is the input"),
        ("link.ply", "is the input"),
        ("out.obj", "a file that ends in"),
        ("out.gltf", "a file that ends in"),
    ):
        with pytest.raises(UserError, match=told):
            convert(source, tmp_path / name)
    with pytest.raises(UserError, match="no file"):
        convert(tmp_path / "absent.ply", tmp_path / "out.ply")
    (tmp_path / "out-cameras").mkdir()
    with pytest.raises(UserError, match="is there already"):
        convert(source, tmp_path / "out.ply", Options(cameras=camera_file))
    assert source.read_bytes() == before and not (tmp_path / "out.ply").exists()


def test_command_line(
    tmp_path: Path, source: Path, camera_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.json").write_text("[[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 1], [0, 0, 0, 1]]")
    out = tmp_path / "out.spz"
    options = ["--crop=-9,-9,0,9,9,9", "--min-opacity", "0.1", "--sh-degree", "1"]
    options += ["--seen-by", str(camera_file), "--transform", str(tmp_path / "m.json")]
    options += ["--spz-version", "3", "--cameras", str(camera_file), "--colmap-text"]
    assert cli.main(["convert", str(source), str(out), *options]) == 0
    told = capsys.readouterr().err
    assert "Gaussians are in" in told and "out-cameras/" in told
    assert load_gaussians(out).sh.shape[2] == 4
    assert (tmp_path / "out-cameras" / "sparse" / "0" / "images.txt").is_file()
    assert cli.main(["convert", str(source), str(source)]) == 2
    assert "is the input" in capsys.readouterr().err


def test_a_half_space_is_a_box() -> None:
    assert convert_options.box("-inf,-inf,0,inf,inf,inf")[2:] == (0, math.inf, math.inf, math.inf)


def test_names_without_suffix_are_looked_up(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INRIA's cameras.json: the photos beside it, if any, say what the files are called."""
    entry = {"width": 8, "height": 6, "fx": 9, "fy": 9, "position": [0, 0, 0]}
    entry |= {"rotation": torch.eye(3).tolist()}
    entries = [entry | {"img_name": name} for name in ("DSC_1", "IMG.2", "c.png")]
    (tmp_path / "cameras.json").write_text(json.dumps(entries))
    monkeypatch.setattr("pmsplat.tasks.convert.CLOUD", 50)

    def names(out: str) -> tuple[list[str], list[str]]:
        told: list[str] = []
        options = Options(cameras=tmp_path / "cameras.json")
        convert(source, tmp_path / f"{out}.ply", options, told.append)
        model = tmp_path / f"{out}-cameras" / "sparse" / "0"
        return told, sorted(shot.file for shot in colmap.read(model).shots)

    told, found = names("without")
    assert found == ["DSC_1", "IMG.2", "c.png"]
    assert told[0].startswith("2 cameras name photos without suffix (DSC_1)") and len(told) == 2
    assert told[1] == "Of 80 centres, 50 spread over all become points."
    (tmp_path / "images/deeper").mkdir(parents=True)
    for name in ("DSC_1.JPG", "deeper/IMG.2.png", "c.jpg"):
        (tmp_path / "images" / name).touch()
    told, found = names("within")
    assert found == ["DSC_1.JPG", "c.png", "deeper/IMG.2.png"] and len(told) == 1


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--crop=1,2,3", "six numbers"),
        ("--crop=1,0,0,0,1,1", "where x goes from 1 to 0"),
        ("--crop=0,0,nan,1,1,1", "six numbers"),
        ("--transform=" + ",".join(["inf"] * 16), "16 finite numbers"),
        ("--transform=1,2", "16 finite numbers"),
        ("--transform=" + ",".join(["nan"] * 16), "16 finite numbers"),
        ("--transform=" + "x" * 5000, "16 finite numbers"),
    ],
)
def test_options_that_make_no_sense(
    source: Path, capsys: pytest.CaptureFixture[str], option: str, told: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", str(source), "out.ply", option])
    assert stopped.value.code == 2 and told in capsys.readouterr().err


# --- scenes on a map, and scenes that say what is up

UTM = torch.tensor([431234.567, 5412345.678, 512.25], dtype=torch.float64)


def write_doubles(path: Path, scene: Gaussians, shift: torch.Tensor) -> torch.Tensor:
    """The scene moved by `shift` as a .ply of double coordinates; returns its exact means."""
    save_gaussians(scene, path)
    vertex = plyfile.PlyData.read(str(path))["vertex"].data
    exact = scene.means[0].double() + shift
    wide = np.zeros(len(vertex), [(n, "f8" if n in "xyz" else "f4") for n in vertex.dtype.names])
    for name in vertex.dtype.names:
        wide[name] = vertex[name]
    for name, values in zip("xyz", exact.T, strict=True):
        wide[name] = values.numpy()
    plyfile.PlyData([plyfile.PlyElement.describe(wide, "vertex")]).write(str(path))
    return exact


def world(gaussians: Gaussians) -> torch.Tensor:
    return gaussians.means[0].double() + torch.tensor(gaussians.origin, dtype=torch.float64)


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".usdc"])
def test_a_map_to_a_local_origin(tmp_path: Path, scene: Gaussians, suffix: str) -> None:
    skip_without(suffix)
    write_doubles(tmp_path / "map.ply", scene, UTM)
    back = se3.compose(torch.eye(3, dtype=torch.float64), -UTM)
    convert(tmp_path / "map.ply", tmp_path / f"out{suffix}", Options(similarity=back))
    found = load_gaussians(tmp_path / f"out{suffix}")
    assert found.origin == (0, 0, 0)
    assert (found.means - scene.means).abs().max() < 1e-5


def test_a_map_is_cut_seen_and_exported_in_its_own_world(
    tmp_path: Path, scene: Gaussians, cameras: Cameras
) -> None:
    exact = write_doubles(tmp_path / "map.ply", scene, UTM)
    frames = []
    for i in range(3):
        c2w = cameras.c2w[0, i].double().clone()
        c2w[:3, 3] += UTM
        c2w[:3, 1:3] *= -1  # nerfstudio's axes: y up, z back
        K = cameras.K[0, i].double()
        frames.append({
            "file_path": f"{i}.png", "transform_matrix": c2w.tolist(), "w": SIZE[1], "h": SIZE[0],
            "fl_x": float(K[0, 0] * SIZE[1]), "fl_y": float(K[1, 1] * SIZE[0]),
            "cx": float(K[0, 2] * SIZE[1]), "cy": float(K[1, 2] * SIZE[0]),
        })  # fmt: skip
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
    low, high = torch.tensor([-1.0, -1, 3.5]), torch.tensor([1.0, 0.5, 5])
    box = Box(tuple((low + UTM).tolist()), tuple((high + UTM).tolist()))
    options = Options(
        crop=box, seen_by=tmp_path / "transforms.json", cameras=tmp_path / "transforms.json"
    )
    summary = convert(tmp_path / "map.ply", tmp_path / "out.ply", options)
    inside = ((scene.means[0] >= low) & (scene.means[0] <= high)).all(dim=-1)
    found = load_gaussians(tmp_path / "out.ply")
    assert 0 < inside.sum() < 80 and found.means.shape[1] == int(inside.sum())
    torch.testing.assert_close(world(found), exact[inside], rtol=0, atol=1e-6)
    assert summary.cameras is not None
    survey = read_cameras(summary.cameras / "transforms.json")
    assert survey.points is not None
    points = colmap.read(summary.cameras / "sparse/0").points
    assert points is not None
    np.testing.assert_allclose(points, exact[inside], rtol=0, atol=1e-6)
    place = cameras.c2w[0, 0, :3, 3].double() + UTM
    np.testing.assert_allclose(survey.shots[0].c2w[:3, 3], place, rtol=0, atol=1e-6)
    # Beside a format without a place for the origin, cameras count from it too.
    said: list[str] = []
    only = Options(cameras=tmp_path / "transforms.json")
    convert(tmp_path / "map.ply", tmp_path / "flat.splat", only, said.append)
    assert any("The cameras count from the same origin" in sentence for sentence in said)
    survey = read_cameras(tmp_path / "flat-cameras" / "transforms.json")
    near = load_gaussians(tmp_path / "flat.splat").means[0].double()
    expected = scene.means[0].double() - cameras.c2w[0, 0, :3, 3].double()
    found_offsets = near - torch.from_numpy(survey.shots[0].c2w[:3, 3])
    torch.testing.assert_close(found_offsets, expected, rtol=0, atol=1e-5)


@pytest.fixture
def z_up(tmp_path: Path, scene: Gaussians) -> Path:
    """As nerfstudio exports it."""
    save_gaussians(replace(scene, up=(0.0, 0.0, 1.0)), tmp_path / "z.ply")
    assert b"comment Vertical Axis: z" in (tmp_path / "z.ply").read_bytes()
    return tmp_path / "z.ply"


def test_up_in_the_file_is_up_in_gltf_with_the_cameras(
    tmp_path: Path, z_up: Path, scene: Gaussians, cameras: Cameras, camera_file: Path
) -> None:
    told: list[str] = []
    summary = convert(z_up, tmp_path / "z.glb", Options(cameras=camera_file), told.append)
    found = load_gaussians(tmp_path / "z.glb")
    x, y, z = scene.means.unbind(dim=-1)
    assert torch.equal(found.means, torch.stack([x, -z, y], dim=-1))  # of glTF's (x, z, -y)
    assert summary.cameras is not None and any("is up in z.glb" in text for text in told)
    shots = read_cameras(summary.cameras / "transforms.json").shots
    c2w = torch.from_numpy(np.stack([shot.c2w for shot in shots]))[None].float()
    again = replace(cameras, c2w=c2w)
    torch.testing.assert_close(look(found, again), look(scene, cameras), rtol=0, atol=1e-4)


def test_up_stays_where_the_file_has_no_axes(tmp_path: Path, z_up: Path, scene: Gaussians) -> None:
    shift = se3.compose(2 * torch.eye(3), torch.tensor([1.0, 2, 3]))
    convert(z_up, tmp_path / "moved.ply", Options(similarity=shift))
    found = load_gaussians(tmp_path / "moved.ply")
    assert found.up == (0, 0, 1)
    torch.testing.assert_close(found.means, 2 * scene.means + torch.tensor([1.0, 2, 3]))


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_a_turn_of_the_user_says_how_the_scene_stands(
    tmp_path: Path, z_up: Path, scene: Gaussians, suffix: str
) -> None:
    """The file's word for up does not turn the scene once more, and it is said."""
    turn = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    told: list[str] = []
    convert(z_up, tmp_path / f"out{suffix}", Options(similarity=turn), told.append)
    found = load_gaussians(tmp_path / f"out{suffix}")
    torch.testing.assert_close(found.means, scene.means @ turn[:3, :3].T)
    assert found.up is None and "that alone now says how it stands" in told[0]


def test_confidence_stays_with_what_is_kept_and_moved(
    tmp_path: Path, scene: Gaussians, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    sure = torch.rand(1, 80, generator=generator)
    save_gaussians(replace(scene, confidence=sure), tmp_path / "in.ply")
    turn = torch.tensor([[0.0, -2, 0, 7], [2, 0, 0, 8], [0, 0, 2, 9], [0, 0, 0, 1]])
    options = Options(min_opacity=0.5, sh_degree=1, similarity=turn)
    convert(tmp_path / "in.ply", tmp_path / "out.ply", options)
    vertex = plyfile.PlyData.read(str(tmp_path / "out.ply"))["vertex"]
    kept = load_gaussians(tmp_path / "in.ply").opacities[0] >= 0.5
    assert 0 < kept.sum() < 80
    np.testing.assert_array_equal(vertex["confidence"], sure[0, kept].numpy())
    assert "confidence" not in caplog.text
    convert(tmp_path / "out.ply", tmp_path / "out.splat")
    assert caplog.text.count("no place for the confidence") == 1


def test_fewer_gaussians(tmp_path: Path, generator: torch.Generator) -> None:
    """Neighbours are merged until so many are left; more than there are changes nothing."""
    scene = random_gaussians(2000, generator)
    save_gaussians(scene, tmp_path / "all.ply")
    said: list[str] = []
    out = tmp_path / "few.ply"
    summary = convert(tmp_path / "all.ply", out, Options(gaussians=300), tell=said.append)
    assert summary.written == 300 == load_gaussians(out).means.shape[1]
    assert said == [
        "2000 Gaussians became 300: neighbours were merged, and then those that hide least were "
        "left out."
    ]
    said.clear()
    convert(tmp_path / "all.ply", tmp_path / "same.ply", Options(gaussians=2000), tell=said.append)
    assert said == ["`gaussians=2000` changes nothing: there are 2000 Gaussians."]
    convert(tmp_path / "all.ply", tmp_path / "plain.ply")
    assert (tmp_path / "same.ply").read_bytes() == (tmp_path / "plain.ply").read_bytes()
    with pytest.raises(UserError, match="`gaussians=0`; wanted a whole number from 1"):
        convert(tmp_path / "all.ply", tmp_path / "none.ply", Options(gaussians=0))
    assert cli.main(["convert", str(out), str(tmp_path / "x.ply"), "--gaussians", "10"]) == 0
