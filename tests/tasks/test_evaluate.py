"""`pmsplat evaluate` from Python; and one unit of length for training and for every verb."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pmsplat
from pmsplat import config, train
from pmsplat.cli import main
from pmsplat.cli.evaluate import _name_table
from pmsplat.data import synthetic
from pmsplat.errors import UserError
from pmsplat.evaluate import protocol
from pmsplat.io import weights
from pmsplat.io.chunks import read_split, write_chunk, write_index
from pmsplat.io.files import sole_writer
from pmsplat.scene import open_scene
from pmsplat.tasks.depth import Options as DepthOptions
from pmsplat.tasks.depth import depth
from pmsplat.tasks.evaluate import Evaluation, Options, evaluate, name_models
from pmsplat.tasks.predict import Options as PredictOptions
from pmsplat.tasks.predict import predict
from pmsplat.tasks.refine import Options as RefineOptions
from pmsplat.tasks.refine import refine
from pmsplat.train import module, start
from pmsplat.train.settings import Component
from pmsplat.types import StepOutput
from pmsplat.zoo import memory
from pmsplat.zoo.load import open_model, save
from pmsplat.zoo.memory import Plan, needed_bytes
from tests.lab import rooms
from tests.models.tiny import shaken, tiny
from tests.servers import Store, running

SIZE = (32, 48)
QUICK = Options(device="cpu")
ROOMS = ["+experiment=demo_tiny", "dataset.size=[32,48]", "loss=mse"]


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "find_lpips", lambda: (None, ("no weights of LPIPS",)))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rooms to learn from and one to measure on, each scene with a near and far of its own."""
    path = tmp_path_factory.mktemp("rooms")
    made = config.compose([*ROOMS, *where(path)]).dataset
    synthetic.make(made.settings)
    return path


def where(root: Path) -> list[str]:
    return [
        f"dataset.root={root}", "dataset.scenes=2", "dataset.test_scenes=1", "dataset.frames=8",
    ]  # fmt: skip


def as_folder(root: Path) -> list[str]:
    """The same rooms as photographs of one's own."""
    return [*ROOMS, "dataset=folder", f"dataset.root={root}", "dataset.gap=[4,6]"]


def trained(overrides: list[str], output: Path) -> Path:
    """The checkpoint of two steps."""
    small = ["model.width=16", "model.planes=8", "trainer.steps=2", "trainer.batch_size=1"]
    words = ["train", *overrides, *small, "trainer.validate_every=0", f"output={output}"]
    assert main(words) == 0
    return output / "model.safetensors"


@pytest.fixture
def depths(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str], Path], list[torch.Tensor]]:
    """The depth of the context views of the room by evaluate, by predict, by infer."""

    def run(overrides: list[str], model: Path) -> list[torch.Tensor]:
        steps: list[StepOutput] = []
        measure = protocol.measure
        monkeypatch.setattr(
            protocol, "measure", lambda step, *rest: steps.append(step) or measure(step, *rest)
        )
        evaluate(config.compose(overrides), model, tmp_path / "evaluated", QUICK)
        (step,) = steps
        names = step.batch.context.names
        assert names is not None
        context = tuple(int(name) for name in names[0])
        options = PredictOptions(
            context=context, size=SIZE, held_out=0, fps=1, seconds=1.0, device="cpu"
        )
        predict(root / "test", model, tmp_path / "predicted", options)
        files = [tmp_path / f"predicted/depth/{name}.npy" for name in names[0]]
        predicted = torch.stack([torch.from_numpy(np.load(file)) for file in files])[None]
        inferred = pmsplat.infer(pmsplat.load(model), step.batch.context)
        return [step.prediction.depths[-1], predicted, inferred.depths[-1]]

    return run


def assert_same(found: list[torch.Tensor]) -> None:
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_a_model_that_learned_with_another_near_predicts_the_same_everywhere(
    root: Path, tmp_path: Path, depths, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    step = module.training_step

    def watched(run, batch, *rest):
        seen.append(float(batch.context.cameras.near.min()))
        return step(run, batch, *rest)

    monkeypatch.setattr("pmsplat.train.module.training_step", watched)
    model = trained([*as_folder(root), "model.near=2"], tmp_path / "run")
    assert seen == pytest.approx([2.0, 2.0])  # the unit that it learned in
    assert open_model(model).settings.near == 2
    assert_same(depths(as_folder(root), model))


def test_a_model_that_learned_in_the_unit_of_the_data_keeps_it(
    root: Path, tmp_path: Path, depths
) -> None:
    model = trained([*ROOMS, *where(root)], tmp_path / "run")
    assert open_model(model).settings.near is None
    for overrides in ([*ROOMS, *where(root)], as_folder(root)):
        assert_same(depths(overrides, model))


def test_evaluate_scales_to_the_near_of_the_model_as_predict_does(
    root: Path, tmp_path: Path, depths
) -> None:
    save(shaken(tiny("mvsplat")), tmp_path / "mvsplat.safetensors", "mvsplat")
    assert open_model(tmp_path / "mvsplat.safetensors").settings.near == 1
    assert_same(depths(as_folder(root), tmp_path / "mvsplat.safetensors"))


def test_a_constant_near_of_the_data_is_what_a_model_learns_with() -> None:
    told: list[str] = []

    def near(*overrides: str) -> float | None:
        experiment = config.compose(["+experiment=re10k_small", *overrides])
        dataset = pmsplat.registry.build(
            "data", experiment.dataset.name, experiment.dataset.settings
        )
        return start.learn_range(experiment.model, dataset, told.append).settings.near

    assert near() == 0.5
    assert near("dataset.near=1.5") == 1.5
    assert near("dataset=folder", "model.near=3") == 3
    assert near("dataset=folder", "dataset.scale_near=false") is None
    assert not told
    assert near("model.near=3") == 0.5
    assert len(told) == 1 and "model.near=3" in told[0]


@pytest.mark.parametrize("verb", ["predict", "depth", "refine"])
def test_a_chunk_without_range_is_in_the_unit_of_the_model(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As evaluate takes it, with the near that the experiment of the model sets."""
    monkeypatch.setattr("pmsplat.zoo.memory.check", lambda *_, **__: None)  # runs the model, too
    chunk = tmp_path / "000000.torch"
    write_chunk(chunk, [replace(synthetic.scene("a", 4, SIZE), near=None, far=None)])
    model, seen = tiny("mvsplat").eval(), []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].cameras))
    if verb == "predict":
        options = PredictOptions(views=2, held_out=1, fps=1, seconds=1.0, device="cpu")
        assert predict(chunk, model, tmp_path / "out", options).scale == 1
    elif verb == "depth":
        depth(chunk, model, tmp_path / "out", DepthOptions(views=2, device="cpu"))
        assert json.loads((tmp_path / "out/cameras.json").read_text())["scale"] == 1
    else:
        refine(chunk, tmp_path / "out", RefineOptions(model=model, steps=1, device="cpu"))
    c2w = open_scene(chunk).cameras.c2w[0]
    for cameras in seen:
        assert (cameras.near == 1).all() and (cameras.far == 100).all()
        assert all((c2w == given).all(dim=(1, 2)).any() for given in cameras.c2w[0])  # to the bit
    assert seen


def test_a_model_without_near_does_not_learn_from_scenes_of_many_units(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = [*as_folder(root), "model=tests.lab.encoder", "trainer.steps=1"]
    tail = ["trainer.validate_every=0", f"output={tmp_path / 'run'}"]
    assert main(["train", *lab, *tail]) == 2
    assert "dataset.scale_near=false" in capsys.readouterr().err.replace("\n", " ")
    assert main(["train", *lab, "dataset.scale_near=false", *tail]) == 0
    assert not hasattr(open_model(tmp_path / "run").settings, "near")


def test_a_near_that_the_run_cannot_set_is_refused_where_scenes_keep_their_unit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.lab.encoder.Encoder.near", 0.5, raising=False)
    lab = [*as_folder(root), "model=tests.lab.encoder", "trainer.steps=1", f"output={tmp_path}"]
    with pytest.raises(UserError) as caught:
        train.run(config.compose([*lab, "dataset.scale_near=false"]))
    assert "near 0.5" in caught.value.got and "dataset.scale_near=true" in caught.value.remedy
    train.run(config.compose([*lab, "dataset.scale_near=true", "trainer.validate_every=0"]))


def test_the_results_name_the_settings_of_the_model_that_was_measured(
    root: Path, tmp_path: Path
) -> None:
    model = shaken(tiny("mvsplat", near=1.25, published=True))
    save(model, tmp_path / "mine.safetensors", "mvsplat")
    told: list[str] = []
    options = replace(QUICK, baselines=True, geometry=True)
    found = evaluate(
        config.compose(as_folder(root)),
        tmp_path / "mine.safetensors",
        tmp_path / "out",
        options,
        tell=told.append,
    )
    assert isinstance(found, Evaluation) and found.folder == tmp_path / "out"
    assert list(found.results) == ["nearest photo", "plane sweep", "mine.safetensors"]
    assert told == list(found.model.notes) == ["no weights of LPIPS"]
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["means"] == pytest.approx(found.model.means)
    measured = written["experiment"]["model"]
    assert measured["name"] == "mvsplat" and measured["settings"] == asdict(model.cfg)
    assert measured["settings"]["near"] == 1.25
    assert all(measured["settings"]["deviations"].values())
    assert written["experiment"]["dataset"]["name"] == "folder"


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    made = config.compose([*ROOMS, f"dataset.root={tmp_path}"])
    for limit in (0, -1):
        with pytest.raises(UserError) as caught:
            evaluate(made, tiny(), tmp_path / "out", replace(QUICK, limit=limit))
        assert f"limit={limit}" in caught.value.got and caught.value.wanted == "at least 1"
    only = Component("tests.lab.rooms", rooms.Config(str(tmp_path), parts=["train"]))
    with pytest.raises(UserError) as caught:
        evaluate(replace(made, dataset=only), tiny(), tmp_path / "out", QUICK)
    assert "has no `evaluation`" in caught.value.got
    drawn = config.compose([*ROOMS, f"dataset.root={tmp_path}", "renderer.name=gsplat"])
    with pytest.raises(UserError, match=r"renderer\.name=gsplat for a run on the CPU"):
        evaluate(drawn, tiny(), tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()


def test_an_encoder_in_memory_is_measured_too(root: Path, tmp_path: Path) -> None:
    model = tiny(near=None)
    found = evaluate(config.compose(as_folder(root)), model, tmp_path, replace(QUICK, limit=1))
    assert found.name == "DepthSplat" and len(found.model.rows) == 1
    assert json.loads((tmp_path / "results.json").read_text())["model"] == "DepthSplat"
    with sole_writer(tmp_path), pytest.raises(UserError, match="another process is writing into"):
        evaluate(config.compose(as_folder(root)), model, tmp_path, replace(QUICK, limit=1))


def test_data_at_an_address_are_measured_the_same(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Index and scenes; the hash of the index is that of the file."""
    monkeypatch.setenv("PMSPLAT_CACHE", str(tmp_path / "cache"))
    files = (path for path in root.rglob("*") if path.is_file())
    contents = {f"/{path.relative_to(root).as_posix()}": path.read_bytes() for path in files}
    overrides, model = as_folder(root), tiny(near=None)
    with running(Store(contents)) as store:
        words = [word.replace(str(root), store.address) for word in overrides]
        there = evaluate(config.compose(words), model, tmp_path / "there", QUICK)
        assert store.requests["/evaluation_index.json"] == 1
        lacking = [*words, "protocol=re10k-2v", f"dataset.index={store.address}/none.json"]
        with pytest.raises(UserError, match="there is no evaluation index http://"):
            evaluate(config.compose(lacking), model, tmp_path / "none", QUICK)
        lacking = [*words, f"dataset.index={store.address}/none.json"]
        with pytest.raises(UserError) as caught:
            evaluate(config.compose(lacking), model, tmp_path / "none", QUICK)
        assert f"{store.address}/none.json" in caught.value.got
    here = evaluate(config.compose(overrides), model, tmp_path / "here", QUICK)
    assert there.model.means == here.model.means
    assert there.identity.index == here.identity.index is not None
    (mine,), (theirs,) = there.model.rows, here.model.rows
    assert [view.prediction for view in mine.views] == [view.prediction for view in theirs.views]


def test_a_scene_that_fills_the_gpu_is_one_sentence(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the size that fits in what is free, a quarter of what the encoder needs."""
    model, cpu = tiny(near=None), torch.device("cpu")
    full = needed_bytes(model, Plan(2, SIZE, 16), cpu)
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(0.26 * full / memory.SPARE))

    def fill(*_: object) -> None:
        raise RuntimeError("Triton Error [CUDA]: out of memory")

    monkeypatch.setattr(protocol, "_draw", fill)
    experiment = config.compose(as_folder(root))
    with pytest.raises(UserError) as caught:
        evaluate(experiment, model, tmp_path, replace(QUICK, limit=1))
    height, width = SIZE
    assert (
        caught.value.got
        == f"2 views of {height}x{width} did not fit (Triton Error [CUDA]: out of memory)"
    )
    smaller = [side // 2 // 16 * 16 for side in SIZE]
    assert caught.value.remedy == f"use dataset.size=[{smaller[0]},{smaller[1]}]"
    assert not (tmp_path / "results.json").exists()


def test_budgets_are_measured_and_shown(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny(near=None), tmp_path / "ours.safetensors", "depthsplat")
    command = ["evaluate", *as_folder(root), "--model", str(tmp_path / "ours.safetensors")]
    command += ["--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--gaussians", "2000,500"]) == 0
    means = json.loads((tmp_path / "out/results.json").read_text())["means"]
    assert means["gaussians"] == 2 * 32 * 48
    shown = capsys.readouterr().out
    for count in (500, 2000):
        assert f"{means[f'psnr_gaussians{count}']:.2f}" in shown
    lines = [
        line for line in shown.splitlines() if line.strip("│ ").startswith(("500", "2000", "3072"))
    ]
    assert len(lines) == 3 and f"{means['psnr']:.2f}" in lines[2]
    header = (tmp_path / "out/scenes.csv").read_text().splitlines()[0]
    assert "psnr_gaussians2000" in header and header.endswith("gaussians")
    assert (tmp_path / "out/budgets.png").read_bytes()[:4] == b"\x89PNG"
    # All of them is the same as no budget, and one more is too many.
    assert main([*command, "--gaussians", "3072"]) == 0
    means = json.loads((tmp_path / "out/results.json").read_text())["means"]
    assert means["psnr_gaussians3072"] == means["psnr"]
    capsys.readouterr()
    for given, sentence in (
        ("3073", "--gaussians 3073 for a scene of 3072 Gaussians"),
        ("500,0", "--gaussians 0; wanted whole numbers of at least 1"),
    ):
        assert main([*command, "--gaussians", given]) == 2
        assert sentence in capsys.readouterr().err.replace("\n", " ")
    for given in ("some", "1e5", "500;20"):
        with pytest.raises(SystemExit):
            main([*command, "--gaussians", given])
        wanted = f"{given!r}; wanted whole numbers with commas, such as 100000,50000"
        assert wanted in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(UserError, match=r"`gaussians=True`"):
        Options(gaussians=(True,))


def test_the_share_that_is_kept_is_in_the_results(root: Path, tmp_path: Path) -> None:
    experiment = config.compose([*as_folder(root), "renderer.keep=0.5"])
    options = replace(QUICK, gaussians=(100,))
    found = evaluate(experiment, tiny(near=None), tmp_path, options)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["experiment"]["renderer"]["keep"] == 0.5
    assert found.model.means["gaussians"] == 32 * 48


def test_budgets_of_a_model_of_depth_alone_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="predicts depth alone"):
        evaluate(
            config.compose(as_folder(root)),
            tiny(near=None, gaussians=False),
            tmp_path,
            replace(QUICK, gaussians=(100,)),
        )


def test_views_are_gathered_in_as_many_as_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*where(tmp_path / "rooms"), "dataset.views=[4,4]"]
    overrides = [*ROOMS, *few, f"output={tmp_path / 'out'}"]
    experiment = config.compose(overrides)
    synthetic.make(experiment.dataset.settings)
    seen: list[StepOutput] = []
    measure = protocol.measure
    monkeypatch.setattr(
        protocol, "measure", lambda step, *rest: seen.append(step) or measure(step, *rest)
    )
    for anchors, count in ((None, 3), (2, 2), (9, 4)):
        evaluate(experiment, shaken(tiny(anchors=3)), options=replace(QUICK, anchors=anchors))
        assert seen[-1].batch.context.images.shape[1] == 4
        assert seen[-1].prediction.depths[-1].shape[1] == count
        written = json.loads((tmp_path / "out/evaluation/results.json").read_text())
        assert written["anchors"] == (anchors or 3)


def test_anchors_of_a_model_without_are_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.safetensors"
    save(tiny(), path, "depthsplat")
    words = ["evaluate", *ROOMS, *where(root), "--model", str(path), "--anchors", "2"]
    assert main([*words, "--device", "cpu", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "--anchors 2 for a model in which each view speaks for itself" in said
    assert "leave --anchors out" in said and not (tmp_path / "out").exists()


def test_several_models_are_measured_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    read = weights.read_checkpoint
    monkeypatch.setattr(
        weights, "read_checkpoint", lambda path: loads.append(path.parent.name) or read(path)
    )
    data = [*ROOMS, *where(tmp_path), "dataset.test_scenes=2"]
    for name, model in (("a", shaken(tiny("mvsplat"))), ("b", shaken(shaken(tiny("mvsplat"))))):
        save(model, tmp_path / name / "model.safetensors", "mvsplat")
    models = [word for name in "ab" for word in ("--model", str(tmp_path / name))]
    command = ["evaluate", *data, "--device", "cpu", "--output", str(tmp_path / "out")]
    assert main([*command, *models, "--baselines"]) == 0
    shown = capsys.readouterr().out
    assert "b minus a, scene by scene" in shown and shown.count("nearest photo") == 1
    assert loads == ["b", "a", "b"]  # what is missing is told first
    psnr = []
    for name in "ab":
        content = json.loads((tmp_path / "out" / name / "results.json").read_text())
        psnr.append({row["scene"]: row["psnr"] for row in content["per_scene"]})
        assert f"{content['means']['psnr']:.2f}" in shown
        # Every view is there, and averages to its scene
        for scene, value in psnr[-1].items():
            views = [view for view in content["per_view"] if view["scene"] == scene]
            assert sum(view["psnr"] for view in views) / len(views) == pytest.approx(value)
            assert all(view["lpips"] is None and len(view["truth"]) == 64 for view in views)
        assert content["cost"]["gaussians"] == 2 * 32 * 48
        file = (tmp_path / name / "model.safetensors").read_bytes()
        assert content["identity"]["weights"] == hashlib.sha256(file).hexdigest()
        index = (tmp_path / "evaluation_index.json").read_bytes()
        assert content["identity"]["index"] == hashlib.sha256(index).hexdigest()
        assert "skimage" in content["definitions"]["ssim"]
        assert "VGG-16" in content["definitions"]["lpips"]
    first = json.loads((tmp_path / "out/comparison.json").read_text())["differences"][0]
    assert (first["method"], first["against"], first["metric"]) == ("b", "a", "psnr")
    differences = [psnr[1][scene] - psnr[0][scene] for scene in psnr[0]]
    assert first["difference"] == pytest.approx(sum(differences) / 2)
    assert first["low"] == pytest.approx(min(differences))  # of two scenes, both may be drawn twice
    assert (tmp_path / "out/a/plane_sweep.json").exists()
    assert not (tmp_path / "out/b/plane_sweep.json").exists()
    for more, sentence in (
        (["--model", str(tmp_path / "b")], f"--model {tmp_path / 'b'}, given twice"),
        (["--weights", "x.pth"], "--weights x.pth for 2 models"),
        (["--model", "nothing"], "'nothing', which is neither a published model nor a file"),
    ):
        assert main([*command, *models, *more]) == 2
        assert sentence in capsys.readouterr().err.replace("\n", " ")


def test_models_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    for name in ("x/one.safetensors", "y/one.safetensors", "y/two.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    x, y, two = (
        tmp_path / name for name in ("x/one.safetensors", "y/one.safetensors", "y/two.safetensors")
    )
    assert name_models([x, two]) == ["one", "two"]
    assert name_models([x, y]) == ["x-one", "y-one"]
    runs = ["outputs/a/model.safetensors", "outputs/b"]
    assert name_models(runs) == ["a", "b"]
    published = ["depthsplat-gs-small-re10k-256x256-view2", "mvsplat-re10k"]
    assert name_models(published) == published


def test_a_damaged_scene_is_left_out_and_said(tmp_path: Path) -> None:
    experiment = config.compose([*ROOMS, *where(tmp_path), "dataset.test_scenes=3"])
    synthetic.make(experiment.dataset.settings)
    split = read_split(tmp_path / "test")
    (chunk,) = split.keys
    scenes = list(split.chunk(chunk).scenes.values())
    c2w = scenes[1].c2w.clone()
    c2w[:, 0, 3] = float("nan")
    scenes[1] = replace(scenes[1], c2w=c2w)
    (tmp_path / "test" / chunk).unlink()
    write_chunk(tmp_path / "test" / chunk, scenes)
    found = evaluate(experiment, tiny("mvsplat"), tmp_path / "out", QUICK)
    assert [row.scene for row in found.model.rows] == [scenes[0].key, scenes[2].key]
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert any(
        note.startswith("1 scene could not be measured: it has") and "not finite" in note
        for note in written["notes"]
    )


def test_every_entry_of_an_index_is_accounted_for(tmp_path: Path, root: Path) -> None:
    """Null, missing and damaged scenes beside one that is measured, and one beyond a limit.

    Damaged are one whose photos are torn and two whose entries name frames that they have not.
    """
    scene = next(iter(read_split(root / "test").chunk("000000.torch").scenes.values()))
    torn = replace(scene, key="torn", images=tuple(image[:40] for image in scene.images))
    whole = [replace(scene, key=key) for key in ("a", "short", "cut", "b")]
    write_chunk(tmp_path / "test" / "000000.torch", [whole[0], torn, *whole[1:]])
    write_index(tmp_path / "test")
    entry = {"context": [0, 4], "target": [2]}
    named = dict.fromkeys(("a", "torn", "gone", "short", "cut", "b"), entry)
    named["short"], named["cut"] = ({**entry, "target": [at]} for at in (8, 99))
    named |= dict.fromkeys(("n1", "n2"))
    (tmp_path / "index.json").write_text(json.dumps(named))
    words = ["dataset=folder", f"dataset.root={tmp_path}", f"dataset.index={tmp_path}/index.json"]
    experiment = config.compose([*ROOMS, *words])
    model = shaken(tiny("mvsplat"))
    found = evaluate(experiment, model, tmp_path / "out", replace(QUICK, limit=4))
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["coverage"] == {
        "listed": 8, "evaluated": 1, "null": 2, "missing": 1, "damaged": 3, "unusable": 0,
        "beyond": 1,
    }  # fmt: skip
    said = " ".join(found.model.notes)
    assert "1 scene of the index is not in the data: gone." in said
    assert "1 scene could not be measured: it has an unreadable image: torn." in said
    assert "2 scenes could not be measured: they have not all frames" in said
    assert "short (frame 8 of 0 to 7), cut (frame 99 of 0 to 7)." in said
    assert written["index"]["protocol"] is None and len(written["index"]["frames"]) == 64
    with pytest.raises(UserError, match=r"1 scene of the index was not measured .*gone"):
        evaluate(experiment, model, tmp_path / "strict", replace(QUICK, strict=True))
    other = config.compose([*ROOMS, *words, "protocol=dl3dv-4v-n50"])  # said before what is missing
    with pytest.raises(UserError, match="an index of 2 context views for protocol=dl3dv-4v-n50"):
        evaluate(other, model, tmp_path / "other", replace(QUICK, strict=True))
    beyond = {key: entry for key, entry in named.items() if key in ("a", "short")}
    (tmp_path / "index.json").write_text(json.dumps(beyond))
    with pytest.raises(UserError, match=r"1 scene of the index .*short .frame 8 of 0 to 7"):
        evaluate(experiment, model, tmp_path / "strict", replace(QUICK, strict=True))
    (tmp_path / "index.json").unlink()
    with pytest.raises(UserError, match="no index of the protocol dl3dv-4v-n50"):
        evaluate(other, model, tmp_path / "other", QUICK)


def test_every_precision_is_an_evaluation_of_its_own(root: Path, tmp_path: Path) -> None:
    """In bf16 numbers are near those in float32; the results say it, and replace no others."""
    model, experiment = shaken(tiny()), config.compose([*ROOMS, *where(root)])
    half = replace(QUICK, precision="bf16")
    exact = evaluate(experiment, model, tmp_path / "float32", QUICK)
    near = evaluate(experiment, model, tmp_path / "bf16", half)
    assert (exact.identity.precision, near.identity.precision) == ("float32", "bf16")
    assert 0 < abs(near.model.means["psnr"] - exact.model.means["psnr"]) < 0.5
    assert [_name_table("rooms", one) for one in (exact, near)] == ["rooms", "rooms, bf16"]
    content = json.loads((tmp_path / "bf16/results.json").read_text())
    assert content["identity"]["precision"] == "bf16"
    with pytest.raises(UserError, match="has results in float32, not in bf16"):
        evaluate(experiment, model, tmp_path / "float32", half)
    with pytest.raises(UserError, match="`precision=tf32` on cpu"):
        evaluate(experiment, model, tmp_path / "tf32", replace(QUICK, precision="tf32"))
