"""Single targets: metrics that average to those of the scene, and hashes of their pixels."""

import hashlib
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat.evaluate import protocol
from pmsplat.evaluate.views import hash_pixels
from pmsplat.io.images import write_image
from pmsplat.types import Batch, Views
from tests.evaluate.test_protocol import grey, off_by, scene


def test_pixels_are_those_of_a_png_file(tmp_path, generator: torch.Generator) -> None:
    images = 1.4 * torch.rand(3, 3, 5, 7, generator=generator) - 0.2
    for image, found in zip(images, hash_pixels(images), strict=True):
        write_image(tmp_path / "a.png", image)
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
        assert pixels.shape == (5, 7, 3)
        assert found == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert len(set(hash_pixels(images))) == 3


def test_views_have_their_own_metrics_which_average_to_those_of_the_scene(
    generator: torch.Generator,
) -> None:
    batch = grey(scene("a", 3, generator))
    named = replace(batch.target, names=(("000004", "000009", "000001"),))
    (row,) = protocol.evaluate(off_by(0.1, 0.01, 0.001), [replace(batch, target=named)]).rows
    assert [view.view for view in row.views] == ["000004", "000009", "000001"]
    assert [view.values["psnr"] for view in row.views] == pytest.approx([20, 40, 60], abs=1e-3)
    for metric in ("psnr", "ssim"):
        values = [view.values[metric] for view in row.views]
        assert mean(values) == pytest.approx(row.values[metric], rel=1e-12)
    assert [view.truth for view in row.views] == hash_pixels(named.images[0])
    drawn = [0.5 + error + torch.zeros(3, 16, 20) for error in (0.1, 0.01, 0.001)]
    assert [view.prediction for view in row.views] == hash_pixels(torch.stack(drawn))


def test_views_without_names_are_counted_and_depth_alone_has_none(
    generator: torch.Generator,
) -> None:
    (row,) = protocol.evaluate(off_by(0.1, 0.1), [scene("a", 2, generator)]).rows
    assert [view.view for view in row.views] == ["0", "1"]
    step = off_by(0.1)(scene("b", 1, generator, depth=True))
    assert protocol.measure(replace(step, renderings=())).views == ()


def test_an_equal_photograph_has_an_equal_hash(generator: torch.Generator) -> None:
    batch = scene("a", 1, generator)

    def copy(given: Batch):
        step = off_by(0.0)(given)
        exact = replace(step.renderings[0], color=given.target.images)
        return replace(step, renderings=(exact,))

    (row,) = protocol.evaluate(copy, [batch]).rows
    assert row.views[0].prediction == row.views[0].truth
    changed = batch.target.images.clone()
    changed[0, 0, 1, 3, 4] += 0.1
    target = Views(changed.clamp(0, 1), batch.target.cameras)
    (other,) = protocol.evaluate(copy, [replace(batch, target=target)]).rows
    assert other.views[0].truth != row.views[0].truth
