"""What networks that were trained on ImageNet share: how they take images, and where they lie."""

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.error import URLError

from torch import Tensor

from ..errors import UserError

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]


def download(weights: "WeightsEnum", missing: UserError) -> Mapping[str, Tensor]:
    """torchvision's state dict, downloaded once into its cache; raises `missing` if it cannot."""
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise missing from error
