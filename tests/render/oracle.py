"""An independent rasteriser: numpy, float64, one pixel and one Gaussian at a time."""

import math
from dataclasses import dataclass

import numpy as np

from pmsplat.types import Cameras, Gaussians


@dataclass(frozen=True)
class Picture:
    color: np.ndarray
    depth: np.ndarray
    alpha: np.ndarray
    median: np.ndarray


def draw(gaussians: Gaussians, cameras: Cameras, scene: int, view: int, h: int, w: int) -> Picture:
    """One view of one scene, by the letter of the Gaussians' rules; SH up to degree 1."""
    rules = gaussians.rules
    means, scales, quats, opacities, sh = (
        getattr(gaussians, name)[scene].double().numpy()
        for name in ("means", "scales", "quats_wxyz", "opacities", "sh")
    )
    c2w, K = cameras.c2w[scene, view].double().numpy(), cameras.K[scene, view].double().numpy()
    w2c = np.linalg.inv(c2w)
    fx, fy, cx, cy = K[0, 0] * w, K[1, 1] * h, K[0, 2] * w, K[1, 2] * h
    splats = []
    for mean, scale, quat, opacity, coefficients in zip(
        means, scales, quats, opacities, sh, strict=True
    ):
        x, y, z = w2c[:3, :3] @ mean + w2c[:3, 3]
        if z <= rules.near * float(cameras.near[scene, view]):
            continue
        if z > rules.far * float(cameras.far[scene, view]):
            continue
        tx = _clamp(x / z, fx, cx, w, rules.clamp)
        ty = _clamp(y / z, fy, cy, h, rules.clamp)
        jacobian = np.array([[fx / z, 0, -fx * tx / z], [0, fy / z, -fy * ty / z]])
        rotation = _rotation(quat)
        covariance = rotation @ np.diag(scale**2) @ rotation.T
        sharp = jacobian @ w2c[:3, :3] @ covariance @ w2c[:3, :3].T @ jacobian.T
        flat = sharp + rules.blur * np.eye(2)
        if rules.antialiased:
            share = np.linalg.det(sharp) / np.linalg.det(flat)
            opacity = opacity * math.sqrt(max(share, 0.0))
        d = mean - c2w[:3, 3]
        d = d / np.linalg.norm(d)
        color = 0.5 + 0.28209479177387814 * coefficients[0]
        if len(coefficients) > 1:
            color = color + 0.4886025119029199 * (
                -d[1] * coefficients[1] + d[2] * coefficients[2] - d[0] * coefficients[3]
            )
        centre = np.array([fx * x / z + cx, fy * y / z + cy])
        splats.append((z, centre, np.linalg.inv(flat), opacity, np.maximum(color, 0)))
    splats.sort(key=lambda splat: splat[0])

    picture = Picture(np.zeros((3, h, w)), *(np.zeros((h, w)) for _ in range(3)))
    for row in range(h):
        for column in range(w):
            _pixel(splats, row, column, rules.alpha_cap, picture)
    return picture


def _clamp(tilt: float, focal: float, principal: float, length: int, clamp: str) -> float:
    """x/z or y/z in the Jacobian: by Kerbl et al. about the axis, by gsplat about the image."""
    if clamp == "axis":
        return min(max(tilt, -1.3 * length / (2 * focal)), 1.3 * length / (2 * focal))
    beyond = 0.3 * length / (2 * focal)  # the borders of the image
    return min(max(tilt, -principal / focal - beyond), (length - principal) / focal + beyond)


def _pixel(splats: list, row: int, column: int, cap: float, out: Picture) -> None:
    transmittance = 1.0
    for z, centre, inverse, opacity, color in splats:
        d = np.array([column + 0.5, row + 0.5]) - centre
        alpha = min(cap, opacity * math.exp(-0.5 * d @ inverse @ d))
        if alpha < 1 / 255:
            continue
        after = transmittance * (1 - alpha)
        if after < 1e-4:
            break
        out.color[:, row, column] += alpha * transmittance * color
        out.depth[row, column] += alpha * transmittance * z
        out.alpha[row, column] += alpha * transmittance
        if transmittance > 0.5 >= after:
            out.median[row, column] = z
        transmittance = after
    if out.alpha[row, column] > 0:
        out.depth[row, column] /= out.alpha[row, column]


def _rotation(quat: np.ndarray) -> np.ndarray:
    """R v = q v q*, column by column."""

    def product(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        scalar = p[0] * q[0] - p[1:] @ q[1:]
        return np.concatenate([[scalar], p[0] * q[1:] + q[0] * p[1:] + np.cross(p[1:], q[1:])])

    quat = quat / np.linalg.norm(quat)
    conjugate = quat * np.array([1, -1, -1, -1])
    columns = [product(product(quat, np.concatenate([[0.0], e])), conjugate)[1:] for e in np.eye(3)]
    return np.stack(columns, axis=-1)
