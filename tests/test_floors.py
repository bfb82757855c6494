"""Imports point down: a module knows lower floors and its own folder; third parties have floors."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "pmsplat"

FLOOR = {
    "errors": -1,  # everybody may raise them
    "geometry": 0, "registry": 0,
    "types": 1,
    "kernels": 2, "io": 2,
    "nn": 3, "foundation": 3, "render": 3, "data": 3,
    "models": 4, "losses": 4,
    "view": 5,
    "evaluate": 6,
    "train": 7,
    "tasks": 8,
    "config": 9,
    "cli": 10, "__init__": 10, "__main__": 11,
}  # fmt: skip

THIRD_PARTY = {
    "pytorch_lightning": ("train/",),
    "lightning": (),
    "hydra": ("config.py", "cli/"),
    "omegaconf": ("config.py", "cli/"),
    "timm": ("foundation/",),
    "xformers": ("kernels/attention.py",),
    "gsplat": ("render/gsplat.py", "tasks/refine/"),
    "diff_gaussian_rasterization": ("render/diff_gaussian.py",),
    "huggingface_hub": ("io/weights.py",),
    "vggt": ("foundation/",),
    "depth_anything_3": ("foundation/",),
    "viser": ("view/server.py",),
    "numba": ("render/cpu.py", "render/_cpu", "kernels/"),
    "triton": ("render/", "kernels/"),
}

FILES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> list[str]:
    """Absolute names of everything a file imports, at the top or inside functions."""
    package = ["pmsplat", *path.relative_to(ROOT).parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{stem}.{alias.name}" for alias in node.names]
    return names


def owner(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = owner(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "pmsplat" or len(parts) < 2:
            continue
        other = parts[1]
        assert other in FLOOR, f"{name}: {other} has no floor"
        assert other == own or FLOOR[other] < FLOOR[own], f"{own} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_third_parties_stay_on_their_floor(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for name in imported(path):
        allowed = THIRD_PARTY.get(name.split(".")[0])
        if allowed is not None:
            assert place.startswith(allowed), f"{place} may not import {name}"


def test_every_module_has_a_floor() -> None:
    assert {owner(path) for path in FILES} <= set(FLOOR)


def test_a_planted_upward_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "geometry" / "bad.py"
    planted.parent.mkdir()
    planted.write_text("from ..models import depthsplat\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="may not import"):
        test_imports_point_down(planted)
