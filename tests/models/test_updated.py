"""An update on a frozen encoder: what stays, what learns, and which encoders it takes."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from pmsplat import registry
from pmsplat.contracts import conditioned_encoder, encoder_traits
from pmsplat.errors import UserError
from pmsplat.geometry.gaussian import quat_to_rotation
from pmsplat.models._update import Splats
from pmsplat.types import RESPLAT, Gaussians
from tests.models.tiny import SETTINGS, SMALL, shaken, tiny, views

PARTS = ("means", "scales", "quats_wxyz", "opacities", "sh")
BASES: dict[str, dict[str, Any]] = {
    "depthsplat": {"scales": 2},
    "depthsplat2024": {"sh_degree": 3},
    "mvsplat": {"sh_degree": 1},
    # one Gaussian for each 4x4 pixels, and no update of its own
    "resplat": {"latent": 4, "gaussians_per_point": 1, "steps": None, "scale_max": 0.3},
}
every_base = pytest.mark.parametrize("name", BASES)


def base_settings(name: str, **changes: object) -> dict[str, Any]:
    return {"name": name, **SETTINGS[name], **BASES[name], **changes}


def updated(name: str = "depthsplat", steps: int = 2, **changes: object) -> Any:
    """An untrained update on a base with random weights."""
    model = tiny("updated", base=base_settings(name, **changes), steps=steps)
    shaken(model.base)
    return model.eval()


def moving(model: Any) -> Any:
    """The same with an update that does something, as small as a trained one's."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.update.head[-1].parameters():
            parameter.copy_(1e-3 * torch.randn_like(parameter))
    return model


def assert_same(found: Gaussians, wanted: Gaussians) -> None:
    """Equal to rounding; harmonics of higher degree are 0."""
    missing = found.sh.shape[-2] - wanted.sh.shape[-2]
    sh = torch.nn.functional.pad(wanted.sh, (0, 0, 0, missing))
    torch.testing.assert_close(found.sh, sh, atol=0, rtol=0)
    for part in ("means", "opacities", "covariances"):
        torch.testing.assert_close(getattr(found, part), getattr(wanted, part))
    assert found.rules == wanted.rules


@every_base
def test_an_untrained_update_changes_nothing(name: str, generator: torch.Generator) -> None:
    model, given = updated(name), views(generator, 3, batch=2)
    with torch.no_grad():
        found = model(given, all_levels=True)
        expected = model.base(given)
        answer = model(given)
        (alone,) = model(given, steps=0).gaussians
    assert len(found.gaussians) == 3 and len(found.depths) == len(answer.gaussians) == 1
    assert torch.equal(found.depths[0], expected.depths[0])
    for part in PARTS:
        wanted = getattr(expected.gaussians[0], part)
        torch.testing.assert_close(getattr(found.gaussians[0], part), wanted)
        torch.testing.assert_close(getattr(alone, part), wanted)
    for level in (*found.gaussians[1:], *answer.gaussians):
        assert_same(level, expected.gaussians[0])
    assert (expected.gaussians[0].rules == RESPLAT) == (name == "resplat")


@every_base
def test_gradients_reach_the_update_alone(name: str, generator: torch.Generator) -> None:
    model, given = moving(updated(name)).train(), views(generator, 2, (32, 32))
    assert model.training and not any(part.training for part in model.base.modules())
    found = model(given)
    first, *later = found.gaussians
    assert len(later) == 2 and all(level.means.requires_grad for level in later)
    assert not first.means.requires_grad and not found.depths[0].requires_grad
    loss = sum(getattr(level, part).square().sum() for level in later for part in PARTS)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    for where, parameter in model.named_parameters():
        learns = where.startswith("update.") and not where.startswith("update.features.")
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, where
        assert parameter.requires_grad == learns, where


@every_base
def test_the_condition_is_what_the_prediction_comes_from(
    name: str, generator: torch.Generator
) -> None:
    """The prediction beside it is that of the encoder, and the map has one row for each view."""
    encoder = shaken(tiny(name, **BASES[name]))
    base, given = conditioned_encoder(encoder, name), views(generator, 3, (32, 48), batch=2)
    with torch.no_grad():
        found, expected = base.predict_with_condition(given), encoder(given)
        changed = base.predict_with_condition(given.map(lambda x: x.flip(0)))
    for part in PARTS:
        a, b = (getattr(p.gaussians[0], part) for p in (found.prediction, expected))
        torch.testing.assert_close(a, b)
    assert torch.equal(found.prediction.depths[0], expected.depths[0])
    side = getattr(encoder, "unit", 1)
    assert found.condition.shape == (6, base.condition_width, 32 // side, 48 // side)
    swapped = changed.condition.unflatten(0, (2, 3)).flip(0).flatten(0, 1)
    torch.testing.assert_close(swapped, found.condition, atol=1e-3, rtol=1e-3)
    assert found.condition.std(dim=(0, 2, 3)).min() > 0


def test_gaussians_come_back_from_the_frames_of_their_views(generator: torch.Generator) -> None:
    given = views(generator, 3, (32, 48), batch=2)
    with torch.no_grad():
        (gaussians,) = shaken(tiny("depthsplat"))(given).gaussians
    splats = Splats.of(gaussians, given.cameras.c2w)
    assert_same(splats.in_world(given.cameras.c2w, gaussians.rules), gaussians)
    # Rotations in the camera, composed with that of the camera, are those of the world.
    xyzw = splats.quats_xyzw.unflatten(1, (3, -1))
    own = quat_to_rotation(xyzw.roll(1, dims=-1))
    turned = given.cameras.c2w[:, :, None, :3, :3] @ own
    wanted = quat_to_rotation(gaussians.quats_wxyz).unflatten(1, (3, -1))
    torch.testing.assert_close(turned, wanted, atol=1e-5, rtol=0)


def test_each_step_goes_on_from_the_one_before(generator: torch.Generator) -> None:
    model, given = moving(updated()), views(generator, 2, (30, 46))
    with torch.no_grad(), pytest.warns(UserWarning, match="padded to 32x48"):
        every = model(given, steps=3, all_levels=True).gaussians
        answer = model(given, steps=3).gaussians
    assert len(every) == 4 and len(answer) == 1
    for part in PARTS:
        values = [getattr(level, part) for level in every]
        torch.testing.assert_close(values[-1], getattr(answer[0], part), atol=1e-4, rtol=1e-4)
        assert values[-1].shape[1] == 2 * 30 * 46
        assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in pairwise(values))


def test_what_others_ask_of_it() -> None:
    traits = encoder_traits(updated("mvsplat", near=2.0, steps=5))
    assert (traits.near, traits.far, traits.typical_depth, traits.multiple) == (2.0, None, None, 16)
    assert (traits.frame, traits.steps, traits.draws) == ("middle", 5, True)
    blocks = encoder_traits(updated("resplat", lowest=8))
    assert (blocks.searched, blocks.typical_depth, blocks.multiple) == ((0.01, 200.0), 5.0, 32)


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ({"gaussians": False}, "model.base=depthsplat, which predicts depth alone; wanted an enc"),
        ({"name": "resplat"}, "model.base=resplat, which has an update of its own"),
        ({"name": "tests.lab.encoder"}, "model.base=tests.lab.encoder has no `condition_width`"),
        ({"plnes": 3}, "models 'depthsplat' has no setting 'plnes'.*did you mean 'planes'"),
        ({"name": "depthspat"}, "no 'depthspat' in models.*did you mean 'depthsplat'"),
        ({"name": None}, "a component without a name"),
    ],
)
def test_bases_that_do_not_fit_are_told(base: dict[str, Any], sentence: str) -> None:
    name = base.get("name", "depthsplat")
    settings = SETTINGS.get(str(name), {}) | {"name": name} | base
    with pytest.raises(UserError, match=sentence):
        registry.build("models", "updated", {"base": settings})


def test_harmonics_of_degree_4_are_told(generator: torch.Generator) -> None:
    settings = {"name": "mvsplat", **SMALL, "sh_degree": 4}
    model = tiny("updated", base=settings, steps=1)
    with torch.no_grad(), pytest.raises(UserError, match="25 harmonics; wanted at most 16"):
        model(views(generator))
