"""Where cells run: each model group in a worker process of its own, with one thread, talking JSON lines.

A worker that dies takes only its own group with it. A worker whose parent dies stops too.
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

LOG_LINES = 40
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# The second is what torch asks for where cuBLAS shall give the same sums twice.
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
Slot = Mapping[str, str]  # what one of the workers that run at once has in its environment of its own


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker said, or (`event` = "died") what became of it; `log` is the tail of its standard error."""

    task: int
    event: str
    body: Mapping[str, Any]
    log: tuple[str, ...] = ()


class Worker:
    """One process that answers one task; its messages go to a queue, in order, ending in "end" or "died"."""

    def __init__(self, number: int, task: Mapping[str, Any], slot: Slot, queue: "SimpleQueue[Message]") -> None:
        self.slot = slot
        self._number, self._queue = number, queue
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        # -P and the parent's own search path: a queue.py in the user's folder is not the standard library's.
        search = os.pathsep.join(map(str, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "qbench.suite.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(ONE_THREAD, "1"), **ENVIRONMENT, "PYTHONPATH": search, **slot},
        )
        self._stderr = Thread(target=self._keep_log, daemon=True)
        self._stderr.start()
        self._dialogue = Thread(target=self._talk, args=[json.dumps(task).encode() + b"\n"], daemon=True)
        self._dialogue.start()

    def stop(self) -> None:
        self._process.kill()
        self.join()

    def join(self) -> None:
        """Wait until the process is gone: only then do its CPU seconds count as its parent's."""
        self._process.wait()
        self._dialogue.join()
        self._stderr.join(timeout=1)  # what the worker itself started may hold the pipe open

    def _keep_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._log.append(line.decode(errors="replace").rstrip())

    def _talk(self, task: bytes) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ended = False
        with suppress(BrokenPipeError), self._process.stdin as stdin, self._process.stdout as lines:
            with suppress(BrokenPipeError):  # it died before it read its task: its exit code says so
                stdin.write(task)
                stdin.flush()  # and left open: its end tells the worker that the parent is gone
            for line in lines:
                try:
                    body = json.loads(line)
                    message = Message(self._number, body["event"], body, tuple(self._log))
                except (ValueError, TypeError, LookupError):
                    self._log.append(f"unreadable message of {len(line)} bytes")
                    continue
                ended = message.event == "end"
                self._queue.put(message)
        code = self._process.wait()
        self._stderr.join(timeout=1)
        if not ended:
            self._queue.put(Message(self._number, "died", {"reason": _reason(code, self._log)}, tuple(self._log)))


def _reason(code: int, log: Sequence[str]) -> str:
    """
    >>> _reason(-9, log=[])
    'the worker was killed by signal 9 (out of memory?)'
    >>> _reason(1, log=["Traceback ...", "TypeError: no"])
    'the worker exited with code 1 before it had answered: TypeError: no'
    """
    if code < 0:
        hint = " (out of memory?)" if code == -9 else ""
        return f"the worker was killed by signal {-code}{hint}"
    last = f": {log[-1]}" if log else ""
    return f"the worker exited with code {code} before it had answered{last}"


def work(tasks: Sequence[Mapping[str, Any]], slots: Sequence[Slot]) -> Generator[Message, None, None]:
    """Run every task, one in each slot at a time; yield messages as they come. Closing the generator stops all."""
    queue: SimpleQueue[Message] = SimpleQueue()
    waiting = deque(enumerate(tasks))
    free, running = list(slots), dict[int, Worker]()
    try:
        while waiting or running:
            while waiting and free:
                number, task = waiting.popleft()
                running[number] = Worker(number, task, free.pop(0), queue)
            message = queue.get()
            yield message
            if message.event in ("end", "died"):
                worker = running.pop(message.task)
                worker.join()
                free.append(worker.slot)
    finally:
        for worker in running.values():
            worker.stop()
