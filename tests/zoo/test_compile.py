"""Captured encoders: the same numbers as the encoder itself, for every shape, on every device."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import pmsplat
from pmsplat.device import float32_products
from pmsplat.errors import UserError
from pmsplat.geometry import camera
from pmsplat.render import rasterize
from pmsplat.types import Bundle, Prediction, Views
from pmsplat.zoo import compile as zoo_compile
from tests.lab import encoder as lab
from tests.models.tiny import MODELS, SCALES, SETTINGS, shaken, tiny, views
from tests.scenes import random_cameras
from tests.waits import no_waits

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:images of .* are padded")


def tensors(bundle: Bundle) -> list[Tensor]:
    return zoo_compile._tensors(bundle)


def with_backbone(name: str) -> Any:
    """An encoder with all parts that the published ones have."""
    if name == "compact":  # its own, whole
        return shaken(tiny(name))
    changes: dict[str, Any] = {} if name == "mvsplat" else {"vit": "vits", "width": 64}
    changes |= {**SCALES.get(name, {}), "published": True}
    if name == "updated":
        changes = {"base": SETTINGS[name]["base"] | changes}
    return shaken(tiny(name, **changes))


@pytest.mark.parametrize("name", MODELS)
def test_on_a_cpu_it_is_the_encoder_to_the_bit(name: str, generator: torch.Generator) -> None:
    model = tiny(name).train()
    compiled = pmsplat.compile(model)
    for given in (views(generator), views(generator, 3, (48, 32)), views(generator, 2, (30, 46))):
        found = compiled(given)
        with torch.no_grad():
            expected = model.eval()(given)
        assert all(map(torch.equal, tensors(found), tensors(expected)))
        assert not any(tensor.requires_grad for tensor in tensors(found))
        model.train()  # compiled stays in eval mode, and the model in its own
    assert model.training


PROCESS = """
import torch
from tests.zoo.test_compile import hash_prediction
torch.set_num_threads({threads})
print(hash_prediction())
"""


def hash_prediction() -> str:
    """Of a first pass of an encoder."""
    given = views(torch.Generator().manual_seed(0))
    found = pmsplat.compile(tiny())(given)
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in tensors(found))).hexdigest()


def test_two_processes_give_the_same_bits() -> None:
    words = [sys.executable, "-W", "ignore", "-c"]
    script = PROCESS.format(threads=torch.get_num_threads())
    done = subprocess.run([*words, script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == [hash_prediction()], done.stderr


def test_anchors_are_passed_on(generator: torch.Generator) -> None:
    model, given = tiny(anchors=2).eval(), views(generator, 5)
    compiled = pmsplat.compile(model)
    for anchors, count in ((None, 2), (3, 3), (9, 5)):
        found = compiled(given, anchors=anchors)
        with torch.no_grad():
            expected = model(given, anchors=anchors)
        assert found.depths[-1].shape[1] == count
        assert all(map(torch.equal, tensors(found), tensors(expected)))
    assert pmsplat.infer(compiled, given, anchors=3).depths[-1].shape[1] == 3
    with pytest.raises(UserError, match=r"anchors=3.*each view speaks for itself"):
        pmsplat.compile(tiny())(given, anchors=3)


def test_it_draws_what_the_encoder_predicts(generator: torch.Generator) -> None:
    model, given, cameras = tiny().eval(), views(generator), random_cameras(3, generator)
    compiled = pmsplat.compile(model, given, cameras, (20, 24))
    drawing = compiled.draw(given, cameras, (20, 24))
    with torch.no_grad():
        expected = rasterize(model(given).gaussians[-1], cameras, (20, 24))
    assert torch.equal(drawing.rendering.color, expected.color)
    assert torch.equal(drawing.prediction.depths[-1], compiled(given).depths[-1])
    assert compiled.draw(given, cameras).rendering.color.shape[-2:] == given.size


def test_infer_takes_it_for_the_encoder(generator: torch.Generator) -> None:
    model, given = tiny("mvsplat").eval(), views(generator)
    found = pmsplat.infer(pmsplat.compile(model), given)
    assert torch.equal(found.depths[-1], pmsplat.infer(model, given).depths[-1])


@pytest.mark.parametrize("name", MODELS)
def test_bf16_is_near_float32_and_leaves_the_model_alone(
    name: str, generator: torch.Generator
) -> None:
    model, given = with_backbone(name), views(generator, 2, (64, 64))
    compiled = pmsplat.compile(model, precision="bf16")
    assert {p.dtype for p in compiled._model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    check_bf16(compiled(given), pmsplat.compile(model)(given), name)


def check_bf16(found: Prediction, expected: Prediction, name: str) -> None:
    """8 bits of fraction, through some hundred layers: depth to about a percent."""
    assert {tensor.dtype for tensor in tensors(found)} == {torch.float32}
    error = (found.depths[-1] / expected.depths[-1] - 1).abs()
    assert 0 < error.mean() < 0.02, error.mean()
    a, b = found.gaussians[-1], expected.gaussians[-1]
    assert (a.opacities - b.opacities).abs().mean() < 0.01
    share = 0.04 if name == "resplat" else 0.01  # the others damp harmonics of higher degrees
    assert (a.sh - b.sh).abs().mean() < share * max(1, b.sh.abs().mean().item())


def test_an_encoder_that_cannot_take_half_weights_runs_under_autocast(
    generator: torch.Generator,
) -> None:
    """Of somebody else's, as docs/extending.md has one: its cameras stay exact."""
    model, given = lab.Encoder(lab.Config()).eval(), views(generator)
    compiled = pmsplat.compile(model, precision="bf16")
    assert {p.dtype for p in compiled._model.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(given)
    check_bf16(found, pmsplat.compile(model)(given), "lab")
    expected = camera.unproject_depth(found.depths[-1], given.cameras.c2w, given.cameras.K)
    assert torch.equal(found.gaussians[-1].means, expected.flatten(1, 3))
    assert torch.equal(compiled.draw(given, given.cameras).prediction.depths[-1], found.depths[-1])


def test_weights_that_need_no_change_are_shared() -> None:
    model = tiny()
    shared = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in pmsplat.compile(model)._model.parameters()} == shared


def test_another_precision_is_refused() -> None:
    with pytest.raises(UserError, match="float32, tf32, bf16"):
        pmsplat.compile(tiny(), precision="fp8")  # pyright: ignore
    with pytest.raises(UserError, match="`precision=tf32` on cpu; wanted a CUDA device"):
        pmsplat.compile(tiny(), precision="tf32")


def test_a_model_of_depth_alone_draws_nothing(generator: torch.Generator) -> None:
    compiled = pmsplat.compile(tiny(gaussians=False))
    with pytest.raises(UserError, match="depth alone"):
        compiled.draw(views(generator), random_cameras(1, generator))


def test_the_last_shapes_are_kept(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """As many graphs as were asked for; a shape that comes again is not captured again."""
    captured: list[tuple[int, ...]] = []

    def capture(self: Any, compute: Any, request: Any) -> Any:
        captured.append(tuple(request.views.images.shape[1:]))
        return lambda request: compute(request)

    monkeypatch.setattr(zoo_compile.Compiled, "_capture", capture)
    model = tiny().eval()
    compiled = pmsplat.compile(model, kept=2)
    compiled.device = torch.device("cuda")  # only `_capture` would touch it
    a, b, c = (views(generator, n, (32, 32)) for n in (2, 3, 4))
    found = [compiled(given) for given in (a, b, a, c, a, b)]
    assert [shape[0] for shape in captured] == [2, 3, 4, 3]  # c took the place of b
    assert torch.equal(found[2].depths[-1], found[4].depths[-1])
    assert len(compiled._graphs) == 2
    compiled.draw(a, random_cameras(1, generator))  # drawing is another graph of the same views
    assert len(captured) == 5 and len(compiled._graphs) == 2


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [2, 5])
def test_no_encoder_waits_for_the_device(name: str, count: int, generator: torch.Generator) -> None:
    model = with_backbone(name).cuda()
    for size in ((64, 64), (60, 50)):
        given = views(generator, count, size).to("cuda")
        with torch.no_grad():
            model(given)  # compiles kernels and makes constants
            with no_waits():
                model(given)
        with no_waits():
            loss = sum(depth.mean() for depth in model.train()(given).depths)
            assert isinstance(loss, Tensor)
            if loss.requires_grad:  # a frozen base does not learn
                loss.backward()
        model.eval()


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", zoo_compile.PRECISIONS)
def test_a_graph_repeats_the_encoder(
    name: str, precision: zoo_compile.Precision, generator: torch.Generator
) -> None:
    model = with_backbone(name).cuda()
    compiled = pmsplat.compile(model, views(generator, 2, (64, 64)), precision=precision)
    kept = []
    for count, size in ((2, (64, 64)), (3, (64, 96)), (2, (64, 64)), (2, (60, 50)), (3, (64, 96))):
        given = views(generator, count, size)  # on the CPU: copied in
        found = compiled(given)
        with torch.no_grad(), float32_products(precision == "tf32"):
            expected = compiled._model(given.to("cuda"))
        for a, b in zip(tensors(found), tensors(expected), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        kept.append((found, found.map(torch.clone)))
    for found, before in kept:  # later passes leave earlier results alone
        assert all(map(torch.equal, tensors(found), tensors(before)))
    exact = pmsplat.compile(model)(given)
    if precision == "bf16":
        check_bf16(found, exact, name)
    else:
        error = (found.depths[-1] / exact.depths[-1] - 1).abs().mean()
        assert error < (1e-5 if precision == "float32" else 2e-3)


@pytest.mark.cuda
def test_a_graph_draws(generator: torch.Generator) -> None:
    model = with_backbone("depthsplat").cuda()
    given, cameras = views(generator, 2, (64, 64)), random_cameras(3, generator)
    compiled = pmsplat.compile(model, given, cameras, (48, 80))
    for _ in range(3):
        given, cameras = views(generator, 2, (64, 64)), random_cameras(3, generator)
        drawing = compiled.draw(given, cameras, (48, 80))
        gaussians = drawing.prediction.gaussians[-1]
        expected = rasterize(gaussians, cameras.to("cuda"), (48, 80))
        torch.testing.assert_close(drawing.rendering.color, expected.color, atol=1e-4, rtol=1e-3)


@pytest.mark.cuda
def test_an_encoder_that_waits_is_refused(generator: torch.Generator) -> None:
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), device="cuda"))
            self.waits = True

        def forward(self, views: Views) -> Prediction:
            weight = self.weight.item() if self.waits else self.weight
            return Prediction((views.images[:, :, 0] * weight,), ())

    compiled, given = pmsplat.compile(Waits()), views(generator)
    with pytest.raises(UserError, match="cannot be captured"):
        compiled(given)
    cast(Any, compiled._model).waits = False
    assert torch.equal(compiled(given).depths[0].cpu(), given.images[:, :, 0])


@pytest.mark.cuda
def test_graphs_that_are_dropped_leave_their_memory_to_others(generator: torch.Generator) -> None:
    compiled = pmsplat.compile(with_backbone("depthsplat").cuda(), kept=1)
    compiled(views(generator, 2, (96, 96)))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for width in range(32, 96, 8):
        compiled(views(generator, 2, (96, width)))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < 2 * before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["depthsplat", "mvsplat"])
def test_what_torch_compiles_is_the_encoder_to_rounding(name: str) -> None:
    """In a process of its own: a compiler cannot read the checks of shapes that tests make."""
    script = f"from tests.zoo.test_compile import check_compiled; check_compiled({name!r})"
    words = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def check_compiled(name: str) -> None:
    """Few graphs: they end at kernels of numba, and where results are put together."""
    counters = torch._dynamo.utils.counters
    model, given = tiny(name).eval(), views(torch.Generator().manual_seed(0))
    compiled: Any = torch.compile(model)
    with torch.no_grad():
        found, expected = compiled(given), model(given)
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs < 30, graphs
    assert not any("`open`" in reason for reason in counters["graph_break"])
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
