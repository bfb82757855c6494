"""How much of an index was measured, and why not the rest: numbers that add up to all entries."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from ..errors import UserError, count_of


@dataclass(frozen=True)
class Coverage:
    """What became of the entries of an index.

    `evaluated` were measured. Of the others, `null` have no frames, as published; `missing` are not
    in the data; `damaged` cannot be read; `unusable` are ruled out by the settings, or have no
    cameras that fit; `beyond` come after the limit.
    """

    evaluated: int
    null: int = 0
    missing: int = 0
    damaged: int = 0
    unusable: int = 0
    beyond: int = 0

    @property
    def listed(self) -> int:
        """All entries of the index."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def wanted(self) -> int:
        """The entries that are to be measured: those that are not null."""
        return self.listed - self.null

    @property
    def complete(self) -> bool:
        return self.evaluated == self.wanted

    @property
    def said(self) -> str:
        """A sentence for people."""
        words = {"beyond": "beyond the limit"}
        others = [
            f"{number:,} {words.get(name, name)}"
            for name, number in asdict(self).items()
            if number and name not in ("evaluated", "null")
        ]
        rest = f" ({', '.join(others)})" if others else ""
        null = f"; {self.null:,} more without frames, as published" if self.null else ""
        return f"{self.evaluated:,} of {count_of(self.wanted, 'scene')} evaluated{rest}{null}"

    def describe(self) -> dict[str, int]:
        """The numbers by name, as results have them."""
        return {"listed": self.listed, **asdict(self)}

    @classmethod
    def read(cls, content: Mapping[str, float]) -> "Coverage | None":
        """The inverse of `describe`; None of something else, or of numbers that do not add up."""
        names = [field.name for field in fields(cls)]
        numbers = {name: int(content[name]) for name in names if name in content}
        if len(numbers) < len(names) or min(numbers.values()) < 0:
            return None
        found = cls(**numbers)
        return found if found.listed == content.get("listed") else None


def check_complete(coverage: Coverage, why: str) -> None:
    """UserError where scenes could not be measured; `why` names them."""
    left = coverage.missing + coverage.damaged + coverage.unusable
    if left:
        raise UserError(
            f"{count_of(left, 'scene')} of the index {'was' if left == 1 else 'were'} not measured "
            f"({why})",
            "all of them, with `strict`",
            "complete or mend the data, or leave `strict` out to measure the rest",
        )
