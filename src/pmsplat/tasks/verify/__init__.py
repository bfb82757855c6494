"""Checks every byte of a split of chunks, and writes down what training has to leave out."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ...data import ChunkFacts, SceneFacts, examine_chunk
from ...errors import UserError
from ...io.chunks import INDEX, check_local, write_quarantine
from ...progress import Track, silently
from ..jobs import collect_warnings, count_jobs, run_jobs
from ._journal import JOURNAL, Journal, read_facts
from ._ledger import Ledger, Row, Verified

__all__ = ["JOURNAL", "Row", "Verified", "find_splits", "read_verified", "verify"]


def verify(
    path: str | Path,
    jobs: int | None = None,
    again: bool = False,
    tell: Callable[[str], None] = print,
    track: Track = silently,
) -> list[Verified]:
    """Checks a split of chunks, or every split of a dataset, and writes their quarantine.json.

    `jobs` processes (None: one for each processor) look at the chunks. What is found out about a
    chunk is kept in verified.jsonl, so that an interrupted run goes on where it stopped, and a
    later one looks only at chunks that are new or changed, by size and time; `again`: at all of
    them. `tell` hears where nothing can be kept, because the folder cannot be written. Raises
    UserError for a path without chunks.
    """
    jobs = count_jobs(jobs)
    verified: list[Verified] = []
    others: dict[str, dict[str, SceneFacts]] = {}
    for folder in find_splits(path):
        files = sorted(folder.glob("*.torch"))
        journal = Journal(folder, again, tell)
        missing = [file for file in files if file not in journal]
        results = run_jobs(_examine, missing, jobs)
        progress = track(results, f"checking {folder.name}", len(missing))
        for file, facts in zip(missing, progress, strict=True):
            journal.add(file, facts)
        ledger = Ledger(folder, {file.name: journal[file] for file in files})
        ledger.compare_splits(others)
        others[folder.name] = ledger.usable
        verified.append(ledger.summarize(found=len(files) - len(missing)))
        if journal.writable:
            write_quarantine(folder, verified[-1].quarantine)
    return verified


def read_verified(folders: Sequence[Path]) -> list[Verified | None]:
    """What an earlier `verify` of some splits of a dataset found out; no chunk is opened.

    None for a split with a chunk that it has not looked at, or that has changed since.
    """
    verified: list[Verified | None] = []
    others: dict[str, dict[str, SceneFacts]] = {}
    for folder in folders:
        files, facts = sorted(folder.glob("*.torch")), read_facts(folder)
        if not files or any(file.name not in facts for file in files):
            verified.append(None)
            continue
        ledger = Ledger(folder, {file.name: facts[file.name] for file in files})
        ledger.compare_splits(others)
        others[folder.name] = ledger.usable
        verified.append(ledger.summarize(found=len(files)))
    return verified


def find_splits(path: str | Path) -> list[Path]:
    """The folder itself, if it has chunks, else those in it that have; UserError if none has."""
    check_local(path)
    path = Path(path)

    def has_chunks(folder: Path) -> bool:
        return (folder / INDEX).is_file() or any(folder.glob("*.torch"))

    if not path.is_dir():
        raise UserError(f"there is no folder {path}", "a folder of chunks", "check the path")
    inside = sorted(folder for folder in path.iterdir() if folder.is_dir())
    found = [path] if has_chunks(path) else [folder for folder in inside if has_chunks(folder)]
    if not found:
        raise UserError(
            f"{path} holds no chunk",
            "NNNNNN.torch files, in it or in train/ and test/",
            "check the path",
        )
    return found


def _examine(file: Path) -> ChunkFacts:
    with collect_warnings():  # the facts say them
        return examine_chunk(file)
