"""At most so many requests at once; none waits for those that hang for longer than half of its time."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from serving.guard import Deadline
from serving.turns import AT_ONCE, Turns


def test_no_more_are_at_work_than_may_be_and_each_gets_its_turn():
    turns, lock, counts, most = Turns(), threading.Lock(), [0], [0]

    def work(number):
        with turns.turn(Deadline.after(30)):
            with lock:
                counts[0] += 1
                most[0] = max(most[0], counts[0])
            time.sleep(0.002)
            with lock:
                counts[0] -= 1
        return number

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(work, range(80))] == [*range(80)]
    assert most[0] == AT_ONCE


def test_who_waits_goes_on_without_a_turn_after_half_of_its_time():
    turns = Turns(1)
    with turns.turn(Deadline.after(30)):
        deadline = Deadline.after(0.2)
        with turns.turn(deadline):
            assert 0.05 < deadline.left() <= 0.1
        with turns.turn(Deadline.after(0.2)):  # it did not give back what it had not
            pass
    deadline = Deadline.after(30)
    with turns.turn(deadline):
        assert deadline.left() > 29


def test_a_turn_is_given_back_where_the_work_fails_and_nothing_waits_without_a_deadline():
    turns = Turns(1)
    for _ in range(3):
        try:
            with turns.turn(Deadline.after(0.01)):
                raise ValueError
        except ValueError:
            pass
    deadline = Deadline.after(30)
    with turns.turn(deadline), turns.turn(None):
        assert deadline.left() > 29
