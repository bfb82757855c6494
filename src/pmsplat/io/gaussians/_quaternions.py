"""Packs unit quaternions as their three smallest components, as compressed formats store them."""

import numpy as np

OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # components besides the largest


def find_largest(quats: np.ndarray) -> np.ndarray:
    """Returns the index [row] of the component of quaternions [row, 4] with the largest size."""
    return np.abs(quats).argmax(axis=-1)


def smallest_three(quats: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Returns the other components [row, 3], for signs that make component `which` positive.

    `which` is from `find_largest`. Quaternions are normalised first, so the result lies in
    [-√½, √½]; a quaternion of length 0 gives zeros.
    """
    rows = np.arange(len(quats))[:, None]
    length = np.linalg.norm(quats, axis=-1, keepdims=True)
    sign = np.where(quats[rows, which[:, None]] < 0, -1.0, 1.0)
    return sign * quats[rows, OTHERS[which]] / np.where(length > 0, length, 1)


def restore(others: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Returns unit quaternions [row, 4] from all components but `which`, which is positive."""
    quats = np.empty((len(others), 4))
    rows = np.arange(len(others))[:, None]
    quats[rows, OTHERS[which]] = others
    quats[rows[:, 0], which] = np.sqrt((1 - (others**2).sum(-1)).clip(0))
    return quats
