"""Every Triton kernel compiles for every GPU, with few registers and without many spills."""

import importlib.util

import pytest

from . import fleet, table
from .bounds import SLACK, Bounds
from .fleet import Answer
from .table import LAUNCHING

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

FEW = (75, 90, 120)
OTHERS = tuple(capability for capability in table.CAPABILITIES if capability not in FEW)

pytestmark = pytest.mark.scenarios(*LAUNCHING)


@pytest.fixture(scope="module")
def launching(reports: dict[str, Answer]) -> list[Answer]:
    return [reports[name] for name in LAUNCHING]


def test_every_kernel_is_launched_by_a_scenario(launching: list[Answer]) -> None:
    launched = {kernel for report in launching for kernel in report["kernels"]}
    (found,) = fleet.run("tests.cuda.compilation", ["find"])
    assert not found["error"] and launched == set(found["kernels"])


@pytest.mark.parametrize(
    "capabilities", [FEW, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["few", "others"]
)
def test_registers_and_spills(capabilities: tuple[int, ...], launching: list[Answer]) -> None:
    bounds = Bounds.read().kernels
    for kernel, found in table.compile_kernels(launching, capabilities).items():
        for capability, used in found.items():
            registers, spills = bounds[kernel][capability]
            where = f"{kernel} on sm_{capability}"
            assert used["registers"] <= registers * SLACK, where
            assert used["spills"] <= spills * SLACK, where
