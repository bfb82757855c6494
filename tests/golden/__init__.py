"""Outputs of the official implementations' building blocks; README.md says where from."""

from pathlib import Path

import numpy as np
import torch


def components(prefix: str) -> dict[str, torch.Tensor]:
    """The arrays whose name starts with `prefix`/, without it."""
    with np.load(Path(__file__).parent / "components.npz") as file:
        found = {k: torch.from_numpy(file[k]) for k in file.files if k.startswith(f"{prefix}/")}
    return {key.removeprefix(f"{prefix}/"): value for key, value in found.items()}
