"""Fast implementations, each tested against a plain torch twin, and the choice of attention."""
