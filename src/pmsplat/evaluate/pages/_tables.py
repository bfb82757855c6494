"""Tables and facts of runs as HTML."""

from collections.abc import Mapping, Sequence

from ...view.pages.markup import Markup, escape, join, tag
from ..protocol import Row
from ..runs import Protocol, Run, shorten_hash
from ._metrics import MAIN, METRICS, Metric
from ._plain import Grid

PALETTE = 6  # colors of runs in the style sheet; the seventh run has that of the first
UNKNOWN = tag("span", "unknown", class_="unknown")


def color(index: int) -> int:
    """The number of a run's color, from 1."""
    return index % PALETTE + 1


def swatch(index: int) -> Markup:
    """The color of a run, in front of its name."""
    return tag("span", class_=f"swatch back-{color(index)}", aria_hidden="true")


def named(index: int, name: str) -> Markup:
    return join([swatch(index), name], " ")


def scrolling(table: Markup, label: str, tall: bool = False) -> Markup:
    """A table that scrolls by itself where it is too wide, also by keyboard."""
    kind = "scroll tall" if tall else "scroll"
    return tag("div", table, class_=kind, role="region", aria_label=label, tabindex="0")


def write_grid(grid: Grid, title: str, caption: str | None = None) -> Markup:
    """A table of runs; None: its title is the caption."""
    head = tag("tr", *(tag("th", text, scope="col") for text in grid.head))
    rows = []
    for i, (first, *cells) in enumerate(grid.rows):
        written = [
            tag("td", tag("strong", cell.text) if cell.best else cell.text) for cell in cells
        ]
        rows.append(tag("tr", tag("th", named(i, first.text), scope="row"), *written))
    table = tag(
        "table",
        tag("caption", tag("span", " ".join(filter(None, (caption or title, grid.note))))),
        tag("thead", head),
        tag("tbody", *rows),
        class_="numbers",
    )
    return scrolling(table, title)


def write_scenes(runs: Sequence[Run], links: Mapping[str, str]) -> Markup:
    """Every scene with the metrics of every run, sortable; `links` lead to pictures of scenes."""
    metrics = [METRICS[key] for key in MAIN if all(key in run.means for run in runs)]
    metrics = metrics or [m for m in METRICS.values() if all(m.key in run.means for run in runs)]
    difference = metrics[0] if len(runs) == 2 and metrics else None
    top = [
        tag("th", named(i, run.name), colspan=len(metrics), scope="colgroup")
        for i, run in enumerate(runs)
    ]
    extra = tag("th", "difference", scope="colgroup") if difference else None
    heads = [sort_head("scene", "name"), sort_head("targets", "number")]
    heads += [sort_head(metric.heading, "number") for _ in runs for metric in metrics]
    if difference:
        heads.append(sort_head(f"Δ {difference.label}", "number"))
    tables = [run.by_scene for run in runs]
    rows = []
    for scene in tables[0]:
        name = tag("a", scene, href=f"#{links[scene]}") if scene in links else escape(scene)
        rows.append(_scene_row(name, [table[scene] for table in tables], metrics, difference))
    table = tag(
        "table",
        tag("caption", tag("span", f"{len(rows):,} scenes. A heading sorts by its column.")),
        tag("thead", tag("tr", tag("td", colspan=2), *top, extra), tag("tr", *heads)),
        tag("tbody", *rows),
        class_="numbers sortable",
    )
    return scrolling(table, "Every scene", tall=True)


def _scene_row(
    name: Markup, found: Sequence[Row], metrics: Sequence[Metric], difference: Metric | None
) -> Markup:
    best = {m.key: m.best(row.values.get(m.key) for row in found) for m in metrics}
    cells = [tag("td", str(found[0].targets))]
    for row in found:
        for metric in metrics:
            value = row.values.get(metric.key)
            text = metric.write(value)
            marked = len(found) > 1 and metric.is_best(value, best[metric.key])
            cells.append(tag("td", tag("strong", text) if marked else text, data_value=raw(value)))
    if difference:
        first, second = (row.values.get(difference.key) for row in found)
        gain = None if first is None or second is None else second - first
        cells.append(tag("td", difference.write(gain, sign=True), data_value=raw(gain)))
    return tag("tr", tag("th", name, scope="row"), *cells)


def sort_head(text: str, kind: str) -> Markup:
    """The heading of a column of a sortable table, of names or numbers."""
    return tag("th", tag("button", text, type="button"), scope="col", data_kind=kind)


def raw(value: float | None) -> str:
    """A number for the script that sorts; nothing for none."""
    return "" if value is None else repr(value)


def write_facts(index: int, run: Run) -> Markup:
    """Where a run comes from; what its file does not say is called unknown."""
    known = run.identity
    facts = [
        ("command", _code(known.get("command"))),
        ("commit", _hash(known.get("commit"))),
        ("version", _code(known.get("version"))),
        ("hardware", escape(known["hardware"]) if "hardware" in known else UNKNOWN),
        ("precision", escape(known["precision"]) if "precision" in known else UNKNOWN),
        ("weights", escape("none") if run.is_baseline else _hash(known.get("weights"))),
        ("index", join([run.protocol.index, _hash(known.get("index"))], " ")),
        ("scenes", escape(run.coverage.said) if run.coverage else UNKNOWN),
        ("cameras", escape(_say_poses(run))),
        *((name, escape(text)) for name, text in run.facts.items() if name != "poses"),
        ("results", _code(str(run.path))),
    ]
    pairs = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    notes = [tag("li", note) for note in run.notes]
    return tag(
        "article",
        tag("h3", named(index, run.name)),
        tag("dl", *pairs),
        tag("ul", *notes, class_="notes") if notes else None,
        class_="card facts",
    )


def write_protocol(protocol: Protocol, *more: str) -> Markup:
    """What all numbers of a table have in common, as a line of labels."""
    named = []
    if protocol.named:
        frames = ", other frames than the authors'" if protocol.official is False else ""
        named.append(f"protocol {protocol.named}{frames}")
    chips = [
        *named,
        f"pictures {protocol.size_text}",
        f"{protocol.poses} cameras",
        f"index {shorten_hash(protocol.index_hash)}"
        if protocol.index_hash
        else "index hash unknown",
        *more,
    ]
    return tag("ul", *(tag("li", chip) for chip in chips), class_="chips")


def say_count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _say_poses(run: Run) -> str:
    poses = run.facts.get("poses")
    return f"{run.protocol.poses}, by {poses}" if poses else run.protocol.poses


def _code(text: str | None) -> Markup:
    return tag("code", text) if text else UNKNOWN


def _hash(text: str | None) -> Markup:
    """The first digits of a hash; all of them where the pointer rests."""
    if not text:
        return UNKNOWN
    short = shorten_hash(text)
    return tag("code", short, title=text if short != text else None)
