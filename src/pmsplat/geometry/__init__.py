"""Pure functions on plain tensors: leading axes free, device and dtype from the inputs."""
