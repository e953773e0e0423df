"""Places on disk that are shared and refilled, by threads and by processes of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox_engine.shelf import Place, Shelf, open_shelf

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return open_shelf(tmp_path / "shelf", most=2, kept=2)


def maker(content: str) -> Callable[[Path, str | None, int], None]:
    def make(folder: Path, before: str | None, lease: int) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "content").write_text(content)

    return make


def filled(shelf: Shelf, label: str) -> Place:
    place = shelf.fill(label, maker(label))
    assert place is not None
    return place


@contextlib.contextmanager
def in_use(place: Place | None) -> Iterator[Place]:
    assert place is not None
    try:
        yield place
    finally:
        os.close(place.lease)


def put(shelf: Shelf, label: str) -> int:
    """Fill a place, give it back, and return its number."""
    # The clock of files ticks every few milliseconds.
    time.sleep(0.02)
    with in_use(filled(shelf, label)) as place:
        return int(place.folder.name)


def test_what_was_put_there_is_found(shelf: Shelf) -> None:
    assert (shelf.labels(), shelf.find("a")) == ({}, None)
    with in_use(filled(shelf, "a")) as place:
        assert (place.label, (place.folder / "content").read_text()) == ("a", "a")
    assert shelf.labels() == {0: "a"}
    with in_use(shelf.find("a")) as found:
        assert found.folder == place.folder
    assert shelf.find("") is None
    assert shelf.find("aa") is None
    # Another process that opens it sees the same.
    assert open_shelf(shelf.folder, most=2, kept=2).labels() == {0: "a"}


def test_a_place_is_held_by_many_and_then_not_changed(shelf: Shelf) -> None:
    put(shelf, "a")
    with in_use(shelf.find("a")), in_use(shelf.find("a")) as place:
        for label in ("b", "c", "d"):
            assert put(shelf, label) != int(place.folder.name)
        assert (place.folder / "content").read_text() == "a"
    assert shelf.labels() == {0: "a", 1: "d"}
    # One user less is not none.
    with in_use(shelf.find("a")):
        os.close(shelf.find("a").lease)  # type: ignore[union-attr]
        assert put(shelf, "e") == 1


def test_without_a_free_place_nothing_is_filled(shelf: Shelf) -> None:
    with in_use(filled(shelf, "a")), in_use(filled(shelf, "b")), in_use(filled(shelf, "c")):
        assert shelf.fill("d", maker("d")) is None
        assert sorted(shelf.labels().values()) == ["a", "b", "c"]
    assert put(shelf, "d") in (0, 1, 2)
    assert len(list(shelf.folder.glob("*/content"))) == 3


def test_who_fills_a_place_is_alone_there(shelf: Shelf) -> None:
    put(shelf, "a")
    put(shelf, "b")
    seen = []

    def make(folder: Path, before: str | None, lease: int) -> None:
        assert before == "a"
        # What is being changed has no label and cannot be held.
        assert shelf.labels() == {1: "b"}
        seen.append(shelf.hold(int(folder.name), lambda label: True))
        os.fstat(lease)

    with in_use(shelf.fill("c", make)) as place:
        assert place.label == "c"
    assert seen == [None]
    assert shelf.labels() == {0: "c", 1: "b"}


def test_what_was_left_half_made_is_made_anew(shelf: Shelf) -> None:
    put(shelf, "a")

    def fail(folder: Path, before: str | None, lease: int) -> None:
        (folder / "content").write_text("half")
        raise ZeroDivisionError

    full = open_shelf(shelf.folder, most=0, kept=1)
    with pytest.raises(ZeroDivisionError):
        full.fill("b", fail)
    assert shelf.labels() == {}
    assert shelf.hold(0, lambda label: True) is None
    told = []

    def make(folder: Path, before: str | None, lease: int) -> None:
        told.append(before)
        maker("b")(folder, before, lease)

    with in_use(full.fill("b", make)) as place:
        assert (place.folder / "content").read_text() == "b"
    # Nothing is told of what was there before, so that none builds on it.
    assert told == [None]


def test_empty_places_are_filled_first_and_then_the_least_used(shelf: Shelf) -> None:
    assert [put(shelf, label) for label in "ab"] == [0, 1]
    time.sleep(0.02)
    os.close(shelf.find("a").lease)  # type: ignore[union-attr]
    # Two are kept, so the third takes the place of the one that was used longest ago.
    assert put(shelf, "c") == 1
    assert put(shelf, "d") == 0
    with in_use(shelf.find("c")), in_use(shelf.find("d")):
        assert put(shelf, "e") == 2
    assert shelf.labels() == {0: "d", 1: "c", 2: "e"}


def test_a_label_that_is_refused_is_not_held_and_not_used(shelf: Shelf) -> None:
    put(shelf, "a")
    put(shelf, "b")
    assert shelf.hold(0, lambda label: label != "a") is None
    assert shelf.hold(7, lambda label: True) is None
    # It was only looked at, so it is still the one used longest ago.
    assert put(shelf, "c") == 0

    def fail(label: str) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shelf.hold(1, fail)
    # The lock was given back.
    assert put(shelf, "d") == 1


def test_places_beyond_the_most_are_used_as_long_as_they_are_there(shelf: Shelf) -> None:
    with in_use(filled(shelf, "a")), in_use(filled(shelf, "b")), in_use(filled(shelf, "c")):
        pass
    small = open_shelf(shelf.folder, most=0, kept=1)
    with in_use(small.find("c")) as place:
        assert place.folder.name == "2"
    assert [put(small, label) for label in "def"] == [0, 1, 2]


WORKER = """
import os, random, sys, time
sys.path.insert(0, {project!r})
from pathlib import Path
from sandbox_engine import lock
from sandbox_engine.shelf import open_shelf

shelf = open_shelf(Path(sys.argv[1]), most=3, kept=2)
chance = random.Random(int(sys.argv[2]))
made = 0
def make(folder, before, lease):
    global made
    made += 1
    folder.mkdir(exist_ok=True)
    if before is not None and (folder / "content").read_text() != before:
        raise SystemExit("a place with a label is not whole")
    (folder / "content").write_text("being made")
    time.sleep(0.001)
    (folder / "content").write_text(wanted)
deadline = time.monotonic() + float(sys.argv[3])
while time.monotonic() < deadline:
    wanted = chance.choice("abcdef")
    place = shelf.find(wanted)
    if place is None:
        with lock.locked(shelf.folder / "making.lock", timeout_s=20, what="the shelf"):
            place = shelf.find(wanted) or shelf.fill(wanted, make)
    if place is None:
        raise SystemExit("no place was free")
    for _ in range(3):
        if (place.folder / "content").read_text() != wanted or place.label != wanted:
            raise SystemExit("it changed under a user")
        time.sleep(0.001)
    os.close(place.lease)
print(made)
"""


def test_processes_at_once_never_see_a_place_change(tmp_path: Path) -> None:
    script = WORKER.format(project=str(PROJECT))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "shelf"), str(number), "1.0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(3)
    ]
    said = [worker.communicate(timeout=60) for worker in workers]
    assert [error for _, error in said] == [b""] * 3
    assert sum(int(made) for made, _ in said) > 10
    assert len(open_shelf(tmp_path / "shelf", most=3, kept=2).labels()) <= 4


def test_a_user_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    shelf = open_shelf(tmp_path / "shelf", most=0, kept=1)
    put(shelf, "a")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom sandbox_engine.shelf import open_shelf\n"
        "place = open_shelf(Path(sys.argv[1]), most=0, kept=1).find('a')\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(shelf.folder)], stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "held\n"
        assert shelf.fill("b", maker("b")) is None
        user.kill()
    assert put(shelf, "b") == 0


def test_a_maker_that_is_killed_leaves_no_label(tmp_path: Path) -> None:
    shelf = open_shelf(tmp_path / "shelf", most=0, kept=1)
    put(shelf, "a")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom sandbox_engine.shelf import open_shelf\n"
        "def make(folder, before, lease):\n"
        "    (folder / 'content').write_text('half'); print('made', flush=True); time.sleep(60)\n"
        "open_shelf(Path(sys.argv[1]), most=0, kept=1).fill('b', make)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(shelf.folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "made\n"
        assert shelf.find("a") is None
        other.kill()
    assert shelf.labels() == {}
    with in_use(shelf.fill("c", maker("c"))) as place:
        assert (place.folder / "content").read_text() == "c"
