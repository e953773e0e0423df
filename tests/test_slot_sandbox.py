from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import lock, store
from sandbox_engine.errors import SandboxBusyError
from sandbox_engine.isolation import View
from sandbox_engine.process import Limits
from sandbox_engine.sandbox import Setup, allowed_variables
from sandbox_engine.slot_sandbox import SlotSandbox, open_slot
from sandbox_engine.store import Store
from sandbox_engine.verdict import CommitId, Tier

LIMITS = Limits(wall_s=20)


@contextlib.contextmanager
def leased(kept: Store, commit: str, slots: int = 1, wait_s: float = 0) -> Iterator[SlotSandbox]:
    setup = Setup(
        Tier.NONE,
        View(str(kept.repository.top)),
        variables=allowed_variables(()),
        slots=slots,
        wait_s=wait_s,
    )
    with open_slot(kept, CommitId(commit), setup) as sandbox:
        yield sandbox


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".git"
    }


@pytest.mark.usefixtures("untouched")
def test_the_sandbox_holds_exactly_the_tree(project: GitBox, kept: Store) -> None:
    with leased(kept, project.head) as sandbox:
        assert contents(sandbox.root) == project.files()
        assert sandbox.read("calc.py") == project.files()["calc.py"]
        assert sandbox.read("gone.py") is None
        assert sandbox.read("tests") is None


LITTER = """
set -e
echo changed > calc.py; echo new > new.py; mkdir -p a/b; echo x > a/b/ignored.log
rm tests/test_calc.py; ln -s /etc tests/link; chmod 000 .gitignore
git init -q nested; echo x > nested/f
git update-index --assume-unchanged calc.py; git checkout -q -b elsewhere; git tag made-by-a-test
git branch packed; git pack-refs --all; git bisect start -q; mkfifo pipe
git worktree add -q "$TMPDIR/another" HEAD
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("app.sock")'
git config user.name nobody; mkdir -p "$(git rev-parse --git-common-dir)/hooks"
echo 'exit 1' > "$(git rev-parse --git-common-dir)/hooks/pre-commit"
mkdir locked; touch locked/f; chmod 500 locked
touch .git-lookalike
"""


def test_whatever_a_run_leaves_is_gone_in_the_next(project: GitBox, kept: Store) -> None:
    first = project.head
    second = project.commit({"calc.py": "other = 1\n", "added/new.py": "y = 1\n"})
    for commit in (first, second, first, second):
        store.tidy(kept)
        with leased(kept, commit) as sandbox:
            assert contents(sandbox.root) == project.files(commit)
            assert sandbox.run(["git", "status", "--porcelain"], LIMITS).stdout == b""
            assert sandbox.run(["sh", "-c", LITTER], LIMITS).code == 0


@pytest.mark.parametrize(
    "vandalism",
    [
        "rm .git",
        "rm .git; ln -s /etc .git",
        "echo 'gitdir: /tmp/evil' > .git",
        "rm -rf $(git rev-parse --git-dir)",
        "echo garbage > $(git rev-parse --git-dir)/HEAD",
        "rm -rf calc.py tests; ln -s / tests",
        "cd ..; rm -rf 0; ln -s /tmp 0",
        "cd ..; rm -rf 0",
        "touch $(git rev-parse --git-dir)/index.lock",
    ],
)
def test_a_wrecked_slot_is_made_anew(project: GitBox, kept: Store, vandalism: str) -> None:
    with leased(kept, project.head) as sandbox:
        sandbox.run(["sh", "-c", vandalism], LIMITS)
    with leased(kept, project.head) as sandbox:
        assert contents(sandbox.root) == project.files()
        assert sandbox.run(["git", "status", "--porcelain"], LIMITS).stdout == b""


def test_a_torn_index_is_made_anew(project: GitBox, kept: Store) -> None:
    with leased(kept, project.head):
        pass
    (kept.slots / "0.state" / "index").write_bytes(b"DIRC torn")
    with leased(kept, project.head) as sandbox:
        assert contents(sandbox.root) == project.files()


def test_a_same_sized_edit_with_its_time_put_back_is_noticed(project: GitBox, kept: Store) -> None:
    with leased(kept, project.head) as sandbox:
        path = sandbox.root / "calc.py"
        before = path.stat()
        path.write_bytes(path.read_bytes().replace(b"+", b"-"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with leased(kept, project.head) as sandbox:
        assert contents(sandbox.root) == project.files()


def test_objects_that_the_user_has_pruned_are_noticed(project: GitBox, kept: Store) -> None:
    old = project.head
    new = project.commit({"calc.py": "rewritten = 1\n"})
    with leased(kept, new):
        pass
    project.git("reset", "-q", "--hard", old)
    project.git("reflog", "expire", "--expire=now", "--all")
    project.git("gc", "-q", "--prune=now")
    with leased(kept, old) as sandbox:
        assert contents(sandbox.root) == project.files()


def test_the_run_sees_a_short_environment_and_history(
    project: GitBox, kept: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.git("tag", "v7")
    store.tidy(kept)
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")
    with leased(kept, project.head) as sandbox:
        seen = sandbox.run(["env"], LIMITS).stdout.decode()
        assert "hidden" not in seen
        assert "GIT_INDEX_FILE" not in seen
        home = sandbox.run(["sh", "-c", "echo $HOME; ls -A $HOME $TMPDIR"], LIMITS).stdout.decode()
        assert str(Path.home()) not in home
        assert sandbox.run(["git", "describe", "--tags"], LIMITS).stdout == b"v7\n"
    assert not Path(home.splitlines()[0]).exists()


def test_slots_are_leased_to_one_at_a_time(project: GitBox, kept: Store) -> None:
    with leased(kept, project.head, slots=2) as one, leased(kept, project.head, slots=2) as two:
        assert one.root != two.root
        with (
            pytest.raises(SandboxBusyError, match="all 2 sandboxes"),
            leased(kept, project.head, 2),
        ):
            pass
    with leased(kept, project.head, slots=2) as again:
        assert again.root == one.root


def test_runs_at_the_same_time_do_not_share_references(project: GitBox, kept: Store) -> None:
    with leased(kept, project.head, slots=2) as one, leased(kept, project.head, slots=2) as two:
        assert one.run(["git", "branch", "feature"], LIMITS).code == 0
        assert two.run(["git", "branch", "feature"], LIMITS).code == 0
        assert one.run(["git", "config", "user.name", "one"], LIMITS).code == 0
        assert two.run(["git", "config", "user.name"], LIMITS).stdout == b"sandbox\n"


def test_submodules_are_empty_in_every_run(project: GitBox, kept: Store) -> None:
    project.commit({".gitmodules": '[submodule "s"]\n\tpath = s\n\turl = ./x\n'})
    project.git("update-index", "--add", "--cacheinfo", f"160000,{project.head},s")
    project.git("commit", "-q", "-m", "submodule")
    for _ in range(2):
        with leased(kept, project.head) as sandbox:
            assert sandbox.run(["ls", "s"], LIMITS).stdout == b""
            assert sandbox.run(["sh", "-c", "echo left > s/file"], LIMITS).code == 0


def test_many_threads_share_few_slots(project: GitBox, kept: Store) -> None:
    commits = [project.commit({"calc.py": f"n = {n}\n"}) for n in range(4)]
    wrong: list[str] = []
    in_use: set[Path] = set()

    def work(number: int) -> None:
        commit = commits[number % 4]
        with leased(kept, commit, slots=3, wait_s=60) as sandbox:
            if sandbox.root in in_use:
                wrong.append("shared")
            in_use.add(sandbox.root)
            if sandbox.read("calc.py") != f"n = {number % 4}\n".encode():
                wrong.append(commit)
            in_use.remove(sandbox.root)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(list(kept.slots.glob("*.state"))) <= 3


def test_the_lock_dies_with_its_process(project: GitBox, kept: Store) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from sandbox_engine import lock\n"
        "lock.try_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)\n"
    )
    with leased(kept, project.head):
        pass
    path = kept.slots / "0.state" / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert lock.try_lock(path) is None
        holder.kill()
    with leased(kept, project.head):
        pass


def test_submodules_and_links_of_the_tree_stay_as_they_are(project: GitBox, kept: Store) -> None:
    os.symlink("calc.py", project.top / "link")
    project.git("update-index", "--add", "--cacheinfo", f"160000,{project.head},sub")
    (project.top / "sub").mkdir()
    project.git("add", "link")
    project.git("commit", "-q", "-m", "link and submodule")
    with leased(kept, project.head) as sandbox:
        assert os.readlink(sandbox.root / "link") == "calc.py"
        assert (sandbox.root / "sub").is_dir()
        assert sandbox.read("link") is None


def test_attributes_decide_line_endings_and_filters_never_run(
    project: GitBox, kept: Store, tmp_path: Path
) -> None:
    witness = tmp_path / "ran"
    project.git("config", "filter.evil.smudge", f"touch {witness}; cat")
    commit = project.commit(
        {".gitattributes": "*.txt text eol=crlf\n*.py filter=evil\n", "a.txt": "one\ntwo\n"}
    )
    witness.unlink(missing_ok=True)
    with leased(kept, commit) as sandbox:
        assert sandbox.read("a.txt") == b"one\r\ntwo\r\n"
    assert not witness.exists()
