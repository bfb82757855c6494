"""What torch is told about precision, and what is said of a GPU that is full or of no use."""

import weakref

import pytest
import torch

from pmsplat.device import cuda_obstacle, explain_full, float32_products, is_out_of_memory
from pmsplat.errors import UserError
from pmsplat.evaluate import protocol
from pmsplat.tasks.options import pick_device
from pmsplat.types import Batch, Prediction, Views
from pmsplat.zoo.infer import predict_views
from tests.models.tiny import views

TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update"


def settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    "text",
    [
        "Triton Error [CUDA]: out of memory",
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable assertions.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_full_gpu_is_known_by_whoever_says_it(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(ValueError(text))


def test_other_errors_are_no_full_gpu() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("any text"))
    for text in (
        "out of resource: shared memory, Required: 233472, Hardware limit: 232448",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED",
    ):
        assert not is_out_of_memory(RuntimeError(text))


def test_a_full_gpu_is_explained_after_what_it_held_is_given_up() -> None:
    """Any other error stays as it is."""
    held: list[weakref.ref[torch.Tensor]] = []

    def fill(text: str) -> None:
        tensor = torch.zeros(1)
        held.append(weakref.ref(tensor))
        raise RuntimeError(text)

    def explain(problem: RuntimeError) -> UserError:
        assert held[-1]() is None
        return UserError(f"full: {problem}")

    full = "CUDA error: out of memory"
    with pytest.raises(UserError, match=rf"^full: {full}$") as caught, explain_full(explain):
        fill(full)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(RuntimeError, match=r"^another$") as other, explain_full(explain):
        fill("another")
    assert other.value.__traceback__ is not None and held[-1]() is not None


@pytest.mark.parametrize(("tf32", "inside"), [(True, ("high", True)), (False, ("highest", False))])
def test_products_and_convolutions_follow_together(tf32: bool, inside: tuple[str, bool]) -> None:
    before = settings()
    with pytest.raises(RuntimeError, match="stop"), float32_products(tf32):
        assert settings() == inside
        raise RuntimeError("stop")
    assert settings() == before


def test_predictions_and_evaluation_are_in_float32(generator: torch.Generator) -> None:
    """Whatever the program around them has chosen."""
    given, seen = views(generator), []

    def model(views: Views) -> Prediction:
        seen.append(settings())
        return Prediction((views.images[:, :, 0] + 1,), ())

    with float32_products(tf32=True):
        predict_views(model, given)
        assert settings() == ("high", True)
        known = Views(given.images, given.cameras, depth=given.images[:, :, 0] + 1)
        batch = Batch(known, known, ["a"])
        protocol.evaluate(protocol.pipeline(model), [batch])
    assert seen == [("highest", False)] * 2


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver knows of a GPU, which is too old for this torch."""

    def init() -> None:
        raise RuntimeError(f"{TOO_OLD}\nsee https://pytorch.org")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", init)


def test_a_driver_too_old_is_one_sentence(old_driver: None) -> None:
    problem = cuda_obstacle()
    assert problem is not None and "driver on your system is too old" in problem.got
    assert "\n" not in str(problem) and "update the driver" in problem.remedy
    with pytest.raises(UserError, match=r"`device=cuda`, but .* too old .*; update the driver"):
        pick_device("cuda")
    with pytest.warns(UserWarning, match=r"too old .*computing on the CPU, which is slower"):
        assert pick_device("auto") == torch.device("cpu")
    assert pick_device("cpu") == torch.device("cpu")


def test_where_no_gpu_is_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cuda_obstacle() is None and pick_device("auto") == torch.device("cpu")
    assert not recwarn.list


@pytest.mark.cuda
def test_float32_on_cuda_is_float32(generator: torch.Generator) -> None:
    """Both agree with float64 to the rounding of float32, and in TF32 they do not."""
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    x, w = (torch.randn(4, 64, 3 * k, 3 * k, generator=generator) for k in (16, 1))
    wanted = a.double() @ b.double(), torch.nn.functional.conv2d(x.double(), w.double())
    errors = {}
    for tf32 in (False, True):
        with float32_products(tf32):
            products = (
                (a.cuda() @ b.cuda()).cpu(),
                torch.nn.functional.conv2d(x.cuda(), w.cuda()).cpu(),
            )
        errors[tf32] = [
            ((found - exact).abs().max() / exact.abs().max()).item()
            for found, exact in zip(products, wanted, strict=True)
        ]
    assert max(errors[False]) < 1e-5
    if torch.cuda.get_device_capability()[0] >= 8:
        assert min(errors[True]) > 1e-5
