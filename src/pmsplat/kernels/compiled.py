"""numba's compiler for kernels that use all cores, beside torch, whose OpenMP it shares."""

from typing import Any

import numba
import torch


def parallel(**options: Any) -> Any:
    """`numba.njit(parallel=True, cache=True)`, which leaves torch's number of threads as it is.

    numba starts its threads at the first such kernel; where it does so by OpenMP, torch has as many
    from then on, whatever `torch.set_num_threads` said. So they are started here.
    """
    threads = torch.get_num_threads()
    numba.get_num_threads()  # starts them, once in a process
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return numba.njit(parallel=True, cache=True, **options)
