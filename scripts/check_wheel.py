"""Checks that pmsplat works where only its wheel is installed.

    python3 scripts/bootstrap.py python scripts/check_wheel.py

Builds the source distribution and from it the wheel, installs the wheel into an empty environment
(the versions of requirements.txt, which uv has in its cache after bootstrap), and from a folder
outside the repository composes every experiment, trains two steps and predicts with the result.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = (sys.executable, "-m", "uv")
INSPECT = """
import json, sys
from pathlib import Path
import pmsplat
from pmsplat import config, config_files

package = Path(pmsplat.__file__).resolve().parent
names = config.choices("experiment")
for name in names:
    assert config.compose([f"+experiment={name}"]).name == name
print(json.dumps({
    "prefix": sys.prefix,
    "package": str(package),
    "configuration": str(config_files.folder()),
    "experiments": names,
    "typed": (package / "py.typed").is_file(),
}))
"""


def run(step: str, *command: str | Path, cwd: Path) -> str:
    """Standard output of a command that sees neither the repository nor this environment."""
    print(f"check_wheel: {step}", flush=True)
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}check_wheel: could not {step} (status {done.returncode})")
    return done.stdout


def install(folder: Path) -> Path:
    """The folder of the programs of a new environment that holds the wheel and what it needs."""
    build = (*UV, "build", "--quiet", "--no-build-isolation", "--out-dir", folder)
    run("build the wheel", *build, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv = (*UV, "venv", "--quiet", "--python", sys.executable, environment)
    run("make an empty environment", *venv, cwd=folder)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    into = (*UV, "pip", "install", "--quiet", "--python", programs / "python")
    pins = ("--constraint", ROOT / "requirements.txt")
    run("install the wheel", *into, *pins, wheel, cwd=folder)
    return programs


def check_files(programs: Path, work: Path) -> None:
    """The package, its configuration and its types come from the new environment."""
    found = json.loads(
        run("compose every experiment", programs / "python", "-c", INSPECT, cwd=work)
    )
    inside = Path(found["prefix"]).resolve()
    assert inside == programs.parent.resolve(), found
    assert Path(found["package"]).is_relative_to(inside), found
    assert Path(found["configuration"]).is_relative_to(inside), found
    files = (ROOT / "config" / "experiment").glob("*.yaml")
    assert found["experiments"] == sorted(path.stem for path in files), found
    assert found["typed"], found


def check_commands(programs: Path, work: Path) -> None:
    """Training makes its rooms and its output in the working directory; predict reads both."""
    pmsplat = programs / "pmsplat"
    steps = ("trainer.steps=2", "trainer.checkpoint_every=2", "trainer.validate_every=2")
    rooms = ("dataset.scenes=2", "dataset.test_scenes=1", "trainer.validate_scenes=1")
    run("train two steps", pmsplat, "train", "+experiment=demo_tiny", *steps, *rooms, cwd=work)
    model = ("--model", "outputs/demo_tiny/model.safetensors", "--size", "64x64")
    views = ("--views", "2", "--held-out", "1")
    room = "datasets/synthetic/test"
    run("predict", pmsplat, "predict", room, *model, *views, "--output", "prediction", cwd=work)
    assert (work / "prediction" / "gaussians.ply").stat().st_size > 0


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        work = folder / "elsewhere"
        work.mkdir()
        programs = install(folder)
        check_files(programs, work)
        check_commands(programs, work)
    print("check_wheel: the wheel works without the repository")


if __name__ == "__main__":
    main()
