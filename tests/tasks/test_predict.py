"""From photographs to a folder of results, and every way in which that can be refused."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
from PIL import Image

import pmsplat
from pmsplat import cli
from pmsplat.data import synthetic
from pmsplat.errors import UserError
from pmsplat.evaluate.depth import depth_metrics
from pmsplat.io.video import read_frames
from pmsplat.models import depthsplat
from pmsplat.scene import PhotoOptions, open_scene
from pmsplat.scene.overlap import overlaps
from pmsplat.tasks.options import fit_size, pick_device
from pmsplat.tasks.predict import Options, choose_views, predict
from pmsplat.tasks.results.folder import name_files
from pmsplat.tasks.results.prediction import SHEET_HEIGHT
from pmsplat.types import Views
from pmsplat.view import figures
from pmsplat.zoo.infer import reconstruct
from pmsplat.zoo.load import save
from pmsplat.zoo.trained import TrainedOn
from tests.models.picking import Picking
from tests.scenes import random_cameras

CONFIG = depthsplat.Config(
    vit="none", width=16, planes=8, transformer_layers=1, head_width=16, sh_degree=1
)
QUICK = Options(views=2, size=(48, 64), held_out=2, fps=4, seconds=1.0, device="cpu")


@pytest.fixture(scope="module")
def model() -> depthsplat.DepthSplat:
    torch.manual_seed(0)
    return depthsplat.build(CONFIG).eval()


@pytest.fixture(scope="module")
def checkpoint(model: depthsplat.DepthSplat, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(model, path, "depthsplat")
    return str(path)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One procedural scene of 6 photos of 54x70, as a chunk."""
    root = tmp_path_factory.mktemp("rooms")
    synthetic.write(root, scenes=1, frames=6, size=(54, 70), seed=0, split="test")
    return str(root / "test")


@pytest.fixture
def cli_run(checkpoint: str, room: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs `pmsplat predict` with defaults for what is not given: (exit code, what it said)."""

    def run(*more: str, source: str = room, model: str = checkpoint, output: str = "") -> tuple:
        where = output or str(tmp_path / "out")
        words = ["predict", source, "--model", model, "--output", where, "--device", "cpu", *more]
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # of padded photos: printed
            code = cli.main(words)
        return code, capsys.readouterr().err.strip()

    return run


def test_everything_is_written(model: depthsplat.DepthSplat, room: str, tmp_path: Path) -> None:
    said: list[str] = []
    summary = predict(room, model, tmp_path / "out", QUICK, tell=said.append)
    out = tmp_path / "out"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    context, others = summary.context, list(summary.held_out)
    assert len(context) == 2 and len(others) == 2 and not set(context) & set(others)
    assert sorted(p.name for p in out.iterdir()) == [
        "cameras.json", "confidence", "depth", "gaussians.ply", "metrics.json", "render",
        "sheet.png", "video.mp4",
    ]  # fmt: skip
    assert "54x70 are scaled and cut to 48x64" in said[0] and context[0] in said[1]

    scene = open_scene(room)
    shown = [scene.names.index(name) for name in context]
    far = int((overlaps(scene.cameras)[:, shown].amax(dim=1) < 0.5).sum())
    (compared,) = [line for line in said if line.startswith("Held out")]
    assert compared.startswith("Held out to compare: 2 of the 4 other photos")
    assert (f"; {far} share less than half" in compared) == (far > 0)
    views = scene.views([scene.names.index(name) for name in context], (48, 64))
    found = reconstruct(model, views)
    ours, written = found.prediction.gaussians[-1], pmsplat.load_ply(out / "gaussians.ply")
    assert torch.equal(written.means, ours.means) and torch.equal(written.sh, ours.sh)
    torch.testing.assert_close(written.scales, ours.scales, rtol=1e-5, atol=0)
    for i, name in enumerate(context):
        depth = np.load(out / "depth" / f"{name}.npy")
        assert np.array_equal(depth, found.prediction.depths[-1][0, i].numpy())
        with Image.open(out / "depth" / f"{name}.png") as colored:
            assert colored.size == (64, 48)

    index = scene.names.index(others[0])
    target = scene.views([index], (48, 64))
    rendering = pmsplat.rasterize(ours, target.cameras, (48, 64))
    error = (rendering.color.clamp(0, 1) - target.images).square().mean()
    metrics = json.loads((out / "metrics.json").read_text())
    value = metrics["held_out"][others[0]]["psnr"]
    assert value == pytest.approx(-10 * error.log10().item(), abs=1e-3)
    assert metrics["means"]["abs_rel"] > 0  # the rooms know their depth
    report = metrics["report"]
    assert report["range_source"] == "the file" and report["trained_on"] is None
    assert 0 < report["shared"] <= 1 and report["near"] < report["far"]
    last = [f"{finding['problem']}: {finding['remedy']}." for finding in report["findings"]]
    assert said[-1] == (last or ["Nothing looks wrong."])[-1]
    with Image.open(out / "render" / f"{others[0]}.png") as drawn:
        got = np.asarray(drawn, dtype=float) / 255
    clipped = rendering.color[0, 0].clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(got - clipped).max() <= 0.5 / 255 + 1e-6

    frames = read_frames(out / "video.mp4")
    assert len(frames) == 12 and frames[0].shape == (240, 320, 3)  # small ones are drawn larger
    cameras = json.loads((out / "cameras.json").read_text())
    assert cameras["scale"] == pytest.approx(0.5 / views.cameras.near.min().item())
    assert [frame["name"] for frame in cameras["frames"]] == [*context, *others]
    np.testing.assert_allclose(cameras["frames"][0]["c2w"], views.cameras.c2w[0, 0], rtol=1e-6)


def test_a_model_that_speaks_of_some_views_leaves_depth_of_those(
    model: depthsplat.DepthSplat, room: str, tmp_path: Path
) -> None:
    said: list[str] = []
    options = replace(QUICK, views=5, group=5, held_out=1)
    network = Picking(model, anchors=3)
    summary = predict(room, network, tmp_path / "out", options, tell=said.append)
    assert len(summary.context) == 5
    assert summary.anchors is not None and summary.anchors == summary.context[2:]
    assert any("Gaussians of 3 of 5 views" in line for line in said)
    scene = open_scene(room)
    views = scene.views([scene.names.index(name) for name in summary.context], (48, 64))
    found = reconstruct(model, views.at([4, 3, 2])).prediction
    written = pmsplat.load_ply(tmp_path / "out/gaussians.ply")
    assert torch.equal(written.means, found.gaussians[-1].means)
    assert summary.gaussians == 3 * 48 * 64
    for i, name in enumerate(summary.anchors):
        depth = np.load(tmp_path / "out/depth" / f"{name}.npy")
        assert np.array_equal(depth, found.depths[-1][0, 2 - i].numpy())
    assert len(list((tmp_path / "out/depth").glob("*.npy"))) == 3
    known = views.at([2, 3, 4]).depth  # the order of the names, in which the errors are summed
    assert known is not None
    assert summary.means["abs_rel"] == depth_metrics(found.depths[-1].flip(1), known).abs_rel
    assert summary.report.views == 5  # that the network saw
    cameras = json.loads((tmp_path / "out/cameras.json").read_text())
    assert len(cameras["frames"]) == 6


def test_views_are_gathered_in_as_many_as_are_wanted(
    model: depthsplat.DepthSplat, room: str, tmp_path: Path
) -> None:
    """At most so many of each group; what it was is kept."""
    network, said = Picking(model, anchors=3), []
    plain = replace(QUICK, views=5, fuse="union", held_out=1, fps=1)
    for anchors, group in ((None, 5), (2, 5), (9, 5), (2, 3)):
        options, out = replace(plain, group=group, anchors=anchors), tmp_path / f"{anchors}-{group}"
        summary = predict(room, network, out, options, tell=said.append)
        written = json.loads((out / "metrics.json").read_text())
        assert written["most_anchors"] == (anchors or 3)
        fusion = written["fusion"]
        sizes = [5] if fusion is None else [len(views) for views in fusion["groups"]]
        assert len(sizes) > 1 or group == 5
        spoken = sum(min(anchors or 3, size) for size in sizes)
        assert summary.gaussians == spoken * 48 * 64
    assert sum("Gaussians of 2 of 5 views on" in line for line in said) == 1
    assert sum("Gaussians of 2 of 3 views of each group" in line for line in said) == 1


def test_anchors_of_a_model_without_are_refused(cli_run, tmp_path: Path) -> None:
    code, said = cli_run("--anchors", "2")
    assert code == 2 and "--anchors 2 for a model in which each view speaks for itself" in said
    assert "leave --anchors out" in said and not (tmp_path / "out").exists()


def test_confidence_lies_beside_the_depth_and_in_a_column_if_one_wants(
    model: depthsplat.DepthSplat, room: str, tmp_path: Path
) -> None:
    """As others read it; all else is what it is without the column."""
    plain, rated = tmp_path / "plain", tmp_path / "rated"
    context = predict(room, model, plain, QUICK).context
    predict(room, model, rated, replace(QUICK, confidence=True))
    scene = open_scene(room)
    views = scene.views([scene.names.index(name) for name in context], (48, 64))
    sure = reconstruct(model, views).prediction.confidence
    assert sure is not None
    assert sorted(p.stem for p in (plain / "confidence").iterdir()) == sorted(context)
    for i, name in enumerate(context):
        with Image.open(plain / "confidence" / f"{name}.png") as counts:
            assert counts.mode == "I;16" and counts.size == (64, 48)
            values = np.array(counts)
        wanted = np.round(65535 * sure[0, i].double().numpy())
        assert np.array_equal(values, wanted) and 0 < values.min() < values.max()
    with_it, without = (
        plyfile.PlyData.read(str(folder / "gaussians.ply"))["vertex"].data
        for folder in (rated, plain)
    )
    names = without.dtype.names
    assert with_it.dtype.names == (*names, "confidence")
    assert all(np.array_equal(with_it[name], without[name]) for name in names)
    # view after view, row by row
    np.testing.assert_array_equal(with_it["confidence"], sure[0].flatten().numpy())
    for file in sorted(path.relative_to(plain) for path in plain.rglob("*.*")):
        same = (plain / file).read_bytes() == (rated / file).read_bytes()
        assert same or file.name == "gaussians.ply"


def test_a_model_that_does_not_say_how_sure_it_is(
    model: depthsplat.DepthSplat, room: str, tmp_path: Path
) -> None:
    class Silent(depthsplat.DepthSplat):
        def forward(self, *given, **more):  # type: ignore[no-untyped-def]
            return replace(super().forward(*given, **more), confidence=None)

    silent = Silent(CONFIG).eval()
    predict(room, silent, tmp_path / "out", QUICK)
    assert not (tmp_path / "out" / "confidence").exists()
    with Image.open(tmp_path / "out" / "sheet.png") as short:
        predict(room, model, tmp_path / "sure", QUICK)
        with Image.open(tmp_path / "sure" / "sheet.png") as tall:
            assert tall.height == short.height + SHEET_HEIGHT + figures.LABEL
    with pytest.raises(UserError, match="`confidence` of a model that does not say how sure"):
        predict(room, silent, tmp_path / "other", replace(QUICK, confidence=True))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "bad", [Options(fps=0), Options(fps=-4), Options(seconds=0.0), Options(seconds=np.inf)]
)
def test_options_of_no_video_are_refused_before_anything_is_opened(
    bad: Options, model: depthsplat.DepthSplat, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        predict(tmp_path / "absent", model, tmp_path / "out", bad)
    assert ("seconds=" if bad.fps > 0 else "fps=") in caught.value.got
    assert not [*tmp_path.iterdir()]


def test_a_negative_number_of_photos_is_refused(
    model: depthsplat.DepthSplat, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="`held_out=-1`"):
        predict(tmp_path / "absent", model, tmp_path / "out", Options(held_out=-1))


def test_a_second_run_replaces_the_first(
    model: depthsplat.DepthSplat, room: str, tmp_path: Path
) -> None:
    predict(room, model, tmp_path / "out", replace(QUICK, context=(0, 3), held_out=0))
    predict(room, model, tmp_path / "out", replace(QUICK, context=(1, 2), held_out=0))
    names = sorted(p.name for p in (tmp_path / "out/depth").iterdir())
    assert names == ["000001.npy", "000001.png", "000002.npy", "000002.png"]
    assert not (tmp_path / "out/render").exists()


def test_real_photos(model: depthsplat.DepthSplat, shared: Path, tmp_path: Path) -> None:
    options = Options(views=3, size=(64, 96), held_out=2, fps=2, stabilize=True, device="cpu")
    summary = predict(shared / "scenes/bonsai", model, tmp_path / "out", options)
    assert len(summary.context) == 3 and summary.gaussians == 3 * 64 * 96
    near = open_scene(shared / "scenes/bonsai").cameras.near.min().item()
    assert summary.scale <= 0.5 / near  # COLMAP's unit: near is about 7
    assert np.isfinite(list(summary.means.values())).all()
    world = pmsplat.load_ply(tmp_path / "out/gaussians.ply").means[0]
    for name in summary.context:
        depth = np.load(tmp_path / "out/depth" / f"{Path(name).stem}.npy")
        assert 0.5 / summary.scale * 0.99 <= depth.min() and depth.max() < 200
    assert world.norm(dim=-1).median() > 1  # in COLMAP's unit, not in the network's


def test_the_network_sees_the_nearest_near_at_its_own(generator: torch.Generator) -> None:
    seen = []
    cameras = random_cameras(3, generator)
    cameras = replace(cameras, near=torch.tensor([[4.0, 2.0, 3.0]]), far=torch.tensor([[40.0] * 3]))
    views = Views(torch.rand(1, 3, 3, 32, 32, generator=generator), cameras)
    inner = depthsplat.build(CONFIG).eval()

    class Watched:
        near = 0.5

        def __call__(self, given: Views):
            seen.append(given)
            return inner(given)

    found = reconstruct(Watched(), views)
    assert found.scale == 0.25
    assert seen[0].cameras.near.tolist() == [[1, 0.5, 0.75]]  # each view keeps its own
    assert (seen[0].cameras.far == 10).all()
    torch.testing.assert_close(
        seen[0].cameras.c2w[..., :3, 3], 0.25 * cameras.c2w[..., :3, 3], rtol=1e-6, atol=0
    )
    direct = inner(seen[0])
    torch.testing.assert_close(found.prediction.depths[0], 4 * direct.depths[0])
    torch.testing.assert_close(found.prediction.gaussians[0].means, 4 * direct.gaussians[0].means)
    torch.testing.assert_close(found.prediction.gaussians[0].scales, 4 * direct.gaussians[0].scales)
    assert torch.equal(found.prediction.gaussians[0].sh, direct.gaussians[0].sh)


def test_a_larger_world_gives_the_same_answer_larger(
    model: depthsplat.DepthSplat, room: str
) -> None:
    views = open_scene(room).views([0, 3], (48, 64))
    once = reconstruct(model, views).prediction
    thrice = reconstruct(model, replace(views, cameras=views.cameras.scaled(3.0))).prediction
    torch.testing.assert_close(3 * once.depths[0], thrice.depths[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("photo", "wanted", "expected"),
    [
        ((533, 800), None, (533, 800)),
        ((3000, 4000), None, (720, 960)),
        ((4000, 3000), None, (960, 720)),
        ((100, 100), (256, 448), (256, 448)),
        ((33, 47), None, (33, 47)),
    ],
)
def test_size(photo: tuple, wanted: tuple | None, expected: tuple) -> None:
    assert fit_size(photo, wanted) == expected


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ((720, 960), (216, 288)),  # 1.5 times the size in training
        ((3000, 2000), (216, 144)),
        ((150, 200), (150, 200)),
    ],
)
def test_a_size_that_the_model_has_nearly_seen(photo: tuple, expected: tuple) -> None:
    learned = TrainedOn(None, (144, 192), "")
    found = fit_size(photo, None, learned)
    assert np.abs(np.subtract(found, expected)).max() <= 1
    assert max(found[0] / 144, found[1] / 192) <= 1.5
    assert fit_size(photo, (512, 512), learned) == (512, 512)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="`size=0x128`; wanted sides of at least 16"):
        fit_size((500, 500), (0, 128))
    with pytest.raises(UserError, match="photos of 12x500 pixels; wanted sides of at least 16"):
        fit_size((12, 500), None)


def test_how_many_views(room: str) -> None:
    scene = open_scene(room)
    overlap = torch.ones(6, 6)
    assert len(choose_views(scene, overlap, Options())) == 4
    for least, wanted in ((2, 4), (5, 5), (8, 5)):  # one photo is left to compare with
        learned = TrainedOn((least, 10), None, "rooms")
        assert len(choose_views(scene, overlap, Options(), learned)) == wanted
    assert (
        len(choose_views(scene, overlap, Options(views=2), TrainedOn((5, 5), None, "rooms"))) == 2
    )
    assert choose_views(scene, overlap, Options(context=(4, 1, 4))) == [1, 4]
    for views in (1, 0, 7):
        with pytest.raises(UserError, match=f"`views={views}` of a scene of 6 photos"):
            choose_views(scene, overlap, Options(views=views))
    for context in ((0, 6), (3,), (2, 2)):
        with pytest.raises(UserError, match="two or more different numbers from 0 to 5"):
            choose_views(scene, overlap, Options(context=context))


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="auto, cpu, cuda or cuda:N"):
        pick_device("gpu")
    with pytest.raises(UserError, match="CUDA devices here"):
        pick_device("cuda:99")


def test_file_names_are_unique() -> None:
    assert name_files(["a.jpg", "b.c.png"]) == ["a", "b.c"]
    assert name_files(["l/a.jpg", "r/a.jpg"]) == ["l_a", "r_a"]
    assert name_files(["a.jpg", "a.png"]) == ["a_0", "a_1"]


def test_command_line(cli_run, tmp_path: Path) -> None:
    words = ("--context", "0,3", "--size", "48x64", "--held-out", "1", "--fps", "2")
    code, said = cli_run(*words, "--confidence")
    assert code == 0, said
    assert "what it was trained on is not known" in said and "`" not in said
    assert "Means over 1 held-out photo:" in said and said.endswith(f"are in {tmp_path / 'out'}/.")
    assert pmsplat.load_ply(tmp_path / "out/gaussians.ply").confidence is not None


def test_context_is_chosen_or_named(room: str) -> None:
    words = ["predict", room, "--model", "m", "--output", "o"]
    for more, context in (
        ([], None),
        (["--context", "auto"], None),
        (["--context", "0,3"], (0, 3)),
    ):
        assert cli.parser().parse_args([*words, *more]).context == context


def test_a_model_that_has_failed_is_told(
    model: depthsplat.DepthSplat, room: str, tmp_path: Path
) -> None:
    class Failed(depthsplat.DepthSplat):
        def forward(self, *given, **more):  # type: ignore[no-untyped-def]
            found = super().forward(*given, **more)
            return replace(found, depths=tuple(depth * np.nan for depth in found.depths))

    failed = Failed(CONFIG).eval()
    with pytest.raises(UserError, match="negative, not a number, or nowhere"):
        predict(room, failed, tmp_path / "out", QUICK)
    assert not list(tmp_path.iterdir())


def test_input_that_is_not_there(cli_run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    for source, wanted in (
        (tmp_path / "absent", "there is no scene at"),
        (tmp_path / "empty", "neither a camera file"),
        (tmp_path / "text.mp4", "no frame that ffmpeg can decode"),
    ):
        code, said = cli_run(source=str(source))
        assert code == 2 and wanted in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit(cli_run, checkpoint: str, tmp_path: Path) -> None:
    code, said = cli_run(model="depthsplat-gs-smal-re10k-256x256-view2")
    assert code == 2 and "depthsplat-gs-small-re10k-256x256-view2" in said
    (tmp_path / "other.safetensors").write_bytes(b"not a checkpoint")
    code, said = cli_run(model=str(tmp_path / "other.safetensors"))
    assert code == 2 and "Traceback" not in said
    code, said = cli_run(
        "--weights", checkpoint, model="depthsplat-gs-small-re10k-256x256-view2"
    )  # a checkpoint of another model
    assert code == 2 and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_model_of_depth_alone(room: str, tmp_path: Path) -> None:
    depth_only = depthsplat.build(replace(CONFIG, gaussians=False)).eval()
    with pytest.raises(UserError, match="predicts depth alone"):
        predict(room, depth_only, tmp_path / "out", QUICK)
    assert not list(tmp_path.iterdir())


def test_a_photo_that_is_lost_is_an_error_if_one_wants(
    shared: Path, model: depthsplat.DepthSplat, tmp_path: Path
) -> None:
    """A folder of posed photos, one of which is gone."""
    source = tmp_path / "fern"
    shutil.copytree(shared / "scenes/fern", source)
    source.chmod(0o755)
    (source / "images").chmod(0o755)
    sorted((source / "images").iterdir())[0].unlink()
    strict = replace(QUICK, photos=PhotoOptions(strict=True))
    with pytest.raises(UserError, match="there is no such photo"):
        predict(source, model, tmp_path / "out", strict)
    assert not (tmp_path / "out").exists()


def test_infer_answers_in_the_unit_of_the_views(model: depthsplat.DepthSplat, room: str) -> None:
    """As `predict` does, whatever the unit and the size; and without a gradient."""
    views = open_scene(room).views([0, 3], (48, 64))
    found = pmsplat.infer(model, views)
    assert not found.depths[-1].requires_grad
    for factor in (0.1, 30.0):
        larger = pmsplat.infer(model, replace(views, cameras=views.cameras.scaled(factor)))
        torch.testing.assert_close(
            larger.depths[-1], factor * found.depths[-1], rtol=1e-3, atol=1e-3 * factor
        )
    expected = reconstruct(model, views).prediction
    torch.testing.assert_close(found.gaussians[-1].means, expected.gaussians[-1].means)
