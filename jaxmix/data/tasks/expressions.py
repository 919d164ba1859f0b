"""Answers compared as expressions by the package math-verify (the extra `math`): roots, polynomials, sets, intervals.

The package limits its time by signals, which work in the main thread alone and do not interrupt a long sum of large
integers. It runs in a process of its own here, which is ended when an answer takes too long.
"""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
import threading
import weakref
from typing import Any

from jaxmix.core.errors import EnvironmentProblem

SECONDS = 5.0
_SECONDS_TO_START = 120.0
_PYTHON = sys.executable
_WORKER = r"""
import json, logging, sys
from math_verify import parse, verify
logging.disable(logging.CRITICAL)
print("ready", flush=True)
for line in sys.stdin:
    try:
        given, expected = (parse("\\boxed{%s}" % text, parsing_timeout=None) for text in json.loads(line))
        is_same = bool(given and expected and verify(expected, given, timeout_seconds=None))
    except Exception:
        is_same = False
    print(int(is_same), flush=True)
"""


class SameExpression:
    """`(given, expected) -> bool`, as `is_same_answer`, by math-verify. One that takes over 5 seconds is not the same.

    May be called from any thread.

    Raises:
        EnvironmentProblem: the package is not installed, or does not start.
    """

    def __init__(self) -> None:
        if sys.executable == _PYTHON and importlib.util.find_spec("math_verify") is None:
            raise EnvironmentProblem(
                "verifier: math_verify needs the package 'math-verify', which is not installed",
                where="gsm8k(verifier)",
                fix='Run: pip install "jaxmix[math]"',
            )
        self._lock = threading.Lock()
        self._worker = self._started()

    def __call__(self, given: str | None, expected: str) -> bool:
        if given is None:
            return False
        with self._lock:
            if self._worker.poll() is not None:
                self._worker = self._started()
            self._worker.stdin.write(json.dumps([given, expected]) + "\n")
            self._worker.stdin.flush()
            answer = _line(self._worker, SECONDS)
            if answer is None:  # too long, or the worker has crashed
                _end(self._worker)
            return answer == "1"

    def _started(self) -> Any:
        command = [_PYTHON, "-c", _WORKER]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        weakref.finalize(self, _end, worker)
        if _line(worker, _SECONDS_TO_START) != "ready":
            _end(worker)
            raise EnvironmentProblem("math-verify does not start", where="gsm8k(verifier)", fix="Install it again.")
        return worker


def _line(worker: Any, seconds: float) -> str | None:
    """The next line of a worker, which writes one at a time; None if there is none in time."""
    is_there, _, _ = select.select([worker.stdout], [], [], seconds)
    return (worker.stdout.readline().strip() or None) if is_there else None


def _end(worker: Any) -> None:
    worker.kill()
    worker.wait()
    worker.stdin.close()
    worker.stdout.close()
