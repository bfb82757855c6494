"""Measure time and memory on this machine.

pmsplat benchmark rasterize --json benchmarks/mine.json
    prints a table and writes the figures with the device, threads, versions and commit
"""

import argparse
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

QUESTIONS = "pmsplat.tasks.benchmark"


def questions() -> dict[str, ModuleType]:
    """The modules of `tasks/benchmark`, by name: each has `configure(parser)` and `run(arguments)`.

    They import what they measure inside `run`.
    """
    package = importlib.import_module(QUESTIONS)
    names = (found.name for found in pkgutil.iter_modules(package.__path__))
    return {
        name: importlib.import_module(f"{QUESTIONS}.{name}")
        for name in sorted(names)
        if not name.startswith("_")
    }


def configure(parser: argparse.ArgumentParser) -> None:
    """One sub-verb per question, with the options common to all."""
    verbs = parser.add_subparsers(dest="question", metavar="QUESTION", required=True)
    for name, module in questions().items():
        text = module.__doc__ or ""
        verb = verbs.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(verb)
        verb.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
        verb.add_argument("--json", type=Path, metavar="OUT", help="file for the figures")


def run(arguments: argparse.Namespace) -> None:
    """Asks the question, which prints its table; writes figures and conditions if asked to."""
    import json

    from ..io.files import write_text
    from ..tasks.benchmark import _measure

    _measure.use_threads(arguments.threads)
    figures = questions()[arguments.question].run(arguments)
    if arguments.json is not None:
        whole = {
            "question": arguments.question,
            "conditions": _measure.conditions(),
            "figures": figures,
        }
        write_text(arguments.json, json.dumps(whole, indent=2) + "\n")
