"""`pmsplat evaluate --report`: the page of what was measured, with pictures of three scenes."""

from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from pmsplat import config, registry
from pmsplat.cli import main
from pmsplat.data import synthetic
from pmsplat.evaluate import protocol, tours
from pmsplat.evaluate.pictures import read_pictures
from pmsplat.evaluate.runs import read_run
from pmsplat.io.images import read_image
from pmsplat.tasks.evaluate import Options, evaluate
from pmsplat.types import PosedDepth
from pmsplat.zoo.load import save
from tests.evaluate.pages.html import Element, read_page
from tests.evaluate.standins import StandIn, Sweep
from tests.models.tiny import shaken, tiny


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "find_lpips", lambda: (None, ("no weights of LPIPS",)))


@pytest.fixture(autouse=True)
def short_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tours, "FRAMES", 3)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four rooms to measure on."""
    counts = ["dataset.scenes=1", "dataset.test_scenes=4", "dataset.frames=6", "dataset.gap=[4,4]"]
    root = f"dataset.root={tmp_path_factory.mktemp('rooms')}"
    words = ["+experiment=demo_tiny", "dataset.size=[32,48]", root, *counts]
    synthetic.make(config.compose(words).dataset.settings)
    return words


def shown(page: Element) -> list[str]:
    return [scene.all("h3")[0].text for scene in page.all("article", class_="scene")]


def means(page: Element) -> dict[str, str]:
    """The PSNR of every run, by its name."""
    rows = page.all("section", id="results")[0].all("table")[0].all("tr")[1:]
    return {row.all("th")[0].text.strip(): row.all("td")[1].text for row in rows}


def test_a_model_and_the_baselines_with_three_scenes(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny(), tmp_path / "mine" / "model.safetensors", "depthsplat")
    words = ["evaluate", *overrides, "--model", str(tmp_path / "mine" / "model.safetensors")]
    words += ["--output", str(tmp_path / "out"), "--device", "cpu"]
    report = ["--report", str(tmp_path / "page")]
    assert main([*words, *report, "--baselines"]) == 0
    assert "index.html in a browser" in capsys.readouterr().err.replace("\n", " ")
    run, page = read_run(tmp_path / "out"), read_page(tmp_path / "page" / "index.html")

    # All are on the page, and the scenes from the worst to the best
    assert list(means(page)) == ["mine", "nearest photo", "plane sweep"]
    psnrs = {row.scene: row.values["psnr"] for row in run.rows}
    assert means(page)["mine"] == f"{mean(psnrs.values()):.2f}"
    ranked = sorted(psnrs, key=psnrs.__getitem__)
    assert shown(page) == [ranked[0], ranked[1], ranked[3]]

    # Pictures are of the model alone, with the numbers that were measured
    (scene, *_) = page.all("article", class_="scene")
    values = {view.view: view.values["psnr"] for view in run.by_scene[ranked[0]].views}
    renders = scene.all("figure", class_="render")
    assert len(renders) == len(values) == 3
    for figure in renders:
        view = (figure.all("img")[0].attributes["alt"] or "").split()[1]
        assert f"PSNR {values[view]:.2f} dB" in figure.text

    # Its scenes turn and have videos; they are of the model, in the page itself
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert "worker-src blob:" in (policy.attributes["content"] or "")
    found = [scene.all("div", class_="turn") for scene in page.all("article", class_="scene")]
    assert [len(turns) for turns in found] == [1, 1, 1] and len(page.all("video")) == 3
    assert "All 3,072 Gaussians" in page.all("article", class_="scene")[0].text

    # Fewer scenes do not replace these results; the same ones do, and leave no pictures of this one
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert main([*words, "--limit", "1"]) == 2
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    assert main(words) == 0
    assert read_pictures(tmp_path / "out") == {}


def test_every_model_draws_the_scenes_of_the_first(overrides: list[str], tmp_path: Path) -> None:
    save(tiny(), tmp_path / "a" / "model.safetensors", "depthsplat")
    save(shaken(tiny()), tmp_path / "b" / "model.safetensors", "depthsplat")
    models = [word for name in "ab" for word in ("--model", str(tmp_path / name))]
    words = ["evaluate", *overrides, *models, "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, "--report", str(tmp_path / "out")]) == 0
    page = read_page(tmp_path / "out" / "index.html")
    drawn = [read_pictures(tmp_path / "out" / name) for name in "ab"]
    assert drawn[0].keys() == drawn[1].keys() == set(shown(page)) and len(drawn[0]) == 3
    for pictures, name in zip(drawn, "ab", strict=True):
        run = read_run(tmp_path / "out" / name)
        assert means(page)[name] == f"{run.means['psnr']:.2f}"
        for scene, found in pictures.items():
            for target in found.targets:
                (view,) = (v for v in run.by_scene[scene].views if v.view == target.view)
                assert target.values == view.values


class Same(StandIn):
    """A network that finds the same cameras again and again."""

    def pose(self, images) -> PosedDepth:
        self.seen = 0
        return super().pose(images)


def test_pictures_are_drawn_with_the_predicted_cameras(
    overrides: list[str], tmp_path: Path
) -> None:
    experiment = config.compose(overrides)
    dataset = registry.build("data", experiment.dataset.name, experiment.dataset.settings)
    teacher = Same(list(dataset.evaluation()), turn=8.0, shift=0.2)
    given, posed = (
        evaluate(experiment, Sweep(), tmp_path / name, Options(
            device="cpu", limit=1, poses=poses, report=tmp_path / f"page of {name}"
        ))
        for name, poses in (("given", None), ("posed", teacher))
    )  # fmt: skip
    for found in (given, posed):
        (pictures,) = read_pictures(found.folder).values()
        for view in found.model.rows[0].views:
            paths = [pictures.path(kind, view.view) for kind in ("render", "target")]
            render, target = (np.asarray(read_image(path), dtype=float) / 255 for path in paths)
            psnr = -10 * np.log10(((render - target) ** 2).mean())
            assert psnr == pytest.approx(view.values["psnr"], abs=2)  # WebP loses some
    assert given.model.means["psnr"] > posed.model.means["psnr"] + 5
    assert "fitted" in read_page(tmp_path / "page of posed" / "index.html").text


def test_a_folder_with_another_page_is_refused_before_anything_is_measured(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    words = ["evaluate", *overrides, "--output", str(tmp_path / "out"), "--report", str(tmp_path)]
    assert main(words) == 2
    assert "index.html, which is another page" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()
