"""The scenes that are chosen, their pictures on disk, and the same pictures read back."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pmsplat.data import synthetic
from pmsplat.errors import UserError
from pmsplat.evaluate import protocol, tours
from pmsplat.evaluate.metrics import psnr
from pmsplat.evaluate.pictures import (
    choose_scenes,
    file_name,
    predict_pictures,
    read_pictures,
    write_pictures,
)
from pmsplat.evaluate.protocol import Row
from pmsplat.evaluate.views import ViewRow
from pmsplat.io.images import read_image
from pmsplat.types import Batch, StepOutput
from tests.models.tiny import tiny


@pytest.fixture(autouse=True)
def short_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tours, "FRAMES", 3)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    """Three procedural rooms, two context views and some targets each."""
    settings = synthetic.Config(
        root=str(tmp_path_factory.mktemp("rooms")), scenes=1, test_scenes=3, frames=8,
        size=[32, 48], gap=[4, 6],
    )  # fmt: skip
    return list(synthetic.build(settings).evaluation(None))


@pytest.fixture(scope="module")
def run() -> protocol.Pipeline:
    return protocol.pipeline(tiny(sh_degree=1).eval(), "cpu")


@pytest.fixture(scope="module")
def step(run: protocol.Pipeline, batches: list[Batch]) -> StepOutput:
    with torch.no_grad():
        return run(batches[0])


def rows(*psnrs: float) -> list[Row]:
    return [Row(chr(97 + i), 1, {"psnr": value}) for i, value in enumerate(psnrs)]


def test_the_worst_the_median_and_the_best() -> None:
    some = rows(5, 9, 1, 7, 3)
    assert choose_scenes(some) == ["c", "a", "b"]
    assert choose_scenes(rows(5, 9, 1, 7, 3, 8, 2), each=2) == ["c", "g", "e", "a", "f", "b"]
    assert choose_scenes(rows(4, 2)) == ["b", "a"]
    assert choose_scenes(rows(4)) == ["a"]
    assert choose_scenes([Row("a", 1, {"abs_rel": 0.1})]) == []


def test_pictures_show_what_they_are_called(step: StepOutput, tmp_path: Path) -> None:
    written = write_pictures(tmp_path, step)
    target, rendering = step.batch.target, step.rendering
    assert target.names is not None
    photos = {name: target.images[0, i] for i, name in enumerate(target.names[0])}
    drawn = {name: rendering.color[0, i] for i, name in enumerate(target.names[0])}
    for shown in written.targets:
        for kind, images in (("target", photos), ("render", drawn)):
            pixels = read_image(written.path(kind, shown.view)) / 255.0
            wanted = images[shown.view].clamp(0, 1).permute(1, 2, 0).numpy()
            assert np.abs(pixels - wanted).mean() < 0.03  # WebP loses a little
        error = read_image(written.path("error", shown.view)).astype(float).sum(-1)
        wrong = (drawn[shown.view].clamp(0, 1) - photos[shown.view]).abs().mean(dim=0)
        assert wrong.max() > 2 * wrong.min()
        assert np.corrcoef(error.ravel(), wrong.clamp(max=0.25).ravel())[0, 1] > 0.95
        expected = psnr(drawn[shown.view], photos[shown.view]).item()
        assert shown.values["psnr"] == pytest.approx(expected)
    depth = target.depth
    assert depth is not None
    assert depth[depth > 0].min() <= written.depth[0] < written.depth[1] <= depth.max()


def test_numbers_that_are_known_are_taken(step: StepOutput, tmp_path: Path) -> None:
    names = step.batch.target.names
    assert names is not None
    known = [ViewRow(names[0][0], {"psnr": 12.5, "ssim": float("nan")})]
    written = write_pictures(tmp_path, step, known)
    assert written.targets[0].values == {"psnr": 12.5}
    assert set(written.targets[1].values) == {"psnr"}


def test_the_chosen_scenes_are_predicted_again_and_read_back(
    run: protocol.Pipeline, batches: list[Batch], tmp_path: Path
) -> None:
    names = [batch.scene[0] for batch in batches]
    seen = []

    def watched(batch: Batch) -> StepOutput:
        seen.append(batch.scene[0])
        return run(batch)

    views = batches[1].target.names
    assert views is not None
    known = {"psnr": 12.5, "lpips": 0.25}
    measured = [Row(names[1], 1, {}, (ViewRow(views[0][0], known),))]
    folders = predict_pictures(watched, batches, names[:2], tmp_path, measured)
    assert seen == names[:2] and len(folders) == 2
    found = read_pictures(tmp_path)
    assert set(found) == set(names[:2])
    assert [view.view for view in found[names[0]].targets] == ["000001", "000003", "000005"]
    assert found[names[0]].folder == folders[0] and found[names[0]].size == (32, 48)
    (first, *_), drawn = found[names[0]].targets, run(batches[0]).rendering
    expected = psnr(drawn.color[0, 0], batches[0].target.images[0, 0]).item()
    assert first.values["psnr"] == pytest.approx(expected, abs=1e-4)
    one, *others = found[names[1]].targets
    assert one.values == known and all(set(other.values) == {"psnr"} for other in others)
    with pytest.raises(UserError, match="'zebra' did not come again"):
        predict_pictures(run, batches, ["zebra"], tmp_path)


def test_an_interruption_leaves_no_pictures_and_damage_is_named(
    step: StepOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures" / "a"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pmsplat.evaluate.pictures.write_text", stop)
        with pytest.raises(KeyboardInterrupt):
            write_pictures(folder, step)
    assert read_pictures(tmp_path) == {}
    written = write_pictures(folder, step)
    written.path("error", written.targets[0].view).unlink()
    with pytest.raises(UserError, match=r"names error-.*\.webp, which is missing"):
        read_pictures(tmp_path)
    (folder / "pictures.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        read_pictures(tmp_path)


def test_names_of_files_hold_any_name_and_differ() -> None:
    names = ["a", "a/b", "../a", "..", ".", "", "a%2Fb", "ä", "x" * 300, "x" * 299 + "y", "a\0b"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert all("/" not in file and "\0" not in file and len(file) < 200 for file in files)
    assert not any(file.startswith(".") for file in files)
    assert file_name("000c3ab189999a83") == "000c3ab189999a83"
