"""One forward pass of the encoders with random weights: eager, as a graph, and by torch's compiler,
by precision."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import pmsplat
from pmsplat import registry
from pmsplat.types import Prediction, Views

from .. import peer
from . import room
from .clock import measured, peak_mib, precision, relative
from .process import Case, Run, Skipped

SMALL: dict[str, Any] = {}
BASE = {"vit": "vitb", "scales": 2}
LARGE = {"vit": "vitl", "scales": 2}
EIGHTH = {"lowest": 8}
TINY = {"vit": "none", "width": 32, "planes": 8, "transformer_layers": 1, "head_width": 16}


@dataclass(frozen=True)
class Subject:
    """An encoder and the photographs that it looks at."""

    name: str
    settings: tuple[tuple[str, Any], ...]
    views: int
    size: tuple[int, int]
    model: str = "depthsplat"

    @property
    def label(self) -> str:
        return f"{self.name} {self.views}x{self.size[0]}x{self.size[1]}"


def subject(name: str, settings: dict[str, Any], views: int, size: tuple[int, int]) -> Subject:
    return Subject(name, tuple(settings.items()), views, size)


SMALL_2 = subject("small", SMALL, 2, (256, 256))
BASE_2 = subject("base", BASE, 2, (256, 256))
LARGE_2 = subject("large", LARGE, 2, (256, 256))
SMALL_6 = subject("small", SMALL, 6, (256, 448))
SMALL_12 = subject("small l8", EIGHTH, 12, (512, 960))
BASE_6 = subject("base l8", BASE | EIGHTH, 6, (256, 448))
SHIPPED_2 = Subject("compact", (), 2, (256, 256), "compact")  # its steps draw its views
SMALLEST = subject("tiny", TINY, 2, (32, 32))
INDUCTOR = "inductor"  # torch.compile, which takes minutes: only where they are left
ORDER = (  # of value per second: subject, way, precision
    (SMALL_2, "eager", "tf32"),
    (SMALL_2, "graph", "bf16"),
    (SMALL_2, "eager", "bf16"),
    (SMALL_2, "graph", "tf32"),
    (SMALL_2, "graph with drawing", "bf16"),
    (SMALL_2, "eager", "float32"),
    (SHIPPED_2, "eager", "tf32"),
    (SHIPPED_2, "graph", "bf16"),
    (SMALL_12, "eager", "bf16"),
    (SMALL_12, "eager", "tf32"),
    (SMALL_6, "eager", "tf32"),
    (SMALL_6, "graph", "bf16"),
    (BASE_2, "eager", "tf32"),
    (BASE_2, "graph", "bf16"),
    (LARGE_2, "eager", "tf32"),
    (LARGE_2, "graph", "bf16"),
    (SMALL_6, "eager", "bf16"),
    (SMALL_12, "graph", "bf16"),
    (BASE_6, "eager", "tf32"),
    (BASE_6, "graph", "bf16"),
    (BASE_2, "eager", "bf16"),
    (LARGE_2, "eager", "bf16"),
    (SMALL_2, INDUCTOR, "tf32"),
)
# the official encoder, after these of the order
OFFICIAL = {0: SMALL_2, 9: SMALL_12, 13: BASE_2, 15: LARGE_2}


def cases(run: Run) -> Iterator[Case]:
    """Every subject in its ways; after some of them the official encoder, given a checkout."""
    order = [(SMALLEST, *way) for _, *way in ORDER[:6]] if run.tiny else ORDER
    for index, (one, way, kind) in enumerate(order):

        def measure(one: Subject = one, way: str = way, kind: str = kind) -> dict[str, Any]:
            return forward(one, way, kind, run)

        yield Case(f"{one.label} {kind} {way}", measure, 60.0 if way == INDUCTOR else 6.0)
        if index in OFFICIAL and not run.tiny:
            twin = OFFICIAL[index]

            def theirs(twin: Subject = twin) -> dict[str, Any]:
                return official(twin, run)

            yield Case(f"official {twin.label} tf32", theirs, 10.0)


def make_encoder(one: Subject, run: Run) -> nn.Module:
    """The encoder with random weights, made on its device, where random numbers are quick."""
    torch.manual_seed(0)
    with torch.device(run.device):
        model = registry.build("models", one.model, dict(one.settings))
    return model.to(run.device).eval()


def forward(one: Subject, way: str, kind: str, run: Run) -> dict[str, Any]:
    """Time, memory, and the error of the depth beside eager float32."""
    model = make_encoder(one, run)
    views = room.views(1, one.views, *one.size, run.device, between=False)
    views = Views(views.images, views.cameras)
    with torch.inference_mode(), precision("float32", run.device):
        exact = model(views).depths[-1].clone()
    if run.device == "cuda":
        torch.cuda.empty_cache()
    if way == "eager":
        with torch.inference_mode(), precision(kind, run.device):
            found = measured(lambda _: model(views), kernels=one == SMALL_2)
            return found | {"depth error": relative(model(views).depths[-1], exact)}
    if way == INDUCTOR:
        return inductor(model, views, exact, kind, run.device)
    call, found = graph(model, views, kind, way == "graph with drawing", run.device)
    found = measured(lambda _: call(), kernels=one == SMALL_2) | found
    return found | {"depth error": relative(call().depths[-1], exact)}


def graph(
    model: nn.Module, views: Views, kind: str, drawing: bool, device: str
) -> tuple[Callable[[], Prediction], dict[str, Any]]:
    """A call of the compiled model, and what its capture took; its memory stays, so it counts."""
    compile_model = getattr(pmsplat, "compile", None)
    if compile_model is None:
        raise Skipped("this version has no pmsplat.compile")
    targets = room.cameras(4, *views.size, device, between=True) if drawing else None
    made: list[Any] = []

    def call() -> Prediction:
        return made[0].draw(views, targets).prediction if drawing else made[0](views)

    def capture() -> None:
        made.append(compile_model(model, views, targets, precision=kind))
        call()

    start = time.perf_counter()
    found: dict[str, Any] = {}
    if device == "cuda":
        reserved = torch.cuda.memory_reserved()
        found["peak_mib"] = peak_mib(capture)
        found["reserved MiB"] = round((torch.cuda.memory_reserved() - reserved) / 2**20)
    else:
        capture()
    return call, found | {"capture s": round(time.perf_counter() - start, 1)}


def inductor(
    model: nn.Module, views: Views, exact: Tensor, kind: str, device: str
) -> dict[str, Any]:
    """The same by torch.compile, which ends its graphs at kernels that it cannot read."""
    compiled: Any = torch.compile(model)
    start = time.perf_counter()
    with torch.no_grad(), precision(kind, device):
        compiled(views)
        seconds = round(time.perf_counter() - start, 1)
        found = measured(lambda _: compiled(views)) | {"compile s": seconds}
        return found | {"depth error": relative(compiled(views).depths[-1], exact)}


def official(one: Subject, run: Run) -> dict[str, Any]:
    """The official encoder on the same photographs."""
    model = official_encoder(one, run)
    views = room.views(1, one.views, *one.size, run.device, between=False)
    with torch.inference_mode(), precision("tf32", run.device):
        return measured(lambda _: peer.predict(model, views))


def official_encoder(one: Subject, run: Run) -> nn.Module:
    """The official encoder on its device; Skipped where it cannot be made."""
    if run.peer is None:
        raise Skipped("no --peer")
    try:
        return peer.encoder(run.peer, one.model, dict(one.settings), one.views).to(run.device)
    except peer.Missing as reason:
        raise Skipped(str(reason)) from reason
