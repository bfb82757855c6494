"""Benchmarks, one file per question; results are committed under benchmarks/."""
