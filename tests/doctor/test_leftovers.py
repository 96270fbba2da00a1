import subprocess
import sys

from wmtp.doctor.leftovers import fallbacks_are_none, semaphores_are_freed

WARNING = (
    "The operator 'aten::x' is not currently supported on the MPS backend and will fall back to "
    "run on the CPU. This may have performance implications."
)
LEAKY = (
    "import multiprocessing, os\n"
    "s = multiprocessing.get_context('spawn').Semaphore()\n"
    "os._exit(0)\n"
)


def test_fallbacks_are_counted_where_there_can_be_some() -> None:
    assert fallbacks_are_none([], ["mps", "cpu"]).outcome == "passed"
    found = fallbacks_are_none(["another", WARNING], ["mps", "cpu"])
    assert (found.outcome, found.found.startswith("1: The operator")) == ("failed", True)
    assert fallbacks_are_none([WARNING], ["cuda", "cpu"]).outcome == "not checked"


def start(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_a_leaked_semaphore_is_seen() -> None:
    found = semaphores_are_freed(start(LEAKY))
    assert (found.outcome, "leaked semaphore" in found.found) == ("failed", True)


def test_a_run_that_fails_is_no_pass() -> None:
    found = semaphores_are_freed(start("raise SystemExit('the disk is full')"))
    assert found.outcome == "failed"
    assert found.found.endswith("ended with 1: the disk is full")


def test_a_clean_process_passes() -> None:
    assert semaphores_are_freed(start("pass")).outcome == "passed"
