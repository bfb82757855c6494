"""The plug-in by which ffgs, an inference package for models of this kind, loads ours.

    pipe = ffgs.GSPipeline.from_pretrained("owner/repo")        # or a folder of `save_pretrained`
    out = pipe(ffgs.Views(images, intrinsics, c2w))
    out = pipe(views, near=0.4, far=12.0)                       # where the range of depth is known

It is found through the entry point "ffgs.models" and needs ffgs (Apache 2.0 with parts under other
licenses; nothing of it is copied here). Views of ffgs have no near and far: without the options
they are taken to be in the unit of length that the model learned in. Gaussians are in the world of
the given cameras: the conversion to the model's unit and back is that of `infer`.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ffgs import Gaussians, ImageFitConfig, ModelFrame, ModelSpec, Prepared, Processor, Views
from torch import nn

from .. import types
from ..contracts import encoder_traits
from ..errors import UserError
from ..io.hub_models import LIBRARY, Repository, fetch_model
from ..types import CLASSIC, Cameras, Prediction
from .infer import depth_only_error, fill_range, infer
from .load import Loaded, open_folder
from .share import write_folder
from .trained import TrainedOn, trained_on

log = logging.getLogger(__name__)

SETTINGS = "processor_config.json"
NEAREST, FARTHEST = 0.01, 100.0  # depth between which ffgs draws, and the search without a near


@dataclass(frozen=True)
class Request:
    """Views for a model, and whether their near and far are those of the scene."""

    views: types.Views
    ranged: bool


class Model(nn.Module):
    """An encoder of ours as ffgs calls it; `loaded` and `trained` are what saving it needs."""

    def __init__(self, loaded: Loaded, trained: TrainedOn | None) -> None:
        super().__init__()
        if not encoder_traits(loaded.model).draws:
            raise depth_only_error()
        self.encoder, self.loaded, self.trained = loaded.model, loaded, trained

    @classmethod
    def from_pretrained(cls, pretrained: str | Path, **options: Any) -> "Model":
        """A folder or a repository; `options` are huggingface_hub's, as ffgs passes them."""
        folder = _find_folder(pretrained, options)
        return cls(open_folder(folder, str(pretrained)), trained_on(folder))

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """As `pmsplat.save_pretrained`."""
        write_folder(self.loaded, folder, self.trained)

    def forward(self, request: Request) -> Prediction:
        """The prediction in the world of the views."""
        views, traits = request.views, encoder_traits(self.encoder)
        if not request.ranged and traits.near is None:
            raise UserError(
                "views without a range of depth, for a model that searches that of each scene",
                "the nearest and the farthest depth of the scene, in its unit",
                "call the pipeline with near=0.5, far=100, or what fits",
            )
        every = range(views.images.shape[1])
        cameras = fill_range(self.encoder, views.cameras, every, request.ranged)
        return infer(self.encoder, types.Views(views.images, cameras))


@dataclass
class Settings(ImageFitConfig):
    """How photographs are brought to the model; `image_shape` is the size that it learned from.

    `near`, `far`: depth between which ffgs draws, in the unit of the scene. `num_input_views`: most
    context views in training, for people; any number from two is taken.
    """

    near: float = NEAREST
    far: float = FARTHEST
    num_input_views: int | None = None


class PhotoProcessor(Processor):
    """Resizes photographs, and hands cameras on as they are: the model converts its unit itself."""

    config_cls = Settings
    camera_input = "required"

    @classmethod
    def from_pretrained(cls, pretrained: str | Path, **options: Any) -> "PhotoProcessor":
        """From what ffgs has saved in a folder, else from what the model learned from."""
        folder = _find_folder(pretrained, options)
        if (folder / SETTINGS).is_file():
            return cls.from_dict(json.loads((folder / SETTINGS).read_text()), SETTINGS)
        learned = trained_on(folder)
        if learned is None or learned.size is None:
            return cls(Settings())
        most = None if learned.views is None else learned.views[1]
        return cls(Settings(image_shape=list(learned.size), num_input_views=most))

    def preprocess(
        self,
        views: Views,
        device: torch.device,
        near: float | None = None,
        far: float | None = None,
    ) -> Prepared:
        """The views at the model's size, on its device; `near`, `far`: the range of their depth."""
        views.require("c2w", "intrinsics", by="pmsplat")
        if (near is None) != (far is None):
            raise UserError(
                f"near={near} and far={far}", "both or none", "give the other one, or drop both"
            )
        fitted = self.fit_views(views)
        c2w = fitted.c2w.float()
        ends = [torch.full(c2w.shape[:2], value) for value in (near or NEAREST, far or FARTHEST)]
        cameras = Cameras(c2w, fitted.intrinsics.float(), *(end.to(c2w) for end in ends))
        request = Request(types.Views(fitted.images.float(), cameras).to(device), near is not None)
        world = torch.eye(4, device=c2w.device).expand(len(c2w), 4, 4)
        return Prepared(request, ModelFrame(anchor_c2w=world, scale=1.0))

    def postprocess(self, model_output: Prediction) -> Gaussians:
        """The last level; a message says where ffgs draws otherwise than the model learned."""
        found = model_output.gaussians[-1]
        if found.rules != CLASSIC:
            log.warning("ffgs draws by its own rules; the model learned with %s", found.rules)
        return Gaussians(
            means=found.means,
            scales=found.scales,
            quats=found.quats_wxyz,
            opacities=found.opacities,
            colors=found.sh,
            sh_degree=found.sh_degree,
        )

    def render_planes(self, frame: ModelFrame | None) -> tuple[float, float]:
        """Nearest and farthest depth that is drawn."""
        return self.config.near, self.config.far

    @property
    def background(self) -> tuple[float, float, float]:
        return (0.0, 0.0, 0.0)


SPEC = ModelSpec(LIBRARY, Model, PhotoProcessor, display_name="pmsplat")


def _find_folder(pretrained: str | Path, options: dict[str, Any]) -> Path:
    """The folder itself, or that of a repository in the hub's cache."""
    if Path(pretrained).is_dir():
        return Path(pretrained)
    options = dict(options)
    repository = Repository(str(pretrained), options.pop("revision", None))
    return fetch_model(repository, **options)
