"""Videos: what is decoded is what was written; nothing half-written stays."""

import errno
import subprocess
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from pmsplat.errors import UserError
from pmsplat.io import video


def frame(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture whose phase and mean colour tell the frame."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(0.11 * x + index), np.cos(0.13 * y - index), np.sin(0.07 * (x + y))]
    return (127 + 60 * np.stack(waves, -1) + 3 * index).clip(0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * np.log10(np.mean((a.astype(float) - b) ** 2) / 255**2)


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_frames_come_back(tmp_path: Path, size: tuple[int, int]) -> None:
    written = [frame(i, *size) for i in range(12)]
    video.write_video(tmp_path / "a.mp4", iter(written), fps=10)
    read = video.read_frames(tmp_path / "a.mp4", None)
    assert len(read) == 12
    assert read[0].shape == (48, 64, 3)  # odd sizes are made even
    assert min(psnr(w, r[: size[0], : size[1]]) for w, r in zip(written, read, strict=True)) > 35
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_colours_survive(tmp_path: Path) -> None:
    """Saturated colours come back within what half-resolution colour and 8 bits allow."""
    colors = np.array([[200, 30, 40], [20, 180, 60], [30, 40, 220], [128, 128, 128]], np.uint8)
    frames = [np.broadcast_to(color, (32, 32, 3)).copy() for color in colors]
    video.write_video(tmp_path / "a.mp4", frames, fps=2)
    for color, got in zip(colors, video.read_frames(tmp_path / "a.mp4"), strict=True):
        assert np.abs(got[8:-8, 8:-8].astype(int) - color).max() <= 6


def test_chosen_frames_are_spread_from_first_to_last(tmp_path: Path) -> None:
    written = [frame(i) for i in range(11)]
    video.write_video(tmp_path / "a.mp4", written, fps=25)
    read = video.read_frames(tmp_path / "a.mp4", 3)
    assert len(read) == 3
    for got, index in zip(read, [0, 5, 10], strict=True):
        closest = max(range(11), key=lambda i: psnr(written[i], got))
        assert closest == index
    assert len(video.read_frames(tmp_path / "a.mp4", 99)) == 11


def test_the_stream_is_what_browsers_play(tmp_path: Path) -> None:
    video.write_video(tmp_path / "a.mp4", [frame(i) for i in range(5)], fps=5)
    probe = subprocess.run(
        [get_ffmpeg_exe(), "-i", str(tmp_path / "a.mp4")], capture_output=True, text=True
    ).stderr
    assert "h264" in probe and "yuv420p" in probe and "bt709" in probe and "5 fps" in probe
    head = (tmp_path / "a.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # plays before it is fully loaded


def test_rotation_of_phones_is_applied(tmp_path: Path) -> None:
    video.write_video(tmp_path / "a.mp4", [frame(0)] * 3, fps=5)
    rotate = ["-display_rotation", "90", "-i", str(tmp_path / "a.mp4"), "-c", "copy"]
    subprocess.run([get_ffmpeg_exe(), *rotate, str(tmp_path / "b.mp4")], check=True, stderr=-3)
    (got,) = video.read_frames(tmp_path / "b.mp4", 1)
    assert got.shape == (64, 48, 3)
    assert psnr(np.rot90(frame(0)), got) > 35


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no frames"):
        video.write_video(tmp_path / "a.mp4", [], fps=5)
    with pytest.raises(UserError, match="64x48"):
        video.write_video(tmp_path / "a.mp4", [frame(0), frame(0, 32, 32)], fps=5)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no file"):
        video.read_frames(tmp_path / "absent.mp4", 2)
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    for count in (None, 3):
        with pytest.raises(UserError, match="no frame that ffmpeg can decode"):
            video.read_frames(tmp_path / "text.mp4", count)


def test_a_video_that_was_cut_short_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    video.write_video(path, [frame(i) for i in range(40)], fps=10)
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * len(whole) // 3])
    for count in (None, 3):
        with pytest.warns(UserWarning, match=r"a\.mp4 may be damaged: ffmpeg decoded \d+ frames"):
            frames = video.read_frames(path, count)
        assert 0 < len(frames) < 40


def test_a_decoder_that_fails_is_an_error_not_fewer_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One frame of 2x1, then the end of the program."""
    (tmp_path / "a.mp4").touch()
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nprintf 'P6\\n2 1\\n255\\nabcdef'\necho broken >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(video, "get_ffmpeg_exe", lambda: str(program))
    with pytest.raises(UserError, match=r"could decode 1 frames and not all \(broken\); wanted"):
        video.read_frames(tmp_path / "a.mp4")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = video._encode
    monkeypatch.setattr(video, "_encode", lambda path, *rest: encode(Path("/dev/full"), *rest))
    with pytest.raises(OSError) as caught:
        video.write_video(tmp_path / "a.mp4", [frame(i) for i in range(3)], fps=5)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
