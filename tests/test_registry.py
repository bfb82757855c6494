import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmsplat import registry
from pmsplat.errors import UserError

COMPONENT = """
from dataclasses import dataclass

@dataclass
class Config:
    power: int = 1

def build(cfg):
    return cfg.power
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A component of somebody else's, outside the repository."""
    (tmp_path / "lab_component.py").write_text(COMPONENT)
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "sparsity.py").write_text(COMPONENT)
    (tmp_path / "lab" / "bare.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "lab.sparsity"
    for name in [n for n in sys.modules if n == "lab" or n.startswith("lab.")]:
        del sys.modules[name]


def test_dotted_name_is_built_from_its_own_config(lab: str) -> None:
    assert registry.build("losses", lab) == 1
    assert registry.build("losses", lab, {"power": 3}) == 3


def test_unknown_setting_names_the_nearest(lab: str) -> None:
    with pytest.raises(UserError, match=r"no setting 'powr'.*did you mean 'power'"):
        registry.build("losses", lab, {"powr": 3})


def test_unknown_component_lists_and_suggests() -> None:
    with pytest.raises(UserError, match=r"there is no 'depthsplt' in models.*'depthsplat'"):
        registry.build("models", "depthsplt")


def test_missing_module_and_missing_parts_are_told(lab: str) -> None:
    with pytest.raises(UserError, match="PYTHONPATH"):
        registry.build("losses", "lab.nothing_here")
    with pytest.raises(UserError, match="no Config and no build"):
        registry.build("losses", "lab.bare")


def test_only_components_are_listed() -> None:
    assert registry.names("foundation.teachers") == ["depth_anything_3", "given", "vggt"]
    assert {"lpips", "mse", "pointmap"} <= set(registry.names("losses"))
    assert registry.names("geometry") == registry.names("io") == []
    assert {"train", "evaluate", "refine"} <= set(registry.names("cli", ("configure", "run")))


def test_a_module_that_is_no_component_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pmsplat.losses

    (tmp_path / "helper.py").write_text("def build(cfg):\n    return 1\n")
    (tmp_path / "assigned.py").write_text("class Config: ...\nbuild = Config\n")
    (tmp_path / "_private.py").write_text(COMPONENT)
    monkeypatch.setattr(pmsplat.losses, "__path__", [str(tmp_path)])
    assert registry.names("losses") == ["assigned"]
    with pytest.raises(UserError, match="there is no 'helper' in losses"):
        registry.module("losses", "helper")
