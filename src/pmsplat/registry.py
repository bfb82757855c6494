"""File name -> component: `losses/mse.py` is the loss "mse"; a dotted name is any Python module.

A component is a module with a dataclass `Config` and a function or class `build(config)`. Nothing
is registered and nothing is listed: adding a file adds a component.
"""

import difflib
import importlib
import pkgutil
from dataclasses import fields
from types import ModuleType
from typing import Any

from .errors import UserError


def names(package: str) -> list[str]:
    """The components that pmsplat ships in `package` ("losses", "models", "data", ...), sorted."""
    root = importlib.import_module(f"pmsplat.{package}")
    found = (module.name for module in pkgutil.iter_modules(root.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def module(package: str, name: str) -> ModuleType:
    """Imports the module of component `name`; a name with a dot is a module path.

    Raises UserError if there is no such component, with the nearest known name, or if the module
    has no `Config` or `build`.
    """
    known = names(package)
    if "." not in name and name not in known:
        raise UserError(
            f"there is no {name!r} in {package}",
            f"one of {', '.join(known)}, or the dotted name of your own module",
            suggest(name, known),
        )
    path = name if "." in name else f"pmsplat.{package}.{name}"
    try:
        found = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise
        raise UserError(
            f"the module {path!r} cannot be imported",
            "a module on the Python path",
            "set PYTHONPATH to the folder that contains it",
        ) from error
    missing = [part for part in ("Config", "build") if not hasattr(found, part)]
    if missing:
        raise UserError(
            f"the module {path!r} has no {' and no '.join(missing)}",
            "a dataclass Config and a callable build(config)",
            f"add them, as in the files of pmsplat/{package.replace('.', '/')}",
        )
    return found


def build(package: str, name: str, settings: Any = None) -> Any:
    """The component `name` built from `settings`: its own Config, a mapping of fields, or None.

    Raises UserError for a setting that its Config does not have.
    """
    found = module(package, name)
    if isinstance(settings, found.Config):
        return found.build(settings)
    given = dict(settings or {})
    check_keys(given, [f.name for f in fields(found.Config)], f"{package} {name!r}")
    return found.build(found.Config(**given))


def check_keys(given: Any, valid: list[str], owner: str) -> None:
    """Raises UserError for the first key of `given` not in `valid`, with the nearest valid one."""
    for key in given:
        if key not in valid:
            raise UserError(
                f"{owner} has no setting {key!r}", f"one of {', '.join(valid)}", suggest(key, valid)
            )


def suggest(word: str, valid: list[str]) -> str:
    """Returns the remedy for a mistyped word: the nearest valid one, if there is one."""
    longer = [name for name in valid if word and name.startswith(word)]
    near = longer or difflib.get_close_matches(word, valid, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else "check the spelling"
