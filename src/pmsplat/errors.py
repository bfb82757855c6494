"""The exceptions that a user sees, and how they name many things."""

from collections.abc import Sequence

NAMED = 3  # of many things that a sentence names


def name_some(names: Sequence[str]) -> str:
    """The first NAMED, with commas and an ellipsis where there are more."""
    return ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)


def count_of(number: int, noun: str) -> str:
    """A number with its noun: "1 chunk", "2,500 scenes"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


class UserError(ValueError):
    """An error caused by user input: what was given, what is wanted, what to do.

    The command line prints it as one sentence and exits with 2; from Python it is a `ValueError`.
    """

    def __init__(self, got: str, wanted: str = "", remedy: str = "") -> None:
        if not wanted and not remedy:  # a data loader's worker passes on its traceback as one text
            got = got.rpartition(f"{type(self).__name__}: ")[2].strip()
        self.got, self.wanted, self.remedy = got, wanted, remedy
        super().__init__(f"{got}; wanted {wanted}; {remedy}" if wanted or remedy else got)

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        return type(self), (self.got, self.wanted, self.remedy)


class SettingError(UserError):
    """A setting whose value does not fit: got "name=value", and its default as the remedy."""
