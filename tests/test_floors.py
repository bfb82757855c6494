"""Imports point down, private modules stay in their folder, third parties keep to their floor."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "pmsplat"

FLOORS = (  # from the ground up; neighbours on one floor do not know each other
    ("errors",),  # everybody may raise them
    ("geometry", "registry", "progress", "device", "shipped_files"),
    ("types",),
    ("contracts",),  # in terms of the types
    ("kernels", "io"),
    ("scene", "nn", "foundation", "render"),
    ("models", "losses", "data"),
    ("zoo", "pmloss"),
    ("view",),
    ("evaluate",),
    ("train",),
    ("tasks",),
    ("config_files",),
    ("config",),
    ("cli", "__init__"),
    ("__main__",),
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}

THIRD_PARTY = {
    "pytorch_lightning": ("train/",),
    "lightning": (),
    "hydra": ("config.py", "cli/"),
    "omegaconf": ("config.py", "cli/"),
    "timm": ("foundation/",),
    "xformers": ("kernels/attention.py",),
    "gsplat": ("render/gsplat.py", "tasks/refine/"),
    "diff_gaussian_rasterization": ("render/diff_gaussian.py",),
    "huggingface_hub": ("io/_transfer.py", "io/weights.py", "io/hub.py", "io/hub_models.py"),
    "ffgs": ("zoo/ffgs_plugin.py",),
    "obstore": ("io/_objects.py",),
    "simplejpeg": ("io/_jpeg.py",),
    "vggt": ("foundation/",),
    "depth_anything_3": ("foundation/",),
    "viser": ("view/server.py",),
    "gradio": ("tasks/app/_page.py",),
    "numba": ("render/cpu.py", "render/_cpu", "kernels/", "data/_tracer.py", "data/_textures.py"),
    "triton": ("render/", "kernels/"),
}

LATE = ("torchvision", "matplotlib")  # imported inside functions: they take a second or more


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imported(path: Path, late: bool = True) -> list[str]:
    """Absolute names of everything a file imports, at the top or, `late`, inside functions too."""
    package = ["pmsplat", *path.relative_to(ROOT).parts[:-1]]
    names, tree = [], ast.parse(path.read_text())
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{stem}.{alias.name}" for alias in node.names]
    return names


def owner(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def upward(path: Path) -> list[str]:
    """What a file imports from its own floor's neighbours or from above."""
    own = owner(path)
    ours = [name.split(".") for name in imported(path) if name.startswith("pmsplat.")]
    rooms = [parts[1] for parts in ours if parts[1] != own]
    return [room for room in rooms if FLOOR.get(room, len(FLOORS)) >= FLOOR[own]]


def private(path: Path) -> list[str]:
    """Modules with an underscore that a file imports from outside of its folder and those above."""
    folder = ("pmsplat", *path.relative_to(ROOT).parts[:-1])
    found = []
    for name in imported(path):
        parts = name.split(".")
        hidden = [i for i, part in enumerate(parts) if part.startswith("_") and part[1:2] != "_"]
        if parts[0] == "pmsplat" and hidden and tuple(parts[: hidden[0]]) != folder:
            module = ROOT.joinpath(*parts[1 : hidden[0] + 1])
            if module.with_suffix(".py").is_file() or module.is_dir():
                found.append(name)
    return found


def foreign(path: Path) -> list[str]:
    """Third parties that a file imports and that live elsewhere."""
    place = path.relative_to(ROOT).as_posix()
    packages = [name.split(".")[0] for name in imported(path)]
    return [p for p in packages if p in THIRD_PARTY and not place.startswith(THIRD_PARTY[p])]


def early(path: Path) -> list[str]:
    """Packages that a file imports at its top and that must be imported late."""
    return [name for name in imported(path, late=False) if name.split(".")[0] in LATE]


def reached(paths: list[Path]) -> set[Path]:
    """Files of ours that are imported with these, by what stands at the top of each."""
    left, found = list(paths), set()
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        for name in imported(path, late=False):
            parts = name.split(".")[1:] if name.startswith("pmsplat.") else []
            for length in range(1, len(parts) + 1):
                place = ROOT.joinpath(*parts[:length])
                left += [
                    it for it in (place.with_suffix(".py"), place / "__init__.py") if it.is_file()
                ]
    return found


def offenders(rule) -> dict[str, list[str]]:
    """What breaks a rule, by file."""
    return {str(path.relative_to(ROOT)): bad for path in files() if (bad := rule(path))}


def test_every_module_has_a_floor() -> None:
    assert {owner(path) for path in files()} <= set(FLOOR)


def test_imports_point_down() -> None:
    assert not offenders(upward)


def test_private_modules_stay_in_their_folder() -> None:
    assert not offenders(private)


def test_third_parties_stay_on_their_floor() -> None:
    assert not offenders(foreign)


def test_what_is_slow_is_imported_late() -> None:
    assert not offenders(early)


def test_a_run_is_checked_before_lightning_is_imported() -> None:
    """With which come torchmetrics, SciPy and torchvision."""
    checks = ("__init__", "devices", "resume", "start")
    found = reached([ROOT / "train" / f"{name}.py" for name in checks])
    assert ROOT / "train" / "pointmaps.py" in found and ROOT / "zoo" / "load.py" in found
    guilty = {path for path in found for name in imported(path, late=False) if "lightning" in name}
    assert not guilty
    assert "lightning" in str(imported(ROOT / "train" / "loop.py", late=False))


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (upward, "from ..models import depthsplat"),
        (upward, "from ..registry import names"),
        (private, "from ..render._projection import project"),
        (private, "from pmsplat.render import _projection"),
        (foreign, "import pytorch_lightning"),
        (early, "from torchvision.models import vgg16"),
        (early, "from matplotlib.figure import Figure"),
    ],
)
def test_a_planted_fault_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule, line: str
) -> None:
    for name in ("geometry/bad.py", "render/_projection.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "geometry/bad.py").write_text(f"{line}\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert list(offenders(rule)) == ["geometry/bad.py"]
