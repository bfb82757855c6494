"""Shared fixtures: the material beside the repository, if any, and small deterministic scenes."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core: one thread each, in its children too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import pytest
import torch

from pmsplat.data import synthetic
from pmsplat.geometry import camera
from pmsplat.geometry.gaussian import rotation_to_quat
from pmsplat.io.images import write_image
from pmsplat.scene import open_scene

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():  # before Triton is imported: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

INTRINSICS = ((0, 0), (1, 1), (0, 2), (1, 2))  # fx, fy, cx, cy in K
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` skip by themselves where there is no device."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if item.get_closest_marker("cuda"):  # not `keywords`: they have names of folders too
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real scenes and golden outputs beside the repository; skips where they are absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no test material at {SHARED.name}/ beside the repository")
    return SHARED


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One procedural scene of 10 photos of 54x70, without sparse points, as a chunk."""
    root = tmp_path_factory.mktemp("rooms")
    synthetic.write(root, scenes=1, frames=10, size=(54, 70), seed=0, split="test")
    return str(root / "test")


@pytest.fixture(scope="session")
def model_folder(room: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a COLMAP model, whose points are true ones of the surfaces."""
    folder = tmp_path_factory.mktemp("colmap")
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    views = open_scene(room).views()
    assert views.names is not None and views.depth is not None
    height, width = views.size
    world = camera.unproject_depth(views.depth, views.cameras.c2w, views.cameras.K)[0, ::3]
    points = world[views.depth[0, ::3] > 0][::17]
    lenses, images = [], []
    for i, name in enumerate(views.names[0]):
        c2w, K = views.cameras.c2w[0, i], views.cameras.K[0, i]
        fx, fy, cx, cy = (camera.K_px(K, height, width)[at].item() for at in INTRINSICS)
        lenses.append(f"{i + 1} PINHOLE {width} {height} {fx} {fy} {cx} {cy}\n")
        w2c = torch.linalg.inv(c2w.double())
        pose = [*rotation_to_quat(w2c[:3, :3]).tolist(), *w2c[:3, 3].tolist()]
        seen = camera.project_world(points, c2w, K)
        inside = (seen[:, :2] > 0).all(-1) & (seen[:, :2] < 1).all(-1) & (seen[:, 2] > 0)
        observed = " ".join(f"0 0 {point}" for point in inside.nonzero()[:, 0].tolist())
        images.append(f"{i + 1} {' '.join(map(str, pose))} {i + 1} {name}.png\n{observed}\n")
        write_image(folder / "images" / f"{name}.png", views.images[0, i])
    rows = [f"{i} {x} {y} {z} 0 0 0 0\n" for i, (x, y, z) in enumerate(points.tolist())]
    for name, lines in (("cameras", lenses), ("images", images), ("points3D", rows)):
        (sparse / f"{name}.txt").write_text("".join(lines))
    return folder
