"""Makes assets/viewer.png: `pmsplat view` of a procedural room, in a headless Chromium.

    python scripts/viewer_picture.py assets/viewer.png

The room's pixels are lifted to Gaussians by their exact depth: a prediction without an error.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from pmsplat.data.synthetic import scene
from pmsplat.geometry import camera, se3
from pmsplat.io.cameras.ours import write_cameras
from pmsplat.io.gaussians import save_gaussians
from pmsplat.io.images import write_image
from pmsplat.scene import chunk_scene
from pmsplat.tasks.view import Options, view
from pmsplat.types import Gaussians, Views

FRAMES, SIZE, LIFTED = 22, (192, 256), [0, 7, 14, 21]
WINDOW = 1000, 500  # pixels: width, height
FEW = 2000  # splats in the browser, which draws in software here and is not what is shown
FLAGS = ["--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]


def lifted(views: Views) -> Gaussians:
    """A round Gaussian of a pixel's width at every pixel's depth."""
    assert views.depth is not None
    height, width = views.size
    grid = camera.pixel_grid(height, width, like=views.depth)
    depth, K = views.depth[0], views.cameras.K[0]
    points = camera.unproject(grid, depth, K[:, None, None])
    means = se3.transform(views.cameras.c2w[0, :, None], points).reshape(1, -1, 3)
    pixel = (depth / (K[:, 0, 0] * width)[:, None, None]).reshape(1, -1, 1)
    color = views.images[0].permute(0, 2, 3, 1).reshape(1, -1, 1, 3)
    count = means.shape[1]
    return Gaussians(
        means=means,
        scales=(0.6 * pixel).repeat(1, 1, 3),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(1, count, 1),
        opacities=torch.full((1, count), 0.95),
        sh=(color - 0.5) / 0.28209479177387814,
    )


def main(target: Path) -> None:
    """Makes the room, serves it, and keeps what the browser shows of it."""
    room = chunk_scene(scene("room-viewer-0", FRAMES, SIZE)).views(LIFTED)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "room"
        names = [f"{i:02d}.png" for i in LIFTED]
        for name, photo in zip(names, room.images[0], strict=True):
            write_image(folder / "render" / name, photo)
        write_cameras(folder / "cameras.json", room.cameras, names, SIZE)
        save_gaussians(lifted(room), folder / "gaussians.ply")
        page = view([folder], Options(port=0, most=FEW))
        try:
            pictures = [shown(page.address, kind) for kind in ("Colour", "Depth")]
        finally:
            page.close()
    width, height = pictures[0].size
    both = Image.new("RGB", (width, 2 * height))
    for i, picture in enumerate(pictures):
        both.paste(picture, (0, i * height))
    both.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size} bytes")


def shown(address: str, kind: str) -> Image.Image:
    """The window of a browser that has stepped back from the first camera."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        tab = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        tab.set_default_timeout(120_000)
        tab.goto(address)
        tab.get_by_role("button", name="Save video").wait_for()
        tab.add_style_tag(content=".mantine-Notifications-root {display: none}")
        tab.mouse.move(WINDOW[0] / 3, WINDOW[1] / 2)
        for _ in range(2):
            tab.mouse.wheel(0, 300)
            tab.wait_for_timeout(500)
        tab.get_by_role("combobox", name="Show").click()
        tab.get_by_role("option", name=kind, exact=True).click()
        tab.wait_for_timeout(8000)
        image = Image.open(io.BytesIO(tab.screenshot(timeout=120_000))).convert("RGB")
        browser.close()
    return image


if __name__ == "__main__":
    main(Path(sys.argv[1]))
