"""Reads and writes video files, with the ffmpeg that comes with imageio-ffmpeg."""

import contextlib
import errno
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe

from ..errors import UserError
from .files import atomic

_ROUNDED = 0.005  # seconds, less than half of a frame at 60 frames a second
QUALITY = 16  # constant rate factor of x264: visually lossless


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: float, quality: int = QUALITY
) -> None:
    """Writes uint8 RGB frames [height, width, 3] of one size as H.264 in an .mp4 (yuv420p, BT.709).

    Every browser and player can show this format. `quality` is x264's constant rate factor: more
    is worse, and smaller. It halves the resolution of the colour, so for
    an odd size the last row or column is repeated. `frames` may be a generator: only one frame at a
    time is in memory. The file is complete or absent; a full disk raises OSError with errno ENOSPC.
    """
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise UserError("a video of no frames", "at least one frame", "render at least one camera")
    with atomic(path) as temporary:
        rest = (_pad_to_even(frame) for frame in stream)
        _encode(temporary, _pad_to_even(first), rest, fps, quality)


def _encode(
    path: Path, first: np.ndarray, rest: Iterator[np.ndarray], fps: float, quality: int
) -> None:
    height, width = first.shape[:2]
    command = [
        get_ffmpeg_exe(), "-y", "-loglevel", "error",
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}", "-i", "-",
        "-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p",
        "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
        "-c:v", "libx264", "-crf", f"{quality}", "-movflags", "+faststart", "-f", "mp4", str(path),
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
        message = log.read().decode(errors="replace").strip()
    if "No space left" in message:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if code != 0:
        raise OSError(f"ffmpeg could not write {path}: {message}")


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
                    "resize the frames to one size",
                )
            pipe.write(frame.tobytes())
        pipe.close()
    except BrokenPipeError:  # ffmpeg has exited: `_encode` reports its exit code and log
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _pad_to_even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return frame
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def read_frames(path: str | Path, count: int | None = None) -> list[np.ndarray]:
    """Reads `count` frames, spread evenly from the first to the last; all if None or fewer exist.

    Frames are uint8 RGB [height, width, 3]; the rotation that phones store in the file is applied.
    Only the returned frames are held in memory. Raises UserError for a file that is not a video,
    and where ffmpeg stops; warns where it goes on, as in a file that was cut short.
    """
    if not Path(path).is_file():
        raise UserError(f"no file {path}", "a video file", "check the path")
    select: list[str] = []
    if count is not None:
        chosen = _spread_indices(_count_frames(path), count)
        terms = "+".join(f"eq(n\\,{index})" for index in chosen)
        select = ["-vf", f"select={terms}", "-fps_mode", "passthrough"]
    command = [
        get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-i", str(path), "-map", "0:v:0",
        *select, "-f", "image2pipe", "-c:v", "ppm", "-",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
            assert process.stdout is not None
            frames = list(_split_ppm(process.stdout))
        log.seek(0)
        message = log.read().decode(errors="replace").strip()
    if not frames:
        raise _decode_error(path)
    reason = message.partition("\n")[0]
    if process.returncode:
        raise UserError(
            f"{path}, of which ffmpeg could decode {len(frames)} frames and not all ({reason})",
            "a video that is complete",
            "copy it again, or cut off the damaged part",
        )
    if message:  # ffmpeg says so of a file that was cut short, and goes on
        warnings.warn(
            f"{path} may be damaged: ffmpeg decoded {len(frames)} frames and says {reason!r}",
            stacklevel=2,
        )
    return frames


@dataclass(frozen=True)
class Described:
    """How long a video is, in seconds, and the (height, width) of its frames."""

    seconds: float
    size: tuple[int, int]


def describe_video(path: str | Path) -> Described:
    """What the header of a video says; all is decoded where it does not say how long it is.

    The size is that of stored frames, before they are turned upright. Raises UserError for a file
    that is not a video.
    """
    command = [get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-i", str(path)]
    header = subprocess.run(command, capture_output=True, check=False).stderr.decode(
        errors="replace"
    )
    size = re.search(r"Stream #.*Video:.*?, (\d+)x(\d+)", header)
    if size is None:
        raise _decode_error(path)
    length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", header)
    if length is None:
        try:
            seconds = count_frames_and_secs(str(path))[1] or 0.0
        except RuntimeError as error:
            raise _decode_error(path) from error
    else:
        seconds = 3600 * int(length[1]) + 60 * int(length[2]) + float(length[3])
    return Described(float(seconds), (int(size[2]), int(size[1])))


def read_frame_at(path: str | Path, seconds: float) -> np.ndarray | None:
    """The frame of a video at a time, uint8 RGB [height, width, 3]; None behind its end.

    The time may be rounded: a frame up to 5 ms before it counts as at it.
    """
    command = [
        get_ffmpeg_exe(), "-nostdin", "-loglevel", "error",
        "-ss", f"{max(seconds - _ROUNDED, 0):.6f}", "-i", str(path),
        "-map", "0:v:0", "-frames:v", "1", "-f", "image2pipe", "-c:v", "ppm", "-",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        return next(_split_ppm(process.stdout), None)


def _count_frames(path: str | Path) -> int:
    try:
        frames, _ = count_frames_and_secs(str(path))
    except RuntimeError as error:
        raise _decode_error(path) from error
    if not frames:
        raise _decode_error(path)
    return frames


def _decode_error(path: str | Path) -> UserError:
    return UserError(
        f"{path} holds no frame that ffmpeg can decode",
        "a video such as .mp4 or .mov",
        "play the file to check that it is complete",
    )


def _spread_indices(total: int, count: int) -> list[int]:
    """Returns up to `count` different indices, spread evenly from 0 to total - 1."""
    return sorted(set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()))


def _split_ppm(stream: IO[bytes]) -> Iterator[np.ndarray]:
    """Yields the images of a stream of binary PPM files, each with its size in its header."""
    while header := stream.readline():
        size = re.fullmatch(rb"(\d+) (\d+)\n", stream.readline())
        assert header == b"P6\n" and size and stream.readline() == b"255\n", "ffmpeg writes P6"
        width, height = int(size[1]), int(size[2])
        data = stream.read(width * height * 3)
        if len(data) < width * height * 3:
            return
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
