"""Metrics and the protocol that walks an evaluation index; the model is a callable it is given."""
