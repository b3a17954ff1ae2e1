"""The breaker: who is asked, who waits, and how it heals."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from headwater.errors import UnavailableError
from headwater.online.connect import UnreadyError, is_hurried
from serving import guard as guards
from serving.guard import Deadline, Guard, LateError


class Part:
    """Answers, refuses or hangs, as it is told; counts who asks."""

    def __init__(self):
        self.asked = 0
        self.back = threading.Event()
        self.back.set()
        self.refuses = False

    def __call__(self):
        self.asked += 1
        self.back.wait(30)
        if self.refuses:
            raise UnavailableError("part: down")
        return self.asked


@pytest.fixture
def part():
    yield (made := Part())
    made.back.set()


@pytest.fixture
def guard():
    return Guard("part")


def soon(seconds=0.2):
    return Deadline.after(seconds)


def ask(guard, part, seconds=0.2):
    """Its answer, or the name of the error."""
    try:
        return guard.ask(part, soon(seconds))
    except UnavailableError as error:
        return type(error).__name__


def test_a_part_that_hangs_costs_one_request_its_share_of_the_time_and_the_others_nothing(guard, part):
    part.back.clear()
    started = time.monotonic()
    assert ask(guard, part) == "LateError"
    assert time.monotonic() - started >= 0.1
    told = [ask(guard, part) for _ in range(1000)]
    assert set(told) == {"UnavailableError"}
    assert part.asked <= 2  # the first, and at most one that tries whether it is back
    time.sleep(0.15)  # longer than the pause
    assert {ask(guard, part) for _ in range(1000)} == {"UnavailableError"}
    assert part.asked == 2


@pytest.mark.parametrize("trouble", ["hangs", "refuses"])
def test_a_part_that_is_back_is_asked_again(guard, part, until, trouble):
    part.refuses = trouble == "refuses"
    if trouble == "hangs":
        part.back.clear()
    assert ask(guard, part) in ("LateError", "UnavailableError")
    part.refuses = False
    part.back.set()
    until(lambda: isinstance(ask(guard, part, 20), int), "the part")


def test_pauses_grow_and_end(guard, part, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(guards.time, "monotonic", lambda: now[0])
    part.refuses = True
    gaps, last = [], now[0]
    ask(guard, part, 60)
    while len(gaps) < 8:
        now[0] += 0.01
        before = part.asked
        ask(guard, part, 60)
        if part.asked > before or guard._probing:
            gaps.append(round(now[0] - last, 2))
            last = now[0]
            while guard._probing:
                time.sleep(0.001)
    assert gaps[:5] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6], abs=0.02)
    assert max(gaps) == pytest.approx(guards.MOST_PAUSE_S, abs=0.02)


def test_what_a_part_refuses_of_one_request_is_no_reason_to_leave_it_alone(guard):
    def fails():
        raise ValueError("this one")

    for _ in range(3):
        with pytest.raises(ValueError, match="this one"):
            guard.ask(fails, soon(20))


def test_its_own_timeout_is_told_as_such_and_opens_the_breaker(guard):
    def fails():
        raise TimeoutError("read timed out")

    with pytest.raises(TimeoutError, match="read timed out"):
        guard.ask(fails, soon(20))
    with pytest.raises(UnavailableError, match="read timed out"):
        guard.ask(fails, soon(20))


def test_a_caller_in_a_hurry_says_nothing_of_the_part(guard, part):
    part.back.clear()
    with pytest.raises(LateError):
        guard.ask(part, soon(0.01))
    part.back.set()
    assert ask(guard, part, 20) == 2


def test_without_a_deadline_the_work_is_done_here_and_now(guard):
    assert guard.ask(threading.current_thread, None) is threading.current_thread()


class TestInTheCallersThread:
    def test_it_is_done_while_the_part_is_well(self, guard):
        assert guard.ask(threading.current_thread, soon(20), here=True) is threading.current_thread()

    def test_what_would_take_longer_is_done_in_another(self, guard):
        def works():
            if is_hurried():
                raise UnreadyError
            return threading.current_thread()

        assert guard.ask(works, soon(20), here=True) is not threading.current_thread()

    def test_a_part_that_refuses_is_left_alone_and_then_tried_by_nobody_who_waits(self, guard, part, until):
        def here(seconds=20):
            return guard.ask(part, soon(seconds), here=True)

        part.refuses = True
        for _ in range(100):
            with pytest.raises(UnavailableError, match="part"):
                here()
        assert part.asked <= 2
        part.refuses = False
        until(lambda: isinstance(ask(guard, part, 20), int), "the part")
        assert here() == part.asked

    def test_one_that_does_not_answer_in_time_is_late(self, guard):
        def times_out():
            time.sleep(0.11)  # as a connection does that waits for so long
            raise UnavailableError("part: timed out")

        with pytest.raises(LateError, match="no answer in"):
            guard.ask(times_out, soon(0.2), here=True)
        with pytest.raises(UnavailableError, match="away"):
            guard.ask(times_out, soon(0.2), here=True)


def test_calls_that_hang_do_not_pile_up(part):
    guard = Guard("part", most=3)
    part.back.clear()
    asked = [guard.start(part) for _ in range(3)]
    with pytest.raises(LateError, match="3 calls wait"):
        guard.start(part)
    part.back.set()
    assert sorted(each.result(soon(20)) for each in asked) == [3, 3, 3]


def test_idle_threads_end(guard, part, until, monkeypatch):
    monkeypatch.setattr(guards, "IDLE_S", 0.01)
    assert ask(guard, part, 20) == 1
    until(lambda: guard._threads == 0, "the thread's end")
    assert ask(guard, part, 20) == 2


@given(st.lists(st.sampled_from(["up", "down"]), min_size=1, max_size=12))
@tries(max_examples=30, deadline=None)
def test_whatever_happened_before_a_part_that_is_up_is_asked_again(story):
    guard, part = Guard("part"), Part()
    for each in story:
        part.refuses = each == "down"
        assert ask(guard, part, 20) in ("UnavailableError", part.asked)
    part.refuses = False
    deadline = time.monotonic() + 20
    while not isinstance(ask(guard, part, 20), int):
        assert time.monotonic() < deadline
        time.sleep(0.01)
