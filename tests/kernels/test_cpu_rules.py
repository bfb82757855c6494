"""The rules for CPUs: whose they are, what overrides them, and that nothing changes without one."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pmsplat.errors import UserError
from pmsplat.kernels import attention, cpu_rules

AMX = "processor : 0\nvendor_id : GenuineIntel\nflags : fpu avx512f amx_bf16 amx_tile amx_int8\n"
AMD = "processor : 0\nvendor_id : AuthenticAMD\nflags : fpu avx512f avx512_bf16\n"
KINDS = {  # what the system says -> the instruction set
    ("x86_64", "AVX512", AMX): "intel-amx",
    ("x86_64", "AVX512", AMX.replace("amx_tile ", "")): "intel-avx512",
    ("AMD64", "AVX512", ""): "intel-avx512",
    ("x86_64", "AVX512", AMD): "amd-avx512",
    ("x86_64", "AVX2", AMD): "avx2",
    ("x86_64", "DEFAULT", AMX): "other",
    ("aarch64", "SVE256", ""): "neon",
    ("arm64", "DEFAULT", ""): "neon",
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No override from outside, and no memory of one."""
    for name in (cpu_rules.OVERRIDE, *cpu_rules.LIMITS):
        monkeypatch.delenv(name, raising=False)
    cpu_rules._shipped.cache_clear()


@pytest.mark.parametrize("said", KINDS)
def test_the_instruction_set_is_recognized(
    said: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, capability, info = said
    monkeypatch.setattr(cpu_rules.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(cpu_rules, "_cpu_info", lambda: info)
    assert cpu_rules.instruction_set() == KINDS[said] in cpu_rules.INSTRUCTION_SETS


@pytest.mark.parametrize(
    ("limit", "name"),
    [("AVX512_CORE_BF16", "intel-avx512"), ("avx512_core_amx", "intel-amx"), ("ALL", "intel-amx")],
)
def test_instructions_that_onednn_may_not_use_do_not_count(
    limit: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_rules.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(cpu_rules, "_cpu_info", lambda: "vendor_id: GenuineIntel\nflags: amx_tile")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert cpu_rules.instruction_set() == name


def test_the_shipped_table_is_valid() -> None:
    table = cpu_rules.read(cpu_rules.TABLE)
    assert table.keys() <= set(cpu_rules.INSTRUCTION_SETS)
    for rules in table.values():
        for (_, shape), way in rules.ways.items():
            assert not (way in cpu_rules.FORWARD_ONLY and shape.endswith("training"))


def write(path: Path, name: str, way: str) -> Path:
    shape = cpu_rules.product_class(100, 64, 64, trains=False)
    path.write_text(json.dumps({name: {"rules": {"linear": {shape: way}}}}))
    return path


def test_a_table_of_ones_own_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "mine.json", cpu_rules.instruction_set(), "blas")
    monkeypatch.setenv(cpu_rules.OVERRIDE, str(path))
    assert cpu_rules.way("linear", "few tokens, narrow") == "blas"
    assert cpu_rules.way("linear", "few tokens, wide") == "conv"
    assert cpu_rules.way("linear", "few tokens, narrow, training") == "conv"
    with cpu_rules.use(cpu_rules.DEFAULTS):
        assert cpu_rules.way("linear", "few tokens, narrow") == "conv"
    assert cpu_rules.current().name == cpu_rules.instruction_set()


def test_the_rules_of_another_processor_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_rules, "TABLE", write(tmp_path / "table.json", "neon", "onednn"))
    monkeypatch.setenv(cpu_rules.OVERRIDE, "neon")
    assert cpu_rules.way("linear", "few tokens, narrow") == "onednn"
    cpu_rules._shipped.cache_clear()
    monkeypatch.setenv(cpu_rules.OVERRIDE, "default")
    assert cpu_rules.way("linear", "few tokens, narrow") == "conv"


def test_wrong_overrides_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu_rules.OVERRIDE, "amx2")
    with pytest.raises(UserError, match="one of default, intel-amx"):
        cpu_rules.way("linear", "few tokens, narrow")
    monkeypatch.setenv(cpu_rules.OVERRIDE, str(write(tmp_path / "x.json", "neon", "fft")))
    with pytest.raises(UserError, match=r"'fft' for linear .*one of conv, blas, onednn"):
        cpu_rules.way("linear", "few tokens, narrow")
    monkeypatch.setattr(cpu_rules, "instruction_set", lambda: "avx2")
    monkeypatch.setenv(cpu_rules.OVERRIDE, str(write(tmp_path / "x.json", "neon", "blas")))
    with pytest.raises(UserError, match=r"has no row avx2"):
        cpu_rules.way("linear", "few tokens, narrow")


@pytest.mark.parametrize(
    "damaged",
    [b"garbage", b"\xff\xfe\x80", b'{"avx2": {"rules": {"con', b'{"avx2": {}}', b"[1, 2]",
     b'{"avx2": {"rules": {"conv": "taps"}}}'],
)  # fmt: skip
def test_a_damaged_table_is_refused(damaged: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"table.json, which holds no table of rules"):
        cpu_rules.read(path)


@pytest.mark.parametrize("way", ["fused", "plain", "blocked"])
def test_attention_is_the_same_in_every_way(way: str, generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 3, 40, 16, generator=generator).unbind(0)
    mask = torch.randn(1, 1, 40, 40, generator=generator)
    shape = cpu_rules.attention_class(wide=False, large=False, half=False, trains=False)
    with cpu_rules.use(cpu_rules.DEFAULTS.having("attention", shape, way)):
        found = attention.attention(q, k, v, mask)
    expected = scaled_dot_product_attention(q.double(), k.double(), v.double(), mask.double())
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_way_can_be_left_out() -> None:
    rules = cpu_rules.DEFAULTS.having("conv", "3x3", "winograd").having("linear", "few", "blas")
    without = rules.without("winograd")
    assert without.way("conv", "3x3") == "direct" and without.way("linear", "few") == "blas"
