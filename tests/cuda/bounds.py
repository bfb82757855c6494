"""What may be: waits of the host by place and reason, launches and bytes by stage, registers.

All of it is in bounds.json, which a change that costs or saves something must touch:
`python -m tests.cuda.table --renew` writes what is measured now. New waits come without a reason,
and the test refuses them until somebody has written one.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fleet import Answer

PATH = Path(__file__).with_name("bounds.json")
MIB = 2**20
SLACK = 1.03  # versions of torch differ by a few kernels and bytes
# Stages in which more may wait than in a step: around it, and where constants are made
LAST = ("job", "other steps", "end", "capture")
Row = list[int]  # launches, waits, MiB at the peak


@dataclass
class Bounds:
    """The content of the file.

    `waits["step"]` holds for training steps, predictions and drawings; `waits["job"]` for what lies
    around them in whole jobs. A wait is allowed where its place begins with one of their keys.
    `stages[scenario][stage]` are launches, waits and MiB; `kernels` are registers and bytes
    spilled, by kernel, types of its tensors, and capability.
    """

    waits: dict[str, dict[str, str]]
    stages: dict[str, dict[str, Row]]
    kernels: dict[str, dict[str, Row]]

    @staticmethod
    def read() -> "Bounds":
        return Bounds(**json.loads(PATH.read_text()))

    def write(self) -> None:
        """One line for each wait, stage and kernel, in the order of their names."""
        parts = {"waits": self.waits, "stages": self.stages, "kernels": self.kernels}
        PATH.write_text(_lines(parts, depth=3) + "\n")

    def allowed(self, stage: str) -> dict[str, str]:
        """The places that may wait in a stage, and why."""
        step = self.waits["step"]
        return step | self.waits["job"] if stage in LAST else step

    def check(self, report: Answer) -> list[str]:
        """What of a scenario's report is not as it may be, a sentence each."""
        if report["error"]:
            return [report["error"]]
        bounds = self.stages.get(report["asked"], {})
        if set(bounds) != set(report["stages"]):
            return [f"stages {sorted(report['stages'])}, but bounds for {sorted(bounds)}"]
        said = []
        for name, found in report["stages"].items():
            allowed = self.allowed(name)
            said += [f"{name} waits at {p}" for p in found["waits"] if not _covers(allowed, p)]
            for what, now, bound in zip(
                ("launches", "waits", "MiB"), row(found), bounds[name], strict=True
            ):
                if now > bound * SLACK + (what != "waits"):
                    said.append(f"{name}: {now} {what}, more than {bound}")
        return said

    def renew(self, reports: list[Answer], whole: bool) -> None:
        """Takes over what was measured; `whole`: forgets waits and scenarios that are no more."""
        seen: dict[str, set[str]] = {"step": set(), "job": set()}
        for report in reports:
            assert not report["error"], report["error"]
            stages = report["stages"]
            self.stages[report["asked"]] = {name: row(found) for name, found in stages.items()}
            for name, found in stages.items():
                seen["job" if name in LAST else "step"] |= found["waits"].keys()
        for kind in ("step", "job"):  # what a step may do, a job may do anyway
            known = self.waits[kind]
            covered = self.waits["step"] if kind == "job" else {}
            places = {place for place in seen[kind] if not _covers(covered, place)}
            kept = {key for key in known if not whole or any(p.startswith(key) for p in places)}
            new = {place for place in places if not _covers(known, place)}
            self.waits[kind] = {key: known.get(key, "") for key in sorted(kept | new)}
        names = {report["asked"] for report in reports} if whole else self.stages
        self.stages = {name: self.stages[name] for name in sorted(names)}


def _covers(known: Iterable[str], place: str) -> bool:
    return any(place.startswith(key) for key in known)


def row(found: dict[str, Any]) -> Row:
    """Launches, waits and MiB of a stage."""
    return [found["launches"], sum(found["waits"].values()), -(-found["peak"] // MIB)]


def _lines(value: Any, depth: int, indent: str = "") -> str:
    """JSON with a line for every entry down to a depth."""
    if not depth or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    rows = (f"{inner}{json.dumps(k)}: {_lines(v, depth - 1, inner)}" for k, v in value.items())
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
