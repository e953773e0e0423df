"""Messages over a real socket, with descriptors, whole or torn."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_engine.keeper import wire

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.binary() | st.text() | st.floats(allow_nan=False)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=VALUES, second=VALUES)
def test_values_arrive_as_they_are_and_in_order(
    ends: tuple[socket.socket, socket.socket], first: object, second: object
) -> None:
    for value in (first, second):
        wire.send(ends[0], value)
    assert [wire.receive(ends[1]) for _ in range(2)] == [(first, []), (second, [])]


def test_more_than_a_socket_holds_arrives(ends: tuple[socket.socket, socket.socket]) -> None:
    value = {"content": os.urandom(5_000_000), "more": [b"x"] * 10_000}
    thread = threading.Thread(target=wire.send, args=(ends[0], value))
    thread.start()
    assert wire.receive(ends[1]) == (value, [])
    thread.join()


def test_descriptors_come_along_and_are_not_inherited(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    before = open_descriptors()
    with contextlib.ExitStack() as stack:
        readers = []
        for number in range(16):
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            os.write(writer, b"%d" % number)
            readers.append(reader)
            os.close(writer)
        # What follows has none of them, though it is there already.
        wire.send(ends[0], "with", readers)
        wire.send(ends[0], "without")
        received = wire.receive(ends[1])
        assert received is not None
        value, fds = received
        assert (value, wire.receive(ends[1])) == ("with", ("without", []))
        assert [os.read(fd, 9) for fd in fds] == [b"%d" % number for number in range(16)]
        assert not any(map(os.get_inheritable, fds))
        for fd in fds:
            os.close(fd)
    assert open_descriptors() == before


@pytest.mark.parametrize("text", [b"", b"0000", b"00000005ab", b"00000010"])
def test_a_message_that_is_torn_is_none_and_leaks_nothing(
    ends: tuple[socket.socket, socket.socket], text: bytes
) -> None:
    before = open_descriptors()
    if text:
        with open(os.devnull) as file:
            socket.send_fds(ends[0], [text], [file.fileno()])
    ends[0].shutdown(socket.SHUT_WR)
    assert wire.receive(ends[1]) is None
    assert open_descriptors() == before


def test_nobody_at_the_other_end_is_told(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].close()
    assert wire.receive(ends[0]) is None
    with pytest.raises(ConnectionError):
        wire.send(ends[0], "value")
