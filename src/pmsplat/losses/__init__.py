"""Losses, one file each: StepOutput in, unweighted scalar out; and their weighted sum."""

from ._schedule import Term, Total, total

__all__ = ["Term", "Total", "total"]
