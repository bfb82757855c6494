"""In which order photographs were taken, and which of their cameras lie in another world."""

from dataclasses import replace

import numpy as np

from ...errors import UserError
from ..photo_files import names_count, natural_key
from .survey import LeftOut, Survey

_APART, _MAP = 1e5, 1e4  # times farther off than others are apart, and units: in another world


def in_capture_order(survey: Survey) -> Survey:
    """The survey with its shots in the order in which they were taken.

    By their times, where all have one; by the numbers in their names, where these differ in numbers
    (frame_2 before frame_10); else as they stand in the file.
    """
    shots = survey.shots
    times = [shot.time for shot in shots if shot.time is not None]
    if len(times) == len(shots) and len(set(times)) > 1:
        key, order = (lambda shot: (shot.time, natural_key(shot.file))), "their times"
    elif names_count([shot.file for shot in shots]):
        key, order = (lambda shot: natural_key(shot.file)), "the numbers in their names"
    else:
        return survey
    return replace(survey, shots=tuple(sorted(shots, key=key)), order=order)


def without_strays(survey: Survey) -> Survey:
    """The survey without cameras that lie in another world than most; they are left out.

    Programs leave such poses at the origin of a map, for photos that they could not place. No
    float32 holds them with the others. Raises UserError where they are half of all.
    """
    places = np.stack([shot.c2w[:3, 3] for shot in survey.shots])
    middle = (len(places) - 1) // 2
    away = np.linalg.norm(places - np.sort(places, axis=0)[middle], axis=1)
    usual = float(np.sort(away)[middle])
    stray = (away > max(_APART * usual, _MAP)) & (usual > 0)
    if not stray.any():
        return survey
    reason = f"its camera lies {away[stray].min():.3g} or more from the others"
    if 2 * stray.sum() >= len(places):
        raise UserError(
            f"of {len(places)} cameras {stray.sum()} lie {away[stray].min():.3g} or more from the "
            f"others, which are {usual:.3g} apart",
            "cameras in one world and one unit",
            "export them all in one coordinate system",
        )
    pairs = list(zip(survey.shots, stray.tolist(), strict=True))
    lost = [LeftOut(shot.file, reason) for shot, far in pairs if far]
    kept = tuple(shot for shot, far in pairs if not far)
    return replace(survey, shots=kept, left_out=(*survey.left_out, *lost))
