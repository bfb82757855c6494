"""Encoders whose Gaussians a recurrent update changes: what ReSplat and `updated` share."""

from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..contracts import count_anchors, count_steps
from ..errors import UserError
from ..kernels.neighbors import k_nearest_in_windows, k_nearest_of_sane
from ..nn.cost_volume import nearest_others
from ..render import rasterize
from ..types import Cameras, DrawingRules, Gaussians, Prediction, Rendering, Views
from ._padding import predict_padded
from ._update import NEIGHBORS, Splats, Update

WINDOW_VIEWS = 32  # other views in whose windows neighbours are sought
FARTHEST = 1e9  # coordinates among which neighbours are sought; a diverged model has others too


class Stepped(nn.Module):
    """An initial model and an update of its Gaussians, applied as often as one likes.

    It takes two or more views of any size (`predict_padded`). In train mode, and where all levels
    are asked for, the prediction holds the Gaussians of the initial model and those after each
    step; else only the last. No gradient flows from the update into the initial model, nor through
    the Gaussians from step to step except through what the update remembers and through the
    pictures that it draws of the context views. Under autocast geometry, Gaussians and pictures
    stay in float32.

    `draw` is how it looks at its Gaussians. With `windowed_neighbors`, neighbours are sought near
    the pixels of a point alone, as the authors' option `use_local_knn` does it: faster, inexact.
    """

    update: Update | None

    def __init__(self) -> None:
        super().__init__()
        self.windowed_neighbors = False

    @property
    def multiple(self) -> int:
        """Images whose height and width are multiples of this are taken as they are."""
        raise NotImplementedError

    def multiple_at(self, width: int) -> int:
        """`multiple` for images about `width` pixels wide."""
        raise NotImplementedError

    @property
    def steps(self) -> int | None:
        """The number of updates where the caller does not say; None: it has no update."""
        raise NotImplementedError

    @property
    def frame(self) -> str:
        """The update wants the world to be that of the middle context view."""
        return "given" if self.update is None else "middle"

    @property
    def anchors(self) -> int:
        """In how many views the initial model gathers all, at most, where the caller may choose;
        0: each view speaks for itself."""
        return 0

    def forward(
        self,
        views: Views,
        steps: int | None = None,
        all_levels: bool = False,
        anchors: int | None = None,
    ) -> Prediction:
        """What it predicts after so many updates, gathering all views in so many `anchors`; None:
        as its settings say. The update looks at the views of which the initial model speaks.

        Raises UserError for fewer than two views, and for updates or anchors of a model without.
        """
        predict = partial(
            self._predict,
            steps=count_steps(steps, self.steps),
            all_levels=all_levels or self.training,
            anchors=count_anchors(anchors, self.anchors),
        )
        return predict_padded(predict, views, self.multiple_at(views.size[1]))

    def draw(self, gaussians: Gaussians, cameras: Cameras, size: tuple[int, int]) -> Rendering:
        """The pictures of its Gaussians that an update looks at."""
        return rasterize(gaussians, cameras, size)

    def _predict(self, views: Views, steps: int, all_levels: bool, anchors: int) -> Prediction:
        """For views of a size that needs no padding."""
        raise NotImplementedError

    def _updated(
        self,
        splats: Splats,
        condition: Float[Tensor, "n channel rows columns"],
        views: Views,
        rules: DrawingRules,
        steps: int,
        all_levels: bool,
    ) -> tuple[Gaussians, ...]:
        """The Gaussians after each step, or after the last alone.

        They start as `splats`, which were made from the maps `condition` of the views.
        """
        assert self.update is not None
        c2w, cameras, size = views.cameras.c2w, views.cameras, views.size
        height, width = (side // self.update.unit for side in size)
        photos = self.update.observe(views.images)
        state = self.update.start(splats, condition, photos)
        current = state.splats.in_world(c2w, rules)
        levels: tuple[Gaussians, ...] = ()
        step = self.update.step
        if self.training and steps > 1:
            # Of what is inside a step, gradients keep one step's at a time and compute it again.
            step = partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False)
        for _ in range(steps):
            # Draw the context views, compare with the photographs, correct the Gaussians.
            pictures = self.draw(current, cameras, size).color
            means = state.splats.means.detach().unflatten(1, (-1, height, width))
            table = self._neighbors(means, cameras, NEIGHBORS)
            state = step(state, pictures, photos, table)
            current = state.splats.in_world(c2w, rules)
            levels = (*levels, current) if all_levels else (current,)
        return levels

    def _neighbors(
        self, places: Float[Tensor, "batch view rows columns 3"], cameras: Cameras, count: int
    ) -> Int[Tensor, "batch point {count}"]:
        """The nearest of all points of a scene to each, or of those near its pixels."""
        places = places.detach().float().nan_to_num().clamp(-FARTHEST, FARTHEST)
        points = places.flatten(1, 3)
        if points.shape[1] < count:
            raise UserError(
                f"{points.shape[1]} Gaussians in all views",
                f"at least {count}, since each one looks at so many",
                "give larger images, or more views",
            )
        if not self.windowed_neighbors:
            return k_nearest_of_sane(points, points, count)
        others = nearest_others(cameras.c2w, WINDOW_VIEWS)
        return k_nearest_in_windows(places, others, cameras.c2w, cameras.K, count).flatten(1, 3)
