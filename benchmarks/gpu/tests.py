"""The tests that are marked `cuda`, in processes of their own."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .process import STICKY, Case, Run

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"mark\.cuda\b")
RESULT = re.compile(r"^(tests/\S+.*?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b", re.MULTILINE)
SAID = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?)(?: - (.*))?$", re.MULTILINE)
SPARE = 3.0  # seconds kept to read what pytest said
FEWEST = 15.0  # seconds that a process of tests needs to come to its first one
ROUNDS = 4


def obstacle(run: Run) -> str | None:
    """Why no test can run here, if so."""
    return None if importlib.util.find_spec("pytest") else "pytest is not installed"


def cases(run: Run) -> Iterator[Case]:
    """All tests; then, in new processes, those after a test that broke the GPU's context."""
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if MARK.search(path.read_text()) and "benchmarks" not in path.parts
    )
    if run.tiny:
        files = [name for name in files if name.endswith("test_attention.py")]
    rest: list[str] = files
    for number in range(1, ROUNDS + 1):
        log: list[str] = []

        def measure(rest: list[str] = rest, log: list[str] = log) -> dict[str, Any]:
            log.append(_pytest(rest, run.left() - SPARE))
            return summary(log[0])

        yield Case("pytest -m cuda" if number == 1 else f"the rest, {number}", measure, FEWEST)
        rest = after_fault(log[0]) if log else []
        if not rest:
            return


def _pytest(chosen: list[str], seconds: float) -> str:
    """What pytest says about the chosen files or tests in so many seconds."""
    words = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-rfE", "-o", "addopts="]
    words += ["-o", "filterwarnings=default", "-p", "no:cacheprovider", "--color=no"]
    words += ["--continue-on-collection-errors", "-m", "cuda", *chosen]
    environment = os.environ | {"COLUMNS": "400", "PYTHONUNBUFFERED": "1"}
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=environment, timeout=seconds, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        return said.decode(errors="replace") if isinstance(said, bytes) else said
    return done.stdout


def summary(log: str) -> dict[str, Any]:
    """Counts, each failure with what pytest says of it, and the test that did not end."""
    results = [match[2] for match in RESULT.finditer(log)]
    said = {match[1]: match[2] or "" for match in SAID.finditer(log)}
    failures = {match[1]: "" for match in RESULT.finditer(log) if match[2] in ("FAILED", "ERROR")}
    counts: dict[str, Any] = {
        "passed": results.count("PASSED"),
        "skipped tests": results.count("SKIPPED"),
        "failed tests": len(failures | said),
        "failures": {name: text[:300] for name, text in (failures | said).items()},
    }
    if (hung := unfinished(log)) is not None:
        counts["did not end"] = hung
    if not results and not said:
        lines = [line for line in log.splitlines() if line.strip()]
        counts["failed"] = lines[-1][:300] if lines else "pytest said nothing in its time"
    return counts


def unfinished(log: str) -> str | None:
    """The test that was running when the output ended, if one was."""
    begun = re.findall(r"^(tests/\S+::.*)$", log, re.MULTILINE)
    last = begun[-1].strip() if begun else ""
    return last if last and not RESULT.match(last) and "passed" not in log[-300:] else None


def after_fault(log: str) -> list[str]:
    """The tests after the first that failed with an error of CUDA: they failed for its sake."""
    order = [match[1] for match in RESULT.finditer(log)]
    said = {match[1]: match[2] or "" for match in SAID.finditer(log)}
    for place, name in enumerate(order):
        if any(word in said.get(name, "") for word in STICKY):
            return order[place + 1 :]
    return []
