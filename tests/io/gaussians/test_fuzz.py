"""Thousands of damaged files for every reader: a sentence or Gaussians, never anything else.

A seeded mutator of our own: bytes flipped and overwritten, runs cut out, doubled or swapped between
places, numbers in the header replaced by others, files cut short; for .spz, .ply.gz and .sog also
inside their compression. A reader gets 10,000 files, or PMSPLAT_FUZZ of the environment.
"""

import gzip
import io
import os
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pmsplat.errors import UserError
from pmsplat.io.gaussians import WRITERS, load_gaussians, save_gaussians, spz, usd
from pmsplat.types import MIP
from tests.io.gaussians import test_gltf_spz as gltf_spz
from tests.io.gaussians.encoders import webp, write_ksplat, write_sog, zipped
from tests.scenes import random_gaussians

from .test_gltf import pack, split

COUNT = int(os.environ.get("PMSPLAT_FUZZ", "10000"))
EDGES = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64]
WORDS = [b"nan", b"inf", b"-1", b"1e400", b"property", b"element", b"list", b"double", b"vertex",
         b"comment", b"format", b"ascii", b"\n", b" ", b"\x00", b"\xff\xfe"]  # fmt: skip
HEAD = 400  # bytes where most of the lies are told
SLOWEST = 5.0  # seconds for one file, on a machine that does other things too
MEMORY = 512 << 20  # bytes more than before for a file of a few kilobytes, or allocation fails

Mutate = Callable[[bytes, random.Random], bytes]
Remake = Callable[[Path], None]


def mutate(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        if not data:
            break
        limit = len(data) if chance.random() < 0.5 else min(len(data), HEAD)
        at = chance.randrange(limit)
        length = min(chance.choice([1, 2, 4, 8, 64, 256]), len(data) - at)
        match chance.randrange(9):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + length] = chance.randbytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at : at + 4] = struct.pack("<I", chance.choice(EDGES) & 0xFFFFFFFF)
            case 5:
                data[at:at] = chance.choice(WORDS)
            case 6:
                special = chance.choice([float("nan"), float("inf"), -1e38, 1e-45])
                data[at : at + 4] = struct.pack("<f", special)
            case 7:
                digits = next((i for i in range(at, limit) if chr(data[i]).isdigit()), at)
                data[digits : digits + 1] = str(chance.choice(EDGES)).encode()
            case 8:
                del data[at:]
    return bytes(data)


def inside_gzip(content: bytes, chance: random.Random) -> bytes:
    return gzip.compress(mutate(gzip.decompress(content), chance), compresslevel=1)


def inside_zip(content: bytes, chance: random.Random) -> bytes:
    """One file of the archive damaged, with a checksum that says that nothing is wrong."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = "meta.json" if chance.random() < 0.5 else chance.choice(sorted(files))
    return zipped(files | {name: mutate(files[name], chance)})


def inside_pixels(content: bytes, chance: random.Random) -> bytes:
    """The pixels of one image of the archive damaged, or their number."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(sorted(name for name in files if name.endswith(".webp")))
    pixels = np.array(Image.open(io.BytesIO(files[name])).convert("RGBA"))
    data = mutate(pixels.tobytes(), chance)
    width = pixels.shape[1]
    rows = max(len(data) // (4 * width), 1)
    damaged = np.frombuffer(data.ljust(4 * width, b"\0")[: 4 * width * rows], np.uint8)
    return zipped(files | {name: webp(damaged.reshape(rows, width, 4))})


def text_ply(path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    data = plyfile.PlyData.read(str(path), mmap=False)
    plyfile.PlyData(data.elements, text=True).write(str(path))


def big_endian_ply(path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    data = plyfile.PlyData.read(str(path), mmap=False)
    plyfile.PlyData(data.elements, byte_order=">").write(str(path))


def dialects(path: Path, text: bool = False) -> None:
    """All that a .ply may say besides: comments, other programs' columns, elements and lists."""
    plyfile = pytest.importorskip("plyfile")
    data = plyfile.PlyData.read(str(path))
    rows = data["vertex"].data
    names = [n for n in rows.dtype.names if not n.startswith("f_") and n != "scale_2"]
    types = [(name, "f8" if name in "xyz" else "f4") for name in names]
    types += [
        ("filter_3D", "f4"),
        ("semantic_0", "f4"),
        *((n, "u1") for n in ("red", "green", "blue")),
    ]
    wide = np.ones(len(rows), types)
    for name in names:
        wide[name] = rows[name]
    faces = np.empty(2, [("vertex_indices", object)])
    faces["vertex_indices"] = [np.array([0, 1, 2], np.int32)] * 2
    describe = plyfile.PlyElement.describe
    elements = [describe(wide, "vertex"), describe(np.zeros(1, [("c", "u1")]), "color_space")]
    lists = {"val_types": {"vertex_indices": "i4"}, "len_types": {"vertex_indices": "u1"}}
    elements.append(describe(faces, "face", **lists))
    said = ["SplatRenderMode: mip", "Vertical Axis: 0 0 1", "origin 400000.5 5000000.5 100.0"]
    plyfile.PlyData(elements, text=text, comments=said).write(str(path))


def dialects_in_text(path: Path) -> None:
    dialects(path, text=True)


def nodes(path: Path) -> None:
    """A scene graph with a mesh, hidden Gaussians, a node far off, and things to name."""
    tree, data = split(path)
    (mesh,) = tree["meshes"]
    tree["meshes"].append({"primitives": [{"attributes": {"POSITION": 0}, "material": 0}]})
    mesh["primitives"][0]["extensions"]["KHR_gaussian_splatting"]["extras"] = {
        "SplatRenderMode": "mip"
    }
    tree["nodes"] = [
        {"children": [1, 2], "translation": [431234.5, 512.25, 5412345.5]},
        {"mesh": 0, "rotation": [0, 0, 0.6, 0.8], "scale": [2, 2, 2], "extras": {"a": 1}},
        {"mesh": 1, "extensions": {"KHR_node_visibility": {"visible": False}}},
    ]
    tree["animations"] = [{"channels": [], "samplers": []}]
    tree["extensionsUsed"] += ["KHR_materials_unlit", "KHR_node_visibility"]
    tree["extensionsRequired"] = ["KHR_materials_unlit"]
    pack(path, tree, data)


def version_four(path: Path) -> None:
    pytest.importorskip("zstandard")
    spz.write(load_gaussians(path), path, version=4)


def plain_spz(version: int) -> Remake:
    """Bare bytes of an early version."""

    def remake(path: Path) -> None:
        count, chance = 20, np.random.default_rng(0)
        size = count * ((6 if version == 1 else 9) + 1 + 3 + 3 + (4 if version == 3 else 3) + 9)
        head = struct.pack("<4sIIBBBB", b"NGSP", version, count, 1, 12, 0, 0)
        path.write_bytes(head + chance.integers(0, 60, size).astype(np.uint8).tobytes())

    return remake


def gzipped_ply(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def sog(version: int) -> Remake:
    return lambda path: write_sog(load_gaussians(path), path, version)


def ksplat(level: int) -> Remake:
    """With full buckets and others, and two sections."""
    return lambda path: write_ksplat(load_gaussians(path), path, level, capacity=2, sections=2)


def spz_in_gltf(path: Path) -> None:
    gaussians = load_gaussians(path)  # whose axes glTF and .spz turn alike
    spz.write(gaussians, path)
    gltf_spz.write(path, path.read_bytes(), gltf_spz.bounds(gaussians.means))


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """The process may map so many bytes more than it does now; beyond, allocations fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


READERS: dict[str, tuple[str, Remake | None, Mutate]] = {
    "ply": (".ply", None, mutate),
    "ply-text": (".ply", text_ply, mutate),
    "ply-big-endian": (".ply", big_endian_ply, mutate),
    "ply-dialects": (".ply", dialects, mutate),
    "ply-dialects-text": (".ply", dialects_in_text, mutate),
    "glb": (".glb", None, mutate),
    "glb-nodes": (".glb", nodes, mutate),
    "compressed-ply": (".compressed.ply", None, mutate),
    "splat": (".splat", None, mutate),
    "spz": (".spz", None, mutate),
    "spz-inside": (".spz", None, inside_gzip),
    "spz-4": (".spz", version_four, mutate),
    "spz-1-bare": (".spz", plain_spz(1), mutate),
    "spz-3-bare": (".spz", plain_spz(3), mutate),
    "ply-gz": (".ply.gz", gzipped_ply, mutate),
    "ply-gz-inside": (".ply.gz", gzipped_ply, inside_gzip),
    "sog": (".sog", sog(2), mutate),
    "sog-inside": (".sog", sog(2), inside_zip),
    "sog-1-inside": (".sog", sog(1), inside_zip),
    "sog-pixels": (".sog", sog(2), inside_pixels),
    "ksplat-0": (".ksplat", ksplat(0), mutate),
    "ksplat-1": (".ksplat", ksplat(1), mutate),
    "ksplat-2": (".ksplat", ksplat(2), mutate),
    "gltf-spz": (".glb", spz_in_gltf, mutate),
}


@pytest.mark.slow
def test_the_bound_on_memory_holds() -> None:
    with at_most(MEMORY), pytest.raises(RuntimeError, match="memory"):
        torch.empty(2 * MEMORY, dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_every_file_is_read_or_refused(tmp_path: Path, name: str) -> None:
    suffix, remake, damage = READERS[name]
    path = tmp_path / f"a{suffix}"
    start = path if suffix in WRITERS else tmp_path / "a.ply"
    save_gaussians(random_gaussians(20, torch.Generator().manual_seed(0), degree=1), start)
    start.rename(path)
    if remake is not None:
        remake(path)
    with at_most(MEMORY):
        refused = attack(path, damage, COUNT)
    print(f"{name}: {COUNT} files, {refused} refused, the others read")
    assert 0.02 * COUNT < refused < COUNT


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".usda", ".usdc", ".usdz"])
def test_every_stage_is_read_or_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that opens a stage is a fork here, which need not load OpenUSD every time."""
    pytest.importorskip("pxr", reason="needs usd-core")
    path, ends = tmp_path / f"a{suffix}", Counter[int]()
    scene = random_gaussians(5, torch.Generator().manual_seed(0), degree=1)
    save_gaussians(replace(scene, rules=MIP, origin=(4e5, 5e6, 100.5)), path)
    command = [sys.executable, "-m", "tests.io.gaussians.usd_zygote"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as zygote:
        assert zygote.stdin is not None and zygote.stdout is not None
        to, from_ = zygote.stdin, zygote.stdout

        def run(command: list[str], **_: object) -> SimpleNamespace:
            to.write("\t".join(command[-2:]) + "\n")
            code = int(from_.readline())
            ends[code] += 1
            return SimpleNamespace(returncode=code)

        monkeypatch.setattr(usd, "subprocess", SimpleNamespace(
            run=run, TimeoutExpired=subprocess.TimeoutExpired
        ))  # fmt: skip
        refused = attack(path, mutate, COUNT)
        to.close()
    print(f"{suffix}: {COUNT} files, {refused} refused, the others read; ends {dict(ends)}")
    # A few are refused by their first bytes, before OpenUSD is asked.
    assert 0.02 * COUNT < refused < COUNT and 0.9 * COUNT < ends.total() <= COUNT


def attack(path: Path, damage: Mutate, count: int) -> int:
    """How many of so many damaged copies of a file are refused; the others are read."""
    content, chance = path.read_bytes(), random.Random(0)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(count):
            path.write_bytes(damage(content, chance))
            began = time.process_time()
            try:
                found = load_gaussians(path)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 1000, f"file {i}: {error}"
            else:
                assert found.means.isfinite().all() and found.sh.isfinite().all(), f"file {i}"
            assert time.process_time() - began < SLOWEST, f"file {i} takes long"
    return refused
