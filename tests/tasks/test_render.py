"""Pictures of Gaussians: known surfaces, any unit, any camera file, any refusal."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pmsplat import cli
from pmsplat.errors import UserError
from pmsplat.geometry import camera, gaussian, se3
from pmsplat.io.cameras import colmap, read_cameras
from pmsplat.io.cameras.ours import write_cameras
from pmsplat.io.gaussians import load_gaussians, save_gaussians
from pmsplat.io.video import read_frames
from pmsplat.render import rasterize
from pmsplat.scene import open_scene
from pmsplat.tasks.cameras import from_file, resized
from pmsplat.tasks.render import CHANNELS, Options, check_memory, choose_pictures, render
from pmsplat.types import CLASSIC, MIP, RESPLAT, Cameras, DrawingRules, Gaussians
from pmsplat.zoo import memory

SIZE = (48, 64)
FOCAL = 60.0  # pixels
QUIET = Options(video=False, device="cpu", backend="cpu")
GL = np.diag([1.0, -1, -1, 1])
NAMES = ("front", "slanted", "beside")


def wall(unit: float = 1.0) -> Gaussians:
    """A dense opaque plane at z = 4, of mixed colours, degree 1."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.meshgrid(torch.linspace(-5, 5, 140), torch.linspace(-4, 4, 112), indexing="xy")
    means = torch.stack([x, y, torch.full_like(x, 4.0)], dim=-1).reshape(1, -1, 3)
    count = means.shape[1]
    return Gaussians(
        means=unit * means,
        scales=unit * torch.tensor([0.05, 0.05, 1e-5]).repeat(1, count, 1),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(1, count, 1),
        opacities=torch.full((1, count), 0.9),
        sh=torch.randn(1, count, 4, 3, generator=generator) * 0.5,
    )


def lookers(unit: float = 1.0) -> Cameras:
    """Three cameras before the wall: straight, slanted by 30 degrees, and to the side of it."""
    turns = torch.tensor([0.0, math.radians(30), math.radians(-10)])
    rotation = gaussian.quat_to_rotation(
        torch.stack([(turns / 2).cos(), 0 * turns, (turns / 2).sin(), 0 * turns], dim=-1)
    )
    eyes = unit * torch.tensor([[0.2, 0.1, 0], [-1.0, 0, 0.5], [0.8, -0.3, 1.0]])
    K = torch.tensor([[FOCAL / SIZE[1], 0, 0.5], [0, FOCAL / SIZE[0], 0.5], [0, 0, 1]])
    near = torch.full((1, 3), unit)
    return Cameras(se3.compose(rotation, eyes)[None], K.repeat(1, 3, 1, 1), near, 10 * near)


def ours(folder: Path, cameras: Cameras) -> Path:
    write_cameras(folder / "ours.json", cameras, NAMES, SIZE)
    return folder / "ours.json"


def inria(folder: Path, cameras: Cameras) -> Path:
    entries = [
        {
            "id": i,
            "img_name": name,
            "width": SIZE[1],
            "height": SIZE[0],
            "position": c2w[:3, 3].tolist(),
            "rotation": c2w[:3, :3].tolist(),
            "fx": FOCAL,
            "fy": FOCAL,
        }
        for i, (name, c2w) in enumerate(zip(NAMES, cameras.c2w[0], strict=True))
    ]
    (folder / "cameras.json").write_text(json.dumps(entries))
    return folder / "cameras.json"


def transforms(folder: Path, cameras: Cameras) -> Path:
    frames = [
        {"file_path": f"images/{name}.png", "transform_matrix": (c2w.numpy() @ GL).tolist()}
        for name, c2w in zip(NAMES, cameras.c2w[0], strict=True)
    ]
    head = {"w": SIZE[1], "h": SIZE[0], "fl_x": FOCAL}
    (folder / "transforms.json").write_text(json.dumps(head | {"frames": frames}))
    return folder


def model(folder: Path, cameras: Cameras) -> Path:
    """COLMAP's text, names such that their order is that of the others."""
    place = folder / "sparse/0"
    place.mkdir(parents=True)
    lines = []
    w2c = se3.invert(cameras.c2w[0])
    for i, (motion, name) in enumerate(zip(w2c, NAMES, strict=True)):
        quat = gaussian.rotation_to_quat(motion[:3, :3])
        numbers = " ".join(f"{x:.9g}" for x in [*quat, *motion[:3, 3]])
        lines += [f"{i + 1} {numbers} 1 {i}_{name}.png", ""]
    (place / "images.txt").write_text("\n".join(lines) + "\n")
    (place / "points3D.txt").write_text("# none\n")
    h, w = SIZE
    (place / "cameras.txt").write_text(f"1 SIMPLE_PINHOLE {w} {h} {FOCAL} {w / 2} {h / 2}\n")
    return folder


def world_to_camera(folder: Path, cameras: Cameras) -> Path:
    frames = [
        {"file": f"{name}.JPG", "R": motion[:3, :3].tolist(), "t": motion[:3, 3].tolist()}
        for name, motion in zip(NAMES, se3.invert(cameras.c2w[0]), strict=True)
    ]
    head = {"H": SIZE[0], "W": SIZE[1], "fx": FOCAL, "fy": FOCAL, "cx": 32.0, "cy": 24.0}
    (folder / "w2c.json").write_text(json.dumps(head | {"frames": frames}))
    return folder / "w2c.json"


def array(folder: Path, kind: str, name: str) -> Tensor:
    return torch.from_numpy(np.load(folder / kind / f"{name}.npy")).float()


def surface(cameras: Cameras, unit: float = 1.0) -> Tensor:
    """Depth [view, height, width] of the plane z = 4, in closed form."""
    rays = camera.rays(cameras.c2w[0], cameras.K[0], *SIZE)
    away = 4 * unit - cameras.c2w[0, :, 2, 3]
    return away[:, None, None] / rays[..., 2]


@pytest.fixture
def cli_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `pmsplat render` on the wall: (exit code, what it said)."""
    save_gaussians(wall(), tmp_path / "wall.ply")

    def run(*more: str, scene: str = str(tmp_path / "wall.ply")) -> tuple[int, str]:
        out = ["--output", str(tmp_path / "out"), "--device", "cpu", "--backend", "cpu"]
        code = cli.main(["render", scene, *out, *more])
        return code, capsys.readouterr().err.strip()

    return run


@pytest.mark.parametrize("unit", [1.0, 100.0, 1e-3])
def test_a_plane_in_any_unit(tmp_path: Path, unit: float) -> None:
    cameras = lookers(unit)
    out = tmp_path / "out"
    options = replace(QUIET, median=True)
    summary = render(wall(unit), inria(tmp_path, cameras), out, options)
    truth = surface(cameras, unit)
    normal = torch.einsum("vij,i->vj", cameras.c2w[0, :, :3, :3], torch.tensor([0.0, 0, -1]))
    for i, name in enumerate(NAMES):
        assert summary.views[name]["covered"] > 0.99
        exact = 1e-6 if i == 0 else 0.02  # a Gaussian has one depth, three deviations around it too
        torch.testing.assert_close(array(out, "depth", name), truth[i], rtol=exact, atol=0)
        median = array(out, "depth_median", name)
        torch.testing.assert_close(median, truth[i], rtol=exact, atol=0)
        normals = array(out, "normals", name)
        assert (normals.norm(dim=-1) - 1).abs().max() < 1e-3
        angle = (normals @ normal[i]).clamp(-1, 1).acos().rad2deg()
        assert angle.max() < (0.1 if i == 0 else 8) and angle.mean() < (0.1 if i == 0 else 2)
        with Image.open(out / "depth" / f"{name}.png") as counts:
            depth = np.asarray(counts) * summary.depth_scale
        np.testing.assert_allclose(depth, truth[i], rtol=exact, atol=summary.depth_scale)
        with Image.open(out / "alpha" / f"{name}.png") as counts:
            alpha = np.asarray(counts) / 65535
        np.testing.assert_allclose(alpha, array(out, "alpha", name), atol=1e-5)


@pytest.mark.parametrize("median", [False, True])
def test_every_picture_is_drawn_once_and_median_only_where_wanted(
    median: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def count(*arguments: Any, extras: tuple[str, ...] = (), **named: Any) -> Any:
        if "screen" not in extras:  # that is the estimate of memory
            calls.append(extras)
        return rasterize(*arguments, extras=extras, **named)

    monkeypatch.setattr("pmsplat.tasks.render.rasterize", count)
    render(wall(), ours(tmp_path, lookers()), tmp_path / "out", replace(QUIET, median=median))
    assert calls == [("depth_median",) if median else ()] * len(NAMES)


def test_a_renderer_without_median_depth_is_refused_not_helped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmsplat.render.gsplat.obstacle", lambda device: None)
    options = replace(QUIET, median=True, backend="gsplat")
    with pytest.raises(UserError, match=r"`median=True` with `backend=gsplat`.*drop `backend`"):
        render(wall(), ours(tmp_path, lookers()), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", [ours, transforms, model, world_to_camera])
def test_every_camera_file_gives_the_same_pictures(
    tmp_path: Path, write: Callable[[Path, Cameras], Path]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    cameras = lookers()
    render(wall(), inria(tmp_path / "a", cameras), tmp_path / "wanted", QUIET)
    summary = render(wall(), write(tmp_path / "b", cameras), tmp_path / "got", QUIET)
    shots = read_cameras(tmp_path / "got/cameras.json").shots
    assert len(summary.views) == len(shots) == 3
    for wanted, shot in zip(NAMES, shots, strict=True):
        got = Path(shot.file).stem
        assert wanted in got
        for kind in ("depth", "alpha"):
            torch.testing.assert_close(
                array(tmp_path / "got", kind, got),
                array(tmp_path / "wanted", kind, wanted),
                rtol=1e-5,
                atol=1e-5,
            )
        pictures = [
            np.asarray(Image.open(tmp_path / folder / "color" / f"{name}.png")).astype(int)
            for folder, name in (("got", got), ("wanted", wanted))
        ]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_colours_are_those_of_rasterize_and_the_result_is_a_scene(tmp_path: Path) -> None:
    cameras, gaussians = lookers(), wall()
    white = replace(QUIET, background=(1.0, 1.0, 1.0), size=(40, 40))
    summary = render(gaussians, ours(tmp_path, cameras), tmp_path / "out", white)
    assert summary.size == (40, 40)
    scene = open_scene(tmp_path / "out")
    views = scene.views()
    torch.testing.assert_close(views.cameras.c2w, cameras.c2w)
    drawn = rasterize(gaussians, views.cameras, (40, 40), "cpu", background=torch.ones(3))
    assert (drawn.color.clamp(0, 1) - views.images).abs().max() <= 0.5 / 255 + 1e-6
    assert views.depth is not None
    assert (drawn.depth - views.depth).abs().max() <= 0.5 * summary.depth_scale + 1e-6
    assert torch.equal(views.cameras.near, cameras.near)  # as the file says
    survey = read_cameras(tmp_path / "out/cameras.json")
    assert [shot.file for shot in survey.shots] == [f"color/{name}.png" for name in NAMES]


def test_photos_are_compared_and_the_rest_of_them_is_not(tmp_path: Path) -> None:
    """Photos are the rendering itself, 0.1 darker, and noise where no surface is."""
    gaussians = wall()
    gaussians = gaussians.map(lambda x: x[:, gaussians.means[0, :, 0] < 0])  # half of the wall
    gaussians = replace(gaussians, sh=0.3 * gaussians.sh)
    path = inria(tmp_path, lookers())
    first = render(gaussians, path, tmp_path / "out", QUIET)
    photos = tmp_path / "photos/deeper"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in NAMES[:2]:
        pixels = np.asarray(Image.open(tmp_path / "out/color" / f"{name}.png")).astype(int)
        empty = np.load(tmp_path / "out/alpha" / f"{name}.npy") < 0.5
        changed = np.where(empty[..., None], rng.integers(0, 255, (*SIZE, 3)), pixels - 26)
        assert pixels[~empty].min() >= 26
        Image.fromarray(changed.astype(np.uint8)).save(photos / f"{name.upper()}.PNG")
    summary = render(gaussians, path, tmp_path / "out", replace(QUIET, photos=tmp_path / "photos"))
    assert set(first.views["front"]) == set(summary.views["beside"]) == {"covered"}
    for name in NAMES[:2]:
        found = summary.views[name]
        assert found["psnr_inside"] == pytest.approx(-20 * math.log10(26 / 255), abs=0.1)
        assert found["psnr"] < 12
    said: list[str] = []
    for size, small in (((23, 31), True), ((24, 32), False)):
        options = replace(QUIET, photos=tmp_path / "photos", size=size)
        render(gaussians, path, tmp_path / "small", options, tell=said.append)
        assert ("small beside photos of 48x64" in said[1]) == small
        assert ("The rules 'mip' make up" in said[1]) == small
        said.clear()
        render(replace(gaussians, rules=MIP), path, tmp_path / "small", options, tell=said.append)
        assert not any("small beside" in sentence for sentence in said)
        said.clear()
    assert summary.means["psnr"] == pytest.approx(
        sum(summary.views[name]["psnr"] for name in NAMES[:2]) / 2
    )


@pytest.mark.parametrize("own", [CLASSIC, MIP, DrawingRules(blur=0.1)])
@pytest.mark.parametrize("wanted", [None, "classic", "mip", "resplat"])
def test_rules_are_those_of_the_gaussians_or_those_that_are_named(
    own: DrawingRules, wanted: str | None, tmp_path: Path
) -> None:
    rules = {None: own, "classic": CLASSIC, "mip": MIP, "resplat": RESPLAT}[wanted]
    gaussians, said = replace(wall(), rules=own), []
    options = replace(QUIET, rules=wanted, size=(12, 16))
    render(gaussians, inria(tmp_path, lookers()), tmp_path / "out", options, tell=said.append)
    assert any("although the Gaussians say" in s for s in said) == (rules != own)
    assert any("antialiased" in s for s in said if s.startswith("Drawing")) == rules.antialiased
    drawn = rasterize(wall(), lookers().at([0]), (12, 16), "cpu", rules=rules).alpha[0, 0]
    alpha = np.load(tmp_path / "out/alpha" / f"{NAMES[0]}.npy")
    np.testing.assert_allclose(alpha, drawn.numpy(), atol=1e-3)


def test_planes_of_cameras_that_say_none_hide_no_more_than_usual() -> None:
    """Not at the near and far of what the picture shows, beyond which some of it lies."""
    gaussians = replace(wall(), rules=RESPLAT)
    (usual,), (wide,) = (
        choose_pictures(replace(gaussians, rules=rules), None, replace(QUIET, orbit=1))
        for rules in (CLASSIC, RESPLAT)
    )
    assert usual.near is not None and wide.near is not None and wide.far is not None
    assert wide.near * RESPLAT.near == pytest.approx(usual.near * CLASSIC.near)
    assert wide.far * RESPLAT.far > 10 * gaussians.means[..., 2].max()


def test_a_lens_that_distorts_becomes_the_pinhole_of_its_undistorted_photo(tmp_path: Path) -> None:
    transforms(tmp_path, lookers())
    content = json.loads((tmp_path / "transforms.json").read_text())
    content |= {"k1": -0.2, "p1": 0.01, "near": 1, "far": 9}
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    for name in NAMES:  # half as large as the file says
        Image.new("RGB", (SIZE[1] // 2, SIZE[0] // 2)).save(tmp_path / "images" / f"{name}.png")
    views = open_scene(tmp_path).views()
    pictures = from_file(tmp_path, tmp_path / "images", every=1, limit=None)
    for i, picture in enumerate(pictures):
        assert picture.size == views.size == (24, 32) and picture.photo is not None
        torch.testing.assert_close(picture.camera.K[0, 0], views.cameras.K[0, i])
        torch.testing.assert_close(picture.camera.c2w[0, 0], views.cameras.c2w[0, i])
    assert pictures[0].camera.K[0, 0, 0, 0] != lookers().K[0, 0, 0, 0]


def test_attributes_have_the_weights_of_the_colour(tmp_path: Path) -> None:
    gaussians, channels = wall(), 2 * CHANNELS + 1
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(gaussians.means.shape[1], channels, generator=generator)
    table[:, 0], table[:, -1] = 1, gaussians.means[0, :, 2]
    np.save(tmp_path / "features.npy", table.double().numpy())
    options = replace(QUIET, attributes=tmp_path / "features.npy", limit=1)
    out = tmp_path / "out"
    render(gaussians, inria(tmp_path, lookers()), out, options)
    drawn = array(out, "attributes", "front")
    alpha, depth = array(out, "alpha", "front"), array(out, "depth", "front")
    assert drawn.shape == (channels, *SIZE)
    torch.testing.assert_close(drawn[0], alpha)
    torch.testing.assert_close(drawn[-1], alpha * depth)
    at_once = rasterize(
        gaussians, lookers().at([0]), SIZE, "reference", attributes=table[None]
    ).attributes
    assert at_once is not None
    torch.testing.assert_close(drawn, at_once[0, 0], rtol=1e-4, atol=1e-4)


def test_an_orbit_sees_the_scene_from_all_sides(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    ball = replace(
        wall(),
        means=torch.nn.functional.normalize(
            torch.randn(1, 140 * 112, 3, generator=generator), dim=-1
        )
        + torch.tensor([5.0, 0, 2]),
        scales=torch.full((1, 140 * 112, 3), 0.03),
    )
    out = tmp_path / "out"
    said: list[str] = []
    options = Options(orbit=12, size=(60, 80), device="cpu", backend="cpu")
    summary = render(ball, None, out, options, tell=said.append)
    assert list(summary.views) == [f"{i:04d}" for i in range(12)]
    covered = [view["covered"] for view in summary.views.values()]
    assert min(covered) > 0.15 and max(covered) / min(covered) < 1.05
    rows = (array(out, "alpha", "0000") > 0.1).any(dim=1).nonzero()
    assert rows.min() >= 1 and rows.max() <= 58 and len(rows) > 60 * 0.8
    frames = read_frames(out / "video.mp4")
    assert len(frames) == 12 and frames[0].shape[0] == 60 and frames[0].shape[1] > 160
    assert "12 pictures of 60x80" in said[0]

    for up, axis in (("z", 2), ("-x", 0)):
        pictures = choose_pictures(ball, None, replace(options, up=up))
        c2w = torch.cat([picture.camera.c2w[0] for picture in pictures])
        assert c2w[:, axis, 0].abs().max() < 1e-5  # level
        assert (c2w[:, axis, 1] * (-1 if up == "z" else 1) > 0).all()  # down is not up


def test_an_orbit_around_one_gaussian(tmp_path: Path) -> None:
    one = wall().map(lambda x: x[:, :1])
    one = replace(one, scales=torch.tensor([[[3.0, 1, 1]]]), means=torch.tensor([[[7.0, 0, 0]]]))
    options = replace(QUIET, orbit=4, size=(40, 30))
    summary = render(one, None, tmp_path / "out", options)
    covered = [view["covered"] for view in summary.views.values()]
    assert min(covered) > 0.02 and max(covered) < 0.6


def test_an_orbit_like_given_cameras(tmp_path: Path) -> None:
    """It begins at the first camera that does not look down, with its lens and size."""
    middle = wall().means[0].median(dim=0).values
    eyes = middle + torch.tensor([[0.01, -3, 0], [0, -1, -3], [1, -1, -3]])
    c2w = se3.look_at(eyes, middle, torch.tensor([0.0, -1, 0]))
    given, path = lookers(), tmp_path / "cameras.json"
    write_cameras(path, replace(given, c2w=c2w[None]), NAMES, SIZE)
    pictures = choose_pictures(wall(), path, Options(orbit=8, up="-y"))
    torch.testing.assert_close(pictures[0].c2w, c2w[1], rtol=0, atol=1e-4)
    assert pictures[0].size == SIZE and torch.allclose(pictures[0].K, given.K[0, 1])
    write_cameras(path, replace(given.at([0]), c2w=c2w[None, :1]), ["a"], SIZE)
    with pytest.raises(UserError, match="look down"):
        choose_pictures(wall(), path, Options(orbit=8, up="-y"))


def test_a_second_run_replaces_the_first_and_foreign_files_stay(
    tmp_path: Path, cli_run: Callable[..., tuple[int, str]]
) -> None:
    cameras = str(inria(tmp_path, lookers()))
    assert cli_run("--cameras", cameras, "--no-video", "--median")[0] == 0
    assert (tmp_path / "out/depth_median/front.png").is_file()
    code, said = cli_run("--cameras", cameras, "--every", "2", "--fps", "2")
    assert code == 0 and "into 2 pictures of 48x64" in said and "covered" in said
    out = tmp_path / "out"
    assert sorted(path.name for path in (out / "color").iterdir()) == ["beside.png", "front.png"]
    assert sorted(path.name for path in out.iterdir()) == [
        "alpha", "cameras.json", "color", "depth", "depth_color", "metrics.json", "normals",
        "sheet.png", "video.mp4",
    ]  # fmt: skip
    assert len(read_frames(out / "video.mp4")) == 2
    (out / "metrics.json").unlink()
    code, said = cli_run("--cameras", cameras)
    assert code == 2 and "holds other files" in said


def test_cameras_of_another_scene(tmp_path: Path) -> None:
    cameras = lookers()
    away = cameras.c2w.clone()
    away[..., :3, :3] *= torch.tensor([-1.0, 1, -1])  # turned round
    out = tmp_path / "out"
    with pytest.raises(UserError, match="none of the 3 cameras sees one of the 15680 Gaussians"):
        render(wall(), ours(tmp_path, replace(cameras, c2w=away)), out, QUIET)
    assert not out.exists()
    away[:, 1] = cameras.c2w[:, 1]
    said: list[str] = []
    path = inria(tmp_path, replace(cameras, c2w=away))
    summary = render(wall(), path, out, QUIET, tell=said.append)
    assert said[-1] == "Nothing of the scene is visible in 2 pictures: front, beside."
    assert [view["covered"] > 0 for view in summary.views.values()] == [False, True, False]
    faint = replace(wall(), opacities=torch.full((1, 15680), 1e-3))
    with pytest.raises(UserError, match="nothing is visible in any of the 3 pictures"):
        render(faint, path, tmp_path / "other", QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "neither cameras nor an orbit"),
        (["--cameras", "none.json"], "there is no none.json"),
        (["--cameras", "none"], "there is no scene at none"),
        (["--orbit", "0"], "--orbit 0"),
        (["--orbit", "3", "--up", "w"], "--up w"),
        (["--orbit", "3", "--photos", "."], "--photos together with --orbit"),
        (["--orbit", "3", "--every", "0"], "--every or --limit without cameras"),
        (["--orbit", "3", "--limit", "2"], "--every or --limit without cameras"),
        (["--orbit", "3", "--backend", "cpuu"], "'cpuu'"),
        (["--orbit", "3", "--backend", "gsplat"], "--backend gsplat on the CPU; wanted a CUDA"),
        (["--cameras", "TMP/wall.ply"], "is no file of cameras; wanted"),
        (["--orbit", "3", "--attributes", "none.npy"], "cannot be read as an array"),
        (["--orbit", "3", "--attributes", "TMP/short.npy"], r"wanted numbers [gaussian, channel]"),
        (["--orbit", "3", "--attributes", "TMP/words.npy"], r"wanted numbers [gaussian, channel]"),
        (["--orbit", "3", "--attributes", "TMP/nan.npy"], "not finite"),
        (["--cameras", "TMP/cameras.json", "--every", "0"], "--every 0"),
        (["--cameras", "TMP/cameras.json", "--limit", "0"], "--limit 0"),
        (["--cameras", "TMP/cameras.json", "--photos", "TMP"], "is named like a camera"),
        (["--cameras", "TMP/cameras.json", "--photos", "none"], "no folder none"),
        (["--cameras", "TMP/cameras.json", "--fps", "0"], "--fps 0"),
        (["--cameras", "TMP/cameras.json", "--rules", "mop"], "--rules mop"),
        (["--cameras", "TMP/bare", "--photos", "TMP"], "brings its own"),
    ],
)
def test_what_a_user_may_get_wrong(
    tmp_path: Path, cli_run: Callable[..., tuple[int, str]], options: list[str], message: str
) -> None:
    inria(tmp_path, lookers())
    Image.new("RGB", (64, 48)).save(tmp_path / "foreign.png")
    np.save(tmp_path / "short.npy", np.zeros((7, 2)))
    np.save(tmp_path / "words.npy", np.full(15680, "word"))
    np.save(tmp_path / "nan.npy", np.full(15680, np.nan))
    code, said = cli_run(*(option.replace("TMP", str(tmp_path)) for option in options))
    assert code == 2 and message in said and "Traceback" not in said
    assert said.splitlines()[-1].startswith("pmsplat: ")
    assert not (tmp_path / "out").exists()


def test_no_scene_no_gaussians_and_two_scenes(
    tmp_path: Path, cli_run: Callable[..., tuple[int, str]]
) -> None:
    code, said = cli_run("--orbit", "3", scene="none.ply")
    assert code == 2 and "none.ply" in said
    code, said = cli_run("--orbit", "3", scene=str(tmp_path))
    assert code == 2 and "is a folder; wanted a file" in said
    faint = replace(wall(), opacities=torch.full((1, 15680), 1e-3))
    with pytest.raises(UserError, match=r"nothing is visible.*; look at sizes and opacities"):
        render(faint, None, tmp_path / "out", replace(QUIET, orbit=3, size=(20, 30)))
    with pytest.raises(UserError, match="size=0x9"):
        render(wall(), None, tmp_path / "out", replace(QUIET, orbit=3, size=(0, 9)))
    for some in (wall().map(lambda x: x[:, :0]), wall().map(lambda x: x.repeat_interleave(2, 0))):
        with pytest.raises(UserError, match="wanted one scene"):
            render(some, None, tmp_path / "out", replace(QUIET, orbit=3))


def test_memory_is_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = choose_pictures(wall(), None, Options(orbit=3))
    device = torch.device("cpu")
    check_memory(wall(), pictures, 0, device)
    needs = []
    for factor in (1, 3):
        larger = resized(pictures, (540 * factor, 960 * factor))
        for channels in (0, 64):
            monkeypatch.setattr(memory, "free_bytes", lambda _: 1 << 20)
            with pytest.raises(UserError, match="need about") as caught:
                check_memory(wall(), larger, channels, device)
            needs.append(float(caught.value.got.split("about ")[1].split()[0]))
    assert needs == sorted(needs) and needs[-1] > 4 * needs[0] > 0


@pytest.mark.parametrize("side", [20_000, 1_000_000])
def test_an_enormous_picture_is_refused_before_it_is_drawn(
    side: int, cli_run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: 64 << 30)
    code, said = cli_run("--orbit", "1", "--size", f"{side}x{side}")
    assert code == 2 and f"pictures of {side}x{side} need about" in said and "--size" in said


@pytest.mark.slow
def test_a_trained_scene_against_its_photos_and_points(shared: Path, tmp_path: Path) -> None:
    """Bonsai: PSNR inside the object, and depth at COLMAP's points but for one scale."""
    trained, photos = shared / "scenes/pretrained_3dgs", shared / "scenes/bonsai"
    cameras, out = trained / "bonsai_mini_cameras40.json", tmp_path / "out"
    options = replace(QUIET, photos=photos / "images", median=True)
    gaussians = load_gaussians(trained / "bonsai-7k-mini.splat")
    summary = render(gaussians, cameras, out, options)
    inside = [view["psnr_inside"] for view in summary.views.values()]
    assert len(inside) == 40 and min(inside) > 19.5 and summary.means["psnr_inside"] > 21

    for kind, most in (("depth", 0.006), ("depth_median", 0.004)):
        ratio = depth_ratios(out, kind, photos / "sparse/0")
        spread = ((ratio - ratio.median()).abs().median() / ratio.median()).item()
        print(f"{kind}: {len(ratio)} points, MAD/median {spread:.2%}; {summary.means}")
        assert len(ratio) > 10_000 and spread < most


def depth_ratios(out: Path, kind: str, points_folder: Path) -> Tensor:
    """Drawn depth over the depth of the sparse points of the same photos, in another unit."""
    survey, ratios = colmap.read(points_folder), []
    drawn = {shot.file: shot for shot in read_cameras(out / "cameras.json").shots}
    assert survey.points is not None
    for shot in survey.shots:
        stem = Path(shot.file).stem
        assert shot.seen is not None
        points = torch.from_numpy(survey.points[shot.seen])
        lens = drawn[f"color/{stem}.png"].lens  # a pinhole of the same pose
        (height, width), K = lens.size, torch.from_numpy(lens.K)
        x, y, z = camera.project_world(points, torch.from_numpy(shot.c2w), K).unbind(dim=-1)
        within = (x > 0) & (x < 1) & (y > 0) & (y < 1)
        column, row = (x[within] * width).long(), (y[within] * height).long()
        sure = array(out, "alpha", stem)[row, column] > 0.95
        ratios.append((array(out, kind, stem)[row, column] / z[within])[sure])
    return torch.cat(ratios)
