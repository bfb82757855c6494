"""Writes results as a table, as JSON and as CSV; files are written completely or not at all."""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ..errors import UserError
from ..io.files import atomic, write_text
from .cost import Cost, define_costs, summarize
from .metrics import DEFINITIONS
from .protocol import Result, Row
from .series import METRICS

# Heading and decimals of each metric; those without a heading are only written to files.
COLUMNS = {
    "psnr": ("PSNR ↑", 2),
    "psnr_inside": ("inside ↑", 2),
    "psnr_outside": ("outside ↑", 2),
    "ssim": ("SSIM ↑", 3),
    "lpips": ("LPIPS ↓", 3),
    "abs_rel": ("AbsRel ↓", 3),
    "rmse": ("RMSE ↓", 3),
    "delta1": ("δ<1.25 ↑", 3),
}
ALIGNED = {
    "abs_rel_median": ("AbsRel, median ↓", 3),
    "delta1_median": ("δ<1.25, median ↑", 3),
    "abs_rel_affine": ("AbsRel, affine ↓", 3),
    "delta1_affine": ("δ<1.25, affine ↑", 3),
}
GEOMETRY = {
    "accuracy": ("accuracy ↓", 4),
    "accuracy_median": ("", 4),
    "accuracy_rel": ("accuracy / depth ↓", 4),
    "completeness": ("completeness ↓", 4),
    "completeness_median": ("", 4),
    "completeness_rel": ("completeness / depth ↓", 4),
    "chamfer": ("Chamfer ↓", 4),
    "chamfer_median": ("Chamfer, median ↓", 4),
    "chamfer_rel": ("", 4),
    "points": ("", 0),
    "true_points": ("", 0),
    "normals": ("normals ↑", 3),
    "normal_points": ("", 0),
    "edge_abs_rel": ("AbsRel at edges ↓", 3),
    "flying": ("flying ↓", 3),
    "edge_points": ("", 0),
}
POSES = {
    "rotation_deg": ("rotation, deg ↓", 2),
    "translation_deg": ("translation, deg ↓", 2),
    "auc_5": ("AUC@5 ↑", 3),
    "auc_10": ("AUC@10 ↑", 3),
    "auc_20": ("AUC@20 ↑", 3),
}
Columns = Mapping[str, tuple[str, int]]
MANY = 8  # most metrics that a table has as columns


def table(results: Mapping[str, Result], title: str = "", columns: Columns = COLUMNS) -> Table:
    """Returns a table of one line per method, one column per metric; missing values are dashes.

    With more than MANY metrics, lines and columns are exchanged, so that the table fits a terminal.
    Methods without any of the metrics are left out (a copied photo has no geometry), unless this
    would leave none. Raises UserError for results of several protocols.
    """
    protocols = sorted({result.protocol for result in results.values()})
    if len(protocols) > 1:
        raise UserError(
            f"results of the protocols {' and '.join(protocols)} for one table",
            "results whose cameras come from the same place, as their numbers do not compare",
            "draw a table for each",
        )
    # Choose metrics and methods.
    found = {name for result in results.values() for name in result.means}
    names = [name for name, (heading, _) in columns.items() if heading and name in found]
    results = {k: r for k, r in results.items() if not r.means.keys().isdisjoint(names)} or results
    drawn = Table(title=title or None)
    # With many metrics, write a line for each.
    if len(names) > MANY:
        drawn.add_column("")
        for label in results:
            drawn.add_column(label, justify="right")
        for name in names:
            heading, decimals = columns[name]
            means = [result.means for result in results.values()]
            cells = [f"{m[name]:.{decimals}f}" if name in m else "–" for m in means]
            drawn.add_row(heading, *cells)
        return drawn
    # Otherwise write a line for each method.
    drawn.add_column("")
    drawn.add_column("scenes", justify="right")
    for name in names:
        drawn.add_column(columns[name][0], justify="right")
    for label, result in results.items():
        means = result.means
        cells = [f"{means[name]:.{columns[name][1]}f}" if name in means else "–" for name in names]
        drawn.add_row(label, str(len(result.rows)), *cells)
    return drawn


def write_json(path: str | os.PathLike, result: Result, about: Mapping[str, Any]) -> None:
    """Writes the fields `about`, the means, the notes, every scene and every view as JSON.

    NaN becomes null, and so do metrics of color that views lack.
    """
    content = {
        **about,
        "means": _to_json(result.means),
        "scenes": len(result.rows),
        "coverage": None if result.coverage is None else result.coverage.describe(),
        "notes": list(result.notes),
        "per_scene": [
            {"scene": row.scene, "targets": row.targets, **_to_json(row.values)}
            for row in result.rows
        ],
        "per_view": [
            {
                "scene": row.scene,
                "view": view.view,
                **dict.fromkeys(METRICS),
                **_to_json(view.values),
                "prediction": view.prediction,
                "truth": view.truth,
            }
            for row in result.rows
            for view in row.views
        ],
    }
    write_text(Path(path), json.dumps(content, indent=1, allow_nan=False) + "\n")


def describe_costs(costs: Sequence[Cost], device: torch.device) -> dict[str, Any]:
    """The fields of results that say what the scenes took, and what all numbers are."""
    total = summarize(costs)
    return {
        "seconds": total.seconds,
        "seconds_with_warm_up": total.warm_up_included,
        "cost": {
            "gaussians": total.gaussians,
            "megabytes": total.megabytes,
            "encode_seconds": total.seconds.get("encode"),
            "render_seconds": total.seconds.get("render"),
            "peak_bytes": total.peak_bytes,
        },
        "definitions": DEFINITIONS | define_costs(device),
    }


def write_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """Writes a line per scene, with a column per metric; values that a scene lacks are empty."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["scene", "targets", *names], restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({"scene": row.scene, "targets": row.targets, **row.values})


def _to_json(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
