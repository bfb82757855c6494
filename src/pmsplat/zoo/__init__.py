"""A name or a file -> a model, and a model in the unit of the photographs."""
