"""Reading training examples: samples a second, CPU and bytes of each, beside other readers.

python benchmarks/run.py data --threads 1 --json benchmarks/data.json
    chunks like those of RealEstate10K are made first (360x640, 100 photographs a scene); then one
    process reads examples of 2 context and 4 target views at 256x256
python benchmarks/run.py data --threads 1 --photos DIR
    the same with the photographs of a folder instead of smooth noise
python benchmarks/run.py data --threads 1 --stored 540 960 --size 256 448
    photographs of twice the size, where decoding can be scaled too

The plain reader does what the published loaders do: it loads a whole chunk, takes an example from
each of its scenes, and goes on with the next chunk; it decodes and scales by Pillow. litdata, if it
is installed, has the same photographs as items of its own format, which are decoded and scaled in
the same way. Bytes are those of the files that are read. "cold" examples are read after the
operating system has let go of the files.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VIEWS = 2, 4  # context, target
ROUNDS = 3  # the best counts: other programs only take time away


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of this question."""
    parser.add_argument("--scenes", type=int, default=32, help="(default: 32)")
    parser.add_argument("--frames", type=int, default=100, help="of a scene (default: 100)")
    for name, size, of in (("stored", [360, 640], "written"), ("size", [256, 256], "read")):
        said = f"of the photographs that are {of} (default: {size[0]} {size[1]})"
        parser.add_argument(
            f"--{name}", type=int, nargs=2, default=size, metavar=("H", "W"), help=said
        )
    parser.add_argument("--samples", type=int, default=128, help="timed examples (default: 128)")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photographs to use")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints a row for each reader and each decoder; gives the figures by name."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pictures = choose_pictures(arguments)
        write_chunks(root / "train", arguments, pictures)
        readers = {
            "exact": lambda: ours(root, arguments, "exact"),
            "scaled": lambda: ours(root, arguments, "scaled"),
            "plain": lambda: plain(root / "train", arguments),
        }
        if importlib.util.find_spec("litdata") is None:
            print("litdata is not installed: it is left out")
        else:
            write_litdata(root, arguments, pictures)
            readers["litdata"] = lambda: litdata(root / "litdata", arguments)
        found: dict[str, Any] = {name: {} for name in readers}
        for _ in range(ROUNDS):  # in turns, so that what else runs meets all alike
            for name, make in readers.items():
                keep_best(found[name], measure(make(), arguments.samples))
        for name, make in readers.items():
            found[name]["cold_samples_per_second"] = measure_cold(make(), root, arguments.scenes)
        photo = sum(map(len, pictures)) / len(pictures)
        offsets = sum(path.stat().st_size for path in (root / "train").glob("*.offsets"))
        size = sum(path.stat().st_size for path in (root / "train").glob("*.torch"))
        for name in readers:
            found[name]["bytes"] = round(sum(VIEWS) * photo)
        for name in ("exact", "scaled"):
            found[name]["bytes"] += offsets // arguments.scenes
        found["plain"]["bytes"] = size // arguments.scenes
        found["decoders"] = time_decoders(pictures, arguments)
    show(found)
    return found


def show(found: dict[str, Any]) -> None:
    """Prints the figures."""
    print(f"{'':10}{'samples/s':>10}{'cold':>8}{'CPU ms/sample':>15}{'KB/sample':>11}{'cores':>7}")
    for name, row in found.items():
        if name != "decoders":
            print(
                f"{name:10}{row['samples_per_second']:>10.1f}{row['cold_samples_per_second']:>8.1f}"
                f"{1e3 * row['cpu_seconds']:>15.1f}{row['bytes'] / 1e3:>11.0f}"
                f"{200 * row['cpu_seconds']:>7.1f}"
            )
    print("cores: so many such cores are busy with 200 samples a second")
    for name, milliseconds in found["decoders"].items():
        print(f"{name:34}{milliseconds:>8.2f} ms a photograph")


def keep_best(best: dict[str, float], new: dict[str, float]) -> None:
    """The most samples a second and the least CPU of several rounds."""
    for name, value in new.items():
        choose = max if name == "samples_per_second" else min
        best[name] = choose(best.get(name, value), value)


def choose_pictures(arguments: argparse.Namespace) -> list[Any]:
    """Encoded photographs of the stored size: of the folder, or of noise."""
    import numpy as np
    import torch

    from pmsplat.io.images import encode_image, read_image
    from pmsplat.scene.fit import fit_image

    if arguments.photos is None:
        return [encode(seed, arguments.stored) for seed in range(16)]
    paths = sorted(p for p in arguments.photos.iterdir() if p.suffix.lower() in (".jpg", ".png"))
    fitted = (fit_image(read_image(path), tuple(arguments.stored)) for path in paths[:16])
    data = [encode_image(np.ascontiguousarray(image), "jpeg", 90) for image in fitted]
    return [torch.from_numpy(np.frombuffer(d, np.uint8).copy()) for d in data]


def write_chunks(folder: Path, arguments: argparse.Namespace, pictures: list[Any]) -> None:
    """Scenes of a camera that moves sideways, in chunks of 16."""
    import torch

    from pmsplat.io.chunks import ChunkScene, append

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
                        pictures[(number + i) % len(pictures)].clone()
                        for i in range(arguments.frames)
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
        coarse = torch.rand(1, 3, -(-size[0] >> level), -(-size[1] >> level), generator=generator)
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


def measure_cold(examples: Iterator[Any], root: Path, samples: int) -> float:
    """Examples a second when no file of the data is in memory at first."""
    import time

    next(examples)
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    wall = time.perf_counter()
    for _ in range(samples):
        next(examples)
    return samples / (time.perf_counter() - wall)


def ours(root: Path, arguments: argparse.Namespace, decode: str) -> Iterator[Any]:
    """Examples as training reads them, once offsets have been found."""
    import torch

    from pmsplat.data import re10k
    from pmsplat.io.chunks import open_chunk

    for path in (root / "train").glob("*.torch"):
        open_chunk(path)
    config = re10k.Config(
        root=str(root), size=list(arguments.size), target_views=VIEWS[1], decode=decode
    )
    return iter(re10k.build(config).train(0, torch.zeros((), dtype=torch.int64)))


def write_litdata(root: Path, arguments: argparse.Namespace, pictures: list[Any]) -> None:
    """The photographs in the order of the chunks, an item each, in litdata's own files."""
    from litdata.streaming.writer import BinaryWriter  # pyright: ignore[reportMissingImports]

    (root / "litdata").mkdir()
    writer = BinaryWriter(str(root / "litdata"), chunk_bytes="64MB")
    for index in range(arguments.scenes * arguments.frames):
        scene, frame = divmod(index, arguments.frames)
        writer[index] = {"image": pictures[(scene + frame) % len(pictures)].numpy().tobytes()}
    writer.done()
    writer.merge(1)


def litdata(folder: Path, arguments: argparse.Namespace) -> Iterator[Any]:
    """Scene after scene, frames at random, by litdata's own access to an item."""
    import numpy as np
    import torch
    from litdata import StreamingDataset  # pyright: ignore[reportMissingImports]

    load, dataset = decoder(tuple(arguments.size)), StreamingDataset(str(folder))
    generator = torch.Generator().manual_seed(0)
    while True:
        for scene in torch.randperm(arguments.scenes, generator=generator).tolist():
            frames = torch.randint(arguments.frames, (sum(VIEWS),), generator=generator)
            items = [dataset[scene * arguments.frames + i]["image"] for i in frames.tolist()]
            yield torch.stack(
                [load(torch.from_numpy(np.frombuffer(i, np.uint8).copy())) for i in items]
            )


def time_decoders(pictures: list[Any], arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of CPU for a photograph, by step and by what does it."""
    import io
    import time

    import numpy as np
    from PIL import Image
    from torchvision.io import decode_jpeg

    from pmsplat.io.images import read_image
    from pmsplat.scene.fit import covering_size, fit_image, to_tensor

    size, stored = tuple(arguments.size), tuple(arguments.stored)
    files = [picture.numpy().tobytes() for picture in pictures]
    decoded = [read_image(data) for data in files]
    fitted = [np.ascontiguousarray(fit_image(image, size)) for image in decoded]
    steps: dict[str, Callable[[int], Any]] = {
        "decode: Pillow": lambda i: np.array(Image.open(io.BytesIO(files[i])).convert("RGB")),
        "decode: torchvision": lambda i: decode_jpeg(pictures[i]),
        "decode: simplejpeg (used)": lambda i: read_image(files[i]),
        "decode: simplejpeg, scaled": lambda i: read_image(
            files[i], least=covering_size(stored, size)
        ),
        "scale: Pillow": lambda i: fit_image(decoded[i], size),
        "scale: compiled (used)": lambda i: fit_image(decoded[i], size, path="compiled"),
        "to float (used)": lambda i: to_tensor([fitted[i]]),
    }
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(8):
        for name, step in steps.items():
            start = time.process_time()
            for i in range(len(files)):
                step(i)
            best[name] = min(best[name], 1e3 * (time.process_time() - start) / len(files))
    return best


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
