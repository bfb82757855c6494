"""Every encoder, loss and job on a fake CUDA device, against bounds.json.

`python -m tests.cuda.table` prints what was measured, and writes it with `--renew`.
"""

import pytest

from .bounds import Bounds
from .fleet import Answer
from .table import names


@pytest.fixture(scope="module")
def bounds() -> Bounds:
    return Bounds.read()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.scenarios(name)) for name in names()]
)
def test_nothing_mixes_waits_or_grows(
    name: str, reports: dict[str, Answer], bounds: Bounds
) -> None:
    """Devices are not mixed (that ends with an error), and all else is within its bounds."""
    faults = bounds.check(reports[name])
    assert not faults, "\n".join([*faults, "if it must be so: python -m tests.cuda.table --renew"])


def test_bounds_are_of_what_there_is(bounds: Bounds) -> None:
    assert list(bounds.stages) == sorted(names())


def test_every_wait_has_a_reason(bounds: Bounds) -> None:
    for kind, places in bounds.waits.items():
        for place, reason in places.items():
            assert len(reason) > 8, f"bounds.json says not why {kind}s wait at {place}"
