"""What a training run is made of: plain dataclasses, composed from YAML or written in Python."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .. import registry
from ..contracts import wants
from ..data import Windows
from ..errors import SettingError, UserError
from . import optim

LOGGERS = ("tensorboard", "csv", "wandb")
MOST_EMA = 0.999999  # above, a mean moves by less than float32 holds
MISSING = ("error", "compute")
RULES = {  # of the trainer's settings
    "steps": registry.whole(1),
    "batch_size": registry.whole(1),
    "workers": registry.whole(0),
    "accelerator": registry.one_of("auto", "cpu", "gpu"),
    "devices": registry.Rule(lambda value: value == "auto" or value.isdigit(), "a number or auto"),
    "nodes": registry.whole(1),
    "strategy": registry.one_of("ddp", "fsdp"),
    "precision": registry.one_of("float32", "tf32", "bf16"),
    "gradient_clip": registry.number(0),
    "ema": registry.number(0, MOST_EMA),
    "update_steps": registry.several(registry.whole(1), 2).or_none,
    "anchors": registry.several(registry.whole(2), 2).or_none,
    "resume": registry.one_of(False, True, "auto"),
    "checkpoint_every": registry.whole(1),
    "keep_checkpoints": registry.whole(1),
    "validate_every": registry.whole(0),
    "validate_scenes": registry.whole(1),
    "log_every": registry.whole(1),
    "profile": registry.whole(0),
}


@dataclass(frozen=True)
class Component:
    """A file of `models` or `data` (or a dotted module) and its own Config."""

    name: str
    settings: Any = None


@dataclass(frozen=True)
class LossTerm:
    """A file of `losses` (or a dotted module), its own Config, its weight and first step."""

    name: str
    weight: float = 1.0
    start_step: int = 0
    settings: Any = None

    def __post_init__(self) -> None:
        owner = f"loss.{self.name}."
        if not 0 <= self.weight < float("inf"):
            wanted = "a finite number of at least 0"
            raise SettingError(f"{owner}weight={self.weight}", wanted, "the default is 1.0")
        registry.check_settings(self, {"start_step": registry.whole(0)}, owner)


@dataclass
class TeacherSettings:
    """A file of `foundation.teachers` (or a dotted module), its own Config, and its cache.

    With a `cache` (the folder that `pmsplat teacher cache` fills; a relative path is in
    dataset.root) training reads the pointmaps of `windows` of frames and does not run the teacher.
    Where they are `missing`, or stale, that is an "error", or the teacher runs in the training step
    ("compute"), as it does without a cache.
    """

    name: str = ""
    settings: Any = None
    cache: str | None = None
    missing: str = "error"
    windows: Windows = field(default_factory=Windows)

    def __post_init__(self) -> None:
        if self.missing not in MISSING:
            raise UserError(
                f"teacher.missing={self.missing}",
                f"one of {', '.join(MISSING)}",
                "set teacher.missing=error, or compute to run the teacher in training",
            )


@dataclass
class Renderer:
    name: str = "auto"  # the backend of `rasterize`
    background: list[float] | None = None  # RGB in [0, 1]; None is black
    keep: float = 1.0
    """The share of each scene's Gaussians that is drawn, in training and in evaluation: the most
    opaque. In training a tenth of them are others, at random."""

    def __post_init__(self) -> None:
        if self.background is not None and len(self.background) != 3:
            raise UserError(
                f"renderer.background has {len(self.background)} numbers", "3", "give RGB in [0, 1]"
            )
        color = registry.several(registry.number(0, 1)).or_none
        share = registry.number(0, 1, open_low=True)
        registry.check_settings(self, {"background": color, "keep": share}, "renderer.")


@dataclass
class Trainer:
    steps: int = 150_000  # optimizer steps
    batch_size: int = 8  # scenes per device
    workers: int = 4  # data-loading processes per device; 0 reads in the training process
    accelerator: str = "auto"  # auto, cpu or gpu
    devices: str = "auto"  # how many devices per node, or auto
    nodes: int = 1
    strategy: str = "ddp"  # of several devices: a whole model on each (ddp), or in parts (fsdp)
    precision: str = "tf32"  # float32, tf32 (matrix products on CUDA) or bf16 (autocast)
    gradient_clip: float = 0.5  # largest norm of all gradients together
    ema: float = 0.0
    """Share of the old value in a running mean of the weights, as 0.999: that mean is validated and
    exported. 0: the weights themselves."""
    update_steps: list[int] | None = None
    """Fewest and most steps of the model's own update in a training step, drawn anew for each;
    null: as many as the model takes by itself."""
    anchors: list[int] | None = None
    """Fewest and most anchors of a training step of a model that gathers views, drawn anew for
    each; in some steps every view is one. null: as many as the model has by itself."""
    initial: str | None = None  # published name or checkpoint to start from
    resume: bool | str = False  # go on from last.ckpt in the output folder; auto: if there is one
    strict: bool = False  # end with an error at the first scene that cannot be read
    checkpoint_every: int = 1000  # steps between replacements of last.ckpt and model.safetensors
    keep_checkpoints: int = 1  # of the last saves; more than last.ckpt are in checkpoints/
    validate_every: int = 5000  # steps between validations; 0 never
    validate_scenes: int = 32  # of the evaluation index
    log_every: int = 50  # steps between lines in the logs, which have the last step too
    profile: int = 0  # steps whose operators and times are written to profile/; 0 none
    loggers: list[str] = field(default_factory=lambda: ["tensorboard", "csv"])

    def __post_init__(self) -> None:
        unknown = [name for name in self.loggers if name not in LOGGERS]
        if unknown:
            raise UserError(
                f"trainer.loggers has {unknown[0]!r}",
                f"some of {', '.join(LOGGERS)}",
                "set trainer.loggers=[csv]",
            )
        registry.check_settings(self, RULES, "trainer.")
        for name, example in (("update_steps", "[1,4]"), ("anchors", "[3,8]")):
            limits = getattr(self, name)
            if limits is not None and limits[0] > limits[1]:
                raise UserError(
                    f"trainer.{name}={limits}",
                    "the fewest first, then the most",
                    f"set trainer.{name}={example}",
                )


@dataclass(frozen=True)
class Experiment:
    """One training run and its evaluation."""

    name: str
    model: Component
    dataset: Component
    loss: dict[str, LossTerm]
    teacher: TeacherSettings | None = None  # for losses that want one, as loss.pointmap
    renderer: Renderer = field(default_factory=Renderer)
    optimizer: optim.Config = field(default_factory=optim.Config)
    trainer: Trainer = field(default_factory=Trainer)
    seed: int = 111123  # of initial weights and data order
    protocol: str | None = None
    """The name of an evaluation protocol (`pmsplat.data.PROTOCOLS`), which chose data and index."""
    output: str = "outputs/run"

    def losses_that_want(self, what: str) -> dict[str, LossTerm]:
        """The losses whose module has `what` in its `WANTS` (see `contracts`)."""
        return {
            key: term
            for key, term in self.loss.items()
            if what in wants(registry.module("losses", term.name))
        }


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, the components' own beside their common ones."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flatten(inner, path if key == "settings" else f"{path}.{key}".lstrip("."))
    return found


def check_is_whole(name: str, experiment: Experiment) -> None:
    """UserError where `name` is the end of settings' names, with those, as "steps" is."""
    found = [path for path in flatten(asdict(experiment)) if path.endswith(f".{name}")]
    if found:
        raise UserError(
            f"the run has no setting {name!r}",
            "the whole name of one",
            f"did you mean {' or '.join(map(repr, found))}?",
        )


def name_usual(error: SettingError, usual: dict[str, Any], name: str) -> SettingError:
    """The error with the experiment's own value in place of the default, where it has one."""
    key = error.got.partition("=")[0]
    value: Any = usual
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return error
    return SettingError(error.got, error.wanted, f"{name} has {key}={value}")
