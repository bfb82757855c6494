"""Reusable network blocks: they know tensors, not tasks."""
