"""What a run on CUDA checks and sets before its first step; no GPU is needed for most of it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pmsplat import config, render, train
from pmsplat.errors import UserError
from pmsplat.kernels import cuda
from pmsplat.train import Experiment, loop
from pmsplat.train.callbacks import ProgressBar, shown
from pmsplat.train.checkpoints import AGREE_EVERY, Checkpoints
from tests.waits import no_waits


class Opened(Exception):
    """The run has come as far as its model."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have one GPU; a run on it ends where it builds its model."""

    def stop(*_: object) -> None:
        raise Opened(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(loop, "_build_model", stop)


def refuse(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Renderers that cannot draw here; all others can, and so can Triton's kernels run."""
    monkeypatch.setattr(cuda, "obstacle", lambda device: None)
    for name in render.backends():
        problem = (
            UserError(f"{name} is not here", name, f"install {name}") if name in names else None
        )
        monkeypatch.setattr(
            render._module(name), "obstacle", lambda device, problem=problem: problem
        )


@pytest.mark.parametrize("renderer", ["auto", "gsplat"])
def test_training_on_cuda_without_a_fast_renderer_is_refused_at_once(
    renderer: str, setting: Callable[..., Experiment], gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, *render.backends())
    with pytest.raises(UserError, match=r" is not here.*; install "):
        train.run(setting(f"renderer.name={renderer}", "trainer.accelerator=gpu"))


@pytest.mark.parametrize("renderer", ["auto", "gsplat"])
def test_training_on_cuda_without_triton_is_refused_at_once(
    renderer: str, setting: Callable[..., Experiment], gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where gsplat can draw, too: the encoder and the losses need it."""
    refuse(monkeypatch, "triton")
    problem = UserError("triton is not installed", "triton", "install it")
    monkeypatch.setattr(cuda, "obstacle", lambda device: problem)
    with pytest.raises(UserError, match=r"^triton is not .*; install it, or train on the CPU: tra"):
        train.run(setting(f"renderer.name={renderer}", "trainer.accelerator=gpu"))
    with pytest.raises(Opened):
        train.run(setting("trainer.accelerator=cpu"))


@pytest.mark.parametrize(
    ("precision", "inside"),
    [("float32", ("highest", False)), ("tf32", ("high", True)), ("bf16", ("high", True))],
)
def test_convolutions_have_the_precision_of_products(
    precision: str,
    inside: tuple[str, bool],
    setting: Callable[..., Experiment],
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse(monkeypatch)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pytest.raises(Opened) as caught:
        train.run(setting(f"trainer.precision={precision}", "trainer.accelerator=gpu"))
    assert caught.value.args == inside
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("accelerator", ["auto", "gpu"])
def test_a_driver_too_old_is_refused_not_replaced_by_the_cpu(
    accelerator: str,
    setting: Callable[..., Experiment],
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(UserError, match=r"too old.*or train on the CPU: trainer\.accelerator=cpu"):
        train.run(setting(f"trainer.accelerator={accelerator}"))
    with pytest.raises(Opened):
        train.run(setting("trainer.accelerator=cpu"))


def test_a_renderer_that_does_not_draw_on_the_cpu_is_refused_first(
    setting: Callable[..., Experiment], tmp_path: Path
) -> None:
    said = r"renderer\.name=gsplat for a run on the CPU; .*set renderer\.name=auto"
    rooms = f"dataset.root={tmp_path / 'rooms'}"
    with pytest.raises(UserError, match=said):
        train.run(setting("renderer.name=gsplat", rooms))
    assert not list(tmp_path.iterdir())


class Devices:
    """Stands for a trainer on several devices; counts how often they wait for each other."""

    def __init__(self, world_size: int, theirs: bool = False) -> None:
        self.world_size, self.global_step = world_size, 0
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(max_steps=100))
        self.is_global_zero, self.asked, self.theirs = True, 0, theirs
        self.strategy = SimpleNamespace(reduce_boolean_decision=self.reduce)
        self.saved: list[int] = []

    @property
    def stops(self) -> bool:
        """Whether this is the last step."""
        return self.fit_loop.epoch_loop.max_steps == self.global_step

    def reduce(self, decision: bool, all: bool) -> bool:
        assert not all
        self.asked += 1
        return decision or (self.theirs and self.world_size > 1)

    def save_checkpoint(self, path: Any) -> None:
        torch.save({}, path)
        self.saved.append(self.global_step)


def test_several_devices_agree_on_ctrl_c_now_and_then(tmp_path: Any) -> None:
    """One device learns of it in step 3, the others with it in step 10; nobody skips a save."""
    trainer: Any = Devices(2)
    checkpoints = Checkpoints(tmp_path, 4, lambda path: None)
    module: Any = None
    for trainer.global_step in range(1, 11):
        if trainer.global_step == 3:
            checkpoints._on_ctrl_c(0, None)
        checkpoints.on_train_batch_end(trainer, module, None, None, 0)
        assert trainer.stops is (trainer.global_step == AGREE_EVERY)
    assert trainer.asked == 1 and trainer.saved == [4, 8, 10] and checkpoints.interrupted
    other: Any = Devices(2, theirs=True)
    checkpoints = Checkpoints(tmp_path, 4, lambda path: None)
    other.global_step = AGREE_EVERY
    checkpoints.on_train_batch_end(other, module, None, None, 0)
    assert other.stops and checkpoints.interrupted


def test_one_device_stops_after_the_step_at_hand(tmp_path: Any) -> None:
    trainer: Any = Devices(1)
    trainer.global_step = 3
    module: Any = None
    checkpoints = Checkpoints(tmp_path, 3, lambda path: None)
    checkpoints._on_ctrl_c(0, None)
    checkpoints.on_train_batch_end(trainer, module, None, None, 0)
    assert trainer.stops and trainer.saved == [3]  # at once


def test_progress_is_read_in_one_piece_and_its_means_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A term that starts late starts at 0, others at their first value; NaN counts for nothing."""
    bar = ProgressBar(10, 1)
    steps = [
        {"loss": 1.0, "loss/mse": 1.0, "psnr": float("nan")},
        {"loss": 2.0, "loss/mse": 1.0, "loss/late/0": 1.0, "psnr": 20.0},
        {"loss": 2.0, "loss/mse": 1.0, "loss/late/0": 1.0, "psnr": float("nan")},
    ]
    for values in steps:
        bar._update_means({name: torch.tensor(value) for name, value in values.items()})
    wanted = {"loss": 1.19, "loss/mse": 1.0, "psnr": 20.0, "loss/late/0": 0.19}
    assert {name: value.item() for name, value in bar.means.items()} == pytest.approx(wanted)
    reads: list[str] = []
    read = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "item", lambda _: pytest.fail("a number read by itself"))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: reads.append("read") or read(t))
    assert shown(bar.means) == "loss 1.19 (late 0.19, mse 1), PSNR 20.00 dB"
    assert len(reads) == 1 and shown({}) == ""


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_step_on_cuda_never_waits(
    precision: str, setting: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the batch on the device to the optimizer; the log is read at the last step only."""
    if "triton" not in render.backends() or render.obstacle("triton", torch.device("cuda")):
        pytest.skip("no renderer that does not wait")
    begin, end = loop.TrainingModule.on_train_batch_start, ProgressBar.on_train_batch_end
    step = ExitStack()

    def watch(self: Any, batch: Any, batch_idx: int) -> None:
        begin(self, batch, batch_idx)
        if batch_idx in (1, 2):
            step.enter_context(no_waits())

    def rest(self: Any, *arguments: Any) -> None:
        step.close()
        end(self, *arguments)

    monkeypatch.setattr(loop.TrainingModule, "on_train_batch_start", watch)
    monkeypatch.setattr(ProgressBar, "on_train_batch_end", rest)
    experiment = setting(
        "trainer.accelerator=gpu", "trainer.devices=1", "trainer.steps=4", "trainer.log_every=4",
        f"trainer.precision={precision}", "renderer.name=triton", "renderer.background=[1,1,1]",
    )  # fmt: skip
    shipped = config.compose(["+experiment=demo_tiny"]).model
    with step:
        train.run(replace(experiment, model=shipped))
