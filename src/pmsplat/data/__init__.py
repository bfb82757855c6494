"""Datasets: one file each; what they share begins with an underscore."""
