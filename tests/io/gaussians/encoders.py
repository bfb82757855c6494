"""Writes files of Gaussians in formats that pmsplat only reads, from their public descriptions."""

import io
import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pmsplat.geometry import sh
from pmsplat.types import Gaussians


def webp(pixels: np.ndarray) -> bytes:
    """Bytes [height, width, 4] as lossless WebP that keeps colours under alpha 0."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, exact=True)
    return stream.getvalue()


def sog_files(gaussians: Gaussians, version: int = 2) -> dict[str, bytes]:
    """The files of a SOG scene: with codebooks (version 2) or with bounds (version 1)."""
    sheet = _Sheet(gaussians.means.shape[1], {})
    count, degree = sheet.count, gaussians.sh_degree
    means = gaussians.means[0].double().numpy()
    logs = np.sign(means) * np.log1p(np.abs(means))
    low, high = logs.min(axis=0), logs.max(axis=0)
    digits = np.round(65535 * (logs - low) / np.where(high > low, high - low, 1)).astype(np.int64)
    parts: dict[str, Any] = {"means": {"mins": low.tolist(), "maxs": high.tolist()}}
    names = sheet.add("means_l", *(digits & 255).T) + sheet.add("means_u", *(digits >> 8).T)
    parts["means"]["files"] = names
    codes, how = _quantize(gaussians.scales[0].double().log().numpy(), version)
    parts["scales"] = how | {"files": sheet.add("scales", *codes.T)}
    parts["quats"] = {"files": sheet.add("quats", *_pack_quats(gaussians).T)}
    opacities = gaussians.opacities[0].double()[:, None]
    dc = gaussians.sh[0, :, 0].double().numpy()
    if version == 1:
        codes, how = _quantize(np.concatenate([dc, opacities.logit().numpy()], axis=1), version)
    else:
        codes, how = _quantize(dc, version)
        codes = np.concatenate([codes, _byte(opacities.numpy())], axis=1)
    parts["sh0"] = how | {"files": sheet.add("sh0", *codes.T)}
    if degree:
        parts["shN"] = _add_palette(sheet, gaussians, version)
    if version == 2:
        parts = {"version": 2, "count": count, "asset": {"generator": "test"}} | parts
    else:
        parts["means"]["shape"] = [count, 3]
    return {"meta.json": json.dumps(parts).encode()} | sheet.files


@dataclass(frozen=True)
class _Sheet:
    """The images of a scene by name; a pixel for each Gaussian, row by row."""

    count: int
    files: dict[str, bytes]

    def add(self, name: str, *columns: np.ndarray) -> list[str]:
        width = 4 * int(np.ceil(np.sqrt(self.count) / 4))
        height = -(-self.count // width)
        pixels = np.full((height * width, 4), 255, np.uint8)
        for i, column in enumerate(columns):
            pixels[: self.count, i] = column
        self.files[f"{name}.webp"] = webp(pixels.reshape(height, width, 4))
        return [f"{name}.webp"]


def _quantize(values: np.ndarray, version: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Values [row, channel] as bytes, and how they are to be read."""
    if version == 1:
        low, high = values.min(axis=0), values.max(axis=0)
        codes = np.round(255 * (values - low) / np.where(high > low, high - low, 1))
        return codes.astype(np.uint8), {"mins": low.tolist(), "maxs": high.tolist()}
    book = np.quantile(values, np.linspace(0, 1, 256))
    nearest = np.abs(values[..., None] - book).argmin(axis=-1)
    return nearest.astype(np.uint8), {"codebook": book.tolist()}


def _pack_quats(gaussians: Gaussians) -> np.ndarray:
    quats = gaussians.quats_wxyz[0].double().numpy()
    rows = []
    for quat in quats:
        which = int(np.abs(quat).argmax())
        others = np.delete(quat, which) * np.sign(quat[which])
        rows.append([*_byte(others / 2 * 2**0.5 + 0.5), 252 + which])
    return np.array(rows)


def _add_palette(sheet: _Sheet, gaussians: Gaussians, version: int) -> dict[str, Any]:
    """The first 300 Gaussians make the palette; the others share its entries in turn."""
    rest = gaussians.sh[0, :300, 1:].double().numpy()
    codes, how = _quantize(rest.reshape(-1, 1), version)
    how = how if version == 2 else {key: value[0] for key, value in how.items()}
    rows = -(-len(rest) // 64)
    palette = np.full((rows * 64, rest.shape[1], 4), 255, np.uint8)
    palette[: len(rest), :, :3] = codes.reshape(rest.shape)
    sheet.files["shN_centroids.webp"] = webp(palette.reshape(rows, -1, 4))
    labels = np.arange(sheet.count) % len(rest)
    names = ["shN_centroids.webp", *sheet.add("shN_labels", labels & 255, labels >> 8)]
    if version == 2:
        how |= {"count": len(rest), "bands": gaussians.sh_degree}
    return how | {"files": names}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def write_sog(gaussians: Gaussians, path: Path, version: int = 2) -> None:
    path.write_bytes(zipped(sog_files(gaussians, version)))


def write_ksplat(
    gaussians: Gaussians, path: Path, level: int = 1, capacity: int = 16, sections: int = 1
) -> None:
    """Gaussians of degree 0 to 2, sorted into cubes of side 1.5 for levels 1 and 2.

    The rows are in the order of the buckets, so another order than that of `gaussians`.
    """
    rest = gaussians.sh[0, :, 1:].double().numpy()
    low, high = (float(rest.min()), float(rest.max())) if rest.size else (0.0, 0.0)
    count, steps = gaussians.means.shape[1], 32767
    body, heads = b"", b""
    for chosen in np.array_split(np.arange(count), sections):
        means = gaussians.means[0].double().numpy()[chosen]
        cells = np.floor((means - means.min(axis=0)) / 1.5).astype(int)
        full, partial = [], []
        for cell in np.unique(cells, axis=0):
            inside = chosen[(cells == cell).all(axis=1)]
            center = means.min(axis=0) + (cell + 0.5) * 1.5
            for start in range(0, len(inside), capacity):
                part = inside[start : start + capacity]
                (full if len(part) == capacity else partial).append((part, center))
        buckets = full + partial if level else [(chosen, np.zeros(3))]
        rows = b"".join(
            _ksplat_row(gaussians, i, level, center, (low, high))
            for part, center in buckets
            for i in part
        )
        lead = b""
        if level:
            lead = struct.pack(f"<{len(partial)}I", *(len(part) for part, _ in partial))
            lead += np.array([center for _, center in buckets], "<f4").tobytes()
        head = struct.pack("<II", len(chosen), len(chosen))
        if level:
            head += struct.pack("<IIfHxxI", capacity, len(buckets), 1.5, 12, steps)
            head += struct.pack("<III", len(lead + rows), len(full), len(partial))
        else:
            head += bytes(20) + struct.pack("<III", len(rows), 0, 0)
        heads += (head + struct.pack("<H", gaussians.sh_degree)).ljust(1024, b"\0")
        body += lead + rows
    main = struct.pack("<BBxxIIIIHxx", 0, 1, sections, sections, count, count, level)
    main += struct.pack("<5f", 0, 0, 0, low, high)
    path.write_bytes(main.ljust(4096, b"\0") + heads + body)


def _ksplat_row(
    gaussians: Gaussians, i: int, level: int, center: np.ndarray, span: tuple[float, float]
) -> bytes:
    mean, real = gaussians.means[0, i].double().numpy(), "<f2" if level else "<f4"
    if level:
        mean = np.round((mean - center) / 0.75 * 32767) + 32767
    parts = [mean.astype("<u2" if level else "<f4")]
    parts += [gaussians.scales[0, i].numpy().astype(real)]
    parts += [gaussians.quats_wxyz[0, i].numpy().astype(real)]
    color = 0.5 + sh.C0 * gaussians.sh[0, i, 0].double().numpy()
    parts += [_byte(color), _byte(gaussians.opacities[0, i : i + 1].numpy())]
    for degree in range(1, gaussians.sh_degree + 1):
        band = gaussians.sh[0, i, degree**2 : (degree + 1) ** 2].double().numpy().T.ravel()
        if level == 2:
            parts.append(_byte((band - span[0]) / (span[1] - span[0])))
        else:
            parts.append(band.astype(real))
    return b"".join(part.tobytes() for part in parts)


def _byte(values: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
