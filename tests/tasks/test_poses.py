"""From photographs without cameras to results: `--poses` of predict and depth."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import pmsplat
from pmsplat import cli
from pmsplat.errors import UserError
from pmsplat.io.cameras import read_cameras
from pmsplat.io.images import write_image
from pmsplat.models import depthsplat
from pmsplat.scene import PhotoOptions, Scene, open_scene
from pmsplat.scene.pose_networks import compare_cameras
from pmsplat.tasks import depth as depth_task
from pmsplat.tasks.predict import Options, predict
from tests.lab.cameras import Known
from tests.lab.poses import StandIn

SIZE = (48, 64)


@pytest.fixture(scope="module")
def model() -> depthsplat.DepthSplat:
    torch.manual_seed(0)
    config = depthsplat.Config(
        vit="none", width=16, planes=8, transformer_layers=1, head_width=16, sh_degree=1
    )
    return depthsplat.build(config).eval()


@pytest.fixture(scope="module")
def known(room: str) -> Scene:
    return open_scene(room)


@pytest.fixture
def bare(known: Scene, tmp_path: Path) -> Path:
    for name, photo in zip(known.names, known.views().images[0], strict=True):
        write_image(tmp_path / "bare" / f"{name}.png", photo)
    return tmp_path / "bare"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def options(network: StandIn | None, size: tuple[int, int] = SIZE, held_out: int = 3) -> Options:
    return Options(
        views=2, size=size, held_out=held_out, fps=1, seconds=1.0, device="cpu",
        photos=PhotoOptions(poses=network),
    )  # fmt: skip


def test_the_unit_of_a_network_does_not_matter(
    known: Scene, bare: Path, model: depthsplat.DepthSplat, tmp_path: Path
) -> None:
    """Seven times the unit: the same prediction, seven times as large; `scale` makes up for it."""
    found, psnr, scale = [], [], []
    for unit in (1.0, 7.0):
        out = tmp_path / f"{unit:g}"
        summary = predict(bare, model, out, options(StandIn(known, unit=unit)))
        found.append(pmsplat.load_ply(out / "gaussians.ply"))
        psnr.append(summary.means["psnr"])
        scale.append(summary.scale)
    one, seven = found
    assert scale[0] == pytest.approx(7 * scale[1], rel=1e-5)
    assert psnr[0] == pytest.approx(psnr[1], abs=1e-2)
    torch.testing.assert_close(one.opacities, seven.opacities, atol=1e-4, rtol=1e-4)
    size = (one.means - one.means.mean(dim=1)).square().mean().sqrt()
    assert (one.means - seven.means / 7).abs().max() < 1e-3 * size
    torch.testing.assert_close(one.scales, seven.scales / 7, atol=0, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:images of 54x70 pixels are padded")
def test_results_say_what_found_the_cameras(
    known: Scene, room: str, bare: Path, model: depthsplat.DepthSplat, tmp_path: Path
) -> None:
    network, said = StandIn(known, unit=2.0), list[str]()
    predict(bare, model, tmp_path / "out", options(network), tell=said.append)
    name = "stand_in 2,0,0,0"
    assert f"The cameras were found by {name}." in said
    written = json.loads((tmp_path / "out" / "cameras.json").read_text())
    assert written["poses"] == name
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["report"]["poses"] == name
    assert metrics["report"]["range_source"].startswith("the depth of the network")
    assert read_cameras(tmp_path / "out" / "cameras.json").poses == name
    # So do those of depth, and a scene that is opened with its cameras
    chosen = depth_task.Options(device="cpu", photos=PhotoOptions(poses=network))
    depth_task.depth(bare, model, tmp_path / "deep", chosen)
    assert network.answers == 1
    assert json.loads((tmp_path / "deep" / "cameras.json").read_text())["poses"] == name
    found = open_scene(tmp_path / "deep" / "cameras.json", PhotoOptions(folder=str(bare)))
    assert found.poses == name
    # Cameras that were given are the file's
    predict(room, model, tmp_path / "given", options(None), tell=said.append)
    assert json.loads((tmp_path / "given" / "cameras.json").read_text())["poses"] == "file"
    assert sum(line.startswith("The cameras were found by") for line in said) == 1


def test_refined_cameras_are_written_and_said(known: Scene, bare: Path, tmp_path: Path) -> None:
    """Of a network that errs by 1.5 degrees, with an encoder that knows the depth of two photos."""
    at, size = [0, 4], (40, 56)
    network, said = StandIn(known, unit=2.0, angle=1.5), list[str]()
    depth = known.views(at, size).depth
    assert depth is not None
    chosen = replace(options(network, size, held_out=1), context=(0, 4), refine_poses=10)
    summary = predict(bare, Known(2.0 * depth), tmp_path / "out", chosen, tell=said.append)
    by = summary.refined
    assert by is not None and by.steps == 10 and by.round > 0 and by.degrees > 0
    assert by.error_after < by.error_before
    (line,) = [line for line in said if "were refined in" in line]
    assert f"{by.degrees:.2g} degrees" in line and "of 10 steps" in line
    written = json.loads((tmp_path / "out" / "cameras.json").read_text())
    assert written["refined"] == asdict(by)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["refined"] == asdict(by)
    # The context has moved from where the network says it is, other photos have not
    found = open_scene(bare, PhotoOptions(poses=network)).cameras.c2w[0]
    names = [frame["name"] for frame in written["frames"]]
    for frame in written["frames"]:
        number = known.names.index(frame["name"].removesuffix(".png"))
        same = torch.equal(torch.tensor(frame["c2w"]), found[number])
        assert same == (frame["name"] not in names[:2])


def test_cameras_that_cannot_be_refined_are_refused(
    room: str, model: depthsplat.DepthSplat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grouped = replace(options(None), views=6, group=3, refine_poses=5)
    with pytest.raises(UserError, match=r"`refine_poses=5` for views in \d groups"):
        predict(room, model, tmp_path / "out", grouped)
    words = ["predict", room, "--model", "x", "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--refine-poses", "0"]) == 2
    assert "--refine-poses 0; wanted a whole number from 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_its_flags(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["depth", str(bare), "--model", "x", "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--device", "cpu", "--poses", "da4"]) == 2
    error = capsys.readouterr().err
    assert "--poses da4" in error and "da3, da3-small, vggt, colmap, auto" in error
    assert not (tmp_path / "out").exists()


def test_a_real_scene_with_the_errors_of_a_network(
    shared: Path, model: depthsplat.DepthSplat, tmp_path: Path
) -> None:
    """Errors of 1 degree and 2 % of the baseline, an unknown unit: cameras within those, and held
    out photos are nearly as well reproduced as with the given cameras."""
    folder = shared / "scenes" / "fern"
    if not folder.is_dir():
        pytest.skip("no scene fern")
    given = open_scene(folder)
    network = StandIn(given, unit=0.3, angle=1.0, shift=0.02, size=(252, 336))
    said, psnr = list[str](), []
    for name, poses in (("given", None), ("found", network)):
        chosen = options(poses, (48, 64), held_out=2)
        summary = predict(folder, model, tmp_path / name, chosen, tell=said.append)
        psnr.append(summary.means["psnr"])
    (replaced,) = [line for line in said if "are replaced by those of stand_in" in line]
    assert "differ by 1.0 degrees (median) and 1% of the spread" in replaced
    shots = read_cameras(tmp_path / "found" / "cameras.json").shots
    c2w = torch.stack([torch.from_numpy(shot.c2w) for shot in shots])
    at = [given.names.index(shot.file) for shot in shots]
    apart = compare_cameras(c2w, given.cameras.c2w[0, at])
    assert apart.angle < 1.5 and apart.distance < 0.05
    assert abs(psnr[0] - psnr[1]) < 1.0
