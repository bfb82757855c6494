"""Encoders, one file each: Views in, Prediction out."""
