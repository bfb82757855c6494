"""Makes `.venv` in the repository root, installs pmsplat into it, and runs a command there.

    python3 scripts/bootstrap.py pmsplat demo
    python3 scripts/bootstrap.py pytest

Needs nothing but Python 3.11 or newer. The first call installs the versions of requirements.txt and
pmsplat itself, editable; later calls install again only when requirements.txt, pyproject.toml,
setup.py or the Python have changed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "installed.txt"
PINS = ROOT / "requirements.txt"


def fingerprint() -> str:
    """What the installation was made from."""
    files = (PINS, ROOT / "pyproject.toml", ROOT / "setup.py")
    content = b"".join(file.read_bytes() for file in files) + sys.version.encode()
    return hashlib.sha256(content).hexdigest()


def run(*command: str | Path) -> None:
    status = subprocess.run([str(part) for part in command], cwd=ROOT).returncode
    if status:
        sys.exit(f"bootstrap: `{' '.join(map(str, command))}` failed; see above")


def install() -> None:
    """A fresh environment; uv comes into it first: it installs the rest in a tenth of the time."""
    print(f"bootstrap: installing pmsplat into {VENV} (several GB on Linux, once)", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        sys.exit(
            "bootstrap: this Python has no ensurepip; `sudo apt install python3-venv` brings it"
        )
    run(sys.executable, "-m", "venv", VENV)
    python = BIN / "python"
    uv = next(line for line in PINS.read_text().splitlines() if line.startswith("uv=="))
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", uv)
    into = (python, "-m", "uv", "pip", "install", "--python", python)
    run(*into, "--requirement", PINS)
    run(*into, "--no-deps", "--no-build-isolation", "--editable", ".")
    STAMP.write_text(fingerprint())


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 (older ones may run this very line)
        sys.exit(f"bootstrap: got Python {sys.version.split()[0]}; wanted 3.11 or newer")
    if not STAMP.is_file() or STAMP.read_text() != fingerprint():
        install()
    command = sys.argv[1:]
    if not command:
        print(f"bootstrap: ready; activate with `source {BIN / 'activate'}`")
        return
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    program = shutil.which(command[0], path=environment["PATH"]) or command[0]
    sys.exit(subprocess.run([program, *command[1:]], env=environment).returncode)


if __name__ == "__main__":
    main()
