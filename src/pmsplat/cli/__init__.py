"""The command `pmsplat`: one file per verb, each with `configure(parser)` and `run(arguments)`.

A verb's module docstring is its help; its first line is the verb's line in the list: a sentence in
the imperative, with a capital letter and no full stop. Verbs import what they need inside `run`, so
`--help` answers at once.

Errors from below name parameters, as Python users know them, in backticks: `size=48x64`, `output`.
Here they become the flags of the verb: --size 48x64, --output.
"""

import argparse
import errno
import importlib
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from .. import registry
from ..config_files import check_experiment
from ..errors import UserError
from . import _heap

USER_ERROR, INTERRUPTED = 2, 130
MOVED = {"benchmark": "run `python benchmarks/run.py` in a clone of the repository"}


def parser() -> argparse.ArgumentParser:
    """The whole command line, verbs in alphabetical order."""
    root = argparse.ArgumentParser(
        prog="pmsplat",
        description="Feed-forward 3D Gaussian Splatting from posed photographs.",
        epilog="`pmsplat VERB --help` explains a verb with an example.",
    )
    verbs = root.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in _verbs().items():
        verb = add_verb(verbs, name, module)
        verb.set_defaults(run=module.run, parser=verb)
    return root


def _verbs() -> dict[str, ModuleType]:
    names = registry.names("cli", parts=("configure", "run"))
    return {name: importlib.import_module(f".{name}", __name__) for name in names}


def add_verb(verbs: Any, name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one verb among `verbs`, with the docstring of its module as help."""
    text = module.__doc__ or ""
    verb = verbs.add_parser(
        name,
        help=text.partition("\n")[0],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(verb)
    return verb


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; the exit code is that of `execute`."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in MOVED:
        print(f"pmsplat: {words[0]!r} is no longer a verb; {MOVED[words[0]]}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    arguments = _parse(argv)
    return execute(arguments.run, arguments)


def execute(action: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Runs `action`: 0 on success, 2 with one sentence on wrong input, 130 on Ctrl-C or SIGTERM,
    which schedulers send before they kill."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    _heap.keep()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            check_experiment(getattr(arguments, "overrides", ()))
            action(arguments)
    except UserError as error:
        print(f"pmsplat: {name_flags(str(error), arguments)}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        place = f" at {error.filename}" if error.filename else ""
        print(  # noqa: T201
            f"pmsplat: cannot write{place}: {error.strerror}; wanted room and permission to write; "
            "free some space or choose another output folder",
            file=sys.stderr,
        )
        return USER_ERROR
    except RuntimeError as error:
        from ..device import is_out_of_memory  # and torch, which `--help` needs not

        if not is_out_of_memory(error):
            raise
        text = name_flags(_explain_memory(error, arguments), arguments)
        print(f"pmsplat: {text}", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    except KeyboardInterrupt:
        print("pmsplat: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    return 0


def _explain_memory(error: RuntimeError, arguments: argparse.Namespace) -> str:
    """Out of memory on a GPU as one sentence, with what this verb can do about it."""
    remedies = {
        "views": "fewer `views`",
        "size": "a smaller `size`",
        "most": "fewer Gaussians (`most`)",
        "overrides": "smaller images (dataset.size)",
        "device": "`device=cpu`",
    }
    options = [text for name, text in remedies.items() if name in arguments]
    said = str(error).partition("\n")[0].rstrip(".")
    return (
        f"the GPU has not enough memory ({said}); wanted what fits, beside what other programs "
        f"hold; use {', or '.join(options or ['a machine with more memory'])}"
    )


def name_flags(text: str, arguments: argparse.Namespace) -> str:
    """A text whose parameters in backticks are the flags of the command line, where it has them.

    Hence errors put only parameters of Python functions and fields of options into backticks; keys
    and fields of files are in quotes: 'cameras'. A setting of the data, `dataset.scenes=2`, is the
    flag of a verb that has it, and else the override as it stands.
    """

    def name_flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in vars(arguments):
            return found[0]
        if value and value.startswith("["):  # height and width
            value = value.strip("[]").replace(",", "x")
        flag = f"--{'no-' if value == 'False' else ''}{name.replace('_', '-')}"
        return flag if value in (None, "True", "False") else f"{flag} {value}"

    return re.sub(r"`(?:dataset\.)?(\w+)(?:=([^`]*))?`", name_flag, text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, where overrides may also follow options, which argparse does not expect."""
    root = parser()
    arguments, rest = root.parse_known_args(argv)
    late = [] if "overrides" not in arguments else [x for x in rest if not x.startswith("-")]
    if wrong := [word for word in rest if word not in late]:
        hint = _find_option(wrong[0].partition("=")[0])
        arguments.parser.error(f"unrecognized arguments: {' '.join(wrong)}{hint}")
    if late:
        arguments.overrides += late
    return arguments


def _find_option(option: str) -> str:
    """Which verbs have an option, as the end of a sentence about one that has not."""
    having = []
    for name, module in _verbs().items():
        verb = argparse.ArgumentParser(prog=name)
        module.configure(verb)
        if option in re.findall(r"--[a-z][\w-]*", verb.format_usage()):
            having.append(f"`{name}`")
    return f" (an option of {', '.join(having)})" if having else ""


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as a line for people, who need no line of code."""
    print(f"pmsplat: {message}", file=sys.stderr)  # noqa: T201
