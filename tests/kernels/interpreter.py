"""The mark of tests that run Triton's kernels on the CPU."""

import importlib.util
import os

import pytest

interpreted = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="no Triton, or it compiles here, and CPUs are no target",
)
