"""Reading training examples: samples a second, CPU and bytes of each, beside a plain reader.

python benchmarks/run.py data --json benchmarks/data.json
    chunks like those of RealEstate10K are made first (360x640, 100 photographs a scene); then one
    process reads examples of 2 context and 4 target views at 256x256

The plain reader does what the published loaders do: it loads a whole chunk, takes an example from
each of its scenes, and goes on with the next chunk. Both decode and scale the same photographs, the
plain one by PIL. Bytes are those of the files that are read; nothing is in the way of either, since
the operating system has the files in memory: a disk or a network widens the difference.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VIEWS = 2, 4  # context, target


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--scenes", type=int, default=32, help="(default: 32)")
    parser.add_argument("--frames", type=int, default=100, help="of a scene (default: 100)")
    parser.add_argument("--stored", type=int, nargs=2, default=[360, 640], metavar=("H", "W"))
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256], metavar=("H", "W"))
    parser.add_argument("--samples", type=int, default=128, help="timed examples (default: 128)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a row for each reader; gives the figures by name."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_chunks(root / "train", arguments)
        found = {
            "ours": measure(ours(root, arguments), arguments.samples),
            "plain": measure(plain(root / "train", arguments), arguments.samples),
        }
        found["ours"]["bytes"] = used_bytes(root / "train", arguments)
        size = sum(path.stat().st_size for path in (root / "train").glob("*.torch"))
        found["plain"]["bytes"] = size // arguments.scenes
    print(f"{'':8}{'samples/s':>10}{'CPU ms/sample':>15}{'KB/sample':>11}")
    for name, row in found.items():
        print(
            f"{name:8}{row['samples_per_second']:>10.1f}{1e3 * row['cpu_seconds']:>15.1f}"
            f"{row['bytes'] / 1e3:>11.0f}"
        )
    cores = 200 * found["ours"]["cpu_seconds"]
    print(f"200 samples/s keep {cores:.1f} such cores busy.")
    return found


def write_chunks(folder: Path, arguments: argparse.Namespace) -> None:
    """Scenes of a camera that moves sideways, in chunks of 16; photographs are smooth noise."""
    import torch

    from pmsplat.io.chunks import ChunkScene, append

    pictures = [encode(seed, arguments.stored) for seed in range(16)]
    for first in range(0, arguments.scenes, 16):
        scenes = []
        for number in range(first, min(first + 16, arguments.scenes)):
            c2w = torch.eye(4).repeat(arguments.frames, 1, 1)
            c2w[:, 0, 3] = 0.02 * torch.arange(arguments.frames)
            K = torch.tensor([[0.5, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1.0]])
            scenes.append(
                ChunkScene(
                    key=f"{number:06d}",
                    c2w=c2w,
                    K=K.repeat(arguments.frames, 1, 1),
                    images=tuple(
                        pictures[(number + i) % 16].clone() for i in range(arguments.frames)
                    ),
                    timestamps=torch.arange(arguments.frames),
                )
            )
        append(folder, scenes)


def encode(seed: int, size: list[int]) -> Any:
    """A picture of coarse and fine noise as a JPEG of quality 90."""
    import numpy as np
    import torch

    from pmsplat.io.images import encode_image

    generator = torch.Generator().manual_seed(seed)
    picture = torch.zeros(1, 3, *size)
    for level in range(1, 7):
        coarse = torch.rand(1, 3, size[0] >> level, size[1] >> level, generator=generator)
        grown = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
        picture += grown * 2.0 ** (level - 6) / 2
    pixels = (255 * picture[0].clamp(0, 1)).byte().permute(1, 2, 0).numpy()
    return torch.from_numpy(np.frombuffer(encode_image(pixels, "jpeg"), np.uint8).copy())


def measure(examples: Iterator[Any], samples: int) -> dict[str, float]:
    """Wall and CPU time of one process and its threads, after a few examples."""
    import time

    for _ in range(4):
        next(examples)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(samples):
        next(examples)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"samples_per_second": samples / wall, "cpu_seconds": cpu / samples}


def stream(root: Path, arguments: argparse.Namespace) -> Any:
    """The training stream of the dataset."""
    import torch

    from pmsplat.data import re10k

    config = re10k.Config(root=str(root), size=list(arguments.size), target_views=VIEWS[1])
    return re10k.build(config).train(0, torch.zeros((), dtype=torch.int64))


def ours(root: Path, arguments: argparse.Namespace) -> Iterator[Any]:
    """Examples as training reads them, once offsets have been found."""
    from pmsplat.io.chunks import open_chunk

    for path in (root / "train").glob("*.torch"):
        open_chunk(path)
    return iter(stream(root, arguments))


def used_bytes(folder: Path, arguments: argparse.Namespace) -> int:
    """Of an example: its photographs, and its share of the offsets that open its chunk."""
    from pmsplat.io.chunks import read_split

    split = read_split(folder)
    name = next(iter(split.keys))
    images = next(iter(split.chunk(name).scenes.values())).images
    tables = sum(path.stat().st_size for path in folder.glob("*.offsets"))
    return sum(VIEWS) * sum(map(len, images)) // len(images) + tables // arguments.scenes


def plain(folder: Path, arguments: argparse.Namespace) -> Iterator[Any]:
    """Chunk after chunk, loaded whole; of each scene one example; nothing is checked."""
    import torch

    load = decoder(tuple(arguments.size))
    generator = torch.Generator().manual_seed(0)
    while True:
        for path in sorted(folder.glob("*.torch")):
            for scene in torch.load(path, weights_only=True):
                frames = torch.randint(len(scene["images"]), (sum(VIEWS),), generator=generator)
                images = torch.stack([load(scene["images"][i]) for i in frames.tolist()])
                yield scene["cameras"][frames], images


def decoder(size: tuple[int, int]) -> Callable[[Any], Any]:
    """Encoded bytes -> an image that covers the size, cut to it, float32."""
    import io

    import numpy as np
    import torch
    from PIL import Image

    def decode(encoded: Any) -> Any:
        image = Image.open(io.BytesIO(encoded.numpy().tobytes())).convert("RGB")
        factor = max(size[0] / image.height, size[1] / image.width)
        width, height = round(image.width * factor), round(image.height * factor)
        pixels = np.array(image.resize((width, height), Image.Resampling.LANCZOS))
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        cut = pixels[top : top + size[0], left : left + size[1]]
        return torch.from_numpy(cut.copy()).permute(2, 0, 1).float() / 255

    return decode
