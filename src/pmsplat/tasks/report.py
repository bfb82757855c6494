"""Pages made of results that were measured earlier: the report of a few runs, a site of many."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..evaluate.pages.leaderboard import write_leaderboard
from ..evaluate.pages.report import write_report
from ..evaluate.runs import find_runs, name_runs, read_run
from ..io.files import check_folder


def report(
    results: Sequence[str | Path], output: str | Path, names: Sequence[str] | None = None
) -> Path:
    """Writes OUTPUT/index.html, table.md and table.tex of runs on the same scenes; the page.

    `results` are files that `pmsplat evaluate` wrote, or their folders; differences are to the
    first. `names` call the runs, None: by their models. Raises UserError for what is no such file,
    and for runs that do not compare.
    """
    check_folder(output)
    if not results:
        raise UserError("no file of results", "one or more", "give a results.json")
    return write_report(Path(output), name_runs([read_run(path) for path in results], names))


def leaderboard(folders: Sequence[str | Path], output: str | Path) -> Path:
    """Writes a site, OUTPUT/index.html, of all results in some folders or below them; the page.

    Runs of one protocol share a table. Raises UserError for a folder without results, and for
    damaged ones.
    """
    check_folder(output)
    site = Path(output).resolve()
    found = {path.resolve(): path for folder in folders for path in find_runs(folder)}
    paths = [path for full, path in found.items() if site not in full.parents]
    if not paths:
        raise UserError(
            f"no results but those of the site {output} itself",
            "folders into which `pmsplat evaluate` wrote",
            "give the folders of the runs",
        )
    runs = [read_run(path) for path in paths]
    return write_leaderboard(Path(output), runs)
