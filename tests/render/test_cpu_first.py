"""The first drawing on a CPU, whose kernels another process compiles."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pmsplat.render import _cpu_first, prepare

DRAW = """
import json
import torch
from pmsplat.render import _cpu_blend, _cpu_first, _cpu_projection, prepare

prepare(torch.device("cpu"))
started = len(_cpu_first._started)
_cpu_first.main()
kernels = [_cpu_projection.project, _cpu_projection.shade, _cpu_blend.records_of, _cpu_blend.draw]
kernels += [_cpu_blend.boxes_of, _cpu_blend.pair, _cpu_blend.replay, _cpu_blend.add_pairs]
made = [sum(kernel.stats.cache_misses.values()) for kernel in kernels]
read = [sum(kernel.stats.cache_hits.values()) for kernel in kernels]
print(json.dumps([started, made, read]))
"""


@pytest.mark.slow
def test_what_another_process_compiled_is_not_compiled_again(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", DRAW]
    for started in (1, 0):
        said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        assert json.loads(said) == [started, [0] * 8, [1] * 8]


def test_it_starts_once_and_only_where_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **streams: int) -> None:
            started.append(command)

        def wait(self) -> None:
            started.append(["wait"])

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(_cpu_first, "is_compiled", lambda: True)
    prepare(torch.device("cpu"))
    prepare(torch.device("cuda"))
    assert not started
    monkeypatch.setattr(_cpu_first, "is_compiled", lambda: False)
    prepare(torch.device("cpu"))
    prepare(torch.device("cpu"))
    assert started == [[sys.executable, "-m", "pmsplat.render._cpu_first"]]
    _cpu_first.wait()
    _cpu_first.wait()
    assert started[1:] == [["wait"]]
