"""The SOG of Gaussians: both versions, archives and folders, another reader, files that lie."""

import json
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.io.gaussians import load_gaussians
from tests.io.gaussians.encoders import sog_files, webp, write_sog, zipped
from tests.scenes import are_equal, random_gaussians

META = "meta.json"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_values_come_back_to_the_precision_of_the_format(
    tmp_path: Path, generator: torch.Generator, degree: int, version: int
) -> None:
    gaussians = random_gaussians(300, generator, degree=degree)
    write_sog(gaussians, tmp_path / "a.sog", version)
    found = load_gaussians(tmp_path / "a.sog")
    logs = gaussians.means.abs().log1p() * gaussians.means.sign()
    half = (logs.amax(dim=1) - logs.amin(dim=1)) / 65535 / 2
    bound = 1.01 * half[:, None] * (1 + gaussians.means.abs()) + 1e-6  # the slope of exp(x) - 1
    assert ((found.means - gaussians.means).abs() <= bound).all()
    same = (found.quats_wxyz * gaussians.quats_wxyz).sum(-1).abs().clamp(max=1)
    assert (2 * (1 - same)).sqrt().max() < 12**0.5 * 2**-0.5 / 255 + 1e-3
    steps = 3 / 255 if version == 1 else 0.1  # of a range, or of the sparse ends of a codebook
    logs, other = gaussians.scales.log(), found.scales.log()
    assert (logs - other).abs().max() < steps * (logs.max() - logs.min())
    if version == 2:
        torch.testing.assert_close(found.opacities, gaussians.opacities, rtol=0, atol=0.51 / 255)
    else:
        logits, other = gaussians.opacities.logit(), found.opacities.logit()
        torch.testing.assert_close(other, logits, rtol=0, atol=0.51 * 12 / 255)
    assert (found.sh - gaussians.sh).abs().max() < steps * (gaussians.sh.max() - gaussians.sh.min())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_same_as_gsply(
    tmp_path: Path, generator: torch.Generator, degree: int, version: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reader = pytest.importorskip("gsply.sog_reader")
    images = type("Images", (), {"webp_decode": lambda data: np.array(Image.open(BytesIO(data)))})
    monkeypatch.setattr(reader, "imagecodecs", images)
    path = tmp_path / "a.sog"
    write_sog(random_gaussians(700, generator, degree=degree), path, version)
    found, other = load_gaussians(path), reader.sogread(path)
    torch.testing.assert_close(found.means[0], torch.tensor(other.means), rtol=1e-5, atol=1e-6)
    scales = torch.tensor(other.scales).exp()
    torch.testing.assert_close(found.scales[0], scales, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.quats_wxyz[0], torch.tensor(other.quats), rtol=0, atol=1e-5)
    opacities = torch.tensor(other.opacities).flatten().sigmoid()
    torch.testing.assert_close(found.opacities[0], opacities, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.sh[0, :, 0], torch.tensor(other.sh0), rtol=1e-5, atol=1e-6)
    if degree:
        rest = torch.tensor(other.shN)
        torch.testing.assert_close(found.sh[0, :, 1:], rest, rtol=1e-5, atol=1e-6)


def test_pixels_of_one_gaussian(tmp_path: Path) -> None:
    """Every field by hand, from the description of the format."""

    def pixel(*channels: int) -> bytes:
        return webp(np.array([[channels]], np.uint8))

    palette = np.zeros((1, 64 * 3, 4), np.uint8)
    palette[0, 3:6, :3] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]  # the entry 1
    meta = {
        "version": 2,
        "count": 1,
        "means": {"mins": [-3, 0, 0], "maxs": [3, 1, 2], "files": ["l", "u"]},
        "scales": {"codebook": list(range(256)), "files": ["s"]},
        "quats": {"files": ["q"]},
        "sh0": {"codebook": [n / 100 for n in range(256)], "files": ["c"]},
        "shN": {"codebook": [-n for n in range(256)], "count": 2, "bands": 1, "files": ["p", "n"]},
    }
    files = {META: json.dumps(meta).encode(), "l": pixel(0xFF, 0xFF, 0x34, 255)}
    files |= {"u": pixel(0x3F, 0xFF, 0x12, 255), "s": pixel(0, 1, 2, 255)}
    files |= {"q": pixel(255, 0, 204, 254), "c": pixel(10, 20, 30, 0), "n": pixel(1, 0, 0, 255)}
    (tmp_path / "a.sog").write_bytes(zipped(files | {"p": webp(palette)}))
    found = load_gaussians(tmp_path / "a.sog")
    x = -(np.exp(3 - 6 * 0x3FFF / 65535) - 1)
    assert found.means[0, 0].tolist() == pytest.approx(
        [x, np.e - 1, np.exp(2 * 0x1234 / 65535) - 1], rel=1e-6
    )
    assert found.scales[0, 0].tolist() == pytest.approx([1, np.e, np.e**2])
    # w, x and z are given, y is the largest; they are longer than 1 here, so y is 0
    quat = np.array([1, -1, 0, 0.6]) / np.sqrt(2.36)
    assert found.quats_wxyz[0, 0].tolist() == pytest.approx(quat.tolist(), abs=1e-6)
    assert found.opacities.item() == 0
    assert found.sh[0, 0].flatten().tolist() == pytest.approx(
        [0.1, 0.2, 0.3, -1, -2, -3, -4, -5, -6, -7, -8, -9]
    )


def test_archives_and_folders_hold_the_same(tmp_path: Path, generator: torch.Generator) -> None:
    files = sog_files(random_gaussians(50, generator, degree=1))
    (tmp_path / "a.sog").write_bytes(zipped(files))
    (tmp_path / "a.download").write_bytes(zipped(files, zipfile.ZIP_DEFLATED))
    (tmp_path / "b.zip").write_bytes(zipped({f"scene/{name}": files[name] for name in files}))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = load_gaussians(tmp_path / "a.sog")
    for name in ("a.download", "b.zip", META):
        assert are_equal(load_gaussians(tmp_path / name), expected)


Change = Callable[[dict[str, Any]], object]


def changed(files: dict[str, bytes], change: Change) -> dict[str, bytes]:
    tree = json.loads(files[META])
    change(tree)
    return files | {META: json.dumps(tree).encode()}


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda tree: tree.update(antialias=True), ""),
        (lambda tree: tree.update(model="antialiased"), ""),
        (lambda tree: tree.update(model="2dgs"), "2D Gaussians"),
        (lambda tree: tree.update(model="new"), "its model new is left out"),
        (lambda tree: tree.update(camera=3), "['camera'] of its meta.json are left out"),
        (lambda tree: tree.update(antialias=False, model="default"), ""),
    ],
)
def test_what_is_left_out_is_named(
    tmp_path: Path, generator: torch.Generator, change: Change, warning: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    files = sog_files(random_gaussians(20, generator, degree=0))
    (tmp_path / "a.sog").write_bytes(zipped(changed(files, change)))
    found = load_gaussians(tmp_path / "a.sog")
    assert warning in caplog.text and bool(caplog.records) == bool(warning)
    tree = json.loads(changed(files, change)[META])
    assert found.rules.antialiased == bool(
        tree.get("antialias") or tree.get("model") == "antialiased"
    )


def test_codebooks_of_early_writers_begin_with_null(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    files = sog_files(random_gaussians(300, generator, degree=0))
    (tmp_path / "a.sog").write_bytes(zipped(files))
    whole, book = load_gaussians(tmp_path / "a.sog"), json.loads(files[META])["scales"]["codebook"]
    broken = changed(files, lambda tree: tree["scales"]["codebook"].__setitem__(0, None))
    (tmp_path / "b.sog").write_bytes(zipped(broken))
    found = load_gaussians(tmp_path / "b.sog")
    assert "the first of the numbers for scales is missing" in caplog.text
    first = (whole.scales.log() - book[0]).abs() < 1e-5
    assert first.any() and torch.equal(found.scales[~first], whole.scales[~first])
    guess = book[1] + (book[1] - book[255]) / 255
    torch.testing.assert_close(
        found.scales[first].log(), torch.full_like(found.scales[first], guess), rtol=1e-5, atol=1e-5
    )


def test_losses_are_named(
    tmp_path: Path, generator: torch.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    files = sog_files(random_gaussians(100, generator, degree=0))
    stream = BytesIO()
    Image.open(BytesIO(files["scales.webp"])).save(stream, "WEBP", quality=80)
    (tmp_path / "a.sog").write_bytes(zipped(files | {"scales.webp": stream.getvalue()}))
    load_gaussians(tmp_path / "a.sog")
    assert "'scales.webp' is compressed with losses" in caplog.text
    stream = BytesIO()
    Image.open(BytesIO(files["scales.webp"])).save(stream, "PNG")
    caplog.clear()
    (tmp_path / "b.sog").write_bytes(zipped(files | {"scales.webp": stream.getvalue()}))
    load_gaussians(tmp_path / "b.sog")
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tree: tree.update(version=3), "version 3 of SOG"),
        (lambda tree: tree.update(count=-1), "has -1 Gaussians"),
        (lambda tree: tree.update(count=1e9), "has 1000000000.0 Gaussians"),
        (lambda tree: tree.update(count=10**9), "1000000000 Gaussians in"),
        (lambda tree: tree.update(count=3000), "3000 Gaussians in 56 pixels of quats"),
        (lambda tree: tree.pop("means"), "it has no means"),
        (lambda tree: tree.pop("quats"), "has no quats"),
        (lambda tree: tree["means"].update(mins=[0, 0]), "mins of means are not 3"),
        (lambda tree: tree["means"].update(maxs=[0, 0, "1"]), "maxs of means are not 3"),
        (lambda tree: tree["means"].update(files=["means_l.webp"]), "no image 1 of means"),
        (lambda tree: tree["scales"].update(codebook=[1] * 257), "codebook of scales is not"),
        (lambda tree: tree["scales"].update(codebook=[None]), "codebook of scales begins with"),
        (lambda tree: tree["sh0"].update(files=["../a.webp"]), "there is no '../a.webp' in it"),
        (lambda tree: tree["shN"].update(bands=2), "palette of harmonics of 192x1 pixels"),
        (lambda tree: tree["shN"].update(count=65), "palette of harmonics of 192x1 pixels"),
        (lambda tree: tree["shN"].update(count=9), "beyond the 9 of the palette"),
        (lambda tree: tree.update(lodLevels=3), "levels of detail"),
    ],
)
def test_what_meta_json_may_not_say(
    tmp_path: Path, generator: torch.Generator, change: Change, fault: str
) -> None:
    files = sog_files(random_gaussians(50, generator, degree=1))
    (tmp_path / "a.sog").write_bytes(zipped(changed(files, change)))
    with pytest.raises(UserError, match=fault):
        load_gaussians(tmp_path / "a.sog")


def test_images_that_lie(tmp_path: Path, generator: torch.Generator) -> None:
    files, path = sog_files(random_gaussians(50, generator, degree=1)), tmp_path / "a.sog"
    blank = BytesIO()
    Image.new("RGBA", (9000, 9000)).save(blank, "PNG")
    huge = bytearray(files["quats.webp"])
    struct.pack_into("<I", huge, 21, (1 << 28) - 1)
    gray, tags = BytesIO(), np.full((8, 8, 4), 251, np.uint8)
    Image.new("L", (8, 8)).save(gray, "PNG")
    for content, fault in (
        (blank.getvalue(), "9000x9000 pixels in"),
        (bytes(huge), "16384x16384 pixels in"),
        (gray.getvalue(), "one of mode L"),
        (webp(tags), "rotations without one of the tags 252 to 255"),
        (webp(tags[:4, :4]), "50 Gaussians in 16 pixels of quats"),
        (b"", "'quats.webp' cannot be read"),
        (files["quats.webp"][:-9], "'quats.webp' cannot be read"),
    ):
        path.write_bytes(zipped(files | {"quats.webp": content}))
        with pytest.raises(UserError, match=fault):
            load_gaussians(path)


def test_archives_that_lie(tmp_path: Path, generator: torch.Generator) -> None:
    files, path = sog_files(random_gaussians(50, generator, degree=1)), tmp_path / "a.sog"
    whole = zipped(files)
    path.write_bytes(whole[:-30])
    with pytest.raises(UserError, match="its zip archive is damaged"):
        load_gaussians(path)
    at = whole.index(files["sh0.webp"])
    path.write_bytes(whole[:at] + b"?" + whole[at + 1 :])
    with pytest.raises(UserError, match=r"'sh0\.webp' in it is damaged"):
        load_gaussians(path)
    at = whole.index(b"meta.json")
    path.write_bytes(whole[: at - 4] + b"\xff\xff\n\n" + whole[at:])  # the name takes 64 KiB
    with pytest.raises(UserError, match="damaged") as caught:
        load_gaussians(path)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    path.write_bytes(zipped(files | {META: bytes(10**8)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match=r"'meta\.json' in it claims 100000000 bytes"):
        load_gaussians(path)
    path.write_bytes(zipped({"a/scene.ply": b"ply", "b.txt": b""}))
    with pytest.raises(UserError, match=r"no \.sog \(a/scene\.ply, b\.txt\).*unpack the archive"):
        load_gaussians(path)
    path.write_bytes(zipped({f"{name}/{META}": b"{}" for name in "ab"}))
    with pytest.raises(UserError, match=r"with 2 files meta\.json"):
        load_gaussians(path)


def test_a_folder_that_lies(tmp_path: Path, generator: torch.Generator) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    files = sog_files(random_gaussians(50, generator, degree=0))
    for name, content in files.items():
        (inner / name).write_bytes(content)
    (tmp_path / "quats.webp").write_bytes(files["quats.webp"])
    outside = changed(files, lambda tree: tree["quats"].update(files=["../quats.webp"]))
    for text, fault in (
        (outside[META], r"no '\.\./quats\.webp' beside it"),
        (b"[" * 10**5, r"meta\.json cannot be read"),
        (b"[]", "not that of SOG"),
    ):
        (inner / META).write_bytes(text)
        with pytest.raises(UserError, match=fault):
            load_gaussians(inner / META)
    with pytest.raises(UserError, match="no file"):
        load_gaussians(tmp_path / META)
