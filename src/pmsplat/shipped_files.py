"""Files that come with pmsplat: a wheel carries them in the package, a clone has them beside it."""

from pathlib import Path

from .errors import UserError

PACKAGE = Path(__file__).resolve().parent
CLONE = PACKAGE.parents[1]  # where pmsplat runs from one


def find_shipped(packaged: str, cloned: str) -> Path:
    """The file `packaged` of the package, else `cloned` of the clone; setup.py copies one to other.

    UserError where there are neither.
    """
    places = PACKAGE / packaged, CLONE / cloned
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"there is neither {places[0]} nor {places[1]}",
        "a file that comes with pmsplat",
        f"install pmsplat again, or restore the file with `git checkout {cloned}`",
    )
