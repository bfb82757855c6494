"""The page of `inspect`."""

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from ...errors import name_some
from ...view.pages.charts import draw_histogram
from ...view.pages.frame import Page, Section
from ...view.pages.markup import Markup, join, tag
from ...view.pages.paths import draw_plan, look_down
from ..options import format_size
from ..verify import Verified
from ._survey import Sample, Survey, Thumbnail

NARROW = 0.5  # degrees by which cameras of a scene may differ and still have one field of view


def make_page(path: Path, splits: Sequence[Survey]) -> Page:
    """The page about some splits of the dataset, or the one split, at `path`."""
    sections = [
        Section("totals", "Totals", _write_totals(splits)),
        Section("verified", "What the check found", _write_checks(splits)),
        Section("distributions", "The sample in numbers", _write_distributions(splits)),
    ]
    for number, split in enumerate(splits):
        heading = f"Scenes of {split.folder.name}" if len(splits) > 1 else "Scenes of the sample"
        sections.append(Section(f"scenes-{number}", heading, _write_samples(split, number)))
    full = path.resolve()
    title = full.name
    if len(splits) == 1 and splits[0].folder.resolve() == full:
        title = f"{full.parent.name}/{full.name}"
    return Page(
        "pmsplat dataset",
        title,
        _introduce(splits),
        sections,
        skip="Skip to the totals",
        closing="Made by pmsplat. This page needs no network and no other file.",
    )


def _introduce(splits: Sequence[Survey]) -> Markup:
    scenes, sample = sum(s.scenes for s in splits), sum(len(s.samples) for s in splits)
    names = " and ".join(split.folder.name for split in splits)
    said = f"{_count(scenes, 'scene')} in {names}. "
    if sample == scenes:
        said += "All of them are shown here."
    else:
        said += (
            f"This page shows a sample of {sample:,}, spread evenly over the index"
            f"{' of each split' if len(splits) > 1 else ''}."
        )
    return tag("p", said, class_="lead")


# Totals


def _write_totals(splits: Sequence[Survey]) -> Markup:
    scenes, chunks = sum(s.scenes for s in splits), sum(s.chunks for s in splits)
    sizes = _add_sizes(splits)
    size, more = "–", "no photograph could be read"
    if sizes:
        (first, count), *others = sizes.most_common()
        size = format_size(first)
        of = "scenes" if all(split.verified for split in splits) else "scenes that were looked at"
        more = f"height x width of {count:,} of {sum(sizes.values()):,} {of}"
        if others:
            more += "; also " + name_some([format_size(other) for other, _ in others])
    photos, how = _write_photos(splits)
    tiles = [
        _write_tile("Scenes", f"{scenes:,}", f"in {_count(len(splits), 'split')}"),
        _write_tile("Photographs", photos, how),
        _write_tile(
            "On the disk",
            _write_bytes(sum(s.bytes for s in splits)),
            f"in {_count(chunks, 'chunk')}",
        ),
        _write_tile("Size", size, more),
    ]
    table = _write_table(splits) if len(splits) > 1 else None
    return join([tag("div", *tiles, class_="cards totals"), table])


def _write_tile(heading: str, figure: str, more: str) -> Markup:
    line = tag("li", tag("span", figure, class_="figure"))
    note = tag("p", more, class_="whose")
    return tag("article", tag("h3", heading), tag("ul", line), note, class_="card tile")


def _write_photos(splits: Sequence[Survey]) -> tuple[str, str]:
    """How many photographs, and how that is known."""
    counts = [split.photos for split in splits]
    known = [count for count in counts if count is not None]
    if not known or len(known) < len(counts):
        return "–", "no scene of a split could be read"
    if all(split.is_counted for split in splits):
        usable = any(s.verified is not None and s.verified.whole < s.scenes for s in splits)
        return f"{sum(known):,}", "in scenes that can be used" if usable else "all counted"
    total = sum(known)
    digits = max(0, len(str(total)) - 2)  # an estimate has no more than two
    return f"≈ {round(total, -digits):,}", "estimated from the sample"


def _add_sizes(splits: Sequence[Survey]) -> Counter[tuple[int, int]]:
    return sum((split.sizes for split in splits), Counter[tuple[int, int]]())


def _write_table(splits: Sequence[Survey]) -> Markup:
    head = ("split", "scenes", "photographs", "chunks", "on the disk", "sizes", "in the sample")
    rows = []
    for split in splits:
        sizes = name_some([format_size(size) for size, _ in split.sizes.most_common()])
        cells = (
            f"{split.scenes:,}",
            _write_photos([split])[0],
            f"{split.chunks:,}",
            _write_bytes(split.bytes),
            sizes or "–",
            f"{len(split.samples):,}",
        )
        name = tag("th", split.folder.name, scope="row")
        rows.append(tag("tr", name, *(tag("td", cell) for cell in cells)))
    return _write_scrolling("Each split", head, rows)


def _write_scrolling(
    caption: str, head: Sequence[str], rows: Sequence[Markup], kind: str | None = None
) -> Markup:
    table = tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", *(tag("th", text, scope="col") for text in head))),
        tag("tbody", *rows),
        class_=kind,
    )
    return tag("div", table, class_="scroll", role="region", aria_label=caption, tabindex="0")


# What the check found


def _write_checks(splits: Sequence[Survey]) -> Markup:
    return join(_write_check(split, len(splits) > 1) for split in splits)


def _write_check(split: Survey, named: bool) -> Markup:
    heading = tag("h3", split.folder.name) if named else None
    if split.verified is not None:
        return join([heading, _write_verified(split.verified)])
    command = tag("code", f"pmsplat data verify {split.folder}")
    state = "Chunks have been added or changed since the last check" if split.checked else (
        "Nobody has checked this split yet"
    )  # fmt: skip
    said = tag("p", state, ": ", command, " reads every byte, photo and camera.")
    rows = [
        _write_trouble(reason, (name,), kind, False)
        for kind, found in (("chunk", split.quarantine.chunks), ("scene", split.quarantine.scenes))
        for name, reason in found.items()
    ]
    if not rows:
        return join([heading, tag("div", said, class_="empty")])
    table = _write_scrolling(
        "Left out by quarantine.json", ("reason", "what", "which", "in training"), rows, "words"
    )
    return join([heading, said, table])


def _write_verified(found: Verified) -> Markup:
    """A sentence, the troubles as a table, and notes."""
    lost = found.scenes - found.whole
    state = f"All {_count(found.scenes, 'scene')} can be used"
    if lost:
        state = f"{found.whole:,} of {_count(found.scenes, 'scene')} can be used"
    kind = "good" if not lost and found.indexed else "bad"
    said = tag("p", tag("strong", f"{state}."), f" They have {_count(found.photos, 'photograph')}.")
    rows = [
        _write_trouble(
            row.reason,
            row.names,
            "?" if row.scenes is None else _count(row.scenes, "scene"),
            row.used,
        )
        for row in found.rows
    ]
    head = ("found", "in", "which", "in training")
    table = _write_scrolling("Each trouble once", head, rows, "words") if rows else None
    notes = tag("ul", *(tag("li", note) for note in found.notes), class_="notes")
    return join(
        [tag("div", said, class_=f"state {kind}"), table, notes if found.notes else None]
    )  # fmt: skip


def _write_trouble(reason: str, names: Sequence[str], scenes: str, used: bool) -> Markup:
    effect = tag("span", "used" if used else "left out", class_=None if used else "fault")
    cells = (scenes, name_some(names), effect)
    return tag("tr", tag("th", reason, scope="row"), *(tag("td", cell) for cell in cells))


# Distributions


def _write_distributions(splits: Sequence[Survey]) -> Markup:
    samples = [sample for split in splits for sample in split.opened]
    if not samples:
        return tag("p", "No scene of the sample could be read.", class_="empty")
    all_of_them = len(samples) == sum(split.scenes for split in splits)
    whole = len(samples) == sum(len(split.samples) for split in splits)
    of = f"a sample of {_count(len(samples), 'scene')}"
    if not whole:
        of = f"the {_count(len(samples), 'scene')} that could be read"
    if all_of_them:
        of = "all scenes"
    said = f"Of {of}. A length is in the unit of its scene, which may differ."
    intro = tag("p", said, class_="quiet")
    fields = [float(s.fields[:, 0].mean()) for s in samples if s.fields is not None]
    frames, lengths = [s.frames for s in samples], [s.length for s in samples]
    charts = {
        "Photographs of a scene": draw_histogram(frames, "Photographs", "scenes"),
        "Length of the path": draw_histogram(lengths, "Lengths of paths", "scenes"),
        "Horizontal field of view": draw_histogram(fields, "Fields of view", "scenes", "°"),
    }
    cards = [
        tag("article", tag("h3", name), chart, class_="card") for name, chart in charts.items()
    ]
    return join([intro, tag("div", *cards, class_="cards charts")])


# Scenes


def _write_samples(split: Survey, number: int) -> Markup:
    count = len(split.samples)
    said = f"{count:,} of {_count(split.scenes, 'scene')}, spread evenly over the index."
    if count == split.scenes:
        said = f"All {_count(count, 'scene')}."
    if not count:
        return tag("p", "No scene of this split is in the sample.", class_="empty")
    legend = tag(
        "p",
        said + " Paths are seen from above, with the first camera looking up the page: ",
        _write_mark("start"),
        ", ",
        _write_mark("end"),
        ", ticks are directions of view, the bar is a length in the unit of the scene.",
    )
    cards = [_write_sample(sample, f"scene-{number}-{i}") for i, sample in enumerate(split.samples)]
    return join([legend, tag("div", *cards, class_="cards wide")])


def _write_mark(name: str) -> Markup:
    mark = tag("span", class_=f"mark-{name}", aria_hidden="true")
    return tag("span", mark, f" {name}", class_="mark")


def _write_sample(sample: Sample, id: str) -> Markup:
    heading = tag("h3", sample.key, id=id)
    if not sample.frames or sample.c2w is None:
        said = tag("p", f"This scene cannot be used: {sample.fault}.", class_="no-photo")
        return tag(
            "article", heading, said, class_="card sample", aria_labelledby=id
        )  # fmt: skip
    pictures = [_write_thumbnail(sample, thumbnail) for thumbnail in sample.thumbnails]
    odd = tag("ul", *(tag("li", text) for text in sample.oddities), class_="oddities")
    return tag(
        "article",
        heading,
        tag("div", *pictures, class_="strip"),
        tag("div", _write_plan(sample), _write_facts(sample), class_="beside"),
        odd if sample.oddities else None,
        class_="card sample",
        aria_labelledby=id,
    )


def _write_thumbnail(sample: Sample, thumbnail: Thumbnail) -> Markup:
    which = f"Photo {thumbnail.frame + 1} of {sample.frames} of {sample.key}"
    if thumbnail.webp is None:
        return tag("p", f"Photo {thumbnail.frame + 1} cannot be decoded", class_="no-photo")
    data = base64.b64encode(thumbnail.webp).decode()
    height, width = thumbnail.size
    return tag(
        "img", src=f"data:image/webp;base64,{data}", alt=which, title=which, width=width,
        height=height, decoding="async",
    )  # fmt: skip


def _write_plan(sample: Sample) -> Markup:
    assert sample.c2w is not None
    moved = f"{sample.length:.3g} long" if sample.length else "in one place"
    said = f"Path of {_count(sample.frames, 'camera')} of {sample.key} from above, {moved}."
    return draw_plan(look_down(sample.c2w), said)


def _write_facts(sample: Sample) -> Markup:
    assert sample.fields is not None
    across, up = (_write_range(column.tolist()) for column in sample.fields.unbind(dim=1))
    near_far = "none"
    if sample.near_far is not None:
        near_far = f"{sample.near_far[0]:.3g} to {sample.near_far[1]:.3g}"
    facts = {
        "photographs": f"{sample.frames:,}",
        "size": format_size(sample.size) if sample.size else "–",
        "field of view": f"{across} × {up}",
        "near, far": near_far,
        "path": f"{sample.length:.3g} long" if sample.length else "none",
        "depth maps": "yes" if sample.has_depth else None,
        "chunk": sample.chunk,
    }
    rows = [
        tag("div", tag("dt", name), tag("dd", value))
        for name, value in facts.items()
        if value is not None
    ]
    return tag("div", tag("dl", *rows), class_="facts")


def _write_range(degrees: Sequence[float]) -> str:
    low, high = min(degrees), max(degrees)
    return f"{mean(degrees):.0f}°" if high - low < NARROW else f"{low:.0f} to {high:.0f}°"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _write_bytes(count: int) -> str:
    megabytes = count / 1e6
    return f"{megabytes / 1e3:,.1f} GB" if megabytes >= 9999.5 else f"{megabytes:,.1f} MB"
