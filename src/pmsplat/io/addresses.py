"""Small files from an address on the web."""

import urllib.error
import urllib.request
from pathlib import Path

from ..errors import UserError
from .files import check_folder, write_bytes

PATIENCE = 30  # seconds without an answer
MOST = 64_000_000  # bytes


def fetch_file(url: str, path: str | Path) -> None:
    """Downloads a file of a few megabytes, whole or not at all.

    UserError where it cannot be had, or is larger than MOST.
    """
    check_folder(Path(path).parent)
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            content = answer.read(MOST + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url} cannot be fetched ({reason})",
            f"that file as {path}",
            "try again, or download it by hand",
        ) from error
    if len(content) > MOST:
        raise UserError(
            f"{url} of more than {MOST / 1e6:.0f} MB", "a small file", "check the address"
        )
    write_bytes(path, content)
