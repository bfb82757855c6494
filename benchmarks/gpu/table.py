"""The figures of a run as a table that fits into the end of a terminal's output."""

from typing import Any

WIDTH = 11_000  # characters of the whole table
COLUMNS = (("ms", "ms"), ("busy_ms", "busy"), ("launches", "launches"), ("peak_mib", "MiB"))
HIDDEN = {
    "low_ms", "high_ms", "busy_low_ms", "busy_high_ms", "calls", "kernels", "waits", "failures",
    "seconds",
}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """A line for each case that was measured or failed; the skipped ones by reason."""
    lines = []
    for name, answer in found.items():
        heads = "".join(f"{head:>9}" for _, head in COLUMNS)
        lines.append(f"{name} ({answer.get('seconds', 0):.0f} s)".ljust(44) + heads)
        if problem := answer.get("skipped") or answer.get("failed"):
            lines.append(f"  not measured: {problem}"[:160])
        skipped: dict[str, list[str]] = {}
        for case, row in answer.get("cases", {}).items():
            if "skipped" in row:
                skipped.setdefault(row["skipped"], []).append(case)
            else:
                lines.append(_line(case, row))
        for reason, cases in skipped.items():
            some = ", ".join(cases[:4]) + (f" and {len(cases) - 4} more" if len(cases) > 4 else "")
            lines.append(f"  skipped {some}: {reason}"[:200])
    text = "\n".join(lines)
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}\n  and more in the file"


def _line(case: str, row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"  {case} FAILED {row['failed']}"[:180]
    numbers = "".join(f"{_short(row.get(key)):>9}" for key, _ in COLUMNS)
    known = {key for key, _ in COLUMNS} | HIDDEN
    others = [f"{key} {_short(value)}" for key, value in row.items() if key not in known]
    return f"  {case:42.42}{numbers}  {' '.join(others)}".rstrip()[:180]


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
