"""A static site of many runs: one table for each protocol, each row with its report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from ...io.files import write_bytes, write_text
from ...view.pages.frame import GENERATOR, PAGE, Page, Section, check_place, write_page
from ...view.pages.markup import Markup, join, tag
from ..fitted import GIVEN
from ..pictures import FOLDER, file_name
from ..runs import RESULTS, Protocol, Run, find_other_photos, name_runs, shorten_hash
from ._metrics import (
    MAIN,
    METRICS,
    MISSING,
    Cost,
    Metric,
    explain_marks,
    find_costs,
    find_metrics,
)
from ._tables import raw, say_count, scrolling, sort_head, write_protocol
from .report import LATEX, MARKDOWN

RUNS = "runs"  # folder of the site: a folder for each run, with its results and its report
SHOWN = (*MAIN, "abs_rel", "delta1")  # metrics of a table
PLACES = ("", "report")  # where, beside results.json, a report may lie


@dataclass(frozen=True)
class Entry:
    """A run of the site, and what its row leads to (addresses; None: there is no report)."""

    run: Run
    results: str
    report: str | None


def write_leaderboard(folder: Path, runs: Sequence[Run]) -> Path:
    """Writes a site that can be published as it is; the path of its page.

    Runs of one protocol and of the same photographs share a table, sorted by PSNR; others have
    tables of their own. Files of results and reports that lie beside them (in the same folder, or
    in report/) are copied.
    """
    check_place(folder / PAGE)
    groups: list[list[Entry]] = []
    for number, run in enumerate(runs, start=1):
        fitting = (group for group in groups if all(_compare(entry.run, run) for entry in group))
        entry, group = _copy(folder, run, number), next(fitting, None)
        groups.append([entry]) if group is None else group.append(entry)
    groups.sort(key=lambda group: (-len(group), group[0].run.protocol.key))
    times = Counter(group[0].run.protocol.key for group in groups)
    sections = [
        _write_group(i, Group.of(group), alone=times[group[0].run.protocol.key] == 1)
        for i, group in enumerate(groups, start=1)
    ]
    protocols = say_count(len(times), "protocol")
    said = f"{say_count(len(runs), 'run')} by {protocols}. Numbers compare within a table only."
    page = Page(
        "pmsplat leaderboard",
        "Feed-forward 3D Gaussian Splatting",
        tag("p", said, class_="lead"),
        sections,
    )
    write_text(folder / ".nojekyll", "")  # GitHub Pages then serves every file as it is
    return write_page(folder / PAGE, page)


def _compare(one: Run, other: Run) -> bool:
    """Whether their numbers do."""
    return one.protocol.key == other.protocol.key and find_other_photos(one, other) is None


def _copy(folder: Path, run: Run, number: int) -> Entry:
    """The files of a run in the site."""
    place = Path(RUNS, f"{number:03d}-{file_name(run.name)}")
    write_bytes(folder / place / RESULTS, run.path.read_bytes())
    results = quote((place / RESULTS).as_posix())
    for source in (run.folder / name for name in PLACES):
        page = source / PAGE
        if not page.is_file() or GENERATOR.encode() not in page.read_bytes()[:2000]:
            continue
        files = [source / MARKDOWN, source / LATEX, *(source / FOLDER).rglob("*.webp"), page]
        for file in files:
            if file.is_file():
                write_bytes(folder / place / file.relative_to(source), file.read_bytes())
        return Entry(run, results, quote((place / PAGE).as_posix()))
    return Entry(run, results, None)


@dataclass(frozen=True)
class Group:
    """The runs of one protocol, and what its table has of them."""

    entries: Sequence[Entry]
    metrics: Sequence[Metric]
    costs: Sequence[Cost]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Group":
        runs = name_runs([entry.run for entry in entries])
        entries = [replace(entry, run=run) for entry, run in zip(entries, runs, strict=True)]
        means = [run.means for run in runs]
        metrics = [METRICS[key] for key in SHOWN if any(key in mean for mean in means)]
        return cls(entries, metrics or find_metrics(means), find_costs(runs))

    @property
    def scenes(self) -> set[str]:
        """Those of the run that measured most."""
        return max((set(entry.run.by_scene) for entry in self.entries), key=len)

    def split(self) -> tuple[list[Entry], list[Entry]]:
        """The runs that measured all scenes, from the best, and the others."""
        scenes = self.scenes
        whole = [entry for entry in self.entries if set(entry.run.by_scene) >= scenes]
        rest = [entry for entry in self.entries if entry not in whole]
        return sorted(whole, key=self._order), sorted(rest, key=self._order)

    def rank(self, whole: Sequence[Entry]) -> list[int]:
        """The places, from 1, of runs from the best; those that look equal share one."""
        values = [self._order(entry, rounded=True) for entry in whole]
        return [1 + values.index(value) for value in values]

    def _order(self, entry: Entry, rounded: bool = False) -> float:
        if not self.metrics:
            return 0
        metric = self.metrics[0]
        value = entry.run.means.get(metric.key)
        if value is None:
            return float("inf")
        value = round(value, metric.decimals) if rounded else value
        return -value if metric.rises else value


def _write_group(number: int, group: Group, alone: bool) -> Section:
    """A table: the best first, without a rank what lacks scenes; `alone`: of its protocol."""
    whole, rest = group.split()
    best = {m.key: m.best(e.run.means.get(m.key) for e in whole) for m in group.metrics}
    ranks = group.rank(whole)
    rows = [_write_row(group, e, rank, best) for e, rank in zip(whole, ranks, strict=True)]
    rows += [_write_row(group, entry, None, {}) for entry in rest]
    heads = [
        sort_head("#", "number"),
        sort_head("model", "name"),
        *(sort_head(metric.heading, "number") for metric in group.metrics),
        sort_head("scenes", "number"),
        *(sort_head(cost.heading, "number") for cost in group.costs),
    ]
    caption = "A heading sorts by its column. The best is bold."
    if not alone:
        caption += " Another table of this protocol is of other photographs, by their hashes."
    if rest:
        caption += " Runs that lack scenes have no rank: their means are over others."
    if note := explain_marks(group.costs, [entry.run for entry in group.entries]):
        caption += f" {note}."
    found = [entry.run.coverage for entry in whole if entry.run.coverage is not None]
    if short := [coverage for coverage in found if not coverage.complete]:
        caption += f" Not all scenes of the index: {short[0].said}."
    table = tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *rows),
        class_="numbers sortable board",
    )
    protocol = group.entries[0].run.protocol
    dataset = [f"dataset {protocol.dataset}"] if protocol.dataset else []
    title = _name_group(protocol)
    chips = write_protocol(protocol, say_count(len(group.scenes), "scene"), *dataset)
    return Section(f"protocol-{number}", title, join([chips, scrolling(table, title)]))


def _write_row(
    group: Group, entry: Entry, rank: int | None, best: Mapping[str, float | None]
) -> Markup:
    """A run; `rank` is None where it lacks scenes."""
    run, means = entry.run, entry.run.means
    count = f"{len(run.rows):,}"
    if run.coverage is not None and not run.coverage.complete:
        count = f"{len(run.rows):,} of {run.coverage.wanted:,}"
    elif rank is None:
        count = f"{len(group.scenes & set(run.by_scene)):,} of {len(group.scenes):,}"
    cells = []
    for metric in group.metrics:
        value = means.get(metric.key)
        text = metric.write(value)
        marked = metric.is_best(value, best.get(metric.key))
        cells.append(tag("td", tag("strong", text) if marked else text, data_value=raw(value)))
    cells.append(tag("td", count, data_value=raw(len(run.rows))))
    for cost in group.costs:
        cells.append(tag("td", cost.write(run), data_value=raw(run.cost.get(cost.key))))
    links = [tag("a", "results", href=entry.results, aria_label=f"Results of {run.name}")]
    if entry.report:
        links.insert(0, tag("a", "report", href=entry.report, aria_label=f"Report of {run.name}"))
    commit = run.identity.get("commit", "")
    code = tag("code", shorten_hash(commit)) if commit else "commit unknown"
    made = [run.identity.get("hardware", "hardware unknown"), code]
    below = [join(links, " · "), join(made, " · ")]
    return tag(
        "tr",
        tag("td", MISSING if rank is None else str(rank), data_value=raw(rank)),
        tag(
            "th",
            tag("span", run.name),
            *(tag("small", line) for line in below),
            scope="row",
            data_value=run.name,
        ),
        *cells,
    )


def _name_group(protocol: Protocol) -> str:
    poses = "" if protocol.poses == GIVEN else f", {protocol.poses} cameras"
    size = protocol.size_text.replace(" ", "\N{NO-BREAK SPACE}")
    return f"{protocol.title}, {size}{poses}"
