"""Data sets of chunks from the hub; for others, where they are and what to do next."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import UserError, count_of, name_some
from ..io.chunks import INDEX
from ..io.files import in_bytes
from ..io.hub import TRANSFERS, Listing, RemoteFile, bytes_here, fetch_files, list_files
from ..progress import Track, silently
from ..registry import suggest


@dataclass(frozen=True)
class HubData:
    """A data set of chunks on the hub: its repository, and the folder where readers look for it."""

    repository: str
    folder: str


@dataclass(frozen=True)
class OtherData:
    """A data set that has to be got elsewhere: from where, and what makes chunks of it."""

    source: str
    then: str


HUB = {
    "re10k": HubData("lhmd/re10k_torch", "datasets/re10k"),
    "acid": HubData("lhmd/acid_torch", "datasets/acid"),
    "dl3dv-480p": HubData("haofeixu/dl3dv-480p-chunks", "datasets/dl3dv"),
    "dl3dv-960p": HubData("haofeixu/dl3dv-960p-chunks", "datasets/dl3dv_960"),
}
OTHERS = {
    "dtu": OtherData(
        "https://roboimagedata.compute.dtu.dk/?page_id=36",
        "give each scan a COLMAP model or a transforms.json and run "
        "`pmsplat data convert DTU/ datasets/dtu/test`",
    ),
    "scannet": OtherData(
        "http://www.scan-net.org (after signing its terms)",
        "export color/, pose/ and intrinsic/ of each scan with its SensReader and run "
        "`pmsplat data convert scans/ datasets/scannet/test`",
    ),
    "mipnerf360": OtherData(
        "https://jonbarron.info/mipnerf360/",
        "run `pmsplat data convert 360_v2/ datasets/mipnerf360/test --images images_4`",
    ),
    "dl3dv-raw": OtherData(
        "https://github.com/DL3DV-10K/Dataset (after accepting its terms)",
        "run `pmsplat data convert DL3DV-10K/ datasets/dl3dv/train --size 270x480`",
    ),
}


@dataclass(frozen=True)
class Summary:
    """Files that came now and those that were there, and the splits that are ready to be read."""

    fetched: int
    found: int
    folder: Path
    ready: tuple[str, ...]


def fetch(
    name: str,
    output: str | Path | None = None,
    subset: Sequence[str] = (),
    transfers: int = TRANSFERS,
    tell: Callable[[str], None] = print,
    track: Track = silently,
) -> Summary:
    """Downloads a data set of chunks into `output` (default: where its reader looks for it).

    `subset`: only files of these folders, or whose paths fit these patterns, such as "test" or
    "train/0000*". `tell` hears first how much is to come and how much room there is. What is there
    is not downloaded again, and an interrupted file goes on where it stopped; each is compared with
    the hash that the hub has of it before it gets its name. Raises UserError for a name that is not
    known, too small a disk, and a download that fails.
    """
    data = _find(name)
    folder = Path(data.folder if output is None else output)
    if transfers < 1:
        raise UserError(f"`transfers={transfers}`", "1 or more", "leave it out")
    listing = list_files(data.repository)
    files = _choose(listing, subset)
    here = sum((folder / file.path).is_file() for file in files)
    missing = [file for file in files if not (folder / file.path).is_file()]
    _check_room(listing, files, folder, tell)
    arrived = fetch_files(listing, missing, folder, transfers)
    for _ in track(arrived, f"fetching {name}", len(missing)):
        pass
    ready = tuple(path.parent.name for path in sorted(folder.glob(f"*/{INDEX}")))
    return Summary(len(missing), here, folder, ready)


def _find(name: str) -> HubData:
    if name in HUB:
        return HUB[name]
    if name in OTHERS:
        other = OTHERS[name]
        raise UserError(
            f"{name}, which has no copy on the hub in chunks",
            f"one of {', '.join(HUB)}",
            f"get it from {other.source}, then {other.then}",
        )
    known = [*HUB, *OTHERS]
    raise UserError(
        f"{name!r}, which is no data set", f"one of {', '.join(known)}", suggest(name, known)
    )


def _choose(listing: Listing, subset: Sequence[str]) -> list[RemoteFile]:
    """The files of a subset, all without one; UserError for a part of it that fits none."""
    files = [file for file in listing.files if not Path(file.path).name.startswith(".git")]
    chosen = {}
    for wanted in subset or ("*",):
        fits = [f for f in files if _is_in(f.path, wanted.rstrip("/"))]
        if not fits:
            tops = sorted({file.path.partition("/")[0] for file in files})
            raise UserError(
                f"`subset={wanted}`, which no file of {listing.repository} fits",
                f"a folder or a pattern, such as {name_some(tops)}" if tops else "files",
                "leave it out to get all",
            )
        chosen |= {file.path: file for file in fits}
    return [file for file in files if file.path in chosen]


def _is_in(path: str, wanted: str) -> bool:
    return path.startswith(f"{wanted}/") or fnmatchcase(path, wanted)


def _check_room(
    listing: Listing, files: Sequence[RemoteFile], folder: Path, tell: Callable[[str], None]
) -> None:
    """Says how much is to come, before the first byte; UserError where there is no room for it."""
    size = sum(file.size for file in files)
    here = sum(bytes_here(file, folder) for file in files)
    place = next((p for p in (folder, *folder.absolute().parents) if p.is_dir()), Path("/"))
    free = shutil.disk_usage(place).free
    tell(
        f"{listing.repository}: {count_of(len(files), 'file')} of {in_bytes(size)}, "
        f"{in_bytes(here)} of which are in {folder}; {in_bytes(size - here)} to download, "
        f"{in_bytes(free)} are free there."
    )
    if size - here > free:
        raise UserError(
            f"{in_bytes(size - here)} to download into {folder}, where {in_bytes(free)} are free",
            "room for all of it",
            "make room, choose an `output` on a larger disk, or only a `subset`",
        )
