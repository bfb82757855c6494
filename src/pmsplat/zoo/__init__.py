"""Loads models by name or file, and runs them in the unit of length of the photographs."""
