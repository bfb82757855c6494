"""Depth of photographs: exact where the network is, in groups, in the unit of the input."""

import json
import math
import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import einsum
from PIL import Image
from torch import nn

from pmsplat import cli
from pmsplat.data import synthetic
from pmsplat.errors import UserError
from pmsplat.evaluate.depth import depth_metrics, median_scale
from pmsplat.models import depthsplat
from pmsplat.scene import open_scene
from pmsplat.tasks.depth import Options, depth
from pmsplat.tasks.predict import Options as PredictOptions
from pmsplat.tasks.predict import predict
from pmsplat.tasks.results import sheet as sheets
from pmsplat.tasks.results.depth_files import read_confidence
from pmsplat.types import Prediction, Views
from pmsplat.view import figures
from pmsplat.zoo.load import ZOO, save
from tests.models.picking import Picking

PHOTOS, SIZE, FOCAL = 7, (40, 60), 50.0
WALL = 3.0  # where the wall stands, in nearest nears
CONFIG = depthsplat.Config(
    vit="none", width=16, planes=8, transformer_layers=0, head_width=16, sh_degree=0
)
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
GL = np.diag([1.0, -1, -1, 1])


class Wall(nn.Module):
    """A network that knows: everything is a wall across the world's z axis, WALL nears away.

    It keeps what it was shown of the walk. `factor` makes its depth wrong. If it `rates` that, it
    is as sure as a pixel is red.
    """

    near = 0.5

    def __init__(self, factor: float = 1.0, rates: bool = False) -> None:
        super().__init__()
        self.factor, self.rates, self.shown = factor, rates, list[Views]()

    def forward(self, views: Views) -> Prediction:
        height, width = views.size
        if views.size == SIZE:  # the forecast of memory shows it something else
            self.shown.append(views)
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height,
            (torch.arange(width) + 0.5) / width,
            indexing="ij",
        )
        pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1)
        rays = einsum(views.cameras.K.inverse(), pixels, "b v i j, h w j -> b v h w i")
        slope = einsum(views.cameras.c2w[..., 2, :3], rays, "b v i, b v h w i -> b v h w")
        away = WALL * self.near - views.cameras.c2w[..., 2, 3]
        sure = views.images[:, :, 0] if self.rates else None
        return Prediction((self.factor * away[..., None, None] / slope,), (), sure)


def pose(i: int, unit: float) -> np.ndarray:
    """Camera i of the walk, OpenCV axes: side by side, turned a little, each at its own z."""
    angle = 0.05 * (i - 3)
    c2w = np.eye(4)
    c2w[:3, :3] = [
        [math.cos(angle), 0, math.sin(angle)],
        [0, 1, 0],
        [-math.sin(angle), 0, math.cos(angle)],
    ]
    c2w[:3, 3] = unit * np.array([0.2 * i, 0.1, -0.05 * i])
    return c2w


def write_walk(folder: Path, unit: float = 1.0) -> Path:
    """Photos of the walk with transforms.json; nears from 1 to 1.6 and fars of 20, in `unit`."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(PHOTOS):
        pixels = rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        matrix = (pose(i, unit) @ GL).tolist()
        near, far = unit * (1.6 - 0.1 * i), unit * 20
        frame = {"file_path": f"images/{i}.png", "transform_matrix": matrix}
        frames.append(frame | {"near": near, "far": far})
    head = {"w": SIZE[1], "h": SIZE[0], "fl_x": FOCAL, "fl_y": FOCAL, "cx": 31.0, "cy": 19.0}
    (folder / "transforms.json").write_text(json.dumps(head | {"frames": frames}))
    return folder


def wall_depth(i: int, unit: float) -> np.ndarray:
    """The truth of photo i, float64."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    rays = np.stack([(x - 31.0) / FOCAL, (y - 19.0) / FOCAL, np.ones(SIZE)], axis=-1)
    c2w = pose(i, unit)
    return (WALL * unit - c2w[2, 3]) / (rays @ c2w[2, :3])


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One procedural scene of 6 photos of 48x64 with exact depth, as a chunk."""
    root = tmp_path_factory.mktemp("rooms")
    synthetic.write(root, scenes=1, frames=6, size=(48, 64), seed=0, split="test")
    return str(root / "test")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(depthsplat.build(replace(CONFIG, gaussians=False)), path, "depthsplat")
    return str(path)


@pytest.fixture
def cli_run(checkpoint: str, room: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs `pmsplat depth` into tmp_path/out: (exit code, what it said)."""

    def run(*more: str, source: str = room) -> tuple:
        where = str(tmp_path / "out")
        code = cli.main(
            ["depth", source, "--model", checkpoint, "--output", where, "--device", "cpu", *more]
        )
        return code, capsys.readouterr().err.strip()

    return run


@pytest.mark.parametrize(
    ("unit", "views", "passes"), [(1.0, 3, 3), (1.0, 7, 2), (100.0, 2, 5), (1e-3, None, 2)]
)
def test_depth_is_exact_in_the_unit_of_the_input(
    tmp_path: Path, unit: float, views: int | None, passes: int
) -> None:
    source = write_walk(tmp_path / "walk", unit)
    network = Wall()
    said: list[str] = []
    options = Options(views=views, device="cpu")
    summary = depth(source, network, tmp_path / "out", options, tell=said.append)
    names = [f"{i}.png" for i in range(PHOTOS)]
    assert list(summary.photos) == names and summary.size == SIZE
    for i in range(PHOTOS):
        got = np.load(tmp_path / "out/depth" / f"{i}.npy")
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wall_depth(i, unit), rtol=2e-5)
        with Image.open(tmp_path / "out/depth" / f"{i}.png") as counts:
            assert counts.mode == "I;16"
            back = np.array(counts) * summary.depth_scale
        assert np.abs(back - got).max() <= 0.501 * summary.depth_scale
        with Image.open(tmp_path / "out/color" / f"{i}.png") as colored:
            assert colored.height == SIZE[0] and colored.width > SIZE[1]  # a bar beside it
    assert summary.scale == pytest.approx(0.5 / unit)
    assert len(network.shown) == passes
    for seen in network.shown:  # one factor for all groups, and each photo its own near
        assert 2 <= seen.images.shape[1] <= (views or 4)
        at = (seen.cameras.c2w[..., 0, 3] / 0.1).round()  # photo i stands at 0.2 i, halved
        torch.testing.assert_close(seen.cameras.near, 0.8 - 0.05 * at)
        assert torch.allclose(seen.cameras.far, torch.tensor(10.0))
    assert said[0].startswith("Depth of 7 of 7 photos in") and "One count of depth" in said[-1]
    assert summary.as_predicted is None and summary.median_scaled is None
    report = summary.report  # exact depth of one wall, but photos of noise: no pair matches
    assert report.geometric is not None and report.geometric > 0.999
    assert report.photometric is not None and abs(report.photometric) < 0.2
    assert [finding.problem[:19] for finding in report.findings] == ["Photos do not match"]
    step = math.hypot(0.2, 0.05) / 2  # in the unit of the model
    assert report.baseline[0] >= step * 0.999 and report.range_source == "the file"
    assert (report.near, report.far) == pytest.approx((unit, 20 * unit))
    assert any(line.startswith("Photos do not match") for line in said)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_every_photo_gets_its_depth_of_a_model_that_speaks_of_some_views(
    tmp_path: Path, views: int
) -> None:
    """It is asked to speak of all, and lists them in an order of its own."""
    source = write_walk(tmp_path / "walk")
    network = Picking(Wall(), anchors=2)
    summary = depth(source, network, tmp_path / "out", Options(views=views, device="cpu"))
    for i, name in enumerate(summary.photos):
        got = np.load(tmp_path / "out/depth" / f"{name.removesuffix('.png')}.npy")
        np.testing.assert_allclose(got, wall_depth(i, 1.0), rtol=2e-5)
    assert len(summary.photos) == PHOTOS
    assert summary.report.geometric is not None and summary.report.geometric > 0.999
    assert summary.report.views == views
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [
        "cameras.json", "color", "depth", "metrics.json", "sheet.png"
    ]  # fmt: skip


def test_confidence_lies_beside_the_depth(tmp_path: Path) -> None:
    """65535 is sure; whoever opens the folder as a scene takes it for no photo."""
    source, out = write_walk(tmp_path / "walk"), tmp_path / "out"
    depth(source, Wall(rates=True), out, Options(views=3, device="cpu"))
    for i in range(PHOTOS):
        with Image.open(source / "images" / f"{i}.png") as photo:
            red = np.asarray(photo)[..., 0]
        with Image.open(out / "confidence" / f"{i}.png") as counts:
            assert counts.mode == "I;16"
            assert np.array_equal(np.array(counts), 257 * red.astype(int))
        np.testing.assert_allclose(read_confidence(out, str(i)).numpy(), red / 255, atol=1e-6)
    shutil.copytree(source / "images", out / "images")
    scene = open_scene(out)
    assert scene.names == open_scene(source).names
    assert torch.equal(scene.views([2]).images, open_scene(source).views([2]).images)
    depth(source, Wall(), tmp_path / "plain", Options(views=3, device="cpu"))
    assert not (tmp_path / "plain" / "confidence").exists()
    with Image.open(out / "sheet.png") as tall, Image.open(tmp_path / "plain/sheet.png") as short:
        assert tall.height == short.height + sheets.HEIGHT + figures.LABEL


def test_one_count_is_a_round_number(tmp_path: Path) -> None:
    for unit, expected in ((1.0, 1e-3), (100.0, 1e-2), (1e-3, 1e-7)):
        source = write_walk(tmp_path / f"walk{unit}", unit)
        summary = depth(source, Wall(), tmp_path / f"out{unit}", Options(device="cpu"))
        assert summary.depth_scale == expected
        written = json.loads((tmp_path / f"out{unit}/cameras.json").read_text())
        assert written["depth_scale"] == expected


def test_named_photos_alone_and_together(tmp_path: Path) -> None:
    source = write_walk(tmp_path / "walk")
    network = Wall()
    summary = depth(source, network, tmp_path / "out", Options(context=(1, 2, 5), device="cpu"))
    assert summary.photos == ("1.png", "2.png", "5.png") and len(network.shown) == 1
    assert network.shown[0].images.shape[1] == 3
    assert sorted(p.name for p in (tmp_path / "out/depth").glob("*.npy")) == [
        "1.npy", "2.npy", "5.npy"
    ]  # fmt: skip
    assert summary.scale == pytest.approx(0.5 / 1.1)  # their own nearest near


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    source = write_walk(tmp_path / "walk")
    depth(source, Wall(), tmp_path / "out", Options(context=(0, 1), device="cpu"))
    depth(source, Wall(), tmp_path / "out", Options(context=(2, 3), device="cpu"))
    assert sorted(p.stem for p in (tmp_path / "out/color").iterdir()) == ["2", "3"]


def test_the_result_opens_as_a_scene_with_depth(tmp_path: Path) -> None:
    """What was written is the sensor of a second run: a right network has no error, and a wrong
    scale is gone after median scaling."""
    source = write_walk(tmp_path / "walk")
    first = depth(source, Wall(), tmp_path / "out", Options(device="cpu"))
    shutil.copytree(source / "images", tmp_path / "out/images")
    scene, original = open_scene(tmp_path / "out"), open_scene(source)
    assert scene.names == original.names
    for name in ("c2w", "K", "near", "far"):
        ours, theirs = getattr(scene.cameras, name), getattr(original.cameras, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    views = scene.views()
    assert views.depth is not None
    truth = np.stack([wall_depth(i, 1.0) for i in range(PHOTOS)])
    assert np.abs(views.depth[0].numpy() - truth).max() < 0.51 * first.depth_scale

    right = depth(tmp_path / "out", Wall(), tmp_path / "right", Options(device="cpu"))
    assert right.as_predicted is not None and right.as_predicted.mean.abs_rel < 5e-4
    assert right.as_predicted.mean.delta1 == 1 and len(right.as_predicted.photos) == PHOTOS
    wrong = depth(tmp_path / "out", Wall(1.5), tmp_path / "wrong", Options(device="cpu"))
    assert wrong.as_predicted is not None and wrong.median_scaled is not None
    assert wrong.as_predicted.mean.abs_rel == pytest.approx(0.5, abs=1e-3)
    assert wrong.as_predicted.mean.delta1 == 0
    assert wrong.median_scaled.mean.abs_rel < 5e-4 and wrong.median_scaled.mean.delta1 == 1
    told = json.loads((tmp_path / "wrong/metrics.json").read_text())
    assert told["as_predicted"]["mean"]["abs_rel"] == wrong.as_predicted.mean.abs_rel
    assert told["median_scaled"]["photos"]["3.png"]["pixels"] == SIZE[0] * SIZE[1]


def test_errors_are_those_of_the_files(room: str, checkpoint: str, tmp_path: Path) -> None:
    """A network that does not know, against the room's exact depth, photo by photo."""
    summary = depth(room, checkpoint, tmp_path / "out", Options(views=3, device="cpu"))
    views = open_scene(room).views()
    assert summary.as_predicted is not None and summary.median_scaled is not None
    assert views.depth is not None
    rows = []
    for i, name in enumerate(summary.photos):
        got = torch.from_numpy(np.load(tmp_path / "out/depth" / f"{name}.npy"))
        truth = views.depth[0, i]
        assert summary.as_predicted.photos[name] == depth_metrics(got, truth)
        scaled = depth_metrics(got * median_scale(got, truth), truth)
        assert summary.median_scaled.photos[name] == scaled
        rows.append(scaled)
    mean = summary.median_scaled.mean
    assert mean.rmse == pytest.approx(np.mean([row.rmse for row in rows]))
    assert mean.pixels == 6 * 48 * 64


def test_predict_finds_the_same_depth(room: str, tmp_path: Path) -> None:
    """In bf16 too, which both say."""
    torch.manual_seed(0)
    model = depthsplat.build(CONFIG).eval()
    options = PredictOptions(
        context=(0, 3), held_out=0, fps=1, seconds=1.0, device="cpu", precision="bf16"
    )
    said: list[str] = []
    predict(room, model, tmp_path / "predicted", options, tell=said.append)
    half = Options(context=(0, 3), device="cpu", precision="bf16")
    depth(room, model, tmp_path / "out", half, tell=said.append)
    assert sum(" on cpu in bf16." in sentence for sentence in said) == 2
    depth(room, model, tmp_path / "exact", Options(context=(0, 3), device="cpu"))
    for name in ("000000", "000003"):
        mine, exact = (np.load(tmp_path / f"{to}/depth/{name}.npy") for to in ("out", "exact"))
        np.testing.assert_allclose(
            mine, np.load(tmp_path / "predicted/depth" / f"{name}.npy"), rtol=1e-6
        )
        assert 0 < np.abs(mine / exact - 1).mean() < 0.02
    for folder, precision in (("predicted", "bf16"), ("out", "bf16"), ("exact", "float32")):
        told = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert told["precision"] == precision


def test_real_photos_with_a_sensor(shared: Path, checkpoint: str, tmp_path: Path) -> None:
    options = Options(context=(8, 9, 10), size=(64, 96), device="cpu")
    source = shared / "scenes/hololens_office"
    summary = depth(source, checkpoint, tmp_path / "out", options)
    assert summary.as_predicted is not None and summary.median_scaled is not None
    assert set(summary.as_predicted.photos) == {"0008.jpg", "0009.jpg", "0010.jpg"}
    scaled, plain = summary.median_scaled.mean, summary.as_predicted.mean
    assert 0 < scaled.abs_rel < 1 and scaled.pixels == plain.pixels > 3 * 64 * 96 / 3
    with Image.open(tmp_path / "out/sheet.png") as sheet:  # photo, depth, sensor, error
        assert sheet.height > 4 * sheets.HEIGHT and sheet.width > 3 * 300


def test_command_line(cli_run, tmp_path: Path) -> None:
    code, said = cli_run("--views", "3")
    assert code == 0, said
    assert "Depth of 6 of 6 photos in 3 passes of 3 views" in said
    assert "6 photos, as predicted: AbsRel" in said and "after median scaling" in said
    assert said.endswith(f"Depth of 6 photos is in {tmp_path / 'out'}/.")


def test_photos_keep_their_size(cli_run, tmp_path: Path) -> None:
    """48x64 fits the network; a smaller wish is scaled and cut to, whatever its multiple."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, said = cli_run("--size", "30x50", "--context", "0,3")
    assert (
        code == 0
        and "30x50 pixels are padded to 32x64" in said
        and "48x64 are scaled and cut to 30x50" in said
    )
    assert np.load(tmp_path / "out/depth/000003.npy").shape == (30, 50)


def test_a_network_that_has_failed(tmp_path: Path) -> None:
    source = write_walk(tmp_path / "walk")
    for factor in (math.nan, -1.0, 0.0):
        with pytest.raises(UserError, match=r"depth of .\.png is negative, not a number"):
            depth(source, Wall(factor), tmp_path / "out", Options(device="cpu"))
    assert [p.name for p in tmp_path.iterdir()] == ["walk"]


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_scripts_are_calls_that_parse(size: str) -> None:
    """With a `pmsplat` that prints what it is called with."""
    script = SCRIPTS / f"inference_depth_{size}.sh"
    stand_in = 'pmsplat() { printf \'%s\\n\' "$@"; }; export -f pmsplat; bash "$@"'

    def called(*more: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", stand_in, "-", str(script), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    arguments = cli.parser().parse_args(called("my photos").stdout.splitlines())
    assert arguments.verb == "depth" and arguments.input == "my photos"
    assert arguments.model in ZOO and size in arguments.model
    assert arguments.size == (352, 640)
    other = cli.parser().parse_args(called("x", "--size", "256x448").stdout.splitlines())
    assert other.size == (256, 448)
    assert called().returncode != 0 and "folder of photos" in called().stderr


@pytest.mark.parametrize("bad", [Options(views=1), Options(views=4, context=(0, 1))])
def test_views_that_cannot_be_are_refused_before_anything_is_opened(
    bad: Options, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="`views="):
        depth(tmp_path / "absent", Wall(), tmp_path / "out", bad)
    assert not [*tmp_path.iterdir()]
