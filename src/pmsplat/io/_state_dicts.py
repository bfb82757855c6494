"""The weights in the content of a checkpoint, whatever wraps them.

People store a state dict bare, or in dictionaries of other things; beside the weights of a training
there are often their moving averages, which are the ones to use (timm's `load_state_dict` prefers
them as well). Places of averages: timm's `state_dict_ema`, BasicSR's `params_ema`, lucidrains'
`ema_model.` and CompVis' `model_ema.` (whose names have no dots) in one state dict, Lightning's
callbacks, and `WeightAveraging` of Lightning 2.6, which puts the average in place of the weights.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import UserError

log = logging.getLogger(__name__)

State = dict[str, Tensor]
RAW = (  # keys under which files hold the weights, the likeliest first
    "state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params",
    "encoder",
)  # fmt: skip
AVERAGES = {"ema", "swa", "averaged", "shadow", "polyak"}  # words in the names of averages
# Modules that change no number and hold another one: DataParallel and DDP, torch.compile, FSDP,
# activation checkpointing.
TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTER = "n_averaged"  # of torch's AveragedModel, beside the parameters of its `module`
OTHERS = ("optim", "lr_scheduler", "scheduler", "scaler", "loops")  # never weights
PLAIN = (list, tuple, str, int, float, set, Tensor)  # types that errors name
DEPTH = 4  # dictionaries within each other, of which the innermost has the tensors


@dataclass(frozen=True)
class _Found:
    """A dictionary of tensors, and the keys that lead to it."""

    path: tuple[str, ...]
    state: dict[Any, Any]

    @property
    def is_average(self) -> bool:
        return any(_names_average(key) for key in self.path)

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def rank(self) -> tuple[int, int]:
        """How likely these are the weights: the outermost place first, then the order of RAW."""
        if not self.path:
            return 0, 0
        known = self.path[-1] in RAW
        return (len(self.path), RAW.index(self.path[-1])) if known else (DEPTH + 1, 0)


def choose_state(content: Any, where: str) -> State:
    """Returns the state dict in the content of a torch file, averages before raw weights.

    Wrappers of modules are taken off the names. If the file has both raw and averaged weights, a
    warning says which is taken; `where` names the file in it. Raises UserError if there is none, or
    several and nothing tells which is meant. The entries are not checked.
    """
    found = list(_find_states(content))
    raw = [it for it in found if not it.is_average] or found
    if not raw:
        raise UserError(
            f"{where} cannot be read as a checkpoint (it holds {_describe(content)})",
            "a dictionary of tensors",
            "check which file it is, or save `model.state_dict()` with the program that made it",
        )
    best = min(raw, key=lambda it: it.rank)
    rivals = [it.name for it in raw if it.rank == best.rank]
    if len(rivals) > 1:
        raise UserError(
            f"{where} with several dictionaries of tensors ({', '.join(rivals)})",
            "one of weights, such as `state_dict`",
            "save the one that you want as a file of its own",
        )
    state = _strip_wrappers(best.state)
    # Put the average in place of the weights that it is of.
    if any(it.path == ("current_model_state",) for it in found):  # Lightning has done so
        log.warning("%s: takes the averaged weights (state_dict), not the last ones", where)
        return state
    for it in [it for it in found if it.is_average and it is not best]:
        merged = _replace(state, _strip_wrappers(it.state))
        if merged is not None:
            log.warning("%s: takes the averaged weights (%s), not the last ones", where, it.name)
            return merged
    _warn_about_nameless(content, where)
    return _take_inner_average(state, where)


def _find_states(content: Any, path: tuple[str, ...] = ()) -> Iterator[_Found]:
    """Yields every dictionary whose values are mostly tensors, outermost first."""
    if not isinstance(content, dict) or len(path) > DEPTH:
        return
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    if 2 * tensors > len(content):
        yield _Found(path, content)
        return
    for key, value in content.items():
        if isinstance(key, str) and not key.startswith(OTHERS):
            yield from _find_states(value, (*path, key))


def _strip_wrappers(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same tensors without the names of transparent modules."""
    names = {
        key: ".".join(part for part in key.split(".") if part not in TRANSPARENT)
        for key in state
        if isinstance(key, str) and key != COUNTER
    }
    if len(set(names.values())) < len(names):  # what was apart must stay so
        return dict(state)
    return {
        names.get(key, key): value for key, value in state.items() if key in names or key != COUNTER
    }


def _replace(state: State, average: State, prefix: str = "") -> State | None:
    """`state` with its tensors below `prefix` replaced by their averages; None if they do not fit.

    Names are compared without dots, because some averages have none. Counters are left out.
    """
    ours = {_join(key[len(prefix) :]): key for key in state if key.startswith(prefix)}
    tensors = {_join(key): value for key, value in average.items() if isinstance(value, Tensor)}
    tensors = {key: value for key, value in tensors.items() if value.ndim or key in ours}
    fits = tensors and all(
        key in ours and getattr(state[ours[key]], "shape", None) == value.shape
        for key, value in tensors.items()
    )
    return state | {ours[key]: value for key, value in tensors.items()} if fits else None


def _take_inner_average(state: State, where: str) -> State:
    """A state dict that has its average below a prefix: the average under the raw names."""
    inner: dict[str, State] = {}
    for key, value in state.items():
        parts = key.split(".") if isinstance(key, str) else []
        named = [place for place, part in enumerate(parts[:-1]) if _names_average(part)]
        if named:
            cut = named[-1] + 1
            inner.setdefault(".".join(parts[:cut]), {})[".".join(parts[cut:])] = value
    outer = {
        key: value
        for key, value in state.items()
        if not any(str(key).startswith(f"{name}.") for name in inner)
    }
    if not inner or not outer:
        return state
    prefixes = {""} | {
        "".join(f"{part}." for part in str(key).split(".")[:count])
        for key in outer
        for count in range(1, DEPTH)
    }
    for name, average in inner.items():
        for prefix in sorted(prefixes, key=len):
            if (merged := _replace(outer, average, prefix)) is not None:
                log.warning("%s: takes the averaged weights (%s), not the last ones", where, name)
                return merged
        log.warning("%s: %r, which seems to be an average, fits no weights", where, name)
    return state


def _warn_about_nameless(content: Any, where: str) -> None:
    """Says so if averages are in a list, as diffusers and torch-ema store them: without names."""

    def visit(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, dict) and len(path) <= DEPTH:
            for key, inner in value.items():
                visit(inner, (*path, str(key)))
        holds = isinstance(value, list) and value and isinstance(value[0], Tensor)
        if holds and any(_names_average(key) for key in path):
            text = "%s: the averages in %s have no names and are not used"
            log.warning(text, where, ".".join(path))

    visit(content, ())


def _names_average(key: str) -> bool:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key)
    return any(word.lower() in AVERAGES for word in words)


def _join(key: str) -> str:
    return key.replace(".", "")


def _describe(content: Any) -> str:
    if isinstance(content, type):  # a placeholder
        return "an object of another program, such as a whole module, not its state_dict"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}" if type(content) in PLAIN else "an object of a class"
    keys = ", ".join(repr(key) for key in list(content)[:6]) or "nothing"
    if content and all(isinstance(value, type) for value in content.values()):
        return f"no tensors, but objects of other kinds, such as arrays of numpy: {keys}"
    return f"no dictionary of tensors, but {keys}"
