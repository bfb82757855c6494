"""Why photos could not be posed: what a database of COLMAP tells, and what is said of it."""

import importlib.util
import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pmsplat.errors import UserError
from pmsplat.scene import open_scene
from pmsplat.scene.posing import Posed, explain


def write_database(path: Path, details: dict[str, int], pairs: list[tuple[int, int, int]]) -> None:
    """A database of COLMAP: photos, numbered from 1, with their features; pairs and configs."""
    with closing(sqlite3.connect(path)) as tables:
        tables.execute("CREATE TABLE images (image_id INTEGER, name TEXT)")
        tables.execute("CREATE TABLE keypoints (image_id INTEGER, rows INTEGER)")
        tables.execute(
            "CREATE TABLE two_view_geometries (pair_id INTEGER, rows INTEGER, config INTEGER)"
        )
        tables.executemany("INSERT INTO images VALUES (?, ?)", enumerate(details, 1))
        tables.executemany("INSERT INTO keypoints VALUES (?, ?)", enumerate(details.values(), 1))
        numbers = [(a * 2147483647 + b, 0 if c == 1 else 50, c) for a, b, c in pairs]
        tables.executemany("INSERT INTO two_view_geometries VALUES (?, ?, ?)", numbers)
        tables.commit()


def test_every_photo_without_a_camera_gets_its_own_reason(tmp_path: Path) -> None:
    details = {"a": 3000, "b": 3000, "c": 3000, "black": 7, "screen": 900, "x": 2000, "y": 2000}
    details |= {"aside": 2500}
    # Numbers from 1; config 2 is calibrated, 5 and 6 rotations, 1 a pair that does not match.
    pairs = [(1, 2, 2), (1, 3, 2), (2, 3, 6), (6, 7, 5), (3, 8, 2), (1, 5, 1), (1, 4, 1)]
    write_database(tmp_path / "database.db", details, pairs)
    posed, why = explain(tmp_path / "database.db", [{"a", "b", "c"}, {"x", "y"}])
    assert posed == Posed(registered=3, pairs=5, turned=2)
    assert why == {
        "black": "it has hardly any detail: 7 points that can be matched",
        "screen": "no other photo shows the same",
        "x": "it is one of 2 photos that fit each other, but not the rest",
        "y": "it is one of 2 photos that fit each other, but not the rest",
        "aside": "it shares too little with the other photos",
    }


def test_without_a_model_all_photos_have_a_reason(tmp_path: Path) -> None:
    write_database(tmp_path / "database.db", {"a": 500, "b": 500}, [])
    posed, why = explain(tmp_path / "database.db", [])
    assert posed == Posed(0, 0, 0)
    assert why == dict.fromkeys(("a", "b"), "no other photo shows the same")


def wall(side: int = 480) -> Image.Image:
    """A picture with detail of several sizes."""
    rng, total = np.random.default_rng(0), np.zeros((side, 2 * side))
    for radius in (1, 3, 8):
        noise = Image.fromarray(rng.integers(0, 256, total.shape, dtype=np.uint8))
        blurred = np.asarray(noise.filter(ImageFilter.GaussianBlur(radius)), np.float64)
        total += (blurred - blurred.mean()) / blurred.std()
    return Image.fromarray((128 + 30 * total).clip(0, 255).astype(np.uint8)).convert("RGB")


def test_photos_of_a_tripod_are_told_why(tmp_path: Path) -> None:
    if importlib.util.find_spec("pycolmap") is None:
        pytest.skip("pycolmap is not installed")
    # A camera of focal length 400 that turns about its center before a picture of focal length 700.
    photos, picture = tmp_path / "photos", wall()
    photos.mkdir()
    there = np.array([[700, 0, picture.width / 2], [0, 700, picture.height / 2], [0, 0, 1]])
    here = np.array([[400, 0, 160], [0, 400, 120], [0, 0, 1]])
    for i, angle in enumerate(np.radians(np.linspace(-9, 9, 6))):
        c, s = math.cos(angle), math.sin(angle)
        view = there @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.linalg.inv(here)
        turned = picture.transform(
            (320, 240),
            Image.Transform.PERSPECTIVE,
            (view / view[2, 2]).ravel()[:8].tolist(),
            Image.Resampling.BICUBIC,
        )
        turned.save(photos / f"{i}.png")
    with pytest.raises(UserError, match="look as if the camera only turned") as caught:
        open_scene(photos, cache=tmp_path / "cache")
    assert "different places" in caught.value.remedy


@pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="pycolmap is missing")
def test_one_photo_is_refused_before_it_is_posed(tmp_path: Path) -> None:
    photos, said = tmp_path / "photos", []
    photos.mkdir()
    wall().save(photos / "0.png")
    with pytest.raises(UserError, match=r"^1 photo of .*; wanted at least 2"):
        open_scene(photos, cache=tmp_path / "cache", tell=said.append)
    assert not any("Posing" in text for text in said)


@pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="pycolmap is missing")
def test_its_steps_can_be_followed_and_an_exception_ends_it(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(2):
        wall(120).crop((20 * i, 0, 120 + 20 * i, 120)).save(photos / f"{i}.png")
    steps: list[str] = []

    def follow(sequence: Iterable[str], description: str, total: int) -> Iterator[str]:
        assert total == 4  # points, pairs, and each photo
        for step in sequence:
            steps.append(step.strip())
            raise KeyboardInterrupt
            yield step

    with pytest.raises(KeyboardInterrupt):
        open_scene(photos, cache=tmp_path / "cache", track=follow)
    assert steps == ["points found in every photo"]
    assert not [*(tmp_path / "cache").iterdir()]
