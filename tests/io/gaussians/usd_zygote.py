"""Extracts stages in forks of one process that has loaded OpenUSD once, for thousands of them.

Reads lines of "FILE\\tFOLDER", answers each with the exit status of its fork: negative for a
signal, that of the alarm for one that hangs.
"""

import os
import signal
import sys
from pathlib import Path

from pmsplat.io.gaussians import _usd_stage

if __name__ == "__main__":
    _usd_stage.import_openusd("a stage")
    for line in sys.stdin:
        file, folder = map(Path, line.rstrip("\n").split("\t"))
        child = os.fork()
        if not child:
            signal.alarm(60)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                _usd_stage._bound_memory(file)
                _usd_stage.extract(file, folder)
            except BaseException:  # noqa: BLE001 (as the interpreter does)
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
