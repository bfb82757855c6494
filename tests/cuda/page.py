"""`python -m tests.cuda.page [PART ...]`: writes tables of docs/cuda.md anew (all without PART).

`launches` and `registers` come from bounds.json; what launches were before is kept from the page as
it is. `errors` are measured, in Triton's interpreter, which takes minutes.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

from .bounds import Bounds, Row

PAGE = Path(__file__).parents[2] / "docs" / "cuda.md"
STAGES = ("encode", "render", "losses", "backward", "update")
CASE = "2 tf32"  # of training: views and precision
ARROW = " → "


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.page")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    for part in parser.parse_args().parts or PARTS:
        write(part)


def write(part: str) -> None:
    """Puts a table into the page."""
    PAGE.write_text(renewed(PAGE.read_text(), part))


def renewed(page: str, part: str) -> str:
    """The page with one of its tables written anew."""
    found = re.search(rf"(<!-- {part} -->\n\n)(.*?)(\n\n<!-- end -->)", page, re.DOTALL)
    assert found is not None, f"no table of {part}"
    return page[: found.start(2)] + PARTS[part](found[2]) + page[found.end(2) :]


def launches(before: str) -> str:
    """A row for each scenario of training and of prediction: launches, waits and MiB by stage."""
    earlier = {
        (row[0], stage): cell.partition(ARROW)[0]
        for row in _cells(before)
        for stage, cell in zip(STAGES, row[1:], strict=True)
        if ARROW in cell
    }
    rows, known = [], Bounds.read().stages
    for name in known:
        kind, stages = name.partition(" ")[0], known[name] | known.get(f"{name}, other views", {})
        if kind not in ("train", "predict") or name.endswith(", other views"):
            continue
        cells = []
        for stage in STAGES:
            now = stages.get(f"{CASE} {stage}" if kind == "train" else stage)
            was = earlier.get((f"`{name}`", stage))
            cells.append(" " if now is None else f"{was}{ARROW}{_say(now)}" if was else _say(now))
        if any(cell.strip() for cell in cells):
            rows.append([f"`{name}`", *cells])
    return _table(["scenario", *STAGES], rows)


def _say(row: Row) -> str:
    return "/".join(map(str, row))


def registers(before: str) -> str:
    """A row for each kernel, a column for each capability."""
    kernels = Bounds.read().kernels
    capabilities = sorted({c for found in kernels.values() for c in found}, key=int)
    rows = [
        [f"`{name.rpartition('.')[2]}`", *(_say(found[c]) for c in capabilities)]
        for name, found in sorted(kernels.items())
    ]
    return _table(["kernel", *(f"sm_{c}" for c in capabilities)], rows)


def errors(before: str) -> str:
    """A row for each drawing, and for each other kernel its worst case."""
    from .errors import KERNELS, Error, measure

    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        every = dict(zip(KERNELS, pool.map(measure, KERNELS), strict=True))
    found = [(error, 1) for error in every.pop("rasterizer")]
    others: dict[str, list[Error]] = {}
    for error in chain.from_iterable(every.values()):
        others.setdefault(error.kernel, []).append(error)
    for cases in others.values():
        worst = max(cases, key=lambda error: max(error.values, error.gradients or 0))
        found.append((worst, len(cases)))
    rows = [
        [
            error.kernel,
            error.case if count == 1 else f"the worst of {count}: {error.case}",
            *(" " if x is None else f"{x:.0e}" for x in (error.values, error.gradients)),
            " " if error.rounding is None else " ".join(f"{x:.0e}" for x in error.rounding),
        ]
        for error, count in found
    ]
    return _table(["kernel", "case", "values", "gradients", "float32 reference"], rows)


PARTS: dict[str, Callable[[str], str]] = {
    "launches": launches,
    "registers": registers,
    "errors": errors,
}


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(table: str) -> list[list[str]]:
    """The rows of a table, without its head."""
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


if __name__ == "__main__":
    main()
