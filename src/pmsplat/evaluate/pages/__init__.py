"""Pages to look at and to publish: HTML without a network, made of results that were written."""
