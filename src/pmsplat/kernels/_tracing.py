"""What torch's compiler is told of code that it cannot read.

`torch.compiler.disable` as a decorator would import the compiler, which takes seconds, in every
process; this leaves that to those that compile.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """Decorates a function that runs as it is in a compiled network: the graph ends before it."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return torch.compiler.disable(function)(*args, **named)
        return function(*args, **named)

    return call  # pyright: ignore
