"""Unit quaternions by their three smallest numbers, as compressed formats keep them."""

import numpy as np

OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # than the largest


def largest(quats: np.ndarray) -> np.ndarray:
    """Which number of each quaternion [row, 4] is the largest in size."""
    return np.abs(quats).argmax(axis=-1)


def smallest_three(quats: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The other numbers [row, 3] of the unit quaternions whose number `which` is positive.

    They lie in [-√½, √½]; those of a quaternion of length 0 are 0.
    """
    rows = np.arange(len(quats))[:, None]
    length = np.linalg.norm(quats, axis=-1, keepdims=True)
    sign = np.where(quats[rows, which[:, None]] < 0, -1.0, 1.0)
    return sign * quats[rows, OTHERS[which]] / np.where(length > 0, length, 1)


def whole(others: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The quaternions [row, 4] of which all but the number `which` are given."""
    quats = np.empty((len(others), 4))
    rows = np.arange(len(others))[:, None]
    quats[rows, OTHERS[which]] = others
    quats[rows[:, 0], which] = np.sqrt((1 - (others**2).sum(-1)).clip(0))
    return quats
