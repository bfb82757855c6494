"""What results are of: weights, index, code, command and machine, so that they can be had again."""

import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..io.weights import sha256
from ..shipped_files import CLONE


@dataclass(frozen=True)
class Identity:
    """Each is None where it is not known.

    `weights` and `index` are the SHA-256 of the files; `version` that of pmsplat; `commit` that of
    its clone, with "+" where that has changes; `command` what was started; `hardware` the GPU, or
    the processor with the number of its cores; `precision` that of the network.
    """

    weights: str | None
    index: str | None
    version: str | None
    commit: str | None
    command: str | None
    hardware: str | None
    precision: str | None


def identify(
    weights: str | Path | None,
    index: str | None,
    device: torch.device,
    precision: str = "float32",
) -> Identity:
    """The identity of results that this process measures on `device`, with this file of weights.

    `index` is the SHA-256 of the index.
    """
    return Identity(
        weights=_hash(weights),
        index=index,
        version=_find_version(),
        commit=_find_commit(CLONE),
        command=_find_command(sys.argv),
        hardware=_describe(device),
        precision=precision,
    )


def name_precision(title: str, precision: str | None) -> str:
    """A title that says the precision of the network where it is known not to be float32."""
    return title if precision in (None, "float32") else f"{title}, {precision}"


def _hash(path: str | Path | None) -> str | None:
    """None also for the list of a checkpoint in parts, which does not tell what is in them."""
    parts = path is not None and str(path).endswith(".index.json")
    return None if path is None or parts or not Path(path).is_file() else sha256(path)


def _find_version() -> str | None:
    try:
        return version("pmsplat")
    except PackageNotFoundError:
        return None


def _find_commit(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    head, changes = (
        _ask_git(checkout, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    return head and head + ("+" if changes else "")


def _ask_git(checkout: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", checkout, *words], capture_output=True, text=True)
    except OSError:  # there is no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _find_command(argv: list[str]) -> str | None:
    if not argv or not argv[0]:
        return None
    program = Path(argv[0]).name
    words = ["python", "-m", "pmsplat"] if program == "__main__.py" else [program]
    return shlex.join([*words, *argv[1:]])


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
