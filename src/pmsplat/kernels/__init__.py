"""Fast paths, each beside its torch twin, and the door to attention."""
