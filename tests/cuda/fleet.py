"""Processes that take work as lines, and answer each line with one of JSON."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARK = "@ "  # before an answer: others print too

Answer = dict[str, Any]


def serve(answer: Callable[[str], Answer]) -> None:
    """What a process of the fleet does: it answers the lines of its input, and ends.

    An answer gets "asked", its line, and "error", what went wrong or None.
    """
    for line in map(str.strip, sys.stdin):
        try:
            found: Answer = {"asked": line, "error": None} | answer(line)
        except Exception:  # noqa: BLE001 - whoever asked gets to see it
            found = {"asked": line, "error": traceback.format_exc()}
        print(MARK + json.dumps(found), flush=True)
    sys.stdout.flush()
    os._exit(0)  # threads of autograd's engine cannot be ended


def run(
    module: str,
    work: Iterable[str],
    on_answer: Callable[[Answer], None] = lambda answer: None,
    processes: int | None = None,
) -> list[Answer]:
    """What `python -m module` answers to all lines of `work`, in any order.

    Lines go to whichever process is free; `on_answer` sees each answer at once. Raises RuntimeError
    with what a process said where one ends too early.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for line in work:
        waiting.put(line)
    answers: list[Answer] = []
    stop = threading.Event()

    def feed() -> None:
        with tempfile.TemporaryFile("w+") as said, _start(module, said) as process:
            assert process.stdin is not None and process.stdout is not None
            while not stop.is_set():
                try:
                    line = waiting.get_nowait()
                except queue.Empty:
                    return
                process.stdin.write(f"{line}\n")
                process.stdin.flush()
                found = next((x for x in process.stdout if x.startswith(MARK)), None)
                if found is None:
                    said.seek(0)
                    stop.set()
                    raise RuntimeError(f"{line}: {said.read()[-3000:]}")
                answers.append(json.loads(found.removeprefix(MARK)))
                on_answer(answers[-1])

    count = max(1, min(processes or os.cpu_count() or 1, waiting.qsize()))
    with ThreadPoolExecutor(count) as pool:
        for fed in [pool.submit(feed) for _ in range(count)]:
            fed.result()
    return answers


def _start(module: str, said: Any) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(
            map(str, (ROOT / "src", ROOT, os.environ.get("PYTHONPATH", "")))
        ),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TRITON_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"pmsplat-triton-{os.getuid()}"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
        env=environment, cwd=ROOT, text=True,
    )  # fmt: skip
