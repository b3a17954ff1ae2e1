"""Replies read as arrays, against hiredis parsing them one by one."""

import socket
import threading

import hiredis
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError, NoScriptError

from headwater.online.replies import Replies

LIKE = [b"\r\n$-1", b"*2\r\n$"]


class Pieces:
    """A socket that gives its bytes in pieces of the sizes asked for."""

    def __init__(self, data, sizes):
        self._data, self._sizes = data, sizes

    def recv(self, most):
        size = max(1, min(most, next(self._sizes)))
        given, self._data = self._data[:size], self._data[size:]
        return given

    def recv_into(self, place):
        given = self.recv(len(place))
        place[: len(given)] = given
        return len(given)


def packed(reply):
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(packed, reply))
    return b"$-1\r\n" if reply is None else b"$%d\r\n%b\r\n" % (len(reply), reply)


def one_by_one(data):
    """Every reply as hiredis parses it."""
    reader = hiredis.Reader(notEnoughData=StopIteration)
    reader.feed(data)
    return list(iter(reader.gets, StopIteration))


@st.composite
def groups(draw):
    """Replies to n HMGETs of some fields: like ones, in which a few differ."""
    width = draw(st.integers(1, 3))
    like = [draw(st.binary(max_size=30) | st.sampled_from(LIKE)) for _ in range(width)]
    replies = [list(like) for _ in range(draw(st.integers(1, 100)))]
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.integers(0, len(replies) - 1))
        replies[row][draw(st.integers(0, width - 1))] = draw(st.none() | st.binary(max_size=30))
    return width, replies


@given(st.lists(groups(), min_size=1, max_size=3), st.lists(st.integers(1, 5000), min_size=1, max_size=10))
@settings(max_examples=300, deadline=None)
@example([(1, [[b"abcd"]] * 40 + [[None]]), (1, [[b"x"]] * 40)], [7])
def test_columns_are_what_hiredis_parses_wherever_the_bytes_are_cut(read, sizes):
    data = b"".join(packed(reply) for _, replies in read for reply in replies)
    expected = iter(one_by_one(data))
    source = Replies(Pieces(data, (sizes[at % len(sizes)] for at in range(10**9))))
    for width, replies in read:
        rows = [next(expected) for _ in replies]
        columns = [column.listed() for column in source.columns(len(replies), width)]
        assert columns == [list(column) for column in zip(*rows, strict=True)]
    assert source.error is None


@given(st.lists(st.binary(max_size=90) | st.none(), max_size=60), st.lists(st.integers(1, 400), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_an_array_of_any_length_is_what_hiredis_parses_wherever_the_bytes_are_cut(values, sizes):
    data = packed(values) + packed(b"next")
    source = Replies(Pieces(data, (sizes[at % len(sizes)] for at in range(10**9))))
    assert source.strings().listed() == one_by_one(data)[0]
    assert source.take(1) == [b"next"]
    assert source.error is None


def test_an_error_instead_of_an_array_is_kept():
    source = Replies(Pieces(b"-LOADING not yet\r\n" + packed(b"next"), iter([9] * 99)))
    assert len(source.strings()) == 0
    assert "not yet" in str(source.error)
    assert source.take(1) == [b"next"]


def test_an_error_among_replies_is_kept_and_the_others_are_read():
    replies = [packed([b"v"])] * 40 + [b"-NOSCRIPT no such script\r\n"] + [packed([b"v"])] * 3
    source = Replies(Pieces(b"".join(replies) + packed(b"next"), iter([50] * 99)))
    assert source.columns(44, 1)[0].listed() == [b"v"] * 40 + [None] + [b"v"] * 3
    assert isinstance(source.error, NoScriptError)
    assert source.take(1) == [b"next"]


def test_a_peer_that_closes_half_way_is_an_error():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: (theirs.sendall(packed([b"v"]) * 40), theirs.close()))
        sender.start()
        with pytest.raises(ConnectionError, match="closed"):
            Replies(ours).columns(50, 1)
        sender.join()
