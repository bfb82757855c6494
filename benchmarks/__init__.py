"""Benchmarks, one file per question, beside the figures that they wrote (see README.md)."""
