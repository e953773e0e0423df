"""Results that are kept: shared, bounded, and never wrong whatever happens to their file."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_engine import Analyser, Unknown
from sandbox_engine.analysis.results import Results, packed, unpacked
from sandbox_engine.analysis.stamps import Stamp

ONE = Analyser("one", "1", "module:one")
TWO = Analyser("two", "1", "module:two")
NEWER = Analyser("one", "2", "module:one")
ROOT = b"/some/where"


def blob(number: int) -> bytes:
    return number.to_bytes(20, "big")


def value(number: int) -> bytes:
    return packed({"number": number, "text": "x" * (number % 50)})


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Results]:
    kept = Results(tmp_path / "kept" / "analyses.sqlite3")
    yield kept
    kept.close()


@pytest.mark.parametrize(
    "kept",
    [
        *(None, 0, "", "text é \ud800", [1, 2.5, None], {"a": [{"b": True}]}),
        *(10**30, Unknown("why"), Unknown("odd \x00 é")),
    ],
)
def test_what_is_packed_comes_back(kept: object) -> None:
    assert unpacked(packed(kept)) == kept


def test_results_are_found_by_blob_analyser_and_version(results: Results) -> None:
    results.keep([(ONE, blob(1), value(1)), (TWO, blob(1), value(2)), (ONE, blob(3), value(3))])
    assert results.find(ONE, [blob(1), blob(2), blob(3)]) == {
        blob(1): value(1),
        blob(3): value(3),
    }
    assert results.find(TWO, [blob(1)]) == {blob(1): value(2)}
    assert results.find(NEWER, [blob(1)]) == {}
    results.keep([(NEWER, blob(1), value(9))])
    assert results.find(ONE, [blob(1)]) == {blob(1): value(1)}
    assert results.usage().results == {"one 1": 2, "one 2": 1, "two 1": 1}
    many = [(ONE, blob(number), value(number)) for number in range(2_000)]
    results.keep(many)
    assert len(results.find(ONE, map(blob, range(3_000)))) == 2_000


def test_stamps_are_kept_by_folder(results: Results) -> None:
    stamp = Stamp(1, 2, 3, 4)
    odd = os.fsdecode(b"b/\xff.txt")
    results.keep_stamps(ROOT, {"a.txt": (stamp, blob(1)), odd: (stamp, blob(2))})
    results.keep_stamps(b"/other", {"a.txt": (stamp, blob(3))})
    assert results.stamps(ROOT) == {"a.txt": (stamp, blob(1)), odd: (stamp, blob(2))}
    results.keep_stamps(ROOT, {"a.txt": None, odd: (Stamp(5, 6, 7, 8), blob(4))})
    assert results.stamps(ROOT) == {odd: (Stamp(5, 6, 7, 8), blob(4))}
    # What SQLite's integers do not hold is not kept, and does no harm.
    results.keep_stamps(ROOT, {"big": (Stamp(1, 2, 3, 2**64 - 1), blob(5))})
    assert "big" not in results.stamps(ROOT) and results.trouble == ""


def test_what_was_used_least_recently_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "analyses.sqlite3", most_bytes=400_000)
    content = random.Random(1).randbytes(900)
    day = 0
    monkeypatch.setattr("sandbox_engine.analysis.results._today", lambda: day)
    for day in range(0, 200, 10):
        results.keep([(ONE, blob(day * 100 + number), content) for number in range(40)])
        # This one is used each time.
        assert results.find(ONE, [blob(0)]) == {blob(0): content}
        assert (tmp_path / "analyses.sqlite3").stat().st_size < 600_000
    found = results.find(ONE, [blob(day * 100 + 1) for day in range(0, 200, 10)])
    ages = [int.from_bytes(key, "big") // 100 for key in sorted(found)]
    assert ages and ages == list(range(ages[0], 200, 10)) and ages[0] > 50
    results.close()


def test_trimming_gives_space_back_and_forgets_folders_that_are_gone(
    results: Results, tmp_path: Path
) -> None:
    content = random.Random(1).randbytes(2_000)
    results.keep([(ONE, blob(number), content) for number in range(500)])
    gone = os.fsencode(tmp_path / "gone")
    here = os.fsencode(tmp_path)
    for folder in (gone, here):
        results.keep_stamps(folder, {"a": (Stamp(1, 2, 3, 4), blob(1))})
    before = results.path.stat().st_size
    freed = results.trim(300_000)
    assert freed > 500_000 and before - freed == results.path.stat().st_size < 350_000
    assert 0 < len(results.find(ONE, map(blob, range(500)))) < 200
    assert results.stamps(gone) == {} and len(results.stamps(here)) == 1
    assert results.trim(300_000) == 0


WRITER = """
import sys, time
from pathlib import Path
from sandbox_engine import Analyser
from sandbox_engine.analysis.results import Results, packed

one = Analyser("one", "1", "module:one")
results = Results(Path(sys.argv[1]))
start = int(sys.argv[2])
print("ready", flush=True)
for batch in range(int(sys.argv[3])):
    numbers = range(start + batch * 20, start + batch * 20 + 20)
    results.keep([(one, n.to_bytes(20, "big"), packed({"number": n, "text": "x" * (n % 50)}))
                  for n in numbers])
    assert not results.trouble, results.trouble
"""


def write(path: Path, start: int, batches: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(start), str(batches)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_write_at_once_lose_nothing(results: Results) -> None:
    children = [write(results.path, number * 10_000, 15) for number in range(4)]
    for child in children:
        assert child.communicate(timeout=60)[1] == ""
    for number in range(4):
        wanted = range(number * 10_000, number * 10_000 + 300)
        assert results.find(ONE, map(blob, wanted)) == {blob(n): value(n) for n in wanted}


def test_a_writer_that_is_killed_harms_nobody(results: Results) -> None:
    numbers = random.Random(5)
    for _ in range(12):
        child = write(results.path, 0, 100_000)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(numbers.random() * 0.1)
        child.kill()
        child.communicate()
        found = results.find(ONE, map(blob, range(3_000)))
        assert all(unpacked(kept)["number"] == int.from_bytes(key, "big") for key, kept in
                   found.items())  # fmt: skip
        # A batch is there as a whole or not at all.
        assert len(found) % 20 == 0
        results.keep([(TWO, blob(1), value(1))])
        assert results.find(TWO, [blob(1)]) == {blob(1): value(1)}
        assert results.trouble == ""


def damage(content: bytearray, numbers: random.Random) -> bytearray:
    kind = numbers.randrange(5)
    if kind == 0:
        for _ in range(numbers.choice((1, 1, 10, 1_000))):
            content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
    elif kind == 1:
        del content[numbers.randrange(len(content)) :]
    elif kind == 2:
        start = numbers.randrange(len(content))
        content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    elif kind == 3:
        content[numbers.randrange(100)] = numbers.randrange(256)
    else:
        content = bytearray(numbers.randbytes(numbers.choice((0, 1, 100, 5_000))))
    return content


def test_a_damaged_file_is_never_believed(tmp_path: Path) -> None:
    path = tmp_path / "analyses.sqlite3"
    results = Results(path)
    results.keep([(ONE, blob(number), value(number)) for number in range(300)])
    stamp = Stamp(1, 2, 3, 4)
    results.keep_stamps(ROOT, {f"{number}": (stamp, blob(number)) for number in range(300)})
    results.close()
    whole = path.read_bytes()
    numbers = random.Random(11)
    found_some = set_aside = 0
    for _ in range(60):
        path.write_bytes(damage(bytearray(whole), numbers))
        (tmp_path / "analyses.sqlite3.damaged").unlink(missing_ok=True)
        found = results.find(ONE, map(blob, range(300)))
        assert all(kept == value(int.from_bytes(key, "big")) for key, kept in found.items())
        stamps = results.stamps(ROOT)
        assert all(one == (stamp, blob(int(name))) for name, one in stamps.items())
        results.keep([(TWO, blob(1), value(1))])
        assert results.find(TWO, [blob(1)]) == {blob(1): value(1)}
        assert results.trouble == ""
        found_some += bool(found)
        set_aside += (tmp_path / "analyses.sqlite3.damaged").exists()
        results.close()
    # Both ways out were taken.
    assert found_some > 5 and set_aside > 5


def test_a_file_of_another_version_is_set_aside(results: Results) -> None:
    results.keep([(ONE, blob(1), value(1))])
    results.close()
    with sqlite3.connect(results.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert results.find(ONE, [blob(1)]) == {}
    results.keep([(ONE, blob(2), value(2))])
    assert results.find(ONE, [blob(2)]) == {blob(2): value(2)}
    assert results.path.with_name("analyses.sqlite3.damaged").exists()


def test_a_journal_of_another_file_is_not_played_back(results: Results) -> None:
    results.keep([(ONE, blob(1), value(1))])
    results.close()
    other = results.path.with_name("other.sqlite3")
    connection = sqlite3.connect(other, isolation_level=None)
    connection.execute("CREATE TABLE t (a)")
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO t VALUES (?)", [("x" * 3_000,)] * 200)
    shutil.copy(f"{other}-journal", f"{results.path}-journal")
    connection.close()
    results.path.write_bytes(b"no database at all" * 100)
    results.keep([(ONE, blob(2), value(2))])
    assert results.find(ONE, [blob(2)]) == {blob(2): value(2)} and results.trouble == ""


def test_a_file_that_is_removed_is_made_anew(results: Results) -> None:
    other = Results(results.path)
    results.keep([(ONE, blob(1), value(1))])
    assert other.find(ONE, [blob(1)])
    assert results.remove() > 0
    assert not results.path.exists()
    for one in (other, results):
        one.keep([(ONE, blob(2), value(2))])
        assert one.find(ONE, [blob(2)]) == {blob(2): value(2)}
        assert one.trouble == ""
    other.close()


def test_what_cannot_be_kept_is_said_and_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "analyses.sqlite3", tmp_path):
        results = Results(path)
        results.keep([(ONE, blob(1), value(1))])
        assert results.find(ONE, [blob(1)]) == {}
        assert f"`{path}` cannot be used: " in results.trouble
        assert results.usage().results == {}
        results.close()


def test_a_full_disk_is_trouble_and_no_traceback(results: Results) -> None:
    results.keep([(ONE, blob(1), value(1))])
    results.close()
    limit = results.path.stat().st_size + 8_192
    child = subprocess.run(
        [sys.executable, "-c", WRITER, str(results.path), "100", "2000"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "AssertionError: `" in child.stderr and "cannot be used: " in child.stderr
    assert results.find(ONE, [blob(1)]) == {blob(1): value(1)}
    results.keep([(ONE, blob(2), value(2))])
    assert results.trouble == ""


def test_one_that_writes_for_long_is_waited_for_and_then_left(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.keep([(ONE, blob(1), value(1))])
    results.close()
    monkeypatch.setattr("sandbox_engine.analysis.results._BUSY_S", 0.1)
    holder = sqlite3.connect(results.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    results.keep([(ONE, blob(2), value(2))])
    assert "database is locked" in results.trouble
    holder.execute("ROLLBACK")
    holder.close()
    assert results.find(ONE, [blob(1)]) == {blob(1): value(1)}
    assert not results.path.with_name("analyses.sqlite3.damaged").exists()
