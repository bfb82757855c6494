"""Video files in and out, through the ffmpeg that imageio-ffmpeg brings along."""

import contextlib
import errno
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe

from ..errors import UserError
from .files import atomic

QUALITY = 16  # constant rate factor of x264: visually lossless


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes uint8 RGB frames [height, width, 3] of one size as H.264 in an .mp4 (yuv420p, BT.709).

    Every browser and player shows that. Odd sizes get their last row or column doubled, because
    the format halves the colour. Frames may come from a generator: one at a time is held. The file
    is complete or absent; a full disk is an OSError with errno ENOSPC.
    """
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise UserError("a video of no frames", "at least one frame", "render some cameras first")
    with atomic(path) as temporary:
        _encode(temporary, _even(first), (_even(frame) for frame in stream), fps)


def _encode(path: Path, first: np.ndarray, rest: Iterator[np.ndarray], fps: float) -> None:
    height, width = first.shape[:2]
    command = [
        get_ffmpeg_exe(), "-y", "-loglevel", "error",
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}", "-i", "-",
        "-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p",
        "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
        "-c:v", "libx264", "-crf", f"{QUALITY}", "-movflags", "+faststart", "-f", "mp4", str(path),
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log) as process:
            try:
                _feed(process.stdin, first, rest)
            except BaseException:  # Ctrl-C too: ffmpeg must not outlive us
                process.kill()
                raise
        code = process.returncode
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
    if "No space left" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if code != 0:
        raise OSError(f"ffmpeg could not write {path}: {said}")


def _feed(pipe: IO[bytes] | None, first: np.ndarray, rest: Iterator[np.ndarray]) -> None:
    assert pipe is not None
    try:
        pipe.write(first.tobytes())
        for frame in rest:
            if frame.shape != first.shape:
                raise UserError(
                    f"a frame of {frame.shape[1]}x{frame.shape[0]} after one of "
                    f"{first.shape[1]}x{first.shape[0]}",
                    "frames of one size",
                    "resize them first",
                )
            pipe.write(frame.tobytes())
        pipe.close()
    except BrokenPipeError:  # ffmpeg gave up: its exit code and log say why
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return frame
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def read_frames(path: str | Path, count: int | None = None) -> list[np.ndarray]:
    """`count` frames spread evenly from the first to the last; all where None or fewer exist.

    uint8 RGB [height, width, 3]; the rotation that phones note in the file is applied. Only what
    is returned is held in memory. Raises UserError for what is no video.
    """
    if not Path(path).is_file():
        raise UserError(f"no file {path}", "a video file", "check the path")
    select: list[str] = []
    if count is not None:
        chosen = _spread(_count(path), count)
        terms = "+".join(f"eq(n\\,{index})" for index in chosen)
        select = ["-vf", f"select={terms}", "-fps_mode", "passthrough"]
    command = [
        get_ffmpeg_exe(),
        "-nostdin",
        "-loglevel",
        "error",
        "-i",
        str(path),
        "-map",
        "0:v:0",
        *select,
    ]
    command += ["-f", "image2pipe", "-c:v", "ppm", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        frames = list(_ppm_images(process.stdout))
    if not frames:
        raise _not_a_video(path)
    return frames


def _count(path: str | Path) -> int:
    try:
        frames, _ = count_frames_and_secs(str(path))
    except RuntimeError as error:
        raise _not_a_video(path) from error
    if not frames:
        raise _not_a_video(path)
    return frames


def _not_a_video(path: str | Path) -> UserError:
    return UserError(
        f"{path} holds no frame that ffmpeg can decode",
        "a video such as .mp4 or .mov",
        "play it once to see whether the file is whole",
    )


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` different indices, evenly from 0 to total - 1."""
    return sorted(set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()))


def _ppm_images(stream: IO[bytes]) -> Iterator[np.ndarray]:
    """The images of a stream of binary PPM files, each of which says its own size."""
    while header := stream.readline():
        size = re.fullmatch(rb"(\d+) (\d+)\n", stream.readline())
        assert header == b"P6\n" and size and stream.readline() == b"255\n", "ffmpeg writes P6"
        width, height = int(size[1]), int(size[2])
        data = stream.read(width * height * 3)
        if len(data) < width * height * 3:
            return
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
