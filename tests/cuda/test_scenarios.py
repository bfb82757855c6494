"""Every encoder, loss and job on a fake CUDA device, and every Triton kernel compiled, against
bounds.json: one file, so that the scenarios that launch all kernels run once.

`python -m tests.cuda.table` prints what was measured, and writes it with `--renew`.
"""

import re

import pytest

from pmsplat import registry

from . import fleet, page, table
from .bounds import SLACK, Bounds, row
from .fleet import Answer
from .scenarios import LOSSES
from .table import LAUNCHING, names

# They take the same roads as their smaller sisters, with more layers
LARGE = re.compile(r"[-_](base|large)(-|_|$)")
SLOW = (
    "train depthsplat2024_small", "train resplat_small", "train resplat_tiny", "train updated",
    "train zpressor_depthsplat", "run bf16", "run scaled", "run tf32",
    "predict depthsplat-gs-small-re10kdl3dv-448x768-randview4-10", "predict pmloss",
    "predict ori_depthsplat_tuned", "predict depthsplat-dl3dv-baseline-n50-256x448",
    "job predict refined", "job refine gsplat-mcmc", "job refine antialiased prediction",
    "no triton, predict small",
)  # fmt: skip
# Launches of a step, estimated, with some room. Once the profiler of an H100 counted 3,644 where
# 3,568 were estimated, and 881 of a forward pass where 861 were (benchmarks/gpu.json).
STEPS = {"2 tf32": 2940, "2 bf16": 2990}
FEW = (75, 90)  # capabilities that CI compiles for
OTHERS = tuple(capability for capability in table.CAPABILITIES if capability not in FEW)


def is_slow(name: str) -> bool:
    """Whether it runs outside CI."""
    return name in SLOW or name.endswith(", other views") or LARGE.search(name) is not None


@pytest.fixture(scope="module")
def bounds() -> Bounds:
    return Bounds.read()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.scenarios(name), *([pytest.mark.slow] if is_slow(name) else [])],
        )
        for name in names()
    ],
)
def test_nothing_mixes_waits_or_grows(
    name: str, reports: dict[str, Answer], bounds: Bounds
) -> None:
    """Devices are not mixed (that ends with an error), and all else is within its bounds."""
    faults = bounds.check(reports[name])
    assert not faults, "\n".join([*faults, "if it must be so: python -m tests.cuda.table --renew"])


@pytest.mark.scenarios("train depthsplat_small")
@pytest.mark.parametrize("case", STEPS)
def test_launches_of_a_training_step_of_the_small_model(
    case: str, reports: dict[str, Answer]
) -> None:
    """Two views, four targets, mse, LPIPS and PM-Loss; the aim is fewer than 3,000."""
    stages = reports["train depthsplat_small"]["stages"]
    parts = ("encode", "render", "losses", "backward", "update")
    assert sum(stages[f"{case} {part}"]["estimate"] for part in parts) <= STEPS[case]


@pytest.mark.scenarios("sweep of 12 views")
def test_a_sweep_holds_its_volume_and_little_else(reports: dict[str, Answer]) -> None:
    """12 views of 512x960 at an eighth, 128 planes: the volume has 45 MiB."""
    _launches, _waits, mib = row(reports["sweep of 12 views"]["stages"]["forward"])
    assert 45 <= mib <= 50


@pytest.mark.parametrize("part", ["launches", "registers"])
def test_the_page_shows_the_bounds(part: str) -> None:
    shown = page.PAGE.read_text()
    assert page.renewed(shown, part) == shown, f"python -m tests.cuda.page {part}"


def test_every_loss_is_tried() -> None:
    assert set(LOSSES) == set(registry.names("losses"))


def test_bounds_are_of_what_there_is(bounds: Bounds) -> None:
    assert list(bounds.stages) == sorted(names())


def test_every_wait_has_a_reason(bounds: Bounds) -> None:
    for kind, places in bounds.waits.items():
        for place, reason in places.items():
            assert len(reason) > 8, f"bounds.json says not why {kind}s wait at {place}"


@pytest.fixture(scope="module")
def launching(reports: dict[str, Answer]) -> list[Answer]:
    """The reports of what launches every kernel."""
    pytest.importorskip("triton", reason="Triton is not installed")
    return [reports[name] for name in LAUNCHING]


@pytest.mark.scenarios(*LAUNCHING)
def test_every_kernel_is_launched_by_a_scenario(launching: list[Answer]) -> None:
    launched = {kernel for report in launching for kernel in report["kernels"]}
    (found,) = fleet.run("tests.cuda.compilation", ["find"])
    assert not found["error"] and launched == set(found["kernels"])


@pytest.mark.scenarios(*LAUNCHING)
@pytest.mark.parametrize(
    "capabilities", [FEW, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["few", "others"]
)
def test_registers_and_spills(
    capabilities: tuple[int, ...], launching: list[Answer], bounds: Bounds
) -> None:
    for kernel, found in table.compile_kernels(launching, capabilities).items():
        for capability, used in found.items():
            registers, spills = bounds.kernels[kernel][capability]
            where = f"{kernel} on sm_{capability}"
            assert used["registers"] <= registers * SLACK, where
            assert used["spills"] <= spills * SLACK, where
