"""The agent's log: in order, complete, without secrets, and nobody waits for it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent import logs
from agent.logs import logging_to
from sandbox_engine import UsageError

SECRET = "sk-very-secret-0123456789"
log = logging.getLogger("agent.some.module")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_records_go_to_the_console_and_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to(tmp_path / "a.log", "DEBUG", console_level="WARNING"):
        log.debug("detail %d", 1)
        log.warning("look")
    assert capsys.readouterr().err == "WARNING look\n"
    first, second = lines(tmp_path / "a.log")
    shape = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z DEBUG agent\.some\.module detail 1"
    assert re.fullmatch(shape, first)
    assert second.endswith("WARNING agent.some.module look")
    # After the block nothing is written any more.
    log.warning("later")
    assert len(lines(tmp_path / "a.log")) == 2


def test_info_is_what_a_file_gets_where_nothing_is_said(tmp_path: Path) -> None:
    with logging_to(tmp_path / "a.log"):
        log.debug("too much")
        log.info("enough")
    assert [line.split()[-1] for line in lines(tmp_path / "a.log")] == ["enough"]


def test_all_records_are_written_in_order_before_the_block_ends(tmp_path: Path) -> None:
    def speak(name: int) -> None:
        for number in range(500):
            log.info("%d %d", name, number)

    with logging_to(tmp_path / "a.log", console_level="CRITICAL"):
        threads = [threading.Thread(target=speak, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    written = [tuple(map(int, line.split()[-2:])) for line in lines(tmp_path / "a.log")]
    assert len(written) == 2_000
    for name in range(4):
        assert [number for who, number in written if who == name] == list(range(500))


def test_secrets_are_never_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(tmp_path / "a.log", secrets=(SECRET, "")):
        log.info("the key is %s, or %s", SECRET, SECRET[:14])
        try:
            raise ValueError(f"bad key {SECRET}")
        except ValueError:
            log.exception("it failed")
    text = (tmp_path / "a.log").read_text() + capsys.readouterr().err
    assert SECRET[:9] not in text
    assert "the key is ***, or ***" in text and "ValueError: bad key ***" in text


def test_a_large_file_is_turned_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_FILE_BYTES", 10_000)
    with logging_to(tmp_path / "a.log", console_level="CRITICAL"):
        for number in range(1_000):
            log.info("line %d", number)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("a.log*")}
    assert set(sizes) == {"a.log", "a.log.1", "a.log.2", "a.log.3"}
    assert all(size <= 10_000 for size in sizes.values())
    assert lines(tmp_path / "a.log")[-1].endswith("line 999")


def _speak_in_a_child() -> None:
    log.info("of the child")
    for one in logs._open:
        one.close()
    os._exit(0)


def test_a_forked_child_writes_its_own_records_once(tmp_path: Path) -> None:
    with logging_to(tmp_path / "a.log", console_level="CRITICAL"):
        for number in range(200):
            log.info("of the parent %d", number)
        child = multiprocessing.get_context("fork").Process(target=_speak_in_a_child)
        child.start()
        child.join(20)
        assert child.exitcode == 0
        log.info("of the parent, later")
    written = [line.split("module ")[1] for line in lines(tmp_path / "a.log")]
    assert sorted(written) == sorted(
        [*(f"of the parent {n}" for n in range(200)), "of the child", "of the parent, later"]
    )


def test_an_exit_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from pathlib import Path; from agent.logs import logging_to\n"
        "with logging_to(Path(sys.argv[1]), console_level='CRITICAL'):\n"
        "    for number in range(3000): logging.getLogger('agent').info('%d', number)\n"
        "    sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.log"], check=False)
    assert done.returncode == 3
    assert [int(line.split()[-1]) for line in lines(tmp_path / "a.log")] == list(range(3000))


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no log level `LOUD`"), logging_to(None, "LOUD"):
        pass
    with (
        pytest.raises(UsageError, match="cannot be written: No such file"),
        logging_to(tmp_path / "none" / "a.log"),
    ):
        pass
    assert logging.getLogger("agent").handlers == []
