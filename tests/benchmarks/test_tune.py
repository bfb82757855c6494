"""`python benchmarks/run.py tune`: what it measures, and the table that it writes."""

import argparse
import json
import time
from pathlib import Path

import pytest
import torch
from benchmarks.run import main

from benchmarks import tune
from pmsplat.kernels import attention, cpu_rules, linear


def test_it_writes_rules_that_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One way is made slow, so that another must be chosen; rows of others stay."""
    table = tmp_path / "table.json"
    before = {"neon": {"rules": {"linear": {"few tokens, wide": "blas"}}}}
    table.write_text(json.dumps(before))
    usual = linear._convolve

    def slow(*given: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return usual(*given)

    monkeypatch.setitem(linear.WAYS, "conv", slow)
    monkeypatch.setattr(cpu_rules, "instruction_set", lambda: "avx2")
    monkeypatch.setattr(tune, "compare", lambda rules, arguments: {"predict": len(rules.ways)})
    words = f"tune --only product --rounds 2 --smaller 8 --table {table} --json {tmp_path}/found"
    assert main(words.split()) == 0
    assert json.loads((tmp_path / "found").read_text())["figures"]["encoder"] == {"predict": 2}
    rows = json.loads(table.read_text())
    assert rows["neon"] == before["neon"]
    chosen = rows["avx2"]["rules"]["product"]
    assert set(chosen) == {"few tokens, narrow", "few tokens, wide"}
    assert set(chosen.values()) <= {"blas", "onednn"}
    assert rows["avx2"]["measured"]["torch"] == torch.__version__
    monkeypatch.setenv(cpu_rules.OVERRIDE, str(table))
    cpu_rules._shipped.cache_clear()
    assert cpu_rules.way("product", "few tokens, wide") == chosen["few tokens, wide"]
    cpu_rules._shipped.cache_clear()


def test_a_trial_leaves_the_shipped_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = tmp_path / "shipped.json"
    shipped.write_text("{}")
    monkeypatch.setattr(cpu_rules, "TABLE", shipped)
    monkeypatch.setattr(tune, "measure", lambda *_: {})
    monkeypatch.setattr(tune, "compare", lambda *_: {})
    assert main(["tune", "--only", "product", "--rounds", "1", "--smaller", "8"]) == 0
    assert capsys.readouterr().out.startswith("A trial at smaller sizes: no table is renewed")
    assert shipped.read_text() == "{}"
    assert main(["tune", "--only", "product", "--rounds", "1"]) == 0
    assert list(json.loads(shipped.read_text())) == [cpu_rules.instruction_set()]


def test_no_folder_is_made_for_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--table", str(tmp_path / "missing" / "x.json")]) == 2
    assert "x.json, whose folder does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--rounds", "0", "--rounds: '0'; wanted a whole number from 1"),
        ("--smaller", "0", "--smaller: invalid choice: 0"),
        ("--smaller", "16", "--smaller: invalid choice: 16"),
    ],
)
def test_no_rounds_and_tiny_shapes_are_refused(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["tune", option, value])
    assert said in capsys.readouterr().err


def test_a_damaged_table_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "x.json"
    table.write_text("garbage")
    assert main(["tune", "--table", str(table)]) == 2
    assert "x.json, which holds no table of rules" in capsys.readouterr().err
    assert table.read_text() == "garbage"


@pytest.mark.parametrize("operation", tune.WHERE)
def test_trials_meet_the_rule_that_they_are_for(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The door asks for the class of shapes that the trial names."""
    asked: list[tuple[str, str]] = []
    found = cpu_rules.DEFAULTS.way

    def ask(operation: str, shape: str) -> str:
        asked.append((operation, shape))
        return found(operation, shape)

    monkeypatch.setattr(cpu_rules, "way", ask)
    monkeypatch.setattr(attention.cpu_rules, "way", ask)
    classes = set()
    for trial in tune.trials(operation, smaller=8):
        asked.clear()
        trial.call()
        assert (trial.operation, trial.shape) in asked
        classes.add(trial.shape)
        ways = tune.possible(operation, trial.shape)
        assert ways[0] == cpu_rules.WAYS[operation][0] and len(ways) > 1
    assert any(name.endswith("training") for name in classes) == (operation != "product")


def test_renewing_one_operation_keeps_the_others(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    rules = cpu_rules.Rules("avx2").having("linear", "few tokens, wide", "blas")
    rules = rules.having("conv", "3x3, wide, small, first", "taps")
    tune.write(table, rules, ["linear", "conv"])
    again = cpu_rules.Rules("avx2").having("linear", "many tokens, wide", "onednn")
    tune.write(table, again, ["linear"])
    assert dict(cpu_rules.read(table)["avx2"].ways) == {
        ("linear", "many tokens, wide"): "onednn",
        ("conv", "3x3, wide, small, first"): "taps",
    }


def test_the_encoder_is_timed_with_and_without_rules(capsys: pytest.CaptureFixture[str]) -> None:
    found = tune.compare(cpu_rules.Rules("avx2"), argparse.Namespace(rounds=0, smaller=8))
    jobs = [f"{job}, {rules}" for rules in ("default", "rules") for job in ("predict", "learn")]
    assert list(found) == jobs and min(found.values()) > 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head[-2:] == ["default", "rules"]
    assert rows == [
        [job, *(f"{found[f'{job}, {way}']:.3f}" for way in head[-2:])]
        for job in ("predict", "learn")
    ]


def test_the_faster_way_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*given: torch.Tensor) -> torch.Tensor:
        time.sleep(0.03)
        return linear._convolve(*given)

    monkeypatch.setitem(linear.WAYS, "blas", slow)
    found = tune.measure("product", cpu_rules.DEFAULTS, argparse.Namespace(rounds=2, smaller=8))
    for by_way in found.values():
        assert by_way["conv"] == tune.Timing(1, 0)
        assert by_way["blas"].share > 1.2 and by_way["blas"].saved_ms < -20


@pytest.mark.parametrize(
    ("shares", "chosen"),
    [
        ({"direct": 1, "taps": 1.4, "winograd": 0.88}, None),
        ({"direct": 1, "taps": 0.86, "winograd": 0.88}, "taps"),
        ({"direct": 1, "taps": 0.86, "winograd": 0.7}, "winograd"),
        ({"conv": 1, "blas": 0.96, "onednn": 0.97}, None),
    ],
)
def test_what_rounds_more_must_save_more(shares: dict[str, float], chosen: str | None) -> None:
    timings = {way: tune.compared([(10e-3 * share, 10e-3)]) for way, share in shares.items()}
    assert tune.choose(timings) == chosen


def test_a_way_that_saves_nothing_to_speak_of_is_left() -> None:
    found = tune.compared([(0.02e-3, 0.06e-3), (0.06e-3, 0.12e-3)])
    assert found.share == pytest.approx(6**-0.5, abs=1e-3)
    assert found.saved_ms == pytest.approx(0.05)
    assert tune.choose({"conv": tune.Timing(1, 0), "blas": found}) is None
    assert tune.choose({"conv": tune.Timing(1, 0), "blas": tune.Timing(found.share, 0.1)}) == "blas"
