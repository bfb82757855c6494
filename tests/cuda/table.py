"""`python -m tests.cuda.table [NAME ...] [--renew] [--waits] [--lines]`: what the fake device sees.

A line for each stage of the scenarios whose names contain one of the given words (all without), and
one for each Triton kernel that they launch: launches, the kernels that these are on a GPU by
estimate, waits of the host, MiB at the peak above what a step begins with. `--renew` writes them to
bounds.json and docs/cuda.md; `--waits` adds where the host waits, `--lines` what launches most.
`--processes N`: how many at a time.
"""

import argparse
import json
from collections.abc import Iterable

from . import fleet, page, shim
from .bounds import Bounds, row
from .fleet import Answer

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
LAUNCHING = (  # scenarios that together launch every Triton kernel of the package
    "draw auto", "draw resplat", "draw deterministic", "layers", "losses", "neighbors", "sweep",
)  # fmt: skip


def names() -> list[str]:
    """All scenarios."""
    from .jobs import jobs
    from .limits import limits
    from .scenarios import scenarios

    return [*scenarios(), *jobs(), *limits()]


def measure(scenarios: Iterable[str], processes: int | None = None) -> list[Answer]:
    """The reports of scenarios, in the order of their names; the progress is printed."""
    from .limits import NO_TRITON

    reports, left = [], list(scenarios)
    for module, chosen in (
        ("tests.cuda.worker", [name for name in left if not name.startswith(NO_TRITON)]),
        ("tests.cuda.without_triton", [name for name in left if name.startswith(NO_TRITON)]),
    ):
        if chosen:
            reports += fleet.run(module, chosen, _tell, processes)
    return sorted(reports, key=lambda report: report["asked"])


def compile_kernels(
    reports: list[Answer], capabilities: Iterable[int], processes: int | None = None
) -> dict[str, dict[str, Answer]]:
    """Registers and spills of every kernel that was launched: the most of its variants."""
    launches = {
        json.dumps(launch, sort_keys=True)
        for report in reports
        for found in report.get("kernels", {}).values()
        for launch in found
    }
    work = [
        f'{{"launch": {launch}, "capability": {capability}}}'
        for launch in sorted(launches)
        for capability in capabilities
    ]
    most: dict[str, dict[str, Answer]] = {}
    for found in fleet.run("tests.cuda.compilation", work, processes=processes):
        assert not found["error"], f"{found['asked']}: {found['error']}"
        kernel = most.setdefault(found["kernel"], {})
        before = kernel.get(found["capability"], found)
        kernel[found["capability"]] = max(
            found, before, key=lambda used: (used["spills"], used["registers"])
        )
    return most


def _tell(report: Answer) -> None:
    print(f"{'FAILED' if report['error'] else 'done  '} {report['asked']}", flush=True)


def show(report: Answer, waits: bool = False, lines: bool = False) -> None:
    """Prints a report."""
    for stage, found in report.get("stages", {}).items():
        launches, waiting, mib = row(found)
        counts = f"{launches:7} {found['estimate']:7} {waiting:5} {mib:7}"
        print(f"{report['asked']:40} {stage:26} {counts}")
        for place, count in found["waits"].items() if waits else ():
            print(f"{'':12}waits {count} times at {place}")
        for part in ("operators", "lines") if lines else ():
            most = ", ".join(f"{name} {count}" for name, count in found[part].items())
            print(f"{'':12}{part}: {most}")
    if report["error"]:
        print(report["error"])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.table")
    parser.add_argument("words", nargs="*", help="of names: who has one of them (default: all)")
    parser.add_argument("--renew", action="store_true", help="write what is seen to bounds.json")
    parser.add_argument("--waits", action="store_true", help="show where the host waits")
    parser.add_argument("--lines", action="store_true", help="show which lines launch most")
    parser.add_argument("--processes", type=int, help="at once (default: by cores)")
    given = parser.parse_args()
    if problem := shim.obstacle():
        parser.error(problem)
    chosen = [n for n in names() if not given.words or any(word in n for word in given.words)]
    if not chosen:
        parser.error(f"no scenario has {' or '.join(given.words)} in its name")
    reports = measure(chosen, given.processes)
    print(f"\n{'scenario':40} {'stage':26} launches kernels waits     MiB")
    for report in reports:
        show(report, given.waits, given.lines)
    launching = [report for report in reports if report["asked"] in LAUNCHING]
    kernels = compile_kernels(launching, CAPABILITIES, given.processes)
    for name, found in sorted(kernels.items()):
        used = ", ".join(
            f"sm_{capability} {x['registers']}/{x['spills']}" for capability, x in found.items()
        )
        print(f"{name}: registers/bytes spilled {used}")
    if given.renew:
        bounds = Bounds.read()
        bounds.renew(reports, whole=not given.words)
        if not given.words:
            bounds.kernels.clear()
        for name, found in sorted(kernels.items()):
            order = sorted(found.items(), key=lambda x: int(x[0]))
            bounds.kernels[name] = {c: [x["registers"], x["spills"]] for c, x in order}
        bounds.write()
        page.write("launches")
        page.write("registers")


if __name__ == "__main__":
    main()
