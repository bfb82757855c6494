"""Bare panoramas: refused where photos say so themselves, named where their shape suggests it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pmsplat.errors import UserError
from pmsplat.io import images
from pmsplat.scene import open_scene

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
    b'GPano:ProjectionType="equirectangular" GPano:FullPanoWidthPixels="64"/></rdf:RDF></x:xmpmeta>'
)


def write(path: Path, size: tuple[int, int], xmp: bytes | None) -> None:
    photo = Image.fromarray(np.zeros((*size, 3), np.uint8))
    if path.suffix == ".png":
        notes = PngImagePlugin.PngInfo()
        if xmp is not None:
            notes.add_itxt("XML:com.adobe.xmp", xmp.decode())
        photo.save(path, pnginfo=notes)
    elif xmp is None:
        photo.save(path)
    else:
        photo.save(path, xmp=xmp)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_photos_that_say_that_they_are_panoramas(tmp_path: Path, suffix: str) -> None:
    for i in range(3):
        write(tmp_path / f"{i}{suffix}", (32, 64), XMP if i == 1 else None)
    assert images.is_panorama(tmp_path / f"1{suffix}")
    assert not images.is_panorama(tmp_path / f"0{suffix}")
    with pytest.raises(UserError, match=r"panoramas.*--camera-type equirectangular"):
        open_scene(tmp_path)


def test_photos_of_the_shape_of_panoramas_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # nothing is posed here
    for width, told in ((64, True), (63, False)):
        folder = tmp_path / str(width)
        folder.mkdir()
        write(folder / "a.png", (32, width), None)
        write(folder / "b.png", (32, width), None)
        sentences: list[str] = []
        with pytest.raises(UserError, match="pycolmap"):
            open_scene(folder, cache=tmp_path / "cache", tell=sentences.append)
        assert any("twice as wide as high" in sentence for sentence in sentences) == told
