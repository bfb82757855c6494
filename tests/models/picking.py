"""An encoder that speaks of some of its views alone, in an order of its own."""

from dataclasses import replace

import torch
from torch import nn

from pmsplat.contracts import count_anchors, encoder_traits
from pmsplat.types import Prediction, Views


class Picking(nn.Module):
    """What `encoder` says of some of the views, as if the others were not there.

    Of scene b of a batch these are the last ones, from view b before the last backwards: another
    permutation for each.
    """

    def __init__(self, encoder: nn.Module, anchors: int = 3) -> None:
        super().__init__()
        self.encoder, self.anchors = encoder, anchors
        for name, value in vars(encoder_traits(encoder)).items():
            if name != "anchors":
                setattr(self, name, value)

    def forward(self, views: Views, anchors: int | None = None) -> Prediction:
        batch, count = views.images.shape[:2]
        chosen = min(count, count_anchors(anchors, self.anchors))
        index = (count - 1 - torch.arange(chosen) - torch.arange(batch)[:, None]) % count
        seen = Views(views.images, views.cameras).gather(index)
        return replace(self.encoder(seen), views=index)
