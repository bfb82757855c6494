"""Pretrained networks of other authors, one file each."""
