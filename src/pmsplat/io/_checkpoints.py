"""The tensors of one checkpoint: a torch or safetensors file, or one that is cut into parts.

Hugging Face cuts large checkpoints into `model-00001-of-00003.safetensors` and so on, and writes an
index beside them: JSON whose `weight_map` has the part of every tensor (documentation of
huggingface_hub, "Serialization").
"""

import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from . import _pickles
from ._state_dicts import DEPTH, choose_state

log = logging.getLogger(__name__)

INDEX = ".index.json"  # how the name of an index ends
PLAIN = (type(None), bool, int, float, str, bytes)
STEMS = ("model.safetensors", "pytorch_model.bin")  # names of whole checkpoints in a folder
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")


def find_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint or the index in a folder as the hub names them; None if none is."""
    if not folder.is_dir():
        return None
    names = [name for stem in STEMS for name in (stem, stem + INDEX)]
    found = [folder / name for name in names] + sorted(folder.glob(f"*{INDEX}"))
    return next((path for path in found if path.is_file()), None)


def check_exists(path: str | Path) -> Path:
    path = Path(path)
    path = find_checkpoint(path) or path
    if path.is_dir():
        stems = " or ".join(STEMS)
        raise UserError(
            f"the folder {path} without a checkpoint of a known name",
            f"{stems}, or the index of its parts ({INDEX})",
            "give the file itself, or download the index too",
        )
    if not path.is_file():
        raise UserError(f"no file at {path}", "a checkpoint", "check the path")
    return path


def is_safetensors(path: Path) -> bool:
    """Whether a file is of safetensors, by its start: the length of a header in JSON, then it."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= path.stat().st_size


def is_torch(path: Path) -> bool:
    """Whether a file may be of torch, by its start: a zip archive or a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads the weights in a file, or in all parts of an index, on the CPU."""
    part = PART.fullmatch(path.name)
    if part and int(part[3]) > 1:
        index = path.with_name(part[1] + part[4] + INDEX)
        raise UserError(
            f"{path}, part {int(part[2])} of {int(part[3])} of a checkpoint",
            "the index of its parts, or their folder",
            f"{'give' if index.is_file() else 'download it too, with all parts:'} {index}",
        )
    if path.name.endswith(INDEX):
        return choose_state(_read_parts(path), str(path))
    content = _read_content(path)
    if content == {}:
        raise UserError(f"{path}, which holds no tensors", "a checkpoint", "check which file it is")
    state = _drop_others(choose_state(content, str(path)), path)
    _check_entries(state, path)
    return state


def _drop_others(state: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """The tensors of a state dict; what else people put beside them is named in a warning."""
    others = [k for k, v in state.items() if isinstance(k, str) and _is_plain(v)]
    if others:
        some = ", ".join(others[:5]) + (" …" if len(others) > 5 else "")
        log.warning("%s: left out, because they are no tensors: %s", path, some[:200])
    return {key: value for key, value in state.items() if key not in set(others)}


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is of numbers and text alone, no tensor and nothing of another program."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return depth < DEPTH and all(_is_plain(item, depth + 1) for item in value)
    return isinstance(value, PLAIN)


def _read_content(path: Path) -> Any:
    """Reads one file as it is: tensors by name, in torch's format perhaps among other things."""
    if path.suffix == ".safetensors" and is_torch(path):  # torch goes by the name
        raise UserError(
            f"{path}, which is a file of torch under the name of another kind",
            "a name that ends in .pt",
            f"rename it to {path.with_suffix('.pt').name}",
        )
    if path.suffix == ".safetensors" or is_safetensors(path):
        with open_safetensors(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    _check_kind(path)
    try:
        return _pickles.load(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors ({first_line(error)})",
            "a file of tensors, which can be read without running code from it",
            "download the checkpoint again from its authors",
        ) from error
    except _pickles.DAMAGED as error:
        raise damage_error(path, error) from error


def _check_entries(state: dict[Any, Any], path: Path) -> None:
    if is_safetensors(path):  # its reader has checked them
        return
    sizes = _pickles.part_sizes(path)
    for key, value in state.items():
        if (fault := _find_fault(key, value, path.stat().st_size, sizes)) is not None:
            raise damage_error(path, ValueError(f"{key!r} {fault}"))


def _read_parts(index: Path) -> dict[str, Tensor]:
    """Reads every part that an index names; each tensor from the part that the index says."""
    # Read the index; parts lie beside it, whatever folders their names have.
    try:
        places = {str(key): Path(part).name for key, part in _read_map(index).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} ({first_line(error)})",
            "the index of a checkpoint in parts, JSON with a `weight_map`",
            "download it again",
        ) from error
    names = sorted(set(places.values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise UserError(
            f"{index} without {', '.join(absent[:3])}{' …' if len(absent) > 3 else ''} beside it",
            f"all {len(names)} parts of the checkpoint",
            f"put the missing part{'s' * (len(absent) > 1)} into {index.parent}",
        )
    # Read the parts.
    state: dict[str, Tensor] = {}
    for name in names:
        part = _read_content(index.parent / name)
        if not isinstance(part, dict):
            raise damage_error(index.parent / name, TypeError("it holds no tensors by name"))
        _check_entries(part, index.parent / name)
        state |= {key: value for key, value in part.items() if places.get(key, name) == name}
    for key, name in places.items():
        if key not in state:
            raise UserError(
                f"{index.parent / name} without {key!r}",
                f"that tensor, which {index.name} places there",
                "download that part again: it belongs to another checkpoint",
            )
    return state


def _read_map(index: Path) -> dict[str, str]:
    places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    if not places:
        raise ValueError("its weight_map is empty")
    return places


def open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise damage_error(path, error) from error


def _check_kind(path: Path) -> None:
    """Raises UserError for a file that is not a torch file, such as a saved web page."""
    if is_torch(path):
        return
    with path.open("rb") as file:
        start = file.read(64)
    kinds = {b"<": "a web page", b"version https://git-lfs": "a git-LFS pointer"}
    kind = next((kind for beginning, kind in kinds.items() if start.startswith(beginning)), None)
    raise UserError(
        f"{path} ({path.stat().st_size} bytes), which is {kind or 'another kind of file'}",
        "a checkpoint",
        "download the file itself; `pmsplat models fetch` downloads published models",
    )


def _find_fault(key: Any, value: Any, size: int, parts: set[int] | None) -> str | None:
    """Returns what is wrong with an entry of the state dict, None if nothing is.

    `size` is that of the file in bytes, `parts` the sizes of its parts.
    """
    if not isinstance(key, str) or not isinstance(value, Tensor):
        return "is not a tensor"
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return "is not an ordinary tensor"
    memory = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > size or (parts is not None and memory not in parts):
        return "is larger than its data in the file"
    return None


def damage_error(path: Path, error: Exception) -> UserError:
    size = path.stat().st_size
    return UserError(
        f"{path} ({size} bytes) cannot be read as a checkpoint ({first_line(error)})",
        "a whole checkpoint of tensors",
        "it may be cut short or be another kind of file: download or copy it again",
    )


def first_line(error: Exception) -> str:
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    return text.splitlines()[0].partition(". ")[0][:200]
