"""Four posed photos, written as data sets and capture apps keep them, as their documentation says.

The truth are cameras in OpenCV's axes. Each photo has a dot where an own projection puts a point.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from pmsplat.io import images

H, W, FOCAL, CENTER = 60, 80, 70.0, (40.0, 30.0)
TIMES = (10.0, 10.1, 10.2, 10.3)
DEPTH = 1.5  # meters, everywhere
OPENGL = np.diag([1.0, -1.0, -1.0])  # from OpenCV's axes


@dataclass(frozen=True)
class Pose:
    """Camera to world, OpenCV's axes."""

    rotation: np.ndarray
    center: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        return np.vstack([np.column_stack([self.rotation, self.center]), [0, 0, 0, 1]])


POINT = np.array([0.2, -0.1, 3.0])
POSES = [
    Pose(
        Rotation.from_euler("xyz", [4 * i - 6, 7 - 5 * i, 12 * i], degrees=True).as_matrix(),
        np.array([0.2 * i - 0.3, 0.05 * i, 0.1 * i]),
    )
    for i in range(4)
]


def dot(pose: Pose) -> tuple[float, float]:
    """The pixel of POINT."""
    x, y, z = pose.rotation.T @ (POINT - pose.center)
    return FOCAL * x / z + CENTER[0], FOCAL * y / z + CENTER[1]


def write_photo(path: Path, pose: Pose) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:H, :W] + 0.5
    column, row = dot(pose)
    seen = 255 * np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / 3)
    Image.fromarray(np.repeat(seen[..., None], 3, axis=2).astype(np.uint8)).save(path, quality=97)


def write_depth(path: Path, counts: float, size: tuple[int, int] = (H, W)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = np.full(size, round(counts), np.uint16)
    depth[:2] = 0
    images.write_depth(path, depth)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(matrix: np.ndarray) -> str:
    return "\n".join(" ".join(map(repr, row.tolist())) for row in matrix) + "\n"


INTRINSICS = np.array([[FOCAL, 0, CENTER[0]], [0, FOCAL, CENTER[1]], [0, 0, 1]])


def llff(folder: Path) -> None:
    rows = []
    for i, pose in enumerate(POSES):
        write_photo(folder / f"images/IMG_{i}.JPG", pose)
        right, down, forward = pose.rotation.T
        block = np.column_stack([down, right, -forward, pose.center, [H, W, FOCAL]])
        rows.append([*block.reshape(-1), 1.25, 7.5])
    np.save(folder / "poses_bounds.npy", np.array(rows))


def seven_scenes(folder: Path) -> None:
    write(folder / "camera-intrinsics.txt", lines(INTRINSICS))
    for i, pose in enumerate(POSES):
        stem = folder / f"frame-{i:06d}"
        write_photo(stem.with_name(stem.name + ".color.png"), pose)
        write(stem.with_name(stem.name + ".pose.txt"), lines(pose.matrix).replace(" ", "\t"))
        counts = np.full((H, W), 1000 * DEPTH, np.uint16)
        counts[:2] = 65535
        images.write_depth(stem.with_name(stem.name + ".depth.png"), counts)


def tum(folder: Path) -> None:
    photos, depths, poses = ["# color images"], ["# depth maps"], ["# ground truth"]
    for i, (time, pose) in enumerate(zip(TIMES, POSES, strict=True)):
        write_photo(folder / f"rgb/{time:.6f}.png", pose)
        write_depth(folder / f"depth/{time + 0.01:.6f}.png", 5000 * DEPTH)
        photos.append(f"{time:.6f} rgb/{time:.6f}.png")
        depths.append(f"{time + 0.01:.6f} depth/{time + 0.01:.6f}.png")
        values = [*pose.center, *Rotation.from_matrix(pose.rotation).as_quat()]
        poses.append(f"{time - 0.004:.4f} " + " ".join(f"{value:.9f}" for value in values))
        if i == 1:  # between two photos: of neither
            poses.append(f"{time + 0.05:.4f} 9 9 9 0 0 0 1")
    for name, rows in (("rgb", photos), ("depth", depths), ("groundtruth", poses)):
        write(folder / f"{name}.txt", "\n".join(rows) + "\n")
    write(folder / "calibration.txt", f"{FOCAL} {FOCAL} {CENTER[0] - 0.5} {CENTER[1] - 0.5}\n")


def scannet(folder: Path) -> None:
    K = np.eye(4)
    K[:3, :3] = INTRINSICS
    write(folder / "intrinsic/intrinsic_color.txt", lines(K))
    K[:2] /= 2
    write(folder / "intrinsic/intrinsic_depth.txt", lines(K))
    for i, pose in enumerate(POSES):
        write_photo(folder / f"color/{10 * i}.jpg", pose)
        write_depth(folder / f"depth/{10 * i}.png", 1000 * DEPTH, (H // 2, W // 2))
        write(folder / f"pose/{10 * i}.txt", lines(pose.matrix))
    write_photo(folder / "color/40.jpg", POSES[0])
    write(folder / "pose/40.txt", "-inf -inf -inf -inf\n" * 4)


def replica(folder: Path) -> None:
    camera = {
        "w": W,
        "h": H,
        "fx": FOCAL,
        "fy": FOCAL,
        "cx": CENTER[0] - 0.5,
        "cy": CENTER[1] - 0.5,
    }
    write(folder.parent / "cam_params.json", json.dumps({"camera": camera | {"scale": 6553.5}}))
    for i, pose in enumerate(POSES):
        write_photo(folder / f"results/frame{i:06d}.jpg", pose)
        write_depth(folder / f"results/depth{i:06d}.png", 6553.5 * DEPTH)
    rows = np.stack([pose.matrix.reshape(-1) for pose in POSES])
    write(folder / "traj.txt", lines(rows))


def record3d(folder: Path) -> None:
    poses = [
        [*Rotation.from_matrix(p.rotation @ OPENGL).as_quat().tolist(), *p.center.tolist()]
        for p in POSES
    ]
    for i, pose in enumerate(POSES):
        write_photo(folder / f"rgbd/{i}.jpg", pose)
        write(folder / f"rgbd/{i}.depth", "compressed")
    content = {"K": INTRINSICS.T.reshape(-1).tolist(), "w": W, "h": H, "dw": 8, "dh": 6, "fps": 60}
    write(folder / "metadata", json.dumps(content | {"poses": poses}))


def polycam(folder: Path) -> None:
    for i, pose in enumerate(POSES):
        name = str(900 + 100 * i)
        c2w = np.column_stack([pose.rotation @ OPENGL, pose.center])
        fields = {f"t_{r}{c}": c2w[r, c] for r in range(3) for c in range(4)}
        fields |= {"fx": FOCAL, "fy": FOCAL, "cx": CENTER[0], "cy": CENTER[1], "blur_score": 9}
        fields |= {"width": W, "height": H, "timestamp": int(name)}
        for prefix in ("", "corrected_"):
            write_photo(folder / f"keyframes/{prefix}images/{name}.jpg", pose)
            write(folder / f"keyframes/{prefix}cameras/{name}.json", json.dumps(fields))
            fields["t_03"] += 5.0 if not prefix else 0.0  # ARKit's own are worse
            if not prefix:
                write(folder / f"keyframes/cameras/{name}.json", json.dumps(fields))
                fields["t_03"] -= 5.0
        write_depth(folder / f"keyframes/depth/{name}.png", 1000 * DEPTH, (H // 2, W // 2))


def arkitscenes(folder: Path) -> None:
    home, rows = folder / "41069021_frames", []
    for time, pose in zip(TIMES, POSES, strict=True):
        name = f"41069021_{time:.3f}"
        write_photo(home / f"lowres_wide/{name}.png", pose)
        write_depth(home / f"lowres_depth/{name}.png", 1000 * DEPTH)
        pincam = home / f"lowres_wide_intrinsics/41069021_{time + 0.001:.3f}.pincam"
        write(pincam, f"{W} {H} {FOCAL} {FOCAL} {CENTER[0]} {CENTER[1]}\n")
        w2c = pose.rotation.T
        vector = Rotation.from_matrix(w2c).as_rotvec()
        rows.append([time + 0.002, *vector, *(-w2c @ pose.center)])
    write(home / "lowres_wide.traj", lines(np.array(rows)))


def re10k(folder: Path) -> None:
    rows = ["https://www.youtube.com/watch?v=abc"]
    for time, pose in zip(TIMES, POSES, strict=True):
        stamp = int(1e6 * time)
        write_photo(folder / f"frames/{stamp}.png", pose)
        w2c = np.column_stack([pose.rotation.T, -pose.rotation.T @ pose.center])
        lens = [FOCAL / W, FOCAL / H, CENTER[0] / W, CENTER[1] / H, 0, 0]
        rows.append(" ".join(map(str, [stamp, *lens, *w2c.reshape(-1)])))
    write(folder / "0000cc6d8b108390.txt", "\n".join(rows) + "\n")


def blender(folder: Path) -> None:
    for split in ("train", "val"):
        frames = []
        for i, pose in enumerate(POSES):
            matrix = pose.matrix
            matrix[:3, :3] = pose.rotation @ OPENGL
            write_photo(folder / f"{split}/r_{i}.png", pose)
            frame = {"file_path": f"./{split}/r_{i}", "rotation": 0.01}
            frames.append(frame | {"transform_matrix": matrix.tolist()})
        content = {"camera_angle_x": 2 * np.arctan(W / 2 / FOCAL), "frames": frames}
        write(folder / f"transforms_{split}.json", json.dumps(content))


FORMATS: dict[str, Callable[[Path], None]] = {
    writer.__name__: writer
    for writer in (
        llff, seven_scenes, tum, scannet, replica, record3d, polycam, arkitscenes, re10k, blender
    )
}  # fmt: skip
WITHOUT_DEPTH = ("llff", "record3d", "re10k", "blender")
