import pickle
from pathlib import Path

import pytest
import torch

from pmsplat.errors import UserError
from pmsplat.io import weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}


class Malicious:
    """Runs code when unpickled without care."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.witness)!r}, 'w')",)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_checkpoints_are_read_with_and_without_wrapper(
    wrapper: str | None, zipped: bool, tmp_path: Path
) -> None:
    content = STATE if wrapper is None else {wrapper: STATE, "epoch": 3}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = weights.read_checkpoint(tmp_path / "x.pth")
    assert found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    witness = tmp_path / "it-ran"
    torch.save({"state_dict": STATE, "extra": Malicious(witness)}, tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(Malicious(witness), protocol=2))
    for name in ("x.pth", "y.pth"):
        with pytest.raises(UserError, match="without running code"):
            weights.read_checkpoint(tmp_path / name)
    assert not witness.exists()


def test_damaged_and_foreign_files_are_told(tmp_path: Path) -> None:
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


def test_a_newer_format_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ours.safetensors"
    monkeypatch.setattr(weights, "FORMAT", 2)
    weights.save_checkpoint(path, STATE, weights.Header("depthsplat", {}))
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 2; wanted format 1"):
        weights.read_header(path)


def test_files_of_others_have_no_header(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth")
    assert weights.read_header(tmp_path / "x.pth") is None
