"""What the tests of a scenario share: all that a module asks for are run once, side by side."""

import pytest

from . import shim
from .fleet import Answer


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "scenarios(*names): what the fake device runs for a test")


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest) -> dict[str, Answer]:
    """The reports, by name, of the scenarios that the tests of this module ask for."""
    if problem := shim.obstacle():
        pytest.skip(problem)
    from . import table

    wanted = {
        name
        for item in request.session.items
        if item.path == request.path
        for marker in item.iter_markers("scenarios")
        for name in marker.args
    }
    return {report["asked"]: report for report in table.measure(sorted(wanted))}
