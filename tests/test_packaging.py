"""What is declared is imported and pinned; the wheel has what an installed pmsplat needs."""

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pmsplat
from pmsplat import config_files, shipped_files
from pmsplat.zoo.shipped import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Imported where the user installed them: no version of theirs on the index fits beside ours.
FOREIGN = {"vggt", "depth-anything-3"}
# Imports our plug-in for it, where it is installed.
HOSTS = {"ffgs"}
# torch brings the triton that it was built with, on the platforms that have one.
WITH_TORCH = {"triton"}
# Imported by Lightning's logger, for those who installed it.
LOGGERS = {"wandb"}
# Imported by Lightning's logger of that name.
THROUGH_LIGHTNING = {"tensorboard"}
# Needed by a command, a plugin or the build, not by an import.
TOOLS = {
    "mkdocs-material", "mkdocstrings", "pyright", "pytest-xdist", "ruff", "uv",
    "beartype", "ipykernel", "setuptools",
}  # fmt: skip


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in parsed if r.name != "pmsplat"}


CORE = requirements(PROJECT["dependencies"])
OPTIONAL = {
    name: requirement
    for extra, lines in EXTRAS.items()
    if extra != "dev"
    for name, requirement in requirements(lines).items()
}
DEV = requirements(EXTRAS["dev"])
PINS = requirements(
    [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
)


def modules(path: Path) -> set[str]:
    """Top-level names that a file imports, or looks for by name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            by_name = node.func.attr in ("import_module", "find_spec", "importorskip")
            first = node.args[0]
            text = first.values[0] if isinstance(first, ast.JoinedStr) else first
            if by_name and isinstance(text, ast.Constant) and isinstance(text.value, str):
                found.add(text.value)
    return {name.split(".")[0] for name in found} - {""}


def distributions(*folders: str) -> set[str]:
    """The distributions of other people that the files below these folders import."""
    owners = importlib.metadata.packages_distributions()
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    names = {name for file in files for name in modules(file)}
    ours = {path.stem for folder in folders for path in (ROOT / folder).iterdir()}
    names -= {*sys.stdlib_module_names, *ours, *folders, "pmsplat"}
    names -= {"_typeshed"}  # a module that only type checkers have
    return {canonicalize_name(owners.get(name, [name])[0]) for name in names}


def test_every_import_of_the_package_is_declared() -> None:
    undeclared = distributions("src") - {*CORE, *OPTIONAL}
    assert undeclared == FOREIGN | HOSTS | WITH_TORCH | LOGGERS


def test_everything_declared_is_imported() -> None:
    package = distributions("src")
    assert set(CORE) - package == THROUGH_LIGHTNING
    assert set(OPTIONAL) - package == set()
    checks = distributions("tests", "benchmarks", "scripts")
    assert set(DEV) - checks - TOOLS == set()


def test_the_bounds_are_lower_bounds() -> None:
    for name, requirement in (CORE | OPTIONAL | DEV).items():
        operators = [specifier.operator for specifier in requirement.specifier]
        assert operators == [">="], name


def test_the_pins_are_exact_and_within_the_bounds() -> None:
    bounds = CORE | OPTIONAL | DEV
    assert set(bounds) - set(PINS) == {"xformers"}  # its kernels need the machine's own CUDA
    assert set(PINS) <= set(bounds)
    for name, pin in PINS.items():
        (exact,) = pin.specifier
        assert exact.operator == "==", name
        assert bounds[name].specifier.contains(exact.version), name
        assert pin.extras == bounds[name].extras, name


def test_dev_contains_every_extra_that_ci_installs() -> None:
    (itself,) = [r for r in map(Requirement, EXTRAS["dev"]) if r.name == "pmsplat"]
    assert itself.extras == set(EXTRAS) - {"dev", "xformers"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the source distribution of a copy."""
    folder = tmp_path_factory.mktemp("wheel")
    copy, built = folder / "copy", folder / "built"
    for name in ("src", "config", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    (copy / "pretrained").mkdir()
    for file in (ROOT / "pretrained").glob("pmsplat-*.safetensors"):
        shutil.copy(file, copy / "pretrained")
    shutil.copytree(ROOT / "assets" / "office", copy / "assets" / "office")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "uv", "build", "--no-build-isolation", "--out-dir", str(built)]
    done = subprocess.run([*build, str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(built.glob("*.whl")))


def test_the_wheel_has_the_package_its_configuration_and_its_types(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py")}
    files = {path.relative_to(ROOT / "config") for path in (ROOT / "config").rglob("*.yaml")}
    carried = {Path("pmsplat", "configuration", file) for file in files}
    data = {Path("pmsplat", "py.typed"), Path("pmsplat", "kernels", "cpu_rules.json")}
    ours = ("page.css", "page.js", "splats.js")
    renderer = ("gsplat.min.js", "gsplat.json", "gsplat.LICENSE.txt")
    data |= {Path("pmsplat", "view", "pages", name) for name in (*ours, *renderer)}
    data.add(Path("pmsplat", "tasks", "app", "app.css"))
    weights = {Path("pmsplat", "weights", f"{name}.safetensors") for name in SHIPPED}
    office = [file for file in (ROOT / "assets" / "office").rglob("*") if file.is_file()]
    photos = {Path("pmsplat", file.relative_to(ROOT / "assets")) for file in office}
    expected = modules | carried | data | weights | photos
    assert inside == {path.as_posix() for path in expected}


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = wheel.read(name).decode().split("\n\n")[0].splitlines()
    values = [line.partition(": ")[::2] for line in metadata]
    needed = [Requirement(v) for k, v in values if k == "Requires-Dist"]
    assert {canonicalize_name(r.name) for r in needed if r.marker is None} == set(CORE)
    assert {v for k, v in values if k == "Provides-Extra"} == set(EXTRAS)
    assert ("Version", pmsplat.__version__) in values


def test_the_configuration_of_a_wheel_comes_before_that_of_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "pmsplat"
    monkeypatch.setattr(shipped_files, "PACKAGE", package)
    monkeypatch.setattr(shipped_files, "CLONE", tmp_path)
    for place in (tmp_path / "config", package / "configuration"):
        place.mkdir(parents=True)
        (place / "main.yaml").touch()
        assert config_files.folder() == place
