"""Files in and out: no torch.nn, no model."""
