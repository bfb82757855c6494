"""The optimisation itself: one photo a step; all of its state in one file, to go on from later.

The loss and the order of photos: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field
Rendering", 2023.
"""

import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...device import upload
from ...errors import UserError
from ...evaluate.metrics import psnr, ssim
from ...io.files import atomic
from ...io.tensors import save_torch
from ...losses.ssim import WINDOW
from ...losses.ssim import ssim as similarity
from ...render import rasterize
from ...types import Gaussians, Rendering, Views
from ..options import fit_size, format_size
from ._cloud import Cloud
from ._strategy import Schedule, Strategy

LONGEST_ON_CPU = 160  # pixels of the longer side, where nobody asks for another size
D_SSIM = 0.2  # weight of 1 - SSIM beside the absolute difference


@dataclass(frozen=True)
class Moment:
    """How good the Gaussians were after so many steps: means over the held-out photos."""

    step: int
    seconds: float
    gaussians: int
    psnr: float
    ssim: float


class Fit:
    """Gaussians on the way to photos. Same seed, same photos: the same result, also when resumed.

    Steps are queued: on CUDA `seconds` is behind until `finish`, which `judge` and `state` call.

    `whole` is False while a step changes the Gaussians: if it fails before, the state is that of
    the last step, and the same photo comes next.

    Photos come in a new random order each round. The degree of the SH that are drawn starts at
    `degree` and rises by one whenever the schedule says, up to what the cloud has.
    """

    def __init__(
        self, cloud: Cloud, strategy: Strategy, schedule: Schedule, degree: int, seed: int
    ) -> None:
        self.cloud, self.strategy, self.schedule = cloud, strategy, schedule
        self.degree, self.step, self.seconds = degree, 0, 0.0
        self.order: list[int] = []
        self.history: list[Moment] = []
        self.whole = True
        self.generator = torch.Generator(cloud.parameters.means.device).manual_seed(seed)

    @property
    def gaussians(self) -> Gaussians:
        """As they are now, batch 1, no gradients; SH that are not drawn yet are 0."""
        return self.cloud.gaussians().detach()

    def advance(self, photos: Views) -> None:
        """One step on one of the photos, batch 1, on any device."""
        began = time.perf_counter()
        # Draw the Gaussians as one of the photos sees them
        next_photo, device = self._next_photo(photos.images.shape[1]), self.generator.device
        view = photos.at(slice(next_photo, next_photo + 1)).map(lambda t: upload(t, device))
        gaussians = self.cloud.gaussians()
        rendering = rasterize(
            gaussians, view.cameras, view.size, sh_degree=self.degree, extras=("screen",)
        )
        assert rendering.screen is not None
        rendering.screen.means.retain_grad()
        # Compare, and take one step of the optimiser
        loss = measure_difference(rendering.color, view.images)
        (loss + self.strategy.penalty(gaussians, self.cloud.extent)).backward()
        self.whole = False
        self.order.pop()
        self.cloud.update(self.step)
        self.step += 1
        # Add and remove Gaussians, and draw more of their harmonics, when it is time
        self.strategy.after(self.cloud, rendering.screen, view.size, self.step, self.generator)
        if self.step % self.schedule.sh_every == 0:
            self.degree = min(self.degree + 1, self.gaussians.sh_degree)
        self.whole = True
        self.seconds += time.perf_counter() - began

    def finish(self) -> None:
        """Waits until the device has done all steps, so that `seconds` has the time of all."""
        began = time.perf_counter()
        wait_for(self.generator.device)
        self.seconds += time.perf_counter() - began

    def judge(self, photos: Views) -> Moment:
        """Compares with held-out photos, and adds the outcome to `history`."""
        self.finish()
        values = [
            (
                psnr(drawn.color[0, 0].cpu(), photo).item(),
                ssim(drawn.color[0, 0].cpu(), photo).item(),
            )
            for drawn, photo in zip(self.draw(photos), photos.images[0], strict=True)
        ]
        means = [sum(column) / len(values) for column in zip(*values, strict=True)]
        self.history.append(Moment(self.step, self.seconds, len(self.cloud), *means))
        return self.history[-1]

    def draw(self, photos: Views) -> Iterator[Rendering]:
        """What the cameras of the photos see now, one at a time."""
        gaussians = self.gaussians
        for v in range(photos.images.shape[1]):
            camera = photos.cameras.at([v]).to(gaussians.means.device)
            with torch.no_grad():
                rendering = rasterize(gaussians, camera, photos.size, sh_degree=self.degree)
            yield rendering

    def _next_photo(self, photos: int) -> int:
        if not self.order:
            device = self.generator.device
            order = torch.randperm(photos, generator=self.generator, device=device)
            self.order = order.cpu().tolist()  # one wait a round
        return self.order[-1]

    def state(self) -> dict[str, Any]:
        """What `restore` wants, for a file."""
        self.finish()
        return {
            "cloud": self.cloud.state(),
            "strategy": self.strategy.state(),
            "generator": self.generator.get_state(),
            "order": self.order,
            "step": self.step,
            "degree": self.degree,
            "seconds": self.seconds,
            "history": [asdict(moment) for moment in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to `state`; schedule and kind of strategy are those of this object."""
        device = self.cloud.parameters.means.device
        self.cloud = self.cloud.restored(state["cloud"])
        self.strategy.restore({k: v.to(device) for k, v in state["strategy"].items()})
        self.generator.set_state(state["generator"])
        self.order, self.step = list(state["order"]), state["step"]
        self.degree, self.seconds = state["degree"], state["seconds"]
        self.history = [Moment(**moment) for moment in state["history"]]

    def drop_faintest(self, most: int) -> None:
        """Keeps `most` of the Gaussians, with their moments; the strategy counts from here."""
        rows = self.cloud.parameters.logits.topk(most).indices.sort().values
        self.cloud.take(rows, torch.zeros_like(rows, dtype=torch.bool))
        self.strategy.restore({})


def choose_size(
    wanted: tuple[int, int] | None, photo: tuple[int, int], device: torch.device
) -> tuple[int, int]:
    """(height, width) as wanted, else the photo's, within what the device does in minutes.

    Raises UserError where that is too small for SSIM.
    """
    height, width = wanted or fit_size(photo, None)
    if wanted is None and device.type == "cpu":
        factor = min(1.0, LONGEST_ON_CPU / max(height, width))
        height, width = round(height * factor), round(width * factor)
    if min(height, width) < WINDOW:
        raise UserError(
            f"photos of {format_size(photo)} at `size={format_size((height, width))}`",
            f"height and width of at least {WINDOW}",
            "choose a larger `size`",
        )
    return height, width


def measure_difference(
    color: Float[Tensor, "*batch 3 height width"], target: Float[Tensor, "*batch 3 height width"]
) -> Float[Tensor, ""]:
    """0.8 · mean |difference| + 0.2 · (1 - SSIM)."""
    difference = (color - target).abs().mean()
    return (1 - D_SSIM) * difference + D_SSIM * (1 - similarity(color, target).mean())


def wait_for(device: torch.device) -> None:
    """Waits until all that is queued on a CUDA device is done, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes the state of a run, whole or not at all."""
    with atomic(path) as temporary:
        save_torch(state, temporary)


def load_state(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The state of a run that was begun with `settings`; UserError where it was not, or damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = {"antialiased": False} | state["settings"]  # runs of before there was a choice
    except (RuntimeError, OSError, KeyError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is not a readable state",
            "one that pmsplat wrote",
            "begin anew with `overwrite=True`",
        ) from error
    for name, value in settings.items():
        if theirs.get(name) != value:
            raise UserError(
                f"{path} was begun with {name} {_shorten(theirs.get(name))}, not {_shorten(value)}",
                "the settings that it was begun with",
                "resume with those, or begin anew in another `output`",
            )
    return state


@contextmanager
def watch_interrupt() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C came since; a second Ctrl-C stops at once."""
    asked = False

    def note(_signum: int, _frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():  # it never arrives elsewhere
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
