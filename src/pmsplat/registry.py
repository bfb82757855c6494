"""File name -> component: `losses/mse.py` is the loss "mse"; a dotted name is any Python module.

A component is a module with a dataclass `Config` and a function or class `build(config)`; where it
has `upgrade(settings)`, that turns settings as older versions wrote them into those of its Config.
Nothing is registered and nothing is listed: adding a file adds a component.
"""

import ast
import difflib
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, get_args, get_origin

from .errors import SettingError, UserError

TOO_LARGE = ("allocate memory", "size calculation overflowed")  # in errors of torch
PARTS = ("Config", "build")  # that make a module a component


def names(package: str, parts: Sequence[str] = PARTS) -> list[str]:
    """The components that pmsplat ships in `package` ("losses", "models", "data", ...), sorted.

    Those are its modules whose source defines all `parts`; no module is imported to find out.
    """
    root = importlib.import_module(f"pmsplat.{package}")
    found = (module.name for module in pkgutil.iter_modules(root.__path__) if not module.ispkg)
    public = (name for name in found if not name.startswith("_"))
    return sorted(name for name in public if set(parts) <= _defined_names(root.__path__, name))


def _defined_names(folders: Iterable[str], name: str) -> set[str]:
    """What the module `name` defines or assigns at its top level."""
    spec = PathFinder.find_spec(name, list(folders))
    assert spec is not None and spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    defined = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    targets = (target for node in body if isinstance(node, ast.Assign) for target in node.targets)
    return defined | {target.id for target in targets if isinstance(target, ast.Name)}


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
    missing = [part for part in PARTS if not hasattr(found, part)]
    if missing:
        raise UserError(
            f"the module {path!r} has no {' and no '.join(missing)}",
            "a dataclass Config and a callable build(config)",
            f"add them, as in the files of pmsplat/{package.replace('.', '/')}",
        )
    return found


def build(package: str, name: str, settings: Any = None) -> Any:
    """The component `name` built from `settings`: its own Config, a mapping of fields, or None.

    Raises UserError for a setting that its Config does not have, and where it does not fit into
    memory.
    """
    config = make_config(package, name, settings)
    try:
        return module(package, name).build(config)
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(it in str(error) for it in TOO_LARGE):
            raise
        raise UserError(
            f"{package} {name!r} of a size that does not fit into memory",
            "sizes near the defaults",
            f"look for a number that is too large in {config}",
        ) from error


def make_config(package: str, name: str, settings: Any = None) -> Any:
    """The Config of component `name`, as `build` makes it of such settings."""
    found = module(package, name)
    if isinstance(settings, found.Config):
        return settings
    return _fill(found.Config, upgrade(found, settings or {}), f"{package} {name!r}")


def nested(package: str) -> dict[str, str]:
    """The metadata of a Config's field that holds another component, one of `package`.

    Its value is a mapping: the "name" of the component beside its settings.
    """
    return {"package": package}


def nested_fields(schema: Any) -> dict[str, str]:
    """The fields of a Config that hold other components, and the packages of these."""
    return {f.name: f.metadata["package"] for f in fields(schema) if "package" in f.metadata}


def build_nested(package: str, given: Mapping[str, Any]) -> Any:
    """The component that such a field holds; UserError for a name or settings that are wrong."""
    return build(package, *split_name(given))


def split_name(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a nested component, and its settings; UserError where it has no name."""
    settings = dict(given)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"a component without a name ({given})", "its name", "set `name`")
    return name, settings


def upgrade(component: ModuleType, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as older versions of the component may have written them, as its Config has them."""
    translate = getattr(component, "upgrade", dict)
    return translate(dict(settings))


def _fill(schema: Any, given: Mapping[str, Any], owner: str) -> Any:
    """A dataclass from a mapping, the dataclasses inside it from mappings inside that."""
    check_keys(given, [f.name for f in fields(schema)], owner)
    inner = {
        f.name: _fill(f.type, given[f.name], f"{owner} {f.name}")
        for f in fields(schema)
        if is_dataclass(f.type) and isinstance(given.get(f.name), Mapping)
    }
    return schema(**{**given, **inner})


def check_keys(given: Any, valid: list[str], owner: str) -> None:
    """Raises UserError for the first key of `given` not in `valid`, with the nearest valid one."""
    for key in given:
        if key not in valid:
            raise UserError(
                f"{owner} has no setting {key!r}", f"one of {', '.join(valid)}", suggest(key, valid)
            )


def check_list(setting: Field[Any], value: Any, key: str) -> None:
    """Raises UserError for a single value where a setting is a list, or a list of lists."""
    kinds = get_args(setting.type) if isinstance(setting.type, UnionType) else (setting.type,)
    (inner,) = next((get_args(kind) for kind in kinds if get_origin(kind) is list), (None,))
    if inner is None or value is None:
        return
    single = value
    if isinstance(value, list | tuple):
        single = next((item for item in value if not isinstance(item, list | tuple)), None)
        if single is None or get_origin(inner) is not list:
            return
    usual: Any = [] if setting.default_factory is MISSING else setting.default_factory()
    words = {int: "whole numbers", float: "numbers", str: "names"}.get(inner, "lists")
    count = "two" if len(usual) == 2 and inner is int else "a list of"
    example = str(usual or [single]).replace("'", "").replace(" ", "")
    raise UserError(f"{key}={single}", f"{count} {words}", f"use brackets, as in {key}={example}")


@dataclass(frozen=True)
class Rule:
    """Which values fit a setting, and what fits in words."""

    fits: Callable[[Any], bool]
    wanted: str

    @property
    def or_none(self) -> "Rule":
        """The same, and None."""
        return Rule(lambda value: value is None or self.fits(value), f"{self.wanted}, or null")


def whole(least: int | None = None, multiple: int = 1) -> Rule:
    """Whole numbers of at least `least` that are multiples of `multiple`."""
    low = -math.inf if least is None else least
    words = "a whole number" if multiple == 1 else f"a multiple of {multiple}"
    return Rule(
        lambda value: type(value) is int and value >= low and value % multiple == 0,
        words if least is None else f"{words} of at least {least}",
    )


def number(least: float = 0, most: float = math.inf, open_low: bool = False) -> Rule:
    """Numbers from `least` (or above it, with `open_low`) to `most`; infinity only as `most`."""
    words = f"a number {'above' if open_low else 'of at least'} {least:g}"
    return Rule(
        lambda value: (
            isinstance(value, int | float)
            and type(value) is not bool
            and (least < value if open_low else least <= value)
            and value <= most
        ),
        words if most == math.inf else f"{words} and at most {most:g}",
    )


def one_of(*values: Any) -> Rule:
    """Some values, true and false among them as a YAML file has them."""
    words = ", ".join(str(v).lower() if type(v) is bool else str(v) for v in values)
    return Rule(lambda value: value in values, f"one of {words}")


def flag() -> Rule:
    """True and false."""
    return Rule(lambda value: type(value) is bool, "true or false")


def several(rule: Rule, count: int | None = None) -> Rule:
    """Lists or tuples of `count` values that all fit `rule`; None: of any length."""
    return Rule(
        lambda values: (
            isinstance(values, Sequence)
            and not isinstance(values, str)
            and count in (None, len(values))
            and all(map(rule.fits, values))
        ),
        f"{count or 'some'} values, each {rule.wanted}",
    )


def check_settings(config: Any, rules: Mapping[str, Rule], owner: str) -> None:
    """Raises SettingError for the first field of `config` that does not fit its rule.

    `owner` stands before the field's name, as in "model.".
    """
    defaults = {field.name: field.default for field in fields(config)}
    for name, rule in rules.items():
        value = getattr(config, name)
        if not rule.fits(value):
            has_default = defaults[name] is not MISSING
            remedy = f"the default is {defaults[name]!r}" if has_default else "change the value"
            raise SettingError(f"{owner}{name}={value!r}", rule.wanted, remedy)


def suggest(word: str, valid: list[str]) -> str:
    """Returns the remedy for a mistyped word: the nearest valid one, if there is one."""
    longer = sorted((name for name in valid if word and name.startswith(word)), key=len)
    near = longer or difflib.get_close_matches(word, valid, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else "check the spelling"
