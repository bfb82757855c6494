"""Losses, one file each: StepOutput in, unweighted scalar out."""
