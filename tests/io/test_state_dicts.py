"""Weights in every wrapper that people save them in, and checkpoints in parts."""

import json
import logging
from collections import OrderedDict, UserList
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pmsplat.errors import UserError
from pmsplat.io import weights

NAMES = ("a.weight", "a.bias", "b.c.weight")
RAW = {name: torch.full((2, 3), float(i)) for i, name in enumerate(NAMES)}
MEAN = {name: torch.full((2, 3), 10.0 + i) for i, name in enumerate(NAMES)}


def below(prefix: str, state: dict[str, Tensor], dots: bool = True) -> dict[str, Tensor]:
    return {prefix + (key if dots else key.replace(".", "")): v for key, v in state.items()}


def read(content: Any, tmp_path: Path) -> dict[str, Tensor]:
    torch.save(content, tmp_path / "x.ckpt")
    return weights.read_checkpoint(tmp_path / "x.ckpt")


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.float32])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_float_type_is_read_as_float32(
    kind: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    state = {"w": torch.tensor([0.1, 1 / 3, 7.25]).to(kind), "steps": torch.tensor([3])}
    path = tmp_path / f"x{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    found = weights.read_checkpoint(path)
    assert found["w"].dtype == torch.float32 and found["steps"].dtype == torch.int64
    exact = [float(value) for value in state["w"].double()]  # bf16 and fp16 fit into float32
    assert found["w"].double().tolist() == pytest.approx(exact, rel=6e-8)


@pytest.mark.parametrize(
    "content",
    [
        below("module.", RAW),
        {"state_dict": below("module._orig_mod.", RAW), "epoch": 3},
        {"model_state_dict": RAW, "optimizer_state_dict": {"state": {0: MEAN}}},
        {"model": {"state_dict": below("_orig_mod.", RAW)}},
        {"module": RAW, "global_step": 7},
        {"a._fsdp_wrapped_module." + k[2:] if k[0] == "a" else k: v for k, v in RAW.items()},
        {"my_weights": RAW, "args": [1]},
        {"ema": below("module.", RAW), "updates": 5},
    ],
    ids=["ddp", "compiled", "named", "nested", "deepspeed", "fsdp", "sole", "average"],
)
def test_wrappers_are_taken_off(content: Any, tmp_path: Path, caplog: Any) -> None:
    assert same(read(content, tmp_path), RAW) and not caplog.records


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"state_dict": RAW, "state_dict_ema": below("module.", MEAN)}, "state_dict_ema"),
        ({"params": RAW, "params_ema": MEAN}, "params_ema"),
        ({"model": RAW, "ema": {"decay": 0.99, "shadow": MEAN}}, "ema.shadow"),
        (
            {"state_dict": RAW, "callbacks": {"EMAWeights": {"ema_state_dict": MEAN, "n": 1}}},
            "callbacks.EMAWeights.ema_state_dict",
        ),
        ({"state_dict": MEAN, "current_model_state": RAW, "averaging_state": {}}, "state_dict"),
    ],
    ids=["timm", "basicsr", "shadow", "callback", "lightning"],
)
def test_averages_are_taken_before_raw_weights(
    content: Any, where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert same(read(content, tmp_path), MEAN)
    assert [f"averaged weights ({where})" in it.getMessage() for it in caplog.records] == [True]


@pytest.mark.parametrize(
    ("raw", "mean", "dots"),
    [("", "ema.", True), ("model.", "ema_model.", True), ("model.", "model_ema.", False),
     ("online_model.", "ema.ema_model.module.", True)],
)  # fmt: skip
def test_averages_in_the_same_state_dict(
    raw: str, mean: str, dots: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = below(raw, RAW) | below(mean, MEAN, dots) | {f"{mean}decay": torch.tensor(0.9)}
    for content in (state, {"state_dict": state}):
        caplog.clear()
        assert same(read(content, tmp_path), below(raw, MEAN))
        assert len(caplog.records) == 1 and "averaged" in caplog.text
    save_file(state, tmp_path / "x.safetensors")
    assert same(weights.read_checkpoint(tmp_path / "x.safetensors"), below(raw, MEAN))


def test_parameters_without_an_average_stay(tmp_path: Path) -> None:
    part = {NAMES[0]: MEAN[NAMES[0]]}
    assert same(read({"state_dict": RAW, "ema_state": part}, tmp_path), RAW | part)


def test_averages_that_do_not_fit_are_named_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shadow = {"shadow_params": [*MEAN.values()], "decay": 0.9}
    assert same(read({"state_dict": RAW, "ema": shadow}, tmp_path), RAW)
    assert "averages in ema.shadow_params have no names" in caplog.text
    strange = RAW | {"ema.other": torch.ones(4)}
    assert same(read(strange, tmp_path), strange)
    assert "'ema', which seems to be an average, fits no weights" in caplog.text


def test_an_averaged_model_of_torch(tmp_path: Path) -> None:
    averaged = AveragedModel(nn.Linear(2, 3))
    averaged.update_parameters(nn.Linear(2, 3))
    found = read(averaged.state_dict(), tmp_path)
    assert same(found, {**averaged.module.state_dict()})


def test_two_dictionaries_of_tensors_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"several dictionaries of tensors \(left, right\)"):
        read({"left": RAW, "right": MEAN}, tmp_path)
    for content, held in (
        ({"state_dict": {}}, "no dictionary of tensors, but 'state_dict'"),
        ({"model": nn.Linear(2, 3), "epoch": 3}, "no dictionary of tensors, but 'model', 'epoch'"),
        (nn.Linear(2, 3), "an object of another program"),
        ([torch.ones(1)], "a list"),
    ):
        with pytest.raises(UserError, match=f"it holds {held}.*save `model.state_dict"):
            read(content, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2)).save(tmp_path / "a.pt")  # type: ignore
    with pytest.raises(UserError, match="it is a TorchScript program"):
        weights.read_checkpoint(tmp_path / "a.pt")


class Settings(dict):
    """A dictionary with attributes, as EasyDict, Munch and others are."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__.update(values)


class Rows(list):
    pass


class Ordered(OrderedDict):
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_of_others_do_not_matter(zipped: bool, tmp_path: Path) -> None:
    import numpy as np

    objects = {
        "settings": Settings(a=1, inner=Settings(b=[1, 2])),
        "rows": Rows([1, Rows([2])]),
        "more": UserList([1]),
        "ordered": Ordered(a=1),
        "functions": [max, len, sum, torch.nn.functional.relu, np.mean],
        "array": np.arange(3.0),
        "number": np.float64(2.5),
        "types": [torch.float16, torch.device("cpu"), int, np.dtype("f4")],
        "sets": [{1}, frozenset([2]), range(3)],
    }
    content = {"hyper_parameters": objects, "state_dict": RAW, "callbacks": {"X": objects}}
    path = tmp_path / "x.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert same(weights.read_checkpoint(path), RAW)


def test_the_format_is_read_from_the_content(tmp_path: Path) -> None:
    save_file(RAW, tmp_path / "x.bin")
    torch.save(RAW, tmp_path / "y.ckpt.part")
    for name in ("x.bin", "y.ckpt.part"):
        assert same(weights.read_checkpoint(tmp_path / name), RAW)
    save_file({}, tmp_path / "empty.safetensors")
    torch.save({}, tmp_path / "empty.pth")
    for name in ("empty.safetensors", "empty.pth"):
        with pytest.raises(UserError, match="holds no tensors; wanted a checkpoint"):
            weights.read_checkpoint(tmp_path / name)


def write_parts(folder: Path, suffix: str, state: dict[str, Tensor]) -> Path:
    """One part for each tensor, and their index."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    places = {}
    for i, (key, value) in enumerate(state.items()):
        name = f"{stem}-{i + 1:05d}-of-{len(state):05d}{suffix}"
        save = save_file if suffix == ".safetensors" else torch.save
        save({key: value}, folder / name)
        places[key] = name
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_parts_are_joined(suffix: str, tmp_path: Path) -> None:
    index = write_parts(tmp_path, suffix, below("module.", RAW))
    for path in (index, tmp_path):
        assert same(weights.read_checkpoint(path), RAW)
    assert weights.read_header(index) is None
    first = next(tmp_path.glob("*-00001-of-*"))
    with pytest.raises(UserError, match=f"part 1 of 3 of a checkpoint.*give .*{index.name}"):
        weights.read_checkpoint(first)
    second = next(tmp_path.glob("*-00002-of-*"))
    moved = second.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"without {second.name} beside it; wanted all 3 parts"):
        weights.read_checkpoint(index)
    moved.unlink()
    second.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match=rf"{second.name} without 'module\.a\.bias'"):
        weights.read_checkpoint(index)
    for text in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(UserError, match="wanted the index of a checkpoint in parts"):
            weights.read_checkpoint(index)
    index.unlink()
    with pytest.raises(UserError, match=r"the folder .* without a checkpoint of a known name"):
        weights.read_checkpoint(tmp_path)
    with pytest.raises(UserError, match=f"part 1 of 3.*download it too.*{index.name}"):
        weights.read_checkpoint(first)


def test_what_is_no_tensor_beside_tensors_is_named(tmp_path: Path, caplog: Any) -> None:
    torch.save({**RAW, "config": {"lr": [1, "x"]}, "extra_state": None}, tmp_path / "a.pt")
    assert same(weights.read_checkpoint(tmp_path / "a.pt"), RAW)
    assert "no tensors: config, extra_state" in caplog.text


def test_other_kinds_of_files_are_told_as_what_they_are(tmp_path: Path) -> None:
    torch.save(RAW, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a file of torch under .*rename it to a\.pt"):
        weights.read_checkpoint(tmp_path / "a.safetensors")
    torch.save({key: value.numpy() for key, value in RAW.items()}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"no tensors, but .* arrays of numpy: 'a"):
        weights.read_checkpoint(tmp_path / "b.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "c.pt")
    with pytest.raises(UserError, match="such as a whole module"):
        weights.read_checkpoint(tmp_path / "c.pt")


def test_warnings_go_to_the_log_of_this_package(tmp_path: Path, caplog: Any) -> None:
    read({"params": RAW, "params_ema": MEAN}, tmp_path)
    assert caplog.records[0].name.startswith("pmsplat.")
    assert caplog.records[0].levelno == logging.WARNING
