"""The watcher's memory: what has changed since when, and never less than that."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies

from sandbox_engine.watch.journal import Journal


def test_changes_are_told_since_a_clock_value() -> None:
    journal = Journal()
    start = journal.clock
    assert journal.since(start) == frozenset()
    journal.mark("a")
    between = journal.clock
    journal.mark("b/")
    journal.mark("a")
    assert journal.since(start) == {"a", "b/"}
    assert journal.since(between) == {"a", "b/"}
    journal.mark("c")
    assert journal.since(journal.clock) == frozenset()


def test_of_what_is_not_known_anything_may_have_changed() -> None:
    journal = Journal()
    old = journal.clock
    journal.mark("a")
    for clock in (None, "", "x:0", old.split(":")[0], f"{old}x", f"{old[:-1]}99", 7):
        assert journal.since(clock) is None
    assert Journal().since(old) is None
    journal.doubt()
    assert journal.since(old) is None
    assert journal.since(journal.clock) == frozenset()


def test_what_is_forgotten_may_have_changed() -> None:
    journal = Journal(most=3)
    clocks = [journal.clock]
    for path in "abcd":
        journal.mark(path)
        clocks.append(journal.clock)
    assert len(journal) == 3
    assert journal.since(clocks[0]) is None
    assert journal.since(clocks[1]) == {"b", "c", "d"}


@hypothesis.given(
    strategies.integers(1, 5),
    strategies.lists(strategies.sampled_from([*"abcdef", "doubt"]), max_size=30),
)
def test_no_change_is_ever_left_out(most: int, changes: list[str]) -> None:
    journal = Journal(most)
    clocks = [journal.clock]
    for change in changes:
        if change == "doubt":
            journal.doubt()
        else:
            journal.mark(change)
        clocks.append(journal.clock)
    for number, clock in enumerate(clocks):
        later = changes[number:]
        found = journal.since(clock)
        if "doubt" in later:
            assert found is None
        elif found is not None:
            assert found == set(later)
        else:
            # Forgotten, as there was no room.
            assert len(set(changes)) > most
