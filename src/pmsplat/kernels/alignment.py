"""Alignment in few launches; the reference is `geometry.align`."""

from functools import partial

from jaxtyping import Float
from torch import Tensor

from ..geometry import align
from . import cuda


def umeyama(
    source: Float[Tensor, "*#batch point 3"],
    target: Float[Tensor, "*#batch point 3"],
    weights: Float[Tensor, "*#batch point"] | None = None,
) -> Float[Tensor, "*_ 4 4"]:
    """Returns `align.umeyama`; on CUDA, with Triton, its rotation takes two launches, not 120."""
    if not cuda.has_kernels(source.device):
        return align.umeyama(source, target, weights)
    from ._alignment_triton import UniqueRotation

    return align.umeyama(source, target, weights, UniqueRotation.apply)


def trusted(
    fit: align.Fit,
    source: Float[Tensor, "*batch point 3"],
    target: Float[Tensor, "*batch point 3"],
    weights: Float[Tensor, "*batch point"],
    rounds: int,
) -> Float[Tensor, "*batch point"]:
    """Returns `align.trusted` of one of its own fits: `umeyama` or `align.rescaling`.

    On CUDA, with Triton, a round takes a handful of launches. The same random numbers are used on
    all devices.
    """
    if not cuda.has_kernels(source.device):
        return align.trusted(fit, source, target, weights, rounds)
    from . import _alignment_triton as fast

    alone = fit is align.rescaling
    fit, refit = partial(fast.fit, scale_alone=alone), partial(fast.refit, scale_alone=alone)
    return align.trusted(fit, source.double(), target.double(), weights, rounds, refit)
