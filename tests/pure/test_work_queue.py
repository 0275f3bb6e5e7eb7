# SPDX-License-Identifier: Apache-2.0
"""A key is worked on by one thread at a time, and no change is lost."""

import threading
from collections import Counter

import pytest
from stepped_clock import SteppedClock

from backends.clock import SystemClock
from backends.work_queue import Workers, WorkQueue

LIMIT_S = 10.0


@pytest.fixture
def clock() -> SteppedClock:
    """Time stands still."""
    return SteppedClock()


@pytest.fixture
def queue(clock: SteppedClock) -> WorkQueue[str]:
    """A queue that reads the stepped clock."""
    return WorkQueue(clock)


def drained(queue: WorkQueue[str]) -> list[str]:
    """Take everything that is due now."""
    queue.add_after("end", 0)
    found = []
    while (key := queue.get()) != "end":
        assert key is not None
        found.append(key)
        queue.done(key)
    queue.done("end")
    return found


def test_a_key_stands_in_the_queue_once(queue: WorkQueue[str]) -> None:
    """Keys come in the order of their first wish."""
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert queue.depth() == 2
    assert drained(queue) == ["a", "b"]


def test_a_change_during_the_work_queues_the_key_once_again(queue: WorkQueue[str]) -> None:
    """Not while somebody works on it."""
    queue.add("a")
    assert queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.depth() == 0
    queue.done("a")
    assert drained(queue) == ["a"]


def test_a_delayed_key_comes_when_it_is_due(queue: WorkQueue[str], clock: SteppedClock) -> None:
    """Not a moment sooner, and in the order of the instants."""
    queue.add_after("later", 10)
    queue.add_after("soon", 5)
    assert drained(queue) == []
    clock.step(5)
    assert drained(queue) == ["soon"]
    clock.step(5)
    assert drained(queue) == ["later"]
    clock.step(100)
    assert drained(queue) == []


def test_the_earlier_of_two_wishes_counts(queue: WorkQueue[str], clock: SteppedClock) -> None:
    """And the key comes once."""
    queue.add_after("a", 10)
    queue.add_after("a", 3)
    queue.add_after("a", 20)
    clock.step(3)
    assert drained(queue) == ["a"]
    clock.step(100)
    assert drained(queue) == []


def test_a_past_delay_is_now(queue: WorkQueue[str]) -> None:
    """A negative delay is no error."""
    queue.add_after("a", -5)
    assert drained(queue) == ["a"]


def test_back_off_doubles_up_to_a_minute_and_ends_when_forgotten(queue: WorkQueue[str]) -> None:
    """With a fifth of jitter on each side."""
    delays = [queue.retry("a") for _ in range(20)]
    for n, delay_s in enumerate(delays):
        expected_s = min(0.05 * 2**n, 60.0)
        assert expected_s * 0.8 <= delay_s <= expected_s * 1.2
    assert queue.retry("b") <= 0.06
    queue.forget("a")
    assert queue.retry("a") <= 0.06


def test_back_off_never_overflows(queue: WorkQueue[str]) -> None:
    """A key may fail for weeks."""
    for _ in range(2000):
        assert queue.retry("a") <= 72.0


def test_closing_wakes_whoever_waits(queue: WorkQueue[str]) -> None:
    """And everybody who asks later."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(queue.get()))
    thread.start()
    queue.close()
    thread.join(LIMIT_S)
    assert found == [None]
    assert queue.get() is None


def test_two_workers_never_share_a_key() -> None:
    """Four threads, three keys, and every change is seen by a later run."""
    queue: WorkQueue[int] = WorkQueue(SystemClock())
    wanted, seen = Counter[int](), Counter[int]()
    guards = {key: threading.Lock() for key in range(3)}
    clashes: list[int] = []
    settled = threading.Event()
    everything_asked = threading.Event()

    def handle(key: int) -> None:
        if not guards[key].acquire(blocking=False):
            clashes.append(key)
            return
        try:
            seen[key] = wanted[key]
        finally:
            guards[key].release()
        if everything_asked.is_set() and seen == wanted:
            settled.set()

    workers = Workers("test", queue, handle, threads=4)
    workers.start()
    try:
        for n in range(3000):
            wanted[n % 3] += 1
            queue.add(n % 3)
        everything_asked.set()
        for key in range(3):
            queue.add(key)
        assert settled.wait(LIMIT_S), (seen, wanted)
    finally:
        workers.stop(limit_s=LIMIT_S)
    assert clashes == []


def test_a_failing_handler_is_retried_and_ends_no_thread() -> None:
    """The third try works, and the back-off is over."""
    queue: WorkQueue[str] = WorkQueue(SystemClock())
    tries: list[str] = []
    done = threading.Event()

    def handle(key: str) -> float | None:
        tries.append(key)
        if len(tries) < 3:
            raise RuntimeError("not yet")
        done.set()
        return None

    workers = Workers("test", queue, handle, threads=1)
    workers.start()
    try:
        queue.add("a")
        assert done.wait(LIMIT_S)
    finally:
        workers.stop(limit_s=LIMIT_S)
    assert tries == ["a"] * 3
    assert queue.retry("a") <= 0.06


def test_a_handler_says_when_to_look_again() -> None:
    """The delay it returns queues the key."""
    queue: WorkQueue[str] = WorkQueue(SystemClock())
    runs: list[str] = []
    twice = threading.Event()

    def handle(key: str) -> float | None:
        runs.append(key)
        if len(runs) == 2:
            twice.set()
            return None
        return 0.01

    workers = Workers("test", queue, handle, threads=1)
    workers.start()
    try:
        queue.add("a")
        assert twice.wait(LIMIT_S)
    finally:
        workers.stop(limit_s=LIMIT_S)
    assert runs == ["a", "a"]
