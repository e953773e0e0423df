from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_receipt import RECEIPT

from sandbox_engine import cache as cache_module
from sandbox_engine.cache import Cache, Key
from sandbox_engine.errors import SandboxBusyError, SandboxError
from sandbox_engine.receipt import seal
from sandbox_engine.verdict import CommitId, Outcome, StepResult, TreeId, Verdict

KEY = Key(TreeId("t" * 40), TreeId("b" * 40), "recipe", "environment")
PASSED = Verdict(
    Outcome.PASSED,
    "S",
    CommitId("c" * 40),
    TreeId("b" * 40),
    TreeId("t" * 40),
    steps=(StepResult("pytest", Outcome.PASSED),),
)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache.sqlite3")


def test_what_was_kept_is_found_under_its_whole_key(cache: Cache, tmp_path: Path) -> None:
    assert cache.find(KEY) is None
    cache.keep(KEY, PASSED)
    assert cache.find(KEY) == PASSED
    assert Cache(tmp_path / "cache.sqlite3").find(KEY) == PASSED
    for field in ("tree", "base_tree", "recipe", "environment"):
        assert cache.find(dataclasses.replace(KEY, **{field: "other"})) is None


@pytest.mark.parametrize(
    "verdict",
    [
        dataclasses.replace(PASSED, outcome=Outcome.INCONCLUSIVE),
        dataclasses.replace(PASSED, outcome=Outcome.REJECTED),
        dataclasses.replace(PASSED, steps=(StepResult("p", Outcome.FAILED, recurs=False),)),
    ],
)
def test_what_need_not_recur_is_never_kept(cache: Cache, verdict: Verdict) -> None:
    cache.keep(KEY, verdict)
    assert cache.find(KEY) is None


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 100, None])
def test_a_damaged_file_is_set_aside_and_made_anew(
    cache: Cache, tmp_path: Path, damage: bytes | None
) -> None:
    path = tmp_path / "cache.sqlite3"
    cache.keep(KEY, PASSED)
    cache.close()
    content = path.read_bytes()
    torn = content[:200] + b"\xff" * (len(content) - 200)
    path.write_bytes(torn if damage is None else damage)
    assert cache.find(KEY) is None
    cache.keep(KEY, PASSED)
    assert cache.find(KEY) == PASSED


def test_another_versions_file_is_made_anew(cache: Cache, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "cache.sqlite3") as other:
        other.execute("CREATE TABLE verdict (x)")
        other.execute("PRAGMA user_version = 99")
    other.close()
    cache.keep(KEY, PASSED)
    assert cache.find(KEY) == PASSED


def test_a_record_that_is_no_verdict_is_forgotten(cache: Cache, tmp_path: Path) -> None:
    cache.keep(KEY, PASSED)
    with sqlite3.connect(tmp_path / "cache.sqlite3") as other:
        other.execute("UPDATE verdict SET record = '{\"schema\": 1}'")
    other.close()
    assert cache.find(KEY) is None


def test_the_oldest_go_beyond_the_limit(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_VERDICTS_KEPT", 3)
    for number in range(5):
        cache.keep(dataclasses.replace(KEY, recipe=str(number)), PASSED)
    kept = [n for n in range(5) if cache.find(dataclasses.replace(KEY, recipe=str(n)))]
    assert kept == [2, 3, 4]
    assert cache.usage().verdicts == {"PASSED": 3}


def test_a_verdict_is_found_by_its_receipt_for_as_long_as_it_is_kept(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_VERDICTS_KEPT", 2)
    digests = []
    for number in range(3):
        receipt = seal(dataclasses.replace(RECEIPT, categories={"passed": number}))
        verdict = dataclasses.replace(PASSED, receipt=receipt)
        cache.keep(dataclasses.replace(KEY, recipe=str(number)), verdict)
        assert cache.find_receipt(receipt.digest) == verdict
        digests.append(receipt.digest)
    assert [cache.find_receipt(digest) is not None for digest in digests] == [False, True, True]
    cache.keep(dataclasses.replace(KEY, recipe="bare"), PASSED)
    assert cache.find_receipt("") is None


def test_a_receipt_that_was_altered_in_the_file_is_forgotten(cache: Cache, tmp_path: Path) -> None:
    cache.keep(KEY, dataclasses.replace(PASSED, receipt=RECEIPT))
    with sqlite3.connect(tmp_path / "cache.sqlite3") as other:
        other.execute("UPDATE verdict SET record = replace(record, 'ffff', 'eeee')")
    other.close()
    assert cache.find_receipt(RECEIPT.digest) is None
    assert cache.usage().verdicts == {}


def test_a_locked_file_is_named(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_BUSY_S", 0.1)
    cache.keep(KEY, PASSED)
    cache.close()
    other = sqlite3.connect(tmp_path / "cache.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SandboxBusyError, match="stayed locked"):
        cache.keep(KEY, PASSED)
    other.close()
    assert cache.find(KEY) == PASSED


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="cannot be used"):
        Cache(tmp_path / "gone" / "cache.sqlite3").find(KEY)


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_cache import KEY, PASSED
import dataclasses
import os
from sandbox_engine.cache import Cache
cache = Cache(Path(sys.argv[1]))
for number in range(50):
    cache.keep(dataclasses.replace(KEY, recipe=f"{sys.argv[3]}-{number}"), PASSED)
"""


def test_processes_and_threads_share_the_file(cache: Cache, tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    path = str(tmp_path / "cache.sqlite3")
    children = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, here, str(number)])
        for number in range(3)
    ]
    threads = [
        threading.Thread(
            target=lambda n=n: cache.keep(dataclasses.replace(KEY, recipe=f"t{n}"), PASSED)
        )
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait() for child in children] == [0, 0, 0]
    assert cache.usage().verdicts == {"PASSED": 170}


def test_notes_are_json_values(cache: Cache) -> None:
    assert cache.note("a") is None
    cache.set_note("a", {"b": [1, 2.5]})
    assert cache.note("a") == {"b": [1, 2.5]}


def test_every_verdict_is_in_the_log_and_the_oldest_are_forgotten(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "LOGGED_KEPT", 3)
    rejected = dataclasses.replace(PASSED, outcome=Outcome.REJECTED, tree=None, summary="Mend\n\nx")
    ids = [cache.log(verdict) for verdict in (PASSED, rejected, PASSED, rejected)]
    assert len(set(ids)) == 4
    lines = cache.logged(10)
    assert [line.id for line in lines] == ids[:0:-1]
    assert [line.what for line in lines] == ["Mend", "", "Mend"]
    assert cache.find_logged(ids[1][:6]) == [(ids[1], rejected)]
    assert [id for id, _ in cache.find_logged("t" * 40)] == [ids[2]]
    assert cache.find_logged(ids[0]) == [] and cache.find_logged("%") != []


def test_the_log_is_no_larger_than_it_may_be(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "LOGGED_BYTES", 25_000)
    large = dataclasses.replace(PASSED, reason=os.urandom(9_000).hex())
    ids = [cache.log(large) for _ in range(4)]
    assert [line.id for line in cache.logged(10)] == [ids[3], ids[2]]
    huge = cache.log(dataclasses.replace(PASSED, reason=os.urandom(50_000).hex()))
    assert [line.id for line in cache.logged(10)] == [huge]
