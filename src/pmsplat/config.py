"""Turns `+experiment=NAME key=value …` into a checked `Experiment`.

Hydra composes the YAML files of `config/`; OmegaConf checks every value against its dataclass. An
unknown key is an error that names the nearest valid one.

    +experiment=re10k_small         a file of config/experiment
    model=depthsplat_base           a file of config/model, or the name of a component
    model.scales=2                  a field of that component's Config
    model.base=depthsplat_base      of `updated`: another file of config/model, or component
    model.base.scales=2             a field of the Config of that
    loss.lpips.weight=0.1           of a loss: weight, start_step, or a field of its Config
    +loss.pointmap={}               another loss, with the settings of config/loss/pointmap.yaml
    +loss.lab.sparsity.weight=0.1   a loss of your own, here the module lab.sparsity
    ~loss.lpips                     drops a loss
    loss=[photometric,pointmap]     several files of config/loss together
    teacher=vggt                    a file of config/teacher, for losses such as pointmap
    teacher=null                    no teacher
    protocol=dl3dv-8v-n40           an evaluation protocol: its data, size and index
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import registry
from .config_files import choices, folder, unknown
from .data import NamedProtocol, find_protocol
from .errors import SettingError, UserError
from .io.chunks import is_remote
from .train import optim
from .train.settings import (
    Component,
    Experiment,
    LossTerm,
    Renderer,
    TeacherSettings,
    Trainer,
    check_is_whole,
    name_usual,
)

GROUPS = {
    "model": "models",
    "dataset": "data",
    "loss": "losses",
    "teacher": "foundation.teachers",
    "renderer": None,
}
LOSS_KEYS = ("name", "weight", "start_step")
TEACHER_KEYS = ("name", "cache", "missing", "windows")
T = TypeVar("T")


@dataclass
class _Run:
    """The settings of a run that belong to none of its parts."""

    seed: int = Experiment.seed
    output: str = Experiment.output
    protocol: str | None = None


def compose(overrides: Sequence[str]) -> Experiment:
    """Returns the experiment that the overrides describe; checks every key and type.

    Raises UserError for the first mistake, with the nearest valid word.
    """
    # Parse the overrides.
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(
            f"cannot read the override: {str(error).splitlines()[0]}",
            "KEY=VALUE, +experiment=NAME or ~loss.NAME",
            "quote values with spaces or brackets for the shell",
        ) from error
    # Sort them into YAML files, components without a file, and values.
    protocol = _take_protocol(parsed)
    files, bare, values = [], {}, []
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line} is a sweep", "one value", "start one run for each value"
            )
        group = override.key_or_group.lstrip("/")
        value = override.value()
        is_group = group in (*GROUPS, "experiment") and (group, value) != ("teacher", None)
        if not is_group or override.is_delete() or isinstance(value, dict):
            values.append(override)
        elif group == "loss" and isinstance(value, list):
            files.append(f"loss=[{','.join(name for name in value if _has_file(group, name))}]")
        elif _has_file(group, value):
            bare.pop(group, None)  # the later override wins
            files.append(f"{'+' if group == 'experiment' else ''}{group}={value}")
        else:
            bare[group] = {"name": str(value)}
    # Compose the files, then apply the values.
    tree = _compose_files(files) | bare
    for group in GROUPS:
        _expand_nested(tree, group)
    chosen = "dataset" in bare or any(file.startswith("dataset=") for file in files)
    _apply_protocol(tree, protocol, chosen)
    usual = deepcopy(tree)
    for override in values:
        _apply(tree, override)
        if isinstance(override.value(), str):
            _expand_nested(tree, override.key_or_group.partition(".")[0])
    tree = _resolve(tree)
    _find_index(tree, protocol)
    name = next((f.partition("=")[2] for f in files if f.startswith("+experiment=")), "run")
    try:
        return _make_experiment(tree, name)
    except SettingError as error:
        raise name_usual(error, usual, name) from error


def to_yaml(experiment: Experiment) -> str:
    """Returns the whole experiment, with all defaults, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(experiment)))


def _has_file(group: str, name: Any) -> bool:
    """Returns whether `name` is a YAML file of `group`; False for a component without a file.

    Raises UserError if it is neither.
    """
    known = choices(group)
    if name in known:
        return True
    package = GROUPS.get(group)
    if package not in (None, "losses") and isinstance(name, str):
        components = registry.names(package)
        if name in components or "." in name:
            return False
        known = sorted({*known, *components})
    raise unknown(group, str(name), known)


def _compose_files(files: list[str]) -> dict[str, Any]:
    try:
        with initialize_config_dir(str(folder()), version_base="1.3"):
            composed = hydra_compose("main", overrides=files)
        tree = OmegaConf.to_container(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            f"config/ does not compose: {str(error).splitlines()[0]}",
            "YAML files that only refer to existing ones",
            "correct the file that the message names",
        ) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _expand_nested(tree: dict[str, Any], group: str) -> None:
    """Puts the settings of nested components, as `model.base`, in place of their names."""
    node, package = tree.get(group), GROUPS.get(group)
    name = node.get("name") if isinstance(node, dict) else None
    if package in (None, "losses") or not isinstance(node, dict) or not isinstance(name, str):
        return
    for key, inner in registry.nested_fields(registry.module(package, name).Config).items():
        given, file = node.get(key), _group_of(inner)
        if isinstance(given, str):
            node[key] = _read_file(file, given) if _has_file(file, given) else {"name": given}


def _group_of(package: str) -> str:
    """The group of the components of a package."""
    return next(group for group, components in GROUPS.items() if components == package)


def _read_file(group: str, name: str) -> dict[str, Any]:
    file = OmegaConf.to_container(OmegaConf.load(folder() / group / f"{name}.yaml"))
    assert isinstance(file, dict)
    return {str(key): value for key, value in file.items()}


def _take_protocol(overrides: list[Override]) -> NamedProtocol | None:
    """The evaluation protocol that the overrides name, the last one; they no longer have it."""
    named = [override for override in overrides if override.key_or_group == "protocol"]
    for override in named:
        overrides.remove(override)
    value = named[-1].value() if named and not named[-1].is_sweep_override() else None
    return None if value is None else find_protocol(str(value))


def _apply_protocol(tree: dict[str, Any], protocol: NamedProtocol | None, chosen: bool) -> None:
    """The data, size and index of a protocol, in place of the experiment's.

    A dataset that was `chosen` keeps its reader and its place: the protocol is then used on it.
    """
    if protocol is None:
        return
    dataset = tree.get("dataset")
    assert isinstance(dataset, dict)
    if not chosen:
        if dataset.get("name") != protocol.data.reader:
            tree["dataset"] = dataset = _read_file("dataset", protocol.data.reader)
        dataset["root"] = protocol.data.root
    dataset |= {"size": list(protocol.size), "index": None}
    tree["protocol"] = protocol.name


def _find_index(tree: dict[str, Any], protocol: NamedProtocol | None) -> None:
    """The index of a protocol beside the data, unless another was given."""
    dataset = tree["dataset"]
    if (
        protocol is not None
        and dataset.get("index") is None
        and isinstance(root := dataset.get("root"), str)
    ):
        dataset["index"] = str(protocol.find("." if is_remote(root) else root))


def _resolve(tree: dict[str, Any]) -> dict[str, Any]:
    """Replaces every `${...}` by the value it refers to, overrides included."""
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(
            f"cannot resolve {error.full_key or 'a value'}: {str(error).splitlines()[0]}",
            "${GROUP.FIELD} of a value that is set",
            "set that value, or write another in place of ${...}",
        ) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _apply(tree: dict[str, Any], override: Override) -> None:
    """Writes one value into the tree, or drops one loss; keys are checked later."""
    head, *rest = override.key_or_group.split(".")
    path = [head, *rest]
    if head == "loss" and rest:  # names of losses can have dots, their settings cannot
        whole = override.is_delete() or isinstance(override.value(), dict) or len(rest) == 1
        path = ["loss", ".".join(rest)] if whole else ["loss", ".".join(rest[:-1]), rest[-1]]
    defaults = _add_loss(tree, path) if head == "loss" and not override.is_delete() else {}
    *parents, last = path
    node = tree
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise UserError(
                f"{override.input_line}: {key!r} is a single value",
                f"{key}=VALUE",
                f"leave out what follows {key!r}",
            )
    if not override.is_delete():
        value = override.value()
        node[last] = defaults | value if isinstance(value, dict) else value
    elif head == "loss" and rest:
        registry.check_keys([last], list(node), "the mapping of losses")
        del node[last]
    else:
        raise UserError(override.input_line or "~", "~loss.NAME", "only losses can be dropped")


def _add_loss(tree: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """Adds loss NAME to a run without it, with the settings of config/loss/NAME.yaml; returns them.

    Returns nothing if the run has the loss or there is no such file.
    """
    losses, name = tree.get("loss"), path[1] if len(path) > 1 else ""
    if not isinstance(losses, dict) or name in losses or name not in choices("loss"):
        return {}
    defaults = dict(_read_file("loss", name).get(name) or {})
    losses[name] = dict(defaults)
    return defaults


def _make_experiment(tree: dict[str, Any], name: str) -> Experiment:
    known = [f.name for f in fields(Experiment) if f.name != "name"]
    for key in [key for key in tree if key not in known]:
        experiment = _make_experiment({key: tree[key] for key in known if key in tree}, name)
        check_is_whole(key, experiment)
    registry.check_keys(tree, known, "the run")
    scalars = {
        key: tree[key] for key in ("seed", "output", "protocol") if tree.get(key) is not None
    }
    run = typed(_Run, {"output": f"outputs/{name}"} | scalars, "the run")
    return Experiment(
        name=name,
        model=_component("model", tree.get("model")),
        dataset=_component("dataset", tree.get("dataset")),
        loss={key: _loss(key, given) for key, given in _mapping("loss", tree.get("loss")).items()},
        teacher=_teacher(tree.get("teacher")),
        renderer=typed(Renderer, _mapping("renderer", tree.get("renderer")), "renderer"),
        optimizer=typed(optim.Config, _mapping("optimizer", tree.get("optimizer")), "optimizer"),
        trainer=typed(Trainer, _mapping("trainer", tree.get("trainer")), "trainer"),
        seed=run.seed,
        output=run.output,
        protocol=run.protocol,
    )


def _mapping(owner: str, given: Any) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise UserError(
            f"{owner} is {given!r}", "a mapping of settings", f"set {owner}.FIELD=VALUE"
        )
    return dict(given or {})


def _component(group: str, given: Any) -> Component:
    settings = _mapping(group, given)
    name = settings.pop("name", None)
    package = GROUPS[group]
    assert package is not None
    if not isinstance(name, str):
        raise UserError(
            f"{group} has no name", f"{group}=NAME", f"one of {', '.join(choices(group))}"
        )
    found = registry.module(package, name)
    settings = registry.upgrade(found, settings)
    for key, inner in registry.nested_fields(found.Config).items():
        if isinstance(settings.get(key), dict):
            part = _component(_group_of(inner), settings[key])
            settings[key] = {"name": part.name, **asdict(part.settings)}
    return Component(name, typed(found.Config, settings, f"{group} {name!r}"))


def _loss(key: str, given: Any) -> LossTerm:
    if given is None:
        raise UserError(
            f"loss.{key}=null",
            "a mapping of settings",
            f"+loss.{key}={{}} adds the loss with its usual settings, ~loss.{key} drops it",
        )
    settings = _mapping(f"loss.{key}", given)
    common = {k: settings.pop(k) for k in LOSS_KEYS if k in settings}
    name = str(common.pop("name", key))
    found = registry.module("losses", name)
    own = [f.name for f in fields(found.Config)]
    registry.check_keys(settings, [*own, *LOSS_KEYS], f"loss {key!r}")
    frame = typed(LossTerm, common | {"name": name}, f"loss {key!r}")
    return LossTerm(
        name, frame.weight, frame.start_step, typed(found.Config, settings, f"loss {key!r}")
    )


def _teacher(given: Any) -> TeacherSettings | None:
    settings = _mapping("teacher", given)
    if not settings:
        return None
    common = {k: settings.pop(k) for k in TEACHER_KEYS if k in settings}
    if isinstance(name := common.get("name"), str):
        own = [f.name for f in fields(registry.module("foundation.teachers", name).Config)]
        registry.check_keys(settings, [*own, *TEACHER_KEYS], f"teacher {name!r}")
    component = _component("teacher", {"name": name, **settings})
    frame = typed(TeacherSettings, common, "teacher")
    return replace(frame, settings=component.settings)


def typed(schema: type[T], given: Mapping[str, Any], owner: str) -> T:
    """`schema` filled from `given`; UserError for an unknown key, a wrong type, a missing value."""
    _check(schema, given, owner)
    try:
        defaults = OmegaConf.structured(schema)
        for f in fields(schema):  # type: ignore[arg-type]
            if is_dataclass(f.type):  # OmegaConf takes a frozen one for read-only settings
                OmegaConf.set_readonly(defaults[f.name], None)
        merged = OmegaConf.merge(defaults, dict(given))
        value = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        key = f" {error.full_key!r}" if error.full_key else ""
        raise UserError(
            f"{owner}: setting{key} is wrong: {reason}", "a value of its type", "change the value"
        ) from error
    assert isinstance(value, schema)
    return value


def _check(schema: type, given: Mapping[str, Any], owner: str) -> None:
    registry.check_keys(given, [f.name for f in fields(schema)], owner)  # type: ignore[arg-type]
    for f in fields(schema):  # type: ignore[arg-type]
        inner = given.get(f.name)
        if f.name in given:
            registry.check_list(f, inner, _key(owner, f.name))
        if isinstance(f.type, type) and is_dataclass(f.type) and isinstance(inner, Mapping):
            _check(f.type, inner, f"{owner} {f.name}")


def _key(owner: str, name: str) -> str:
    """The key of a setting in overrides: of "dataset 'folder'" it begins with dataset."""
    group, *rest = owner.replace("'", "").split()
    parts = rest if group == "loss" else rest[1:]
    return name if group == "the" else ".".join([group, *parts, name])
