"""Which photo a camera file means, whatever system wrote its names, and the order of names."""

import os
import unicodedata
from pathlib import Path

import pytest

from pmsplat.errors import UserError
from pmsplat.io.photo_files import (
    find_photos,
    names_count,
    natural_key,
    photo_beside,
    photos_in,
    readable,
    stem,
    why_not_found,
)


def folder_of(place: Path, *files: str) -> Path:
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).touch()
    return place


@pytest.mark.parametrize(
    ("named", "there"),
    [
        ("images/a.png", "images/a.png"),
        ("images\\a.png", "images/a.png"),
        ("./images/a", "images/a.jpg"),
        ("IMG_1.JPG", "img_1.jpg"),
        ("/home/someone/data/images/a.png", "a.png"),
        ("C:\\data\\images\\a.png", "a.png"),
        ("my%20room/a.png", "my room/a.png"),
        ("a.png", "a.jpg"),
        (unicodedata.normalize("NFD", "küche.jpg"), "küche.jpg"),
        ("küche.jpg".encode().decode("latin-1"), "küche.jpg"),  # UTF-8 read as Latin-1
        ("küche.jpg".encode("latin-1").decode("utf-8", "surrogateescape"), "küche.jpg"),
    ],
)
def test_names_of_other_systems_are_found(tmp_path: Path, named: str, there: str) -> None:
    assert find_photos([named], folder_of(tmp_path, there, "z.png")) == [tmp_path / there]


def test_a_name_in_latin_1_on_the_disk_is_found(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/k\xfcche.jpg"
    try:
        os.close(os.open(raw, os.O_CREAT))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (found,) = find_photos(["küche.jpg"], tmp_path)
    assert found is not None and readable(found.name) == "küche.jpg"


def test_what_could_be_two_photos_is_none(tmp_path: Path) -> None:
    folder_of(tmp_path, "left/0.png", "right/0.png", "depth/b.png", "color/b.jpg")
    assert find_photos(["0.png", "left/0.png"], tmp_path) == [None, tmp_path / "left/0.png"]
    assert find_photos(["b"], tmp_path) == [None]
    assert find_photos(["right\\0.png"], tmp_path) == [tmp_path / "right/0.png"]
    assert find_photos(["0.png"], tmp_path, deep=False) == [None]
    assert find_photos(["0.png"], tmp_path / "none") == [None]
    there = photos_in(tmp_path)
    assert why_not_found("0.png", tmp_path, there).startswith("it is not certain")
    assert why_not_found("1.png", tmp_path, there).startswith("there is no such photo")


def test_photos_of_a_folder_by_stem(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "images/a.png", "deeper/B.JPG", "images/d.1.jpg", "notes.txt")
    assert set(photos_in(tmp_path)) == {"a", "b", "d.1"}
    assert photos_in(tmp_path)["a"] == tmp_path / "a.png"
    assert stem("renders\\C.1.PNG") == "c.1" and stem("frame.1") == "frame.1"
    with pytest.raises(UserError, match="no folder"):
        photos_in(tmp_path / "none")


def test_a_photo_beside_a_file(tmp_path: Path) -> None:
    folder_of(tmp_path, "train/r_0.png")
    assert photo_beside(tmp_path, "./train/r_0") == tmp_path / "train/r_0.png"
    assert photo_beside(tmp_path, "train/r_1") is None
    assert photo_beside(tmp_path, "test/r_0") is None


def test_names_sort_as_people_count() -> None:
    names = ["frame_10.jpg", "frame_9.jpg", "frame_1.jpg", "left/2.jpg", "left/10.jpg"]
    assert sorted(names, key=natural_key) == [
        "frame_1.jpg",
        "frame_9.jpg",
        "frame_10.jpg",
        "left/2.jpg",
        "left/10.jpg",
    ]


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["IMG_1.jpg", "IMG_2.jpg"], True),
        (["left/1.jpg", "left/2.jpg", "right/1.jpg", "right/2.jpg"], True),
        (["kitchen.jpg", "door.jpg"], False),
        (["a3f9.jpg", "77bc.jpg", "0d1e.jpg"], False),
        (["1.jpg"], False),
    ],
)
def test_whether_names_tell_an_order(names: list[str], count: bool) -> None:
    assert names_count(names) is count
