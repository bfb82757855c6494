import collections
import enum
import functools
import importlib
import os
import pickle
import random
import subprocess
import sys
import time
import types
import warnings
import webbrowser
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import serialization

from pmsplat.errors import UserError
from pmsplat.io import weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}


class Call:
    """Calls a function when it is unpickled without care."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced

    def __call__(self) -> None:
        """So that the result of a call can be called."""


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_checkpoints_are_read_with_and_without_wrapper(
    wrapper: str | None, zipped: bool, tmp_path: Path
) -> None:
    content = STATE if wrapper is None else {wrapper: STATE, "epoch": 3}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = weights.read_checkpoint(tmp_path / "x.pth")
    assert found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


def attacks(witness: Path) -> dict[str, tuple[Any, bool]]:
    """Pickles that would write `witness`, and whether they are refused at sight."""
    shell, code = f"touch {witness}", f"open({str(witness)!r}, 'w').close()"
    module = Call(importlib.import_module, "os")
    return {
        "system": (Call(os.system, shell), True),
        "exec": (Call(exec, code), True),
        "eval": (Call(eval, code), True),
        "open": (Call(open, str(witness), "w"), False),
        "import": (Call(__import__, "os"), True),
        "popen": (Call(subprocess.Popen, ["touch", str(witness)]), False),
        "browser": (Call(webbrowser.open, f"file://{witness}"), False),
        "path": (Call(Path.touch, witness), False),
        "partial": (Call(functools.partial(subprocess.run, ["touch", str(witness)])), False),
        "module": (Call(Call(getattr, module, "system"), shell), False),
        "nested": ({"layers": [(1, Call(subprocess.check_call, ["touch", str(witness)]))]}, False),
    }


@pytest.mark.parametrize("attack", attacks(Path()))
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_pickle_is_ever_run(attack: str, zipped: bool, tmp_path: Path) -> None:
    witness = tmp_path / "it-ran"
    content, refused = attacks(witness)[attack]
    file = tmp_path / "x.pth"
    torch.save(
        {"hyper_parameters": content, "state_dict": STATE},
        file,
        _use_new_zipfile_serialization=zipped,
    )
    if refused:
        with pytest.raises(UserError, match="without running code"):
            weights.read_checkpoint(file)
    else:
        assert weights.read_checkpoint(file).keys() == STATE.keys()
    torch.save({"state_dict": {**STATE, "c": content}}, file)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(content, protocol=2))
    for name in ("x.pth", "bare.pth"):
        with pytest.raises(UserError):
            weights.read_checkpoint(tmp_path / name)
    time.sleep(0.05)
    assert not witness.exists()
    file.unlink()
    if attack in (
        "system",
        "exec",
        "eval",
        "popen",
        "path",
        "partial",
        "module",
        "nested",
    ):  # it does run where nobody is careful
        done = pickle.loads((tmp_path / "bare.pth").read_bytes())
        if attack == "popen":
            done.wait()
        assert witness.exists()


@dataclass
class Schedule:
    """A setting as people keep them in hyperparameters."""

    warmup: int
    folder: Path


class Mode(enum.Enum):
    FAST = "fast"


class Nested:
    """Its inner class is pickled by `getattr`."""

    @dataclass
    class Inner:
        size: int = 3


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*log_every_n_steps")
def test_a_lightning_checkpoint_gives_its_tensors_alone(tmp_path: Path) -> None:
    import pytorch_lightning as lightning
    from lightning_fabric.utilities.data import AttributeDict
    from omegaconf import OmegaConf
    from torch import nn

    class Average(lightning.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"shadow": STATE, "schedule": Schedule(1, tmp_path), "mode": Mode.FAST}

    class Model(lightning.LightningModule):
        def __init__(self, **_settings: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.encoder = nn.Linear(3, 2)

        def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
            return self.encoder(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, 10)]

    model = Model(
        config=OmegaConf.create({"model": {"name": "x", "sizes": [1, 2]}, "lr": "${model.name}"}),
        schedule=Schedule(3, Path("/data")),
        modes=[Mode.FAST, Nested.Inner()],
        bag=AttributeDict(a=1, b=AttributeDict(c=Path("x"))),
        count=collections.defaultdict(int, a=1),
        recent=collections.deque([1, 2], maxlen=5),
        numbers=[3 + 2j, {1, 2}, b"bytes", 2**70, slice(1, 2)],
        anneal=torch.optim.lr_scheduler.OneCycleLR._annealing_cos,
    )
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Average()],
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.TensorDataset(torch.ones(1, 3))
    trainer.fit(model, torch.utils.data.DataLoader(data))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    names = serialization.get_unsafe_globals_in_checkpoint(tmp_path / "last.ckpt")
    assert {"omegaconf.dictconfig.DictConfig", "pathlib.PosixPath", "builtins.getattr"} <= {*names}
    found = weights.read_checkpoint(tmp_path / "last.ckpt")
    assert {k: v.tolist() for k, v in found.items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }


def test_foreign_modules_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # `this` prints a poem when it is imported
        patch.setitem(sys.modules, "this", types.ModuleType("this"))
        kind = type("Poem", (), {"__module__": "this"})
        patch.setattr("this.Poem", kind, raising=False)
        torch.save({"state_dict": STATE, "hyper_parameters": kind()}, tmp_path / "x.pth")
    assert weights.read_checkpoint(tmp_path / "x.pth").keys() == STATE.keys()
    assert "this" not in sys.modules


def test_what_others_allowed_is_neither_used_nor_lost(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "extra": Schedule(1, Path())}, tmp_path / "x.pth")
    called = []
    with serialization.safe_globals([(called.append, f"{__name__}.Schedule")]):
        before = set(serialization.get_safe_globals())
        weights.read_checkpoint(tmp_path / "x.pth")
        assert set(serialization.get_safe_globals()) == before
    assert not called


def test_damaged_and_foreign_files_are_errors(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(STATE, whole)
    header = weights.Header("depthsplat", {})
    weights.save_checkpoint(tmp_path / "whole.safetensors", STATE, header)
    for name in ("whole.pth", "whole.safetensors"):
        data = (tmp_path / name).read_bytes()
        cut = tmp_path / f"cut-{name}"
        for size in (0, 10, len(data) // 2, len(data) - 20):
            cut.write_bytes(data[:size])
            with pytest.raises(UserError, match="checkpoint"):
                weights.read_checkpoint(cut)
    (tmp_path / "text.pth").write_text("not a checkpoint at all\n" * 50)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"step": 5}, tmp_path / "number.pth")
    for name in ("text.pth", "list.pth", "number.pth"):
        with pytest.raises(UserError):
            weights.read_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="no file at"):
        weights.read_checkpoint(tmp_path / "absent.pth")


def test_our_checkpoints_carry_what_builds_the_model(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    header = weights.Header("depthsplat", {"width": 32, "vit": "none"})
    weights.save_checkpoint(path, STATE, header)
    assert weights.read_header(path) == header
    assert torch.equal(weights.read_checkpoint(path)["a.weight"], STATE["a.weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["ours.safetensors"]


def test_a_newer_format_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ours.safetensors"
    monkeypatch.setattr(weights, "FORMAT", 2)
    weights.save_checkpoint(path, STATE, weights.Header("depthsplat", {}))
    monkeypatch.undo()
    with pytest.raises(UserError, match="checkpoint format 2"):
        weights.read_header(path)


def test_files_of_others_have_no_header(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth")
    assert weights.read_header(tmp_path / "x.pth") is None


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    """A copy of a zipped torch file, each part changed, or left out for None."""
    copy = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w", **options) as new:
        for name in old.namelist():
            if (content := change(name.rpartition("/")[2], old.read(name))) is not None:
                new.writestr(name, content)
    return copy


LENGTH, MORE, HUGE, NEGATIVE = (
    pickle.dumps(number, protocol=2)[2:-1] for number in (1000, 1001, 2**61, -1)
)


@pytest.mark.parametrize("lie", [MORE, HUGE, NEGATIVE])
@pytest.mark.parametrize("place", ["storage", "shape", "both"])
def test_a_file_that_lies_about_sizes_is_an_error(lie: bytes, place: str, tmp_path: Path) -> None:
    torch.save({"a": torch.arange(1000.0), "b": torch.ones(50)}, tmp_path / "x.pth")

    def change(name: str, content: bytes) -> bytes:
        if name != "data.pkl":
            return content
        head, middle, tail = content.split(LENGTH)
        first = LENGTH if place == "shape" else lie
        second = LENGTH if place == "storage" else lie
        return head + first + middle + second + tail

    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        weights.read_checkpoint(rewritten(tmp_path / "x.pth", change))


def test_parts_that_are_missing_short_or_packed_are_errors(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "x.pth")
    same = rewritten(tmp_path / "x.pth", lambda _, content: content)
    assert weights.read_checkpoint(same)["a"].tolist() == list(range(1000))
    for change in (
        lambda name, content: None if name == "0" else content,
        lambda name, content: None if name == "data.pkl" else content,
        lambda name, content: content[:40] if name == "0" else content,
        lambda name, content: content + b"12" if name == "0" else content,
    ):
        with pytest.raises(UserError, match="cannot be read as a checkpoint"):
            weights.read_checkpoint(rewritten(tmp_path / "x.pth", change))
    packed = rewritten(tmp_path / "x.pth", lambda _, c: c, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"data\.pkl is compressed"):
        weights.read_checkpoint(packed)


@pytest.mark.parametrize(
    "entry",
    [
        Call(bytearray, 2**42),
        Call(torch.Tensor, 2**45),
        Call(torch.UntypedStorage, 2**45),
        torch.ones(1).expand(10**12),
        torch.empty(10**12, device="meta"),
        torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (10**12,), check_invariants=True),
    ],
    ids=lambda entry: type(getattr(entry, "reduced", (entry,))[0]).__name__,
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_what_has_no_numbers_in_the_file_takes_no_memory(entry: Any, tmp_path: Path) -> None:
    torch.save({**STATE, "c": entry}, tmp_path / "x.pth")
    with pytest.raises(UserError):
        weights.read_checkpoint(tmp_path / "x.pth")


def test_garbled_pickles_are_errors_or_harmless(tmp_path: Path) -> None:
    extra = [Schedule(3, tmp_path), collections.defaultdict(int, a=1), Mode.FAST]
    torch.save({"state_dict": STATE, "extra": extra}, tmp_path / "x.pth")
    dice = random.Random(0)
    opcodes = b"cRbo}]stueabX\x81Q.qhMJK\x85\x86\x87)("

    def garble(name: str, content: bytes) -> bytes:
        if name != "data.pkl":
            return content
        garbled = bytearray(content)
        for _ in range(dice.choice([1, 2, 4])):
            place, byte = dice.randrange(len(garbled)), dice.choice([*opcodes, dice.randrange(256)])
            garbled[place : place + dice.randrange(2)] = bytes([byte])
        return bytes(garbled)

    read = 0
    with warnings.catch_warnings(action="ignore"):
        for _ in range(300):
            try:
                state = weights.read_checkpoint(rewritten(tmp_path / "x.pth", garble))
            except UserError:
                continue
            read += sum(bool(value.sum().isfinite()) for value in state.values())
    assert read > 0
