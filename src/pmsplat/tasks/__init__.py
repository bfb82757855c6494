"""Whole jobs, usable from Python without the command line."""
