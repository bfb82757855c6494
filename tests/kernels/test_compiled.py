"""Kernels of numba beside torch, in a process of its own, where numba has not begun."""

import subprocess
import sys

SCRIPT = """
import torch
torch.set_num_threads(1)
from pmsplat.kernels import neighbors
points = torch.randn(1, 500, 3)
for _ in range(2):
    neighbors.k_nearest(points, points, 4)
    print(torch.get_num_threads())
"""


def test_torch_keeps_its_number_of_threads() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert found.stdout.split() == ["1", "1"], found.stderr
