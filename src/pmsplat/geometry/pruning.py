"""Which Gaussians are kept where not all are, as Long-LRM keeps them, in training and after it.

Ziwen et al., "Long-LRM: Long-sequence Large Reconstruction Model for Wide-coverage Gaussian
Splats", ICCV 2025 (arXiv 2410.12781).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

RANDOM = 0.1  # of those that are kept while a network learns (Long-LRM)


def count_kept(total: int, share: float) -> int:
    """How many Gaussians a share of `total` is; at least one, where there is any."""
    return min(total, max(1, round(share * total)))


def choose_opaque(
    opacities: Float[Tensor, "batch gaussian"],
    share: float,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch kept"]:
    """Returns which Gaussians are the most opaque `share` of each scene, in order; at least one.

    With a generator, on their device, a tenth of them are others at random, so that each of these
    gets a gradient from time to time. All scenes keep as many, and the host does not wait.
    """
    kept = count_kept(opacities.shape[1], share)
    others = 0 if generator is None else round(RANDOM * kept)
    chosen = opacities.detach().topk(kept - others, sorted=False).indices
    if others:
        draw = torch.rand(opacities.shape, generator=generator, device=opacities.device)
        draw = draw.scatter(1, chosen, -1.0)  # below all others
        chosen = torch.cat([chosen, draw.topk(others, sorted=False).indices], dim=1)
    return chosen.sort().values
