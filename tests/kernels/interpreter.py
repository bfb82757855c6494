"""Triton's kernels on the CPU: the mark of tests that run them, and what may befall them."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

interpreted = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="no Triton, or it compiles here, and CPUs are no target",
)


@contextmanager
def last_program_first() -> Iterator[None]:
    """Inside, the interpreter runs the programs of every kernel in the reverse order."""
    from triton.runtime.interpreter import interpreter_builder as builder

    place = builder.set_grid_idx

    def mirrored(*index: int) -> None:
        place(*(size - 1 - i for i, size in zip(index, builder.grid_dim, strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "set_grid_idx", mirrored)
        yield


def kept_dense() -> torch.autograd.graph.saved_tensors_hooks:
    """Inside, what backward passes need is laid out anew, row by row, as `save_on_cpu` does."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda x: x.clone(memory_format=torch.contiguous_format), lambda x: x
    )
