"""A `worker` on a machine with CUDA and without Triton, as most with Windows are."""

import sys

sys.modules["triton"] = None  # pyright: ignore[reportArgumentType]

if __name__ == "__main__":
    from .worker import main

    main()
