"""What the page is given: files and folders opened, cameras found, wrong input told."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat import cli
from pmsplat.errors import UserError
from pmsplat.io.cameras.ours import write_cameras
from pmsplat.io.gaussians import save_gaussians
from pmsplat.io.images import to_uint8
from pmsplat.render import rasterize
from pmsplat.tasks.view import MOST_CAMERAS, Options, view
from pmsplat.types import MIP, Cameras, Gaussians
from pmsplat.view.stage import CONFIDENCE
from pmsplat.zoo import memory
from tests.view.blocks import SIZE, blocks, lookers, rated

pytest.importorskip("viser", reason="the page needs viser: pip install 'pmsplat[view]'")

QUIET = Options(port=0, device="cpu", backend="cpu")
NAMES = ("a.jpg", "b.jpg", "c.jpg")


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """A folder as `predict` leaves it; of camera b there is a rendering, brown."""
    folder = tmp_path / "kitchen-3d"
    (folder / "render").mkdir(parents=True)
    save_gaussians(blocks(), folder / "gaussians.ply")
    write_cameras(folder / "cameras.json", lookers(), NAMES, SIZE)
    Image.new("RGB", (320, 240), (90, 60, 30)).save(folder / "render" / "b.png")
    return folder


def test_a_folder_of_results_brings_its_cameras_and_pictures(predicted: Path) -> None:
    said: list[str] = []
    page = view([predicted], QUIET, said.append)
    try:
        (exhibit,) = page.stage.exhibits
        assert exhibit.names == ("a", "b", "c") and exhibit.name == "kitchen-3d"
        assert exhibit.cameras is not None
        torch.testing.assert_close(
            exhibit.cameras.scaled(page.stage.unit).c2w, lookers().c2w, rtol=0, atol=1e-5
        )
        first, second, _ = exhibit.thumbnails
        assert first is None and second is not None and second.shape == (120, 160, 3)
        assert np.abs(second - np.array([90, 60, 30])).max() < 3
        up = page.setting.up
        assert torch.allclose(up, torch.tensor([0.0, -1, 0]), atol=1e-4)
        assert page.setting.video == predicted / "view.mp4"
        assert page.address.startswith("http://127.0.0.1:")
        assert said == ["kitchen-3d: 900 Gaussians, 3 cameras."]
        np.testing.assert_allclose(page.server.initial_camera.position, 0, atol=1e-6)
        assert page.server.initial_camera.up == pytest.approx([0, -1, 0])
    finally:
        page.close()


def test_a_file_takes_the_cameras_and_photos_that_are_named(
    predicted: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (640, 480), (10, 200, 10)).save(photos / "C.png")
    save_gaussians(blocks(), tmp_path / "scene.splat")
    options = replace(QUIET, cameras=str(predicted), photos=photos, up="z", most=500)
    said: list[str] = []
    page = view([tmp_path / "scene.splat", predicted], options, said.append)
    try:
        first, second = page.stage.exhibits
        assert [one is None for one in first.thumbnails] == [True, True, False]
        assert [one is None for one in second.thumbnails] == [True, False, False]
        assert torch.equal(page.setting.up, torch.tensor([0.0, 0, 1]))
        assert any("500 of the 900 Gaussians of scene" in line for line in said)
        assert len(page.rooms) == 2 and page.setting.video == tmp_path / "view.mp4"
    finally:
        page.close()


def test_a_file_alone_is_seen_from_in_front_and_above(tmp_path: Path) -> None:
    save_gaussians(blocks(100.0), tmp_path / "scene.ply")
    page = view([tmp_path / "scene.ply"], replace(QUIET, host="0.0.0.0"), said := [].append)
    try:
        means = page.stage.exhibits[0].gaussians.means[0]
        middle = (means.amin(dim=0) + means.amax(dim=0)) / 2
        first = page.server.initial_camera
        assert first.position[2] < middle[2] and first.position[1] < middle[1]  # y points down
        ahead = first.look_at - first.position
        towards = middle.numpy() - first.position
        assert ahead @ towards > 0.999 * np.linalg.norm(ahead) * np.linalg.norm(towards)
        assert "no password" in said.__self__[-1]
    finally:
        page.close()


def test_what_a_file_says_is_up_is_up(tmp_path: Path) -> None:
    save_gaussians(replace(blocks(), up=(0.0, 0.0, 1.0)), tmp_path / "scene.ply")
    for named, wanted in ((None, [0.0, 0, 1]), ("x", [1.0, 0, 0])):
        page = view([tmp_path / "scene.ply"], replace(QUIET, up=named))
        try:
            assert page.setting.up.tolist() == wanted
        finally:
            page.close()


def test_scenes_of_one_map_lie_where_they_are(tmp_path: Path) -> None:
    """Each counts from an origin of its own; shown together, from that of the first."""
    far = replace(blocks(), origin=(500000.0, 5000000.0, 0.0))
    save_gaussians(far, tmp_path / "a.ply")
    save_gaussians(far.at_origin((500010.0, 4999998.0, 1.0)), tmp_path / "b.ply")
    page = view([tmp_path / "a.ply", tmp_path / "b.ply"], QUIET)
    try:
        first, second = (exhibit.gaussians for exhibit in page.stage.exhibits)
        torch.testing.assert_close(first.means, second.means, rtol=0, atol=1e-5)
    finally:
        page.close()


def test_confidence_is_shown_where_all_scenes_have_it(tmp_path: Path) -> None:
    save_gaussians(rated(blocks()), tmp_path / "sure.ply")
    save_gaussians(blocks(), tmp_path / "plain.ply")
    for names, shown in ((["sure"], True), (["plain"], False), (["sure", "plain"], False)):
        said: list[str] = []
        page = view([tmp_path / f"{name}.ply" for name in names], QUIET, said.append)
        try:
            assert (CONFIDENCE in page.kind.options) == shown
        finally:
            page.close()
        told = [line for line in said if "onfidence" in line]
        assert told == ["Confidence is not shown: it is not known of plain."] * (len(names) > 1)


def test_of_many_cameras_some_are_shown(tmp_path: Path) -> None:
    count = 2 * MOST_CAMERAS
    c2w = torch.eye(4).repeat(1, count, 1, 1)
    c2w[0, :, 0, 3] = torch.linspace(0, 0.5, count)
    many = Cameras(c2w, *(x.repeat(1, count, *[1] * (x.dim() - 2)) for x in _lens()))
    write_cameras(tmp_path / "cameras.json", many, [f"{i}.jpg" for i in range(count)], SIZE)
    save_gaussians(blocks(), tmp_path / "gaussians.ply")
    page = view([tmp_path], QUIET)
    try:
        names = page.stage.exhibits[0].names
        assert len(names) == MOST_CAMERAS and names[0] == "0" and names[-1] == str(count - 1)
    finally:
        page.close()


def _lens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    one = lookers().at([0])
    return one.K, one.near, one.far


def test_rules_are_those_of_the_scenes_and_one_kind_for_all(
    predicted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> Gaussians:
        return replace(blocks(), rules=MIP) if path.name == "mip.ply" else blocks()

    monkeypatch.setattr("pmsplat.tasks.view.load_gaussians", load)
    mip = predicted / "mip.ply"
    shutil.copy(predicted / "gaussians.ply", mip)
    with pytest.raises(UserError, match=r"different rules \(kitchen-3d 'classic', mip 'mip'\)"):
        view([predicted, mip], QUIET)
    for scenes, rules in (([predicted, mip], "mip"), ([mip], None)):
        said: list[str] = []
        page = view(scenes, replace(QUIET, rules=rules), said.append)
        try:
            camera = lookers().at([0]).scaled(1 / page.stage.unit)
            assert page.stage._join_visible().rules == MIP
            drawn = page.stage.draw_thumbnail(0, 0, 24) if rules else None
            wanted = rasterize(page.stage.exhibits[0].gaussians, camera, (24, 32), rules=MIP)
            assert drawn is None or np.array_equal(drawn, to_uint8(wanted.color[0, 0]))
        finally:
            page.close()
        assert any("antialiased" in sentence for sentence in said)
        assert any("the Gaussians say 'classic'" in sentence for sentence in said) == bool(rules)


def test_wrong_input_is_told(
    predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drawn").mkdir()
    with pytest.raises(UserError, match=r"holds no gaussians\.ply; wanted"):
        view([tmp_path / "drawn"], QUIET)
    with pytest.raises(UserError, match="no file"):
        view([tmp_path / "nothing.ply"], QUIET)
    save_gaussians(blocks().map(lambda tensor: tensor[:, :0]), tmp_path / "empty.splat")
    with pytest.raises(UserError, match="holds no Gaussians"):
        view([tmp_path / "empty.splat"], QUIET)
    away = replace(lookers(), c2w=lookers().c2w @ torch.diag(torch.tensor([1.0, -1, -1, 1])))
    write_cameras(tmp_path / "away.json", away, NAMES, SIZE)
    save_gaussians(blocks(), tmp_path / "scene.ply")
    with pytest.raises(UserError, match="none of the 3 cameras sees one of the 900") as caught:
        view([tmp_path / "scene.ply"], replace(QUIET, cameras=str(tmp_path / "away.json")))
    assert "orbit" not in caught.value.remedy
    with pytest.raises(UserError, match="`most=0`"):
        view([predicted], replace(QUIET, most=0))
    with pytest.raises(UserError, match="`up=w`") as caught:
        view([predicted], replace(QUIET, up="w"))
    assert "orbit" not in str(caught.value)
    with pytest.raises(UserError, match="sides of at most"):
        view([predicted], replace(QUIET, size=(10**6, 10**6)))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1 << 20)
    with pytest.raises(UserError, match="need about"):
        view([predicted], QUIET)


def test_a_port_in_use_is_one_sentence(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["view", str(predicted), "--port", str(port), "--device", "cpu"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"pmsplat: port {port} is in use; wanted")


def test_it_serves_until_it_is_interrupted(predicted: Path) -> None:
    command = [sys.executable, "-m", "pmsplat", "view", str(predicted), "--port", "0"]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=quiet,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        lines = iter(process.stderr.readline, "")
        told = next(line for line in lines if line.startswith("Open http://127.0.0.1:"))
        address = told.split()[1]
        with urllib.request.urlopen(address, timeout=5) as answer:
            assert b"<html" in answer.read()
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5):  # and says nothing
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout.read() == "" and process.stderr.read() == ""
