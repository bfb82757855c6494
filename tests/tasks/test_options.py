"""What is said of photos that are not of the size, and of what a CPU does not have."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import nn

from pmsplat.errors import UserError
from pmsplat.scene.photos import Photo, Scene
from pmsplat.tasks.options import describe_fit, for_computing
from pmsplat.types import Cameras


def scene_of(folder: Path, sizes: list[tuple[int, int]]) -> Scene:
    photos = []
    for i, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(folder / f"{i}.png")
        photos.append(Photo(f"{i}.png", folder / f"{i}.png", None))
    count = len(sizes)
    eye = torch.eye(4).repeat(1, count, 1, 1)
    near = torch.ones(1, count)
    return Scene("room", tuple(photos), Cameras(eye, eye[..., :3, :3], near, 9 * near))


def test_photos_of_the_size_need_no_word(tmp_path: Path) -> None:
    assert describe_fit(scene_of(tmp_path, [(20, 30)] * 3).photos, (20, 30)) == []


def test_scaled_photos_are_said(tmp_path: Path) -> None:
    (told,) = describe_fit(scene_of(tmp_path, [(40, 60)] * 3).photos, (20, 30))
    assert "40x60" in told and "20x30" in told


@pytest.mark.parametrize(("portrait", "share"), [((30, 20), "56%"), ((60, 20), "78%")])
def test_what_is_cut_off_of_another_shape_is_said(
    tmp_path: Path, portrait: tuple[int, int], share: str
) -> None:
    """A portrait scaled to cover a landscape keeps (20/30) · (20/30) of itself, and so on."""
    scene = scene_of(tmp_path, [(20, 30), (20, 30), portrait])
    told = describe_fit(scene.photos, (20, 30))
    assert share in told[1] and "2.png" in told[1] and "1 photo" in told[1]


def test_how_a_cpu_can_compute() -> None:
    model, cpu = nn.Linear(1, 1), torch.device("cpu")
    assert for_computing(model, cpu, "float32") is model
    half: Any = for_computing(model, cpu, "bf16")
    assert half.precision == "bf16" and model.weight.dtype == torch.float32
    with pytest.raises(UserError, match="`graph` on cpu; wanted a CUDA device"):
        for_computing(model, cpu, "float32", graph=True)
    with pytest.raises(UserError, match="`precision=tf32` on cpu; wanted a CUDA device"):
        for_computing(model, cpu, "tf32")
    with pytest.raises(UserError, match="`precision=half`; wanted one of float32, tf32, bf16"):
        for_computing(model, cpu, cast(Any, "half"))
