"""Measure time and memory on this machine.

python benchmarks/run.py rasterize --json benchmarks/mine.json
    prints a table and writes the figures with the device, threads, versions and commit
"""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # run as a script, the folder's files are a package still

from benchmarks import measure  # noqa: E402
from pmsplat.cli import add_verb, execute  # noqa: E402

NO_QUESTIONS = ("measure", "peer", "run")


def questions() -> dict[str, ModuleType]:
    """The questions by name: each has `configure(parser)` and `run(arguments)`.

    They import what they measure inside `run`.
    """
    names = sorted(found.name for found in pkgutil.iter_modules([str(HERE)]))
    return {
        name: importlib.import_module(f"benchmarks.{name}")
        for name in names
        if name not in NO_QUESTIONS
    }


def parser() -> argparse.ArgumentParser:
    """One verb per question, with the options common to all."""
    root = argparse.ArgumentParser(
        prog="python benchmarks/run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = root.add_subparsers(dest="question", metavar="QUESTION", required=True)
    for name, module in questions().items():
        verb = add_verb(verbs, name, module)
        verb.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
        verb.add_argument("--json", type=Path, metavar="OUT", help="file for the figures")
    return root


def answer(arguments: argparse.Namespace) -> None:
    """Measures, prints the table, and writes figures and conditions if asked to."""
    measure.use_threads(arguments.threads)
    figures = questions()[arguments.question].run(arguments)
    if arguments.json is not None:
        measure.write(arguments.json, arguments.question, figures)


def main(argv: Sequence[str] | None = None) -> int:
    """Answers one question; the exit codes are those of `pmsplat`."""
    return execute(answer, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
