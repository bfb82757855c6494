"""Strict composition: every YAML composes, every mistake is told, every field is read."""

import ast
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from pmsplat import config, registry, shipped_files
from pmsplat.errors import UserError
from pmsplat.train import Experiment, LossTerm
from pmsplat.zoo.init import RESNET, SOURCES
from pmsplat.zoo.published import ZOO

PACKAGE = Path(config.__file__).parent
EXPERIMENTS = config.choices("experiment")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    experiment = config.compose([f"+experiment={name}"])
    assert experiment.name == name
    assert experiment.output == f"outputs/{name}"
    assert isinstance(
        experiment.model.settings, registry.module("models", experiment.model.name).Config
    )
    rooms = name in ("demo_tiny", "zpressor_tiny") or name.startswith(("resplat_tiny", "box"))
    own = {"log_depth"} if rooms else set()  # what the experiment itself adds stays
    assert set(config.compose([f"+experiment={name}", "loss=mse"]).loss) == {"mse"} | own


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g in config.GROUPS for n in config.choices(g)]
)
def test_every_file_of_every_group_composes(group: str, name: str) -> None:
    assert isinstance(config.compose([f"{group}={name}"]), Experiment)


@pytest.mark.parametrize("name", [n for n in config.choices("experiment") if n.endswith("_pm")])
def test_pm_experiments_teach_from_the_first_step_and_fit_the_windows(name: str) -> None:
    tuned = config.compose([f"+experiment={name}"])
    term, teacher = tuned.loss["pointmap"], tuned.teacher
    assert set(tuned.loss) == {"mse", "lpips", "pointmap"}
    assert (term.weight, term.start_step) == (0.005, 0)
    assert teacher is not None and teacher.name == "vggt" and teacher.settings.head == "point"
    assert tuned.trainer.initial in ZOO
    published = ZOO[tuned.trainer.initial]
    ours = tuned.model.settings
    released = registry.module("models", published.model).RELEASED
    assert ours.deviations == released  # as the weights were trained
    free = {"offsets", "neighbors", "init_from"}  # what fine-tuning changes
    assert all(getattr(ours, k) == v for k, v in published.settings.items() if k not in free)
    longest = tuned.dataset.settings.max_gap[1]
    windows = teacher.windows
    assert (windows.frames - windows.hop) * windows.every >= longest


def test_the_published_experiments_have_the_published_settings() -> None:
    small = config.compose(["+experiment=re10k_small"])
    assert (small.trainer.steps, small.trainer.batch_size) == (150_000, 8)
    assert (small.optimizer.lr, small.optimizer.backbone_lr) == (2e-4, 2e-6)
    assert (small.optimizer.weight_decay, small.trainer.gradient_clip) == (0.01, 0.5)
    assert {name: term.weight for name, term in small.loss.items()} == {"mse": 1.0, "lpips": 0.05}
    assert (small.model.settings.vit, small.model.settings.scales) == ("vits", 1)
    assert small.dataset.settings.size == [256, 256]
    large = config.compose(["+experiment=re10k_large"])
    assert (large.model.settings.vit, large.model.settings.scales) == ("vitl", 2)
    wide = config.compose(["+experiment=dl3dv_base_256x448"])
    assert (wide.trainer.steps, wide.trainer.batch_size) == (100_000, 1)
    assert (wide.model.settings.lowest, wide.dataset.settings.target_views) == (8, 8)
    assert config.compose(["+experiment=re10k_small_2024"]).trainer.batch_size == 4
    tuned = config.compose(["+experiment=dl3dv_base_256x448_2024"])
    assert (tuned.dataset.settings.near, tuned.dataset.settings.far) == (1.0, 200.0)
    mvsplat = config.compose(["+experiment=re10k_mvsplat"])
    assert (mvsplat.trainer.steps, mvsplat.trainer.batch_size) == (300_001, 14)
    assert (mvsplat.optimizer.lr, mvsplat.optimizer.weight_decay) == (2e-4, 0.0)
    assert (mvsplat.dataset.settings.near, mvsplat.dataset.settings.far) == (1.0, 100.0)


@pytest.mark.parametrize(
    ("name", "views", "targets", "start", "end", "index"),
    [
        ("8v_256x448", 8, 6, (20, 30), (24, 45), "start_0_distance_40_ctx_8v_tgt_8v"),
        ("16v_256x448", 16, 6, (40, 60), (50, 80), "start_0_distance_80_ctx_16v_tgt_16v"),
        ("32v_256x448", 32, 8, (80, 120), (120, 170), "start_0_distance_160_ctx_32v_tgt_24v"),
        ("8v_512x960", 8, 6, (24, 40), (30, 60), "start_0_distance_60_ctx_8v_tgt_8v"),
        ("16v_540x960", 16, 8, (100, 200), (150, 350), "longlrm_ctx16_tgt_every8th"),
    ],
)
def test_the_data_of_resplat_is_as_published(
    name: str, views: int, targets: int, start: tuple, end: tuple, index: str
) -> None:
    """Its training scripts: gaps at the start and after 10,000 steps; its evaluation commands."""
    settings = config.compose([f"dataset=resplat_dl3dv_{name}"]).dataset.settings
    dataset = registry.build("data", "dl3dv", settings)
    sampler = dataset.recipe.sampler
    assert (sampler.views, sampler.targets) == ((views, views), targets)
    assert (sampler.gap.at(0), sampler.gap.at(10_000)) == (start, end)
    assert sampler.gap.at(9_999)[1] < end[1]
    assert settings.index == f"{settings.root}/dl3dv_{index}.json"
    assert dataset.recipe.size == tuple(int(side) for side in name.split("_")[1].split("x"))
    assert dataset.recipe.resize and not dataset.recipe.exact
    assert (settings.near, settings.far, settings.poses.frame) == (0.01, 200.0, "colmap")
    assert settings.context_size == ([576, 960] if name == "16v_540x960" else None)


# From the authors' commands: data, near and far, gaps at the start and after 10,000 steps.
ZPRESSOR = {
    "re10k_256x448": (1.0, 200.0, (15, 50), (50, 200), "re10k_ctx_12v_tgt_8v_n200"),
    "dl3dv_256x448": (1.0, 200.0, (15, 30), (20, 50), "dl3dv_ctx_12v_tgt_8v_n50"),
    "re10k_mvsplat": (1.0, 100.0, (25, 45), (45, 192), "re10k_ctx_12v_tgt_8v_n200"),
}


@pytest.mark.parametrize("name", ZPRESSOR)
def test_the_recipes_of_zpressor_are_as_published(name: str) -> None:
    near, far, start, end, index = ZPRESSOR[name]
    experiment = config.compose([f"+experiment=zpressor_{name}"])
    settings, model = experiment.dataset.settings, experiment.model
    sampler = registry.build("data", experiment.dataset.name, settings).recipe.sampler
    assert (sampler.views, sampler.targets, model.settings.anchors) == ((12, 12), 8, 6)
    assert (sampler.gap.at(0), sampler.gap.at(10_000)) == (start, end)
    assert (settings.near, settings.far) == (near, far)
    assert settings.index == f"{settings.root}/{index}.json"
    assert experiment.trainer.batch_size == 1 and experiment.trainer.anchors is None
    weights = {name: term.weight for name, term in experiment.loss.items()}
    assert weights == {"mse": 1.0, "lpips": 0.05}
    released = ZOO[
        "mvsplat-re10k-zpressor-n200-256x256"
        if name == "re10k_mvsplat"
        else "depthsplat-dl3dv-zpressor-n50-256x448"
    ]
    assert model.name == released.model
    theirs = vars(registry.make_config("models", released.model, released.settings))
    ours = vars(model.settings)
    assert {key for key in ours if ours[key] != theirs[key]} <= {"init_from", "deviations"}


@pytest.mark.parametrize("name", config.choices("model"))
def test_every_model_starts_from_weights_that_there_are(name: str) -> None:
    start = config.compose([f"model={name}"]).model.settings.init_from
    assert {entry.partition(":")[0] for entry in start} <= {*SOURCES, *ZOO, RESNET}
    assert bool(start) == (not name.endswith("_tiny") and name != "compact")


def test_weights_to_start_from_are_chosen_by_name_or_path() -> None:
    chosen = "model.init_from=[dinov2,gmflow,depth-anything-v2-small:depth.vit,a/b-c.pth]"
    names = config.compose(["+experiment=re10k_small", chosen]).model.settings.init_from
    assert names == ["dinov2", "gmflow", "depth-anything-v2-small:depth.vit", "a/b-c.pth"]


# From the authors' scripts: steps, scenes of each GPU, learning rates of the initial model;
# steps, scenes of each GPU, numbers of updates in a training step.
RESPLAT = {
    "dl3dv_8v_256x448_small": ((100_000, 2, 2e-4, 2e-6), (100_000, 1, [1, 4])),
    "dl3dv_8v_256x448_base": ((50_000, 2, 2e-4, 2e-6), (30_000, 1, [1, 4])),
    "dl3dv_8v_256x448_large": ((50_000, 2, 2e-4, 2e-6), None),
    "dl3dv_16v_256x448_base": ((50_000, 2, 1e-4, 1e-6), (30_000, 1, [1, 4])),
    "dl3dv_32v_256x448_base": ((50_000, 1, 1e-4, 1e-6), (30_000, 1, [1, 4])),
    "dl3dv_8v_512x960_base": ((50_000, 1, 1e-4, 1e-6), (30_000, 1, [1, 4])),
    "dl3dv_16v_540x960_base": ((50_000, 1, 1e-4, 1e-6), (30_000, 1, None)),
    "re10k_2v_256x256_base": ((200_000, 8, 2e-4, 2e-6), (100_000, 2, None)),
}


@pytest.mark.parametrize("name", RESPLAT)
def test_the_recipes_of_resplat_are_as_published(name: str) -> None:
    def check(experiment: Experiment, steps: int, batch_size: int) -> None:
        trainer, optimizer, loss = experiment.trainer, experiment.optimizer, experiment.loss
        assert (trainer.steps, trainer.batch_size, trainer.gradient_clip) == (
            steps,
            batch_size,
            0.5,
        )
        assert (optimizer.weight_decay, optimizer.warm_up) == (0.01, 0.01)
        weights = {name: term.weight for name, term in loss.items()}
        assert weights == {"l1": 1.0, "perceptual": 0.5, "smoothness": 0.01}
        half = name == "dl3dv_16v_540x960_base"
        assert loss["perceptual"].settings.downsample == (2 if half else 1)
        data = experiment.dataset.settings
        size = [512, 960] if half else [int(side) for side in name.split("_")[2].split("x")]
        assert (data.size, data.near, data.far) == (size, 0.01, experiment.model.settings.far)

    initial, update = RESPLAT[name]
    steps, batch_size, lr, backbone_lr = initial
    first = config.compose([f"+experiment=resplat_{name}_init"])
    check(first, steps, batch_size)
    assert (first.optimizer.lr, first.optimizer.backbone_lr) == (lr, backbone_lr)
    assert (first.optimizer.parts, first.model.settings.steps) == ([], None)
    if update is None:
        assert f"resplat_{name}_refine" not in EXPERIMENTS
        return
    steps, batch_size, limits = update
    second = config.compose([f"+experiment=resplat_{name}_refine"])
    check(second, steps, batch_size)
    assert (second.optimizer.lr, second.optimizer.parts) == (1e-4, ["update"])
    assert second.trainer.update_steps == limits
    assert second.model.settings.steps == (2 if limits is None else 4)
    assert second.model.settings.init_from[0] == f"{first.output}/model.safetensors"
    kept = {"steps": None, "init_from": first.model.settings.init_from}
    assert replace(second.model.settings, **kept) == first.model.settings


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n.startswith("resplat_")])
def test_what_a_training_of_resplat_starts_from_is_released_or_trained_before(name: str) -> None:
    start = config.compose([f"+experiment={name}"]).model.settings.init_from
    trained = {f"outputs/{other}/model.safetensors" for other in EXPERIMENTS}
    assert {entry.partition(":")[0] for entry in start} <= {*ZOO, RESNET, *trained}
    assert start or name == "resplat_tiny_init"


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("depthsplat-gs-small-re10k-256x256-view2", ["model=depthsplat_small"]),
        ("depthsplat-gs-base-re10k-256x256-view2", ["model=depthsplat_base"]),
        ("depthsplat-gs-large-re10k-256x256-view2", ["model=depthsplat_large"]),
        ("depthsplat-gs-base-re10k-256x448-view2", ["+experiment=re10k_base_256x448"]),
        ("depthsplat-gs-base-dl3dv-256x448-randview2-6", ["+experiment=dl3dv_base_256x448"]),
        ("depthsplat-depth-small-352x640-randview2-8", ["+experiment=depth_small"]),
        ("depthsplat-depth-base-352x640-randview2-8", ["+experiment=depth_base"]),
        ("depthsplat-gs-small-re10k-256x256", ["model=depthsplat2024_small"]),
        ("depthsplat-gs-base-re10k-256x256", ["model=depthsplat2024_base"]),
        ("depthsplat-gs-large-re10k-256x256", ["model=depthsplat2024_large"]),
        ("depthsplat-gs-base-dl3dv-256x448", ["+experiment=dl3dv_base_256x448_2024"]),
        ("mvsplat-re10k", ["+experiment=re10k_mvsplat"]),
        ("resplat-small-dl3dv-256x448-view8", ["model=resplat_small"]),
        ("resplat-base-dl3dv-256x448-view8", ["model=resplat_base"]),
        ("resplat-large-dl3dv-256x448-view8", ["model=resplat_large"]),
        ("resplat-base-re10k-256x256-view2", ["model=resplat_re10k"]),
        (
            "resplat-small-dl3dv-256x448-view8",
            ["+experiment=resplat_dl3dv_8v_256x448_small_refine"],
        ),
        ("resplat-base-dl3dv-256x448-view8", ["+experiment=resplat_dl3dv_8v_256x448_base_refine"]),
        ("resplat-large-dl3dv-256x448-view8", ["+experiment=resplat_dl3dv_8v_256x448_large_init"]),
        (
            "resplat-base-dl3dv-256x448-view16",
            ["+experiment=resplat_dl3dv_16v_256x448_base_refine"],
        ),
        (
            "resplat-base-dl3dv-256x448-view32",
            ["+experiment=resplat_dl3dv_32v_256x448_base_refine"],
        ),
        ("resplat-base-dl3dv-512x960-view8", ["+experiment=resplat_dl3dv_8v_512x960_base_refine"]),
        (
            "resplat-base-dl3dv-540x960-view16",
            ["+experiment=resplat_dl3dv_16v_540x960_base_refine"],
        ),
        ("resplat-base-re10k-256x256-view2", ["+experiment=resplat_re10k_2v_256x256_base_refine"]),
    ],
)
def test_what_is_trained_is_what_was_published(name: str, overrides: list[str]) -> None:
    model = config.compose(overrides).model
    published = ZOO[name]
    schema = registry.module("models", published.model).Config
    assert model.name == published.model
    own = model.settings.deviations  # those of the weights that a training starts from, or none
    assert replace(model.settings, init_from=[]) == schema(**published.settings, deviations=own)


def test_values_are_set_typed_and_nested() -> None:
    experiment = config.compose(
        ["+experiment=demo_tiny", "trainer.steps=7", "seed=3", "output=/tmp/x",
         "model.planes=16", "optimizer.lr=1e-3", "dataset.size=[32,48]"]
    )  # fmt: skip
    assert (experiment.trainer.steps, experiment.seed, experiment.output) == (7, 3, "/tmp/x")
    assert experiment.model.settings.planes == 16
    assert experiment.optimizer.lr == 1e-3
    assert experiment.dataset.settings.size == [32, 48]


def test_values_may_name_others_which_may_be_overridden() -> None:
    dataset = config.compose(["+experiment=re10k_small", "dataset.root=/data"]).dataset.settings
    assert dataset.index == "/data/evaluation_index_re10k.json"
    with pytest.raises(UserError, match="cannot resolve"):
        config.compose(["dataset.index=${dataset.nowhere}"])


@pytest.mark.parametrize(
    ("override", "weight", "robust"),
    [
        ("+loss.pointmap={}", 0.005, 0),
        ("+loss.pointmap.robust=5", 0.005, 5),
        ("+loss.pointmap={robust: 3}", 0.005, 3),
        ("+loss.pointmap={weight: 0.1, robust: 3}", 0.1, 3),
        ("loss=[photometric,pointmap]", 0.005, 0),
    ],
)
def test_a_loss_with_a_file_is_added_as_its_file_has_it(
    override: str, weight: float, robust: int
) -> None:
    loss = config.compose(["+experiment=re10k_small", override]).loss
    assert {name: term.weight for name, term in loss.items()} == {
        "mse": 1.0, "lpips": 0.05, "pointmap": weight,
    }  # fmt: skip
    assert loss["pointmap"].settings.robust == robust


def test_losses_are_added_changed_and_dropped() -> None:
    base = ["+experiment=demo_tiny"]
    added = config.compose([*base, "+loss.tests.lab.sparsity.weight=0.1"]).loss
    assert set(added) == {"mse", "log_depth", "tests.lab.sparsity"}
    term = added["tests.lab.sparsity"]
    assert isinstance(term, LossTerm)
    assert (term.name, term.weight, term.settings.power) == ("tests.lab.sparsity", 0.1, 1)
    own = config.compose(
        [*base, "loss.thin.name=tests.lab.sparsity", "loss.thin.power=2", "loss.thin.start_step=9"]
    ).loss["thin"]
    assert (own.settings.power, own.start_step) == (2, 9)
    whole = config.compose([*base, "+loss.tests.lab.sparsity={power: 3}"]).loss
    assert whole["tests.lab.sparsity"].settings.power == 3
    dropped = config.compose(["+experiment=re10k_small", "~loss.lpips"]).loss
    assert set(dropped) == {"mse"}


def test_a_component_without_yaml_is_chosen_by_its_name() -> None:
    experiment = config.compose(["model=depthsplat", "loss=mse"])
    assert experiment.model.settings == registry.module("models", "depthsplat").Config()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+experiment=re10k_smal"], r"no experiment 're10k_smal'.*did you mean 're10k_small'"),
        (["model=depthsplat_smal"], r"no model 'depthsplat_smal'.*did you mean 'depthsplat_small'"),
        (["loss=[mse,pointmp]"], r"no loss 'pointmp'.*did you mean 'pointmap'"),
        (["loss=photometrc"], r"no loss 'photometrc'.*did you mean 'photometric'"),
        (["model.plnes=3"], r"model 'depthsplat' has no setting 'plnes'.*did you mean 'planes'"),
        (["trainr.steps=3"], r"no setting 'trainr'.*did you mean 'trainer'"),
        (["steps=3"], r"the run has no setting 'steps'.*did you mean 'trainer\.steps'\?"),
        (["lr=1e-3"], r"no setting 'lr'.*did you mean 'optimizer\.lr'\?"),
        (
            ["+experiment=demo_tiny", "trainer.steps=0"],
            r"steps=0.*demo_tiny has trainer\.steps=800",
        ),
        (["trainer.step=3"], r"trainer has no setting 'step'.*did you mean 'steps'"),
        (["dataset.rot=x"], r"dataset 're10k' has no setting 'rot'.*did you mean 'root'"),
        (["loss.mse.weigt=1"], r"loss 'mse' has no setting 'weigt'.*did you mean 'weight'"),
        (["loss.mes.weight=1"], r"no 'mes' in losses.*did you mean 'mse'"),
        (["~loss.lpisp"], r"no setting 'lpisp'.*did you mean 'lpips'"),
        (["loss.no.such.module.weight=1"], r"module 'no\.such\.module' cannot be imported"),
        (["model.planes=many"], r"setting 'planes' is wrong.*'many'.*Integer"),
        (["trainer.steps=0"], r"trainer\.steps=0; wanted a whole number of at least 1"),
        (["trainer.precision=fp8"], r"trainer\.precision='fp8'; wanted one of float32, tf32, bf16"),
        (["trainer.loggers=[tensorbord]"], r"trainer\.loggers has 'tensorbord'"),
        (["trainer.devices=two"], r"trainer\.devices='two'"),
        (["renderer.background=[1,2]"], r"renderer\.background has 2 numbers"),
        (["renderer.keep=0"], r"renderer\.keep=0\.0.*a number above 0 and at most 1"),
        (["renderer.keep=1.5"], r"renderer\.keep=1\.5.*at most 1.*the default is 1\.0"),
        (["renderer.keep=nan"], r"renderer\.keep=nan.*at most 1"),
        (["renderer.keep=half"], r"renderer.*half"),
        (["trainer.steps=[1]"], r"setting 'steps' is wrong"),
        (
            ["dataset.max_gap=4"],
            r"^dataset\.max_gap=4; wanted two whole numbers; .* dataset\.max_gap=\[45,135\]$",
        ),
        (
            ["trainer.anchors=4"],
            r"^trainer\.anchors=4; wanted a list of .* trainer\.anchors=\[4\]$",
        ),
        (["trainer.loggers=csv"], r"^trainer\.loggers=csv; .* names; .*=\[tensorboard,csv\]$"),
        (["dataset=scenery", "dataset.sizes=[64,64]"], r"sizes=64; .* lists; .*=\[\[128,128\]\]$"),
        (["seed=x"], r"setting 'seed' is wrong"),
        (["trainer.steps.more=1"], r"setting 'steps' is wrong.*could not be converted"),
        (["trainer=fast"], r"trainer is 'fast'; wanted a mapping"),
        (["trainer.steps"], r"cannot read the override"),
        (["trainer.steps=1,2"], r"is a sweep"),
        (["~trainer.steps"], r"only losses can be dropped"),
    ],
)
def test_each_mistake_is_told(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config.compose(overrides)


@pytest.mark.parametrize("script", sorted((PACKAGE.parents[1] / "scripts").glob("*_*.sh")), ids=str)
def test_the_commands_of_every_script_compose(script: Path) -> None:
    text = script.read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith(("pmsplat ", "    pmsplat "))]
    trained = [shlex.split(line) for line in commands if " train " in line or " evaluate " in line]
    for words in trained:
        overrides = [w for w in words[2:] if "=" in w and not w.startswith("-")]
        assert config.compose([re.sub(r"\$\{?\w+\}?", "x", word) for word in overrides])
    assert commands


def test_an_installation_without_config_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped_files, "PACKAGE", tmp_path / "a")
    monkeypatch.setattr(shipped_files, "CLONE", tmp_path / "b")
    with pytest.raises(UserError, match=r"there is neither \S+/a/configuration/main.yaml nor "):
        config.compose(["+experiment=demo_tiny"])


def test_yaml_shows_every_setting() -> None:
    text = config.to_yaml(config.compose(["+experiment=demo_tiny"]))
    assert "gradient_clip: 0.5" in text and "planes:" in text and "- 64" in text


def component_configs() -> list[tuple[str, type]]:
    found = [
        (f"{package}/{name}", registry.module(package, name).Config)
        for package in ("models", "losses", "data")
        for name in registry.names(package)
        if package != "data" or name != "folder"
    ]
    own = [("Trainer", config.Trainer), ("Renderer", config.Renderer)]
    return [*found, *own, ("optim", config.optim.Config)]


@pytest.mark.parametrize(("owner", "schema"), component_configs(), ids=lambda x: str(x))
def test_every_config_has_defaults_and_no_field_called_like_a_setting_of_losses(
    owner: str, schema: type
) -> None:
    assert is_dataclass(schema)
    schema()
    if owner.startswith("losses/"):
        assert not {f.name for f in fields(schema)} & set(config.LOSS_KEYS)


def attributes_read() -> set[str]:
    """Every NAME of an expression `something.NAME` that is read anywhere in the package."""
    nodes = (
        node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    )
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_field_of_every_config_is_read_somewhere() -> None:
    read = attributes_read()
    for owner, schema in component_configs():
        unread = [f.name for f in fields(schema) if f.name not in read]
        assert not unread, f"{owner}: nothing reads {unread}"


def test_a_planted_field_that_nothing_reads_is_found() -> None:
    assert "a_field_that_nothing_reads" not in attributes_read()
    assert "gradient_clip" in attributes_read()


def test_the_later_of_two_overrides_of_a_group_wins() -> None:
    file = config.compose(["model=tests.lab.encoder", "model=mvsplat"])
    module = config.compose(["model=mvsplat", "model=tests.lab.encoder"])
    assert file.model.name == "mvsplat" and module.model.name == "tests.lab.encoder"


def test_a_mistyped_experiment_is_told_before_torch_is_imported() -> None:
    """By every verb that takes overrides, and as `compose` tells it."""
    with pytest.raises(UserError) as caught:
        config.compose(["+experiment=re10k_smal"])
    script = "import sys; from pmsplat.cli import main; code = main(sys.argv[1:]); "
    script += "sys.exit(code if 'torch' not in sys.modules else 1)"
    for verb in ("train", "evaluate"):
        words = [verb, "+experiment=re10k_smal", "dataset.root=/nowhere"]
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True)
        assert done.returncode == 2 and done.stderr.decode() == f"pmsplat: {caught.value}\n"
    assert config.compose(["+experiment=demo_tiny"]).name == "demo_tiny"
