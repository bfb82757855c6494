"""Every kind of camera folder, through every verb that takes one: the same cameras come out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pmsplat import cli
from pmsplat.errors import UserError
from pmsplat.geometry import camera, se3
from pmsplat.io import chunks, images
from pmsplat.io.cameras import export, read_cameras
from pmsplat.io.cameras.ours import write_cameras
from pmsplat.io.cameras.survey import Lens, Shot
from pmsplat.io.gaussians import save_gaussians
from pmsplat.scene import open_scene
from pmsplat.tasks import convert
from pmsplat.tasks.depth import Options as DepthOptions
from pmsplat.tasks.depth import depth
from pmsplat.tasks.predict import Options as PredictOptions
from pmsplat.tasks.predict import predict
from pmsplat.tasks.refine import Options as RefineOptions
from pmsplat.tasks.refine import refine
from pmsplat.tasks.render import Options as RenderOptions
from pmsplat.tasks.render import choose_pictures
from pmsplat.tasks.view import Options as ViewOptions
from pmsplat.tasks.view import open_shown
from pmsplat.types import Cameras, Gaussians, Prediction, Views
from tests.scenes import random_gaussians

SIZE = (32, 48)
FOCAL = (50.0, 52.0)  # in pixels; the principal point is in the middle, as INRIA's must be
NAMES = ("a", "b", "c", "d")
FILES = tuple(f"{name}.png" for name in NAMES)
LENS = Lens(SIZE, FOCAL, (SIZE[1] / 2, SIZE[0] / 2))


def true_cameras() -> Cameras:
    """Four cameras that move sideways and look at one point."""
    x = torch.tensor([-0.3, -0.1, 0.1, 0.3])
    eyes = torch.stack([x, 0.2 * x, 0.5 * x.square()], dim=1)
    c2w = se3.look_at(eyes, torch.tensor([0.0, 0, 4]), torch.tensor([0.0, -1, 0]))
    K = torch.from_numpy(LENS.K).float().repeat(4, 1, 1)
    near = torch.full((1, 4), 1.5)
    return Cameras(c2w[None], K[None], near, 6 * near)


CAMERAS = true_cameras()
SHOTS = tuple(
    Shot(file, LENS, c2w.double().numpy(), near=1.5, far=9.0)
    for file, c2w in zip(FILES, CAMERAS.c2w[0], strict=True)
)


def cloud() -> export.Points:
    """Points in a box before the cameras."""
    xyz = np.random.default_rng(0).uniform([-1, -1, 3], [1, 1, 5], (200, 3))
    return export.Points(xyz, np.zeros((200, 3), np.uint8))


def encoded() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), dtype=np.uint8)
    return [images.encode_image(pixels) for pixels in noise]


def photos(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in zip(FILES, encoded(), strict=True):
        (folder / file).write_bytes(data)


def colmap_binary(folder: Path) -> Path:
    photos(folder / "images")
    export.write_colmap(folder / "sparse" / "0", SHOTS, cloud())
    return folder


def colmap_text(folder: Path) -> Path:
    photos(folder / "images")
    export.write_colmap(folder / "sparse" / "0", SHOTS, cloud(), text=True)
    return folder


def colmap_model(folder: Path) -> Path:
    return colmap_binary(folder) / "sparse" / "0"


def colmap_flat(folder: Path) -> Path:
    photos(folder)
    export.write_colmap(folder, SHOTS, cloud(), text=True)
    return folder


def colmap_of_nerfstudio(folder: Path) -> Path:
    photos(folder / "images")
    export.write_colmap(folder / "colmap" / "sparse" / "0", SHOTS, cloud())
    return folder


def nerfstudio(folder: Path) -> Path:
    photos(folder / "images")
    export.write_transforms(folder / "transforms.json", SHOTS, cloud())
    return folder


def ours(folder: Path) -> Path:
    photos(folder / "images")
    write_cameras(folder / "cameras.json", CAMERAS, FILES, SIZE)
    return folder


def inria(folder: Path) -> Path:
    photos(folder / "images")
    entries = [
        {
            "id": i,
            "img_name": NAMES[i],
            "width": SIZE[1],
            "height": SIZE[0],
            "position": shot.c2w[:3, 3].tolist(),
            "rotation": shot.c2w[:3, :3].tolist(),
            "fx": FOCAL[0],
            "fy": FOCAL[1],
        }
        for i, shot in enumerate(SHOTS)
    ]
    (folder / "cameras.json").write_text(json.dumps(entries))
    return folder


def inria_beside_colmap(folder: Path) -> Path:
    return inria(colmap_binary(folder))


def world_to_camera(folder: Path) -> Path:
    photos(folder)
    frames = [
        {"file": file, "R": w2c[:3, :3].tolist(), "t": w2c[:3, 3].tolist()}
        for file, w2c in zip(FILES, se3.invert(CAMERAS.c2w[0].double()), strict=True)
    ]
    head = {"H": SIZE[0], "W": SIZE[1], "fx": FOCAL[0], "fy": FOCAL[1], "cx": 24.0, "cy": 16.0}
    (folder / "poses.json").write_text(json.dumps(head | {"frames": frames}))
    return folder / "poses.json"


def chunk(folder: Path) -> Path:
    def tensor(data: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    bundle = chunks.ChunkScene(
        "kitchen", CAMERAS.c2w[0], CAMERAS.K[0], tuple(map(tensor, encoded())), torch.arange(4)
    )
    chunks.write_chunk(folder / "000000.torch", [bundle])
    return folder / "000000.torch"


KINDS: dict[str, Callable[[Path], Path]] = {
    "COLMAP, binary": colmap_binary,
    "COLMAP, text": colmap_text,
    "a COLMAP model's own folder": colmap_model,
    "COLMAP beside its photos": colmap_flat,
    "COLMAP as nerfstudio keeps it": colmap_of_nerfstudio,
    "transforms.json": nerfstudio,
    "our cameras.json": ours,
    "INRIA's cameras.json": inria,
    "INRIA's beside COLMAP": inria_beside_colmap,
    "R and t": world_to_camera,
    "a chunk": chunk,
}


class Plane(nn.Module):
    """A network that sees a plane two nears away, and a few Gaussians before every camera."""

    def forward(self, views: Views) -> Prediction:
        seen = views.cameras
        depth = 2 * seen.near[..., None, None].expand(-1, -1, *views.size)
        points = camera.unproject_depth(depth, seen.c2w, seen.K)[:, :, ::8, ::8].reshape(1, -1, 3)
        count = points.shape[1]
        gaussians = Gaussians(
            means=points,
            scales=torch.full((1, count, 3), 0.05),
            quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(1, count, 1),
            opacities=torch.full((1, count), 0.9),
            sh=torch.zeros(1, count, 1, 3),
        )
        return Prediction((depth,), (gaussians,))


def check(c2w: torch.Tensor, K: torch.Tensor, rows: list[int] | None = None) -> None:
    """The true cameras at `rows`, within 1e-5."""
    chosen = rows or list(range(4))
    torch.testing.assert_close(c2w.float(), CAMERAS.c2w[0, chosen], rtol=0, atol=1e-5)
    torch.testing.assert_close(K.float(), CAMERAS.K[0, chosen], rtol=0, atol=1e-5)


def check_file(path: Path) -> None:
    """The same of a camera file that a verb wrote, whatever order it has."""
    shots = read_cameras(path).shots
    order = {name: i for i, name in enumerate(NAMES)} | {f"{i:06d}": i for i in range(4)}
    rows = [order[Path(shot.file).stem] for shot in shots]
    assert sorted(rows) == [0, 1, 2, 3]
    check(
        torch.from_numpy(np.stack([shot.c2w for shot in shots])),
        torch.from_numpy(np.stack([shot.lens.K for shot in shots])),
        rows,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_verb_sees_the_same_cameras(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path / "kitchen")
    gaussians = random_gaussians(50, torch.Generator().manual_seed(0))
    gaussians_file = tmp_path / "scene.ply"
    save_gaussians(gaussians, gaussians_file)

    # Opened, with the right photos.
    scene = open_scene(source)
    check(scene.cameras.c2w[0], scene.cameras.K[0])
    assert scene.name == "kitchen"
    wanted = np.stack([images.read_image(data) for data in encoded()])
    pixels = (scene.views().images[0] * 255).round().byte().permute(0, 2, 3, 1)
    assert np.array_equal(pixels, wanted)

    # Drawn into.
    pictures = choose_pictures(gaussians, source, RenderOptions())
    check(torch.stack([p.c2w for p in pictures]), torch.stack([p.K for p in pictures]))
    assert {picture.size for picture in pictures} == {SIZE}

    # Shown to a network.
    depth(source, Plane(), tmp_path / "depth", DepthOptions(views=2, device="cpu"))
    check_file(tmp_path / "depth" / "cameras.json")
    few = PredictOptions(views=2, fps=1, seconds=0.1, device="cpu")
    predict(source, Plane(), tmp_path / "predicted", few)
    check_file(tmp_path / "predicted" / "cameras.json")

    # Exported beside Gaussians.
    options = convert.Options(cameras=source, seen_by=source)
    summary = convert.convert(gaussians_file, tmp_path / "out.ply", options)
    assert summary.cameras is not None and summary.written > 0
    check_file(summary.cameras / "sparse" / "0")
    check_file(summary.cameras / "transforms.json")

    # Refined.
    step = RefineOptions(steps=1, start="random", random_points=100, device="cpu")
    refine(source, tmp_path / "refined", step)
    check_file(tmp_path / "refined" / "cameras.json")

    # Shown beside Gaussians.
    _, shown = open_shown(gaussians_file, ViewOptions(cameras=str(source)))
    check(torch.stack([p.c2w for p in shown]), torch.stack([p.K for p in shown]))

    # Turned into a chunk.
    assert cli.main(["data", "convert", str(source), str(tmp_path / "split")]) == 0
    again = open_scene(tmp_path / "split")
    check(again.cameras.c2w[0], again.cameras.K[0])
    assert again.name == "kitchen"


def test_every_verb_refuses_a_near_beyond_its_far(tmp_path: Path) -> None:
    path = ours(tmp_path / "kitchen") / "cameras.json"
    content = json.loads(path.read_text())
    content["frames"][1] |= {"near": 9.0, "far": 1.5}
    path.write_text(json.dumps(content))
    gaussians = random_gaussians(50, torch.Generator().manual_seed(0))
    save_gaussians(gaussians, tmp_path / "scene.ply")
    out = tmp_path / "out.ply"
    verbs: tuple[Callable[[], object], ...] = (
        lambda: open_scene(path),
        lambda: choose_pictures(gaussians, path, RenderOptions()),
        lambda: convert.convert(tmp_path / "scene.ply", out, convert.Options(cameras=path)),
    )
    for verb in verbs:
        with pytest.raises(UserError) as caught:
            verb()
        assert "near=9 and far=1.5" in caught.value.got
    assert not out.exists()
