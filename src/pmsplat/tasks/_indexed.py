"""What an evaluation says of its index: the protocol, and what became of the entries."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import Listed, Skip, find_protocol, recognize
from ..errors import UserError, count_of, name_some
from ..evaluate.coverage import Coverage
from ..io.chunks import is_remote, read_file
from ..train.settings import Experiment


def check_index(experiment: Experiment, path: str | None) -> None:
    """UserError where a protocol has no index beside the data yet."""
    if experiment.protocol is None or path is None:
        return
    if is_remote(path) or Path(path).is_file():  # what an address lacks is said by its reader
        return
    named, root = find_protocol(experiment.protocol), Path(path).parent
    file = f"the authors' ({named.url})" if named.url else "the authors'"
    made = f"run `pmsplat data index {root} --protocol {named.name}`"
    raise UserError(
        f"there is no index of the protocol {named.name} at {path}",
        f"{file}, or one made from the cameras" if named.rule else file,
        made if named.rule else f"{made[:-1]} --fetch`",
    )


def describe_index(name: str | None, listed: Listed) -> dict[str, Any]:
    """The fields of results about the index: the protocol, and whether its frames are the authors'.

    UserError where the frames are of another protocol than was named.
    """
    known, named = recognize(listed.index), None if name is None else find_protocol(name)
    if named is not None:
        views = {len(frames.context) for frames in listed.index.values()}
        if (known is not None and known.name != named.name) or views != {named.views}:
            is_of = known.name if known else f"{', '.join(map(str, sorted(views)))} context views"
            raise UserError(
                f"an index of {is_of} for protocol={named.name}",
                f"one of {named.views} context views, of that protocol",
                "name the protocol of the index, or leave `dataset.index` out",
            )
    found = named or known
    official = None if found is None else found.is_official(listed.index)
    about = {"protocol": found.name if found else None, "official": official}
    return {"index": {**about, "frames": listed.frames}}


def hash_index(path: str | None, listed: Listed | None) -> str | None:
    """The SHA-256 of an index file, here or at an address; read where `listed` does not say it."""
    if listed is not None and listed.digest is not None:
        return listed.digest
    content = None if path is None else read_file(path)
    return None if content is None else hashlib.sha256(content).hexdigest()


def cover(listed: Listed | None, evaluated: int, damaged: int, left_out: int) -> Coverage:
    """What became of all entries; scenes that are `left_out` are `damaged` or unusable."""
    rest = {"damaged": damaged, "unusable": left_out - damaged}
    if listed is None:
        return Coverage(evaluated, **rest)
    found = Coverage(
        evaluated, null=listed.null, missing=len(listed.missing), beyond=listed.beyond, **rest
    )
    assert found.listed == listed.entries, f"{found} of {listed.entries} entries"
    return found


def describe_missing(listed: Listed | None) -> tuple[str, ...]:
    """A sentence about scenes of the index that the data lacks."""
    if listed is None or not listed.missing:
        return ()
    count = len(listed.missing)
    verb = "is" if count == 1 else "are"
    named = name_some(listed.missing)
    return (f"{count_of(count, 'scene')} of the index {verb} not in the data: {named}.",)


def describe_skips(skipped: Mapping[str, Skip]) -> tuple[str, ...]:
    """A sentence for each reason why scenes could not be read or used, with some of them."""
    reasons: dict[tuple[str, bool], list[str]] = {}
    for name, skip in skipped.items():
        named = f"{name} ({skip.detail})" if skip.detail else name
        reasons.setdefault((skip.reason, skip.whole), []).append(named)
    told = []
    for (reason, whole), names in reasons.items():
        has = "" if whole else "it has " if len(names) == 1 else "they have "
        count = count_of(len(names), "scene")
        told.append(f"{count} could not be measured: {has}{reason}: {name_some(names)}.")
    return tuple(told)
