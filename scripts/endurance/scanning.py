"""Scans after any edits, with a watcher that lives, dies or hangs; and caches that are broken.

Every scan is compared with what git and the files themselves say, and with a scan that has never
seen anything. A cache that was killed while it was written, or damaged, may cost time and nothing
else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from endurance import table
from endurance.project import Problem
from sandbox_engine import Analyser, Scan, Scanner, watch

STATES = ("on", "off", "killed", "stalled")
"""What the watcher does while files are edited."""
WORDS = Analyser("words", "1", lambda content: content.decode().split(), (".txt", ".py"))
_READY_S = 20.0
_FILES = 25
_SETTLES = 3
"""After so many scans at most a damaged cache is rebuilt."""
_GIT = ("git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "gc.auto=0")


@dataclass(frozen=True, slots=True)
class Box:
    """A repository to edit, and what is drawn for it."""

    top: Path
    draw: random.Random

    def git(self, *arguments: str) -> None:
        """Run git; that a merge or a stash does not go is part of the game."""
        subprocess.run([*_GIT, *arguments], cwd=self.top, capture_output=True, check=False)

    def files(self) -> list[Path]:
        """Return the files that may be edited, sorted."""
        return sorted(
            path
            for path in self.top.rglob("*")
            if path.suffix in (".txt", ".py") and path.is_file() and ".git" not in path.parts
        )

    def text(self) -> str:
        """Return a content that is as long as every other one."""
        return f"word {self.draw.randrange(10**8):08}"

    def new_path(self) -> Path:
        """Return where a file may be made, its folder made."""
        folder = self.draw.choice(("", "a", "a/b", "c", "c/d/e", "ignored"))
        suffix = self.draw.choice((".txt", ".py"))
        path = self.top / folder / f"{self.draw.randrange(_FILES)}{suffix}"
        # A file may be where the folder was.
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path
        return self.top / path.name


def make(top: Path, seed: int) -> Box:
    """Return a repository with some files, and a branch that has others."""
    box = Box(top, random.Random(seed))
    top.mkdir(parents=True)
    box.git("init", "-q", "--initial-branch=main")
    (top / ".gitignore").write_text("ignored/\n")
    for number in range(_FILES):
        box.new_path().write_text(f"word {number:08}")
    box.git("add", "--all")
    box.git("commit", "-q", "-m", "first")
    box.git("switch", "-q", "-c", "other")
    for _ in range(_FILES):
        edit(box, "in place")
    box.git("add", "--all")
    box.git("commit", "-q", "-m", "second")
    box.git("switch", "-q", "main")
    return box


def _create(box: Box, path: Path) -> None:
    new = box.new_path()
    with contextlib.suppress(IsADirectoryError):
        new.write_text(box.text())


def _in_place(box: Box, path: Path) -> None:
    """Write as many bytes, and put the time back."""
    before = path.stat()
    path.write_text(box.text())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _append(box: Box, path: Path) -> None:
    with path.open("a") as file:
        file.write(f" {box.text()}")


def _save(box: Box, path: Path) -> None:
    """Replace the file in one step, as editors do."""
    temporary = path.with_name(f".{path.name}.swp")
    temporary.write_text(box.text())
    temporary.replace(path)


def _rename(box: Box, path: Path) -> None:
    path.replace(path.with_name(f"{box.draw.randrange(_FILES)}{path.suffix}"))


def _delete(box: Box, path: Path) -> None:
    path.unlink()


def _chmod(box: Box, path: Path) -> None:
    path.chmod(box.draw.choice((0o600, 0o644, 0o755)))


def _touch(box: Box, path: Path) -> None:
    os.utime(path)


def _swap(box: Box, path: Path) -> None:
    other = box.draw.choice(box.files())
    if other != path:
        hold = path.with_name(".hold")
        path.rename(hold)
        other.rename(path)
        hold.rename(other)


def _switch(box: Box, path: Path) -> None:
    box.git("switch", "-q", "--force", box.draw.choice(("main", "other")))


def _stash(box: Box, path: Path) -> None:
    box.git("stash", "push", "-q", "--include-untracked")
    if box.draw.random() < 0.7:
        box.git("stash", "pop", "-q")


def _commit(box: Box, path: Path) -> None:
    box.git("add", "--all")
    if box.draw.random() < 0.5:
        box.git("commit", "-q", "-m", "more")


def _rules(box: Box, path: Path) -> None:
    rule = box.draw.choice(("ignored/", "ignored/\n3.txt", "c/", "*.py\nignored/", ""))
    (box.top / ".gitignore").write_text(f"{rule}\n")


def _move_folder(box: Box, path: Path) -> None:
    folder = box.top / box.draw.choice(("a", "c", "a/b"))
    target = box.top / box.draw.choice(("moved", "c/moved", "ignored/moved"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir() and not target.exists() and not target.is_relative_to(folder):
        folder.rename(target)


def _folder_for_file(box: Box, path: Path) -> None:
    """Put a folder where a file was."""
    path.unlink()
    path.mkdir()
    (path / "0.txt").write_text(box.text())


def _remove_folder(box: Box, path: Path) -> None:
    folder = box.top / box.draw.choice(("a", "c/d", "moved"))
    if folder.is_dir():
        shutil.rmtree(folder)
        if box.draw.random() < 0.3:
            folder.write_text("a file where a folder was")


def _grow(box: Box, path: Path) -> None:
    """Make a nested folder and put files into it at once."""
    folder = box.top / "a" / f"n{box.draw.randrange(5)}" / "deep" / "er"
    with contextlib.suppress(FileExistsError, NotADirectoryError):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(5):
            (folder / f"{number}.py").write_text(box.text())


def _link(box: Box, path: Path) -> None:
    """Give a file a second name, and write through it."""
    with contextlib.suppress(FileExistsError, IsADirectoryError):
        # Where it is watched: of a name elsewhere nobody is told, see docs/watching.md.
        other = box.top / "linked.bin"
        other.unlink(missing_ok=True)
        os.link(path, other)
        other.write_text(box.text())


EDITS: dict[str, Callable[[Box, Path], None]] = {
    "create": _create,
    "in place": _in_place,
    "append": _append,
    "save": _save,
    "rename": _rename,
    "delete": _delete,
    "chmod": _chmod,
    "touch": _touch,
    "swap": _swap,
    "switch": _switch,
    "stash": _stash,
    "commit": _commit,
    "rules": _rules,
    "move folder": _move_folder,
    "folder for file": _folder_for_file,
    "remove folder": _remove_folder,
    "grow": _grow,
    "link": _link,
}


def edit(box: Box, what: str) -> None:
    """Make one edit of a kind to a file that is drawn."""
    if not (files := box.files()):
        _create(box, box.top)
        return
    with contextlib.suppress(FileExistsError, IsADirectoryError, NotADirectoryError):
        EDITS[what](box, box.draw.choice(files))


Told: TypeAlias = "tuple[list[str], dict[str, tuple[str, list[str]]]]"
"""Every path that counts, and blob and words of each file that is analysed."""


def truth(top: Path) -> Told:
    """Return what git and the files say."""
    done = subprocess.run(
        [*_GIT, "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=top,
        capture_output=True,
        check=True,
    )
    found = {}
    paths = []
    for name in sorted(set(os.fsdecode(done.stdout).split("\0")) - {""}):
        path = top / name
        if not path.is_file() and not path.is_symlink():
            continue
        paths.append(name)
        if path.suffix in WORDS.suffixes and not path.is_symlink():
            content = path.read_bytes()
            head = b"blob %d\0" % len(content)
            found[name] = hashlib.sha1(head + content).hexdigest(), content.decode().split()
    return paths, found


def told(scan: Scan) -> Told:
    """Return what a scan says."""
    files = {name: (file.blob, file.result("words")) for name, file in scan.files.items()}
    return list(scan.paths), files


@contextlib.contextmanager
def watcher(top: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have the work tree watched by a process, once it answers; it is ended by its id."""
    command = [sys.executable, "-m", "sandbox_engine", "watch", "--foreground"]
    child = subprocess.Popen(
        [*command, "--repo", str(top)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + _READY_S
        while watch.ask(top, None) is None:
            if child.poll() is not None or time.monotonic() > deadline:
                child.kill()
                raise Problem(f"the watcher did not start: {child.communicate()[1].decode()}")
            time.sleep(0.02)
        yield child
    finally:
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.communicate()


def sequences(count: int, seed: int, *, states: tuple[str, ...], flood: int) -> int:
    """Compare a scan with the truth after each of `count` sequences of edits; return the lost.

    The watcher is in each of `states` for as many of them. Where it is stalled, every tenth time
    `flood` modifications are made, more than the kernel keeps for it.
    """
    rows = []
    for number, state in enumerate(states):
        share = count // len(states) + (number < count % len(states))
        with tempfile.TemporaryDirectory(prefix="endure-scans-") as name:
            os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
            box = make(Path(name).resolve() / "repository", seed + number)
            rows.append((state, share, *_sequences(box, share, state, flood)))
    print(table.text(("watcher", "sequences", "edits", "without a sweep", "lost"), rows))
    return sum(row[-1] for row in rows)


def _sequences(box: Box, count: int, state: str, flood: int) -> tuple[int, int, int]:
    edits = swept = lost = 0
    with contextlib.ExitStack() as stack:
        scanner = stack.enter_context(Scanner(box.top, [WORDS]))
        child = None
        for number in range(count):
            if state != "off" and (child is None or child.poll() is not None):
                child = stack.enter_context(watcher(box.top))
                scanner.scan()
            kinds = [box.draw.choice(list(EDITS)) for _ in range(box.draw.randrange(1, 7))]
            edits += len(kinds)
            if state == "stalled" and child is not None:
                child.send_signal(signal.SIGSTOP)
                lost += _is_lost(box, scanner, kinds, flood if number % 10 == 0 else 0)
                child.send_signal(signal.SIGCONT)
                kinds = []
            elif state == "killed" and child is not None and box.draw.random() < 0.3:
                half = len(kinds) // 2
                for kind in kinds[:half]:
                    edit(box, kind)
                child.kill()
                child.wait()
                kinds = kinds[half:]
            lost += _is_lost(box, scanner, kinds, 0)
            swept += scanner.scan().effort.swept
    return edits, count - swept, lost


def _is_lost(box: Box, scanner: Scanner, kinds: list[str], flood: int) -> bool:
    """Make edits, and tell whether a scan says anything else than the truth and a cold scan."""
    for kind in kinds:
        edit(box, kind)
    for _ in range(flood // _FILES):
        for path in box.files()[:_FILES]:
            path.write_text(box.text())
    found, wanted = told(scanner.scan()), truth(box.top)
    with (
        tempfile.TemporaryDirectory() as home,
        Scanner(box.top, [WORDS], cache_home=Path(home)) as cold,
    ):
        fresh = told(cold.scan())
    if found == wanted == fresh:
        return False
    for what, one in (("scan", found), ("truth", wanted), ("cold scan", fresh)):
        print(f"{kinds}: {what}: {one}", file=sys.stderr)
    return True


_WRITER = """
import random, sys
from pathlib import Path
from sandbox_engine import Analyser, Scanner

number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    words = Analyser("words", str(number % 3), lambda content: content.decode().split(), (".txt",))
    for name in range(0, 60, 7):
        Path(sys.argv[1], f"{name}.txt").write_text(f"word {random.randrange(10**8):08}")
    with Scanner(sys.argv[1], [words], cache_home=Path(sys.argv[1], ".cache")) as one:
        assert not (trouble := one.scan().trouble), trouble
"""


def caches(kills: int, damages: int, seed: int) -> int:
    """Kill `kills` processes that write the cache, and damage `damages`; return the lost."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="endure-caches-") as name:
        top = Path(name).resolve()
        for number in range(60):
            (top / f"{number}.txt").write_text(f"word {number:08}")
        lost = Counter(kills=sum(_is_wrong_after_kill(top, draw, n) for n in range(kills)))
        lost["damages"] = sum(_is_wrong_after_damage(top, draw) for _ in range(damages))
    rows = [("killed", kills, lost["kills"]), ("damaged", damages, lost["damages"])]
    print(table.text(("caches", "times", "lost"), rows))
    return lost.total()


def _is_wrong_after_kill(top: Path, draw: random.Random, number: int) -> bool:
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(top), str(number)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(draw.random() * 0.15)
    child.kill()
    said = child.communicate()[1]
    if said:
        print(said, file=sys.stderr)
    return bool(said) or _is_wrong(top)


def _is_wrong_after_damage(top: Path, draw: random.Random) -> bool:
    _is_wrong(top)
    path = top / ".cache" / "analyses.sqlite3"
    content = bytearray(path.read_bytes())
    kind = draw.randrange(6)
    if kind == 0:
        for _ in range(draw.choice((1, 20, 2_000))):
            content[draw.randrange(len(content))] = draw.randrange(256)
    elif kind == 1:
        del content[draw.randrange(len(content)) :]
    elif kind == 2:
        start = draw.randrange(len(content))
        content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    elif kind == 3:
        content = bytearray(draw.randbytes(draw.choice((0, 10, 100, 20_000))))
    elif kind == 4:
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA user_version = {draw.choice((2, 7, 10**6))}")
        connection.close()
        content = bytearray(path.read_bytes())
    else:
        path.with_name(f"{path.name}-journal").write_bytes(draw.randbytes(3_000))
    path.write_bytes(content)
    return _is_wrong(top)


def _is_wrong(top: Path) -> bool:
    """Tell whether a scan says anything else than what the files hold, or keeps nothing.

    Damage may show only when something is written, and what was read before is lost with it then:
    the next scan computes it once more.
    """
    wanted = {path.name: path.read_text().split() for path in top.glob("*.txt")}
    for version in "012":
        words = Analyser("words", version, lambda content: content.decode().split(), (".txt",))
        with Scanner(top, [words], cache_home=top / ".cache") as one:
            scan = one.scan()
        found = {name: words for name, (_, words) in told(scan)[1].items()}
        if found != wanted or scan.trouble:
            print(f"{scan.trouble or 'a wrong answer'}", file=sys.stderr)
            return True
    for _ in range(_SETTLES):
        with Scanner(top, [words], cache_home=top / ".cache") as one:
            if one.scan().effort.analysed == 0:
                return False
    print("nothing is kept", file=sys.stderr)
    return True
