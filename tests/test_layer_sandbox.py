"""What runs see and change in layers, against plain checkouts, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from children import is_free, wait_until
from conftest import GitBox
from layering import LIMITS, LISTING, checked_out, layered, listed, said, shell

from sandbox_engine import carry, git, store
from sandbox_engine.errors import CommandMissingError, SandboxBusyError, SandboxError
from sandbox_engine.isolation import View
from sandbox_engine.layer_sandbox import LayerSandbox
from sandbox_engine.layers import layers_folder
from sandbox_engine.process import Limits, Stop
from sandbox_engine.store import Store

pytestmark = pytest.mark.usefixtures("full_tier")

PROJECT = Path(__file__).resolve().parents[1]


def equals_a_checkout(box: GitBox, sandbox: LayerSandbox, revision: str) -> None:
    assert said(sandbox, LISTING).splitlines() == listed(checked_out(box, revision)).splitlines()
    # It looks at the times that the index says, and reads no file.
    assert said(sandbox, "git diff-files --name-only") == ""
    assert said(sandbox, "git status --porcelain") == ""
    assert sandbox.changed_files() == []


def edits(box: GitBox) -> None:
    box.write({"calc.py": "x = 1\n", "new.py": "n = 1\n", "new/deep/er.py": "d = 1\n"})


def deletions(box: GitBox) -> None:
    box.git("rm", "-rq", "tests", "folder/one", "deep")


def other_kinds(box: GitBox) -> None:
    box.git("rm", "-rq", "folder", "calc.py", "link", "deep/er/est")
    box.write({"folder": "now a file\n", "calc.py/now": "a folder\n", "link/now": "a folder\n"})
    (box.top / "deep/er").mkdir(parents=True)
    os.symlink("../folder", box.top / "deep/er/est")


def modes(box: GitBox) -> None:
    os.chmod(box.top / "calc.py", 0o755)
    os.chmod(box.top / "run", 0o644)


def links(box: GitBox) -> None:
    box.git("rm", "-q", "link")
    for target, name in (("folder/one", "link"), ("/etc/passwd", "out"), ("nowhere", "tests/no")):
        os.symlink(target, box.top / name)


ODD = {
    "a b,c:d=e": "1",
    "quo\"te'\\": "2",
    "line\nbreak/tab\t": "3",
    "\udcff\udce9": "4",
    "h\u00e9": "5",
    "-rf": "6",
    "%d$(x)": "7",
    "n" * 250: "8",
}


def odd_names(box: GitBox) -> None:
    box.write(ODD)


def odd_names_gone(box: GitBox) -> None:
    for name in ODD:
        (box.top / name).unlink()


def nothing(box: GitBox) -> None:
    return


CONVERTED = {"a.txt": "a\nb\n", "v.id": "$Id$\n", "w.wide": "h\u00e9\n".encode("utf-16-le")}
ATTRIBUTES = "*.txt text eol=crlf\n*.id ident\n*.wide working-tree-encoding=UTF-16LE\n"


def converted(box: GitBox) -> None:
    wide = "h\u00e9 h\u00e9\n".encode("utf-16-le")
    box.write({"a.txt": "c\n", "new.txt": "n\n", "v.id": "$Id$ more\n", "w.wide": wide})


def whole_tree(box: GitBox) -> None:
    for name in os.listdir(box.top):
        if name != ".git":
            remove = shutil.rmtree if (box.top / name).is_dir() else os.remove
            remove(box.top / name)
    (box.top / "only").write_text("this\n")


CHANGES = [
    edits, deletions, other_kinds, modes, links, odd_names, odd_names_gone, nothing, converted,
    whole_tree,
]  # fmt: skip


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> GitBox:
    """A repository with a commit of many kinds of files, and one for each of `CHANGES` on it."""
    box = GitBox(tmp_path_factory.mktemp("varied") / "repo")
    box.write({"calc.py": "c = 1\n", "tests/t.py": "t = 1\n", "folder/one": "1", "folder/two": "2"})
    box.write({"deep/er/est/file": "f", "run": "#!/bin/sh\n", ".gitattributes": ATTRIBUTES})
    box.write({**CONVERTED, **ODD})  # type: ignore[dict-item]
    os.chmod(box.top / "run", 0o755)
    os.symlink("calc.py", box.top / "link")
    base = box.commit({})
    for change in CHANGES:
        box.git("checkout", "-q", "-B", change.__name__, base)
        change(box)
        box.commit({})
    box.git("checkout", "-q", "--detach", base)
    box.git("branch", "-f", "main", base)
    return box


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_seen_equals_a_checkout(varied: GitBox, change: Callable[[GitBox], None]) -> None:
    kept = store.open_store(git.find_repository(varied.top))
    for base, wanted in (("main", change.__name__), (change.__name__, "main")):
        with layered(kept, base, wanted) as sandbox:
            equals_a_checkout(varied, sandbox, wanted)
            # The base is the same layer, whichever of the two it is made for.
            assert sum(name.isdigit() for name in os.listdir(layers_folder(kept))) <= 2


def test_submodules_are_empty_folders(project: GitBox, kept: Store) -> None:
    base = project.head
    tree = project.git("write-tree")
    project.git("update-index", "--add", "--cacheinfo", f"160000,{base},sub")
    added = project.git("commit-tree", project.git("write-tree"), "-p", base, "-m", "submodule")
    project.git("read-tree", tree)
    project.git("status")
    for old, new in ((base, added), (added, base), (added, added)):
        with layered(kept, old, new) as sandbox:
            equals_a_checkout(project, sandbox, new)
            assert said(sandbox, "ls -A sub 2>/dev/null || echo none") == (
                "none\n" if new == base else ""
            )


def test_a_candidate_far_from_the_layer_is_seen_whole(project: GitBox, kept: Store) -> None:
    def rewritten(word: str) -> str:
        entries = "".join(
            f"100644 blob {project.git('hash-object', '-w', '--stdin', text=word + str(n % 3))}"
            f"\tf{n}\n"
            for n in range(3)
        )
        more = "".join(entries.replace("\tf", f"\tg{n}") for n in range(30))
        tree = project.git("mktree", text=entries + more)
        return project.git("commit-tree", tree, "-m", word)

    commits = [rewritten(str(number)) for number in range(5)]
    for base, wanted in zip(commits, reversed(commits), strict=True):
        with layered(kept, base, wanted) as sandbox:
            equals_a_checkout(project, sandbox, wanted)
    assert sum(name.isdigit() for name in os.listdir(layers_folder(kept))) == 3


def clone(project: GitBox, name: str, *options: str) -> Path:
    folder = project.top.parent / name
    source = f"file://{project.top}" if "--depth=1" in options else str(project.top)
    subprocess.run(["git", "clone", "-q", *options, source, str(folder)], check=True)
    return folder


def linked(project: GitBox) -> Path:
    project.git("worktree", "add", "-q", "../linked", "HEAD")
    return project.top.parent / "linked"


REPOSITORIES: dict[str, Callable[[GitBox], Path]] = {
    "bare": lambda project: clone(project, "bare.git", "--bare"),
    "linked": linked,
    "shallow": lambda project: clone(project, "shallow", "--depth=1"),
    "alternates": lambda project: clone(project, "shared", "--shared"),
    "odd path": lambda project: clone(project, "a b,c:d=e\\f'\"\u00e9%s"),
    "packed": lambda project: clone(project, "packed", "--no-hardlinks"),
}


@pytest.mark.parametrize("kind", REPOSITORIES)
def test_every_kind_of_repository_is_seen_whole(project: GitBox, kind: str) -> None:
    project.git("tag", "-a", "v7", "-m", "seven")
    project.commit({"more.py": "m = 1\n"})
    folder = REPOSITORIES[kind](project)
    opened = store.open_store(git.find_repository(folder))
    root = folder if opened.repository.top else opened.slots / "0"
    with layered(opened, "HEAD", view=View(str(root))) as sandbox:
        assert sandbox.root == root
        seen = shell(sandbox, f"pwd -P; git log --oneline | wc -l; git describe;{LISTING}")
        where, count, *files = os.fsdecode(seen.stdout).splitlines()
        # The candidate is one commit on its base.
        assert (where, count) == (str(root), "2" if kind == "shallow" else "3")
        if kind != "shallow":
            assert files.pop(0).startswith("v7-2-g")
        assert files == listed(checked_out(project, "HEAD")).splitlines()
        assert said(sandbox, "git status --porcelain 2>/dev/null") == ""
        commit = "echo x > new; git add new; git commit -q -m new && git fsck --strict"
        assert shell(sandbox, commit).code == 0


@pytest.mark.parametrize("kind", ["bare", "linked", "alternates"])
def test_git_complains_of_no_repository(project: GitBox, kind: str) -> None:
    folder = REPOSITORIES[kind](project)
    opened = store.open_store(git.find_repository(folder))
    root = folder if opened.repository.top else opened.slots / "0"
    with layered(opened, "HEAD", view=View(str(root))) as sandbox:
        assert shell(sandbox, "git log --oneline").stderr == b""


@pytest.mark.usefixtures("untouched")
def test_git_works_inside_and_leaves_nothing_outside(project: GitBox, kept: Store) -> None:
    objects = {path for path in kept.git_dir.rglob("*") if path.is_file()}
    with layered(kept, "HEAD") as sandbox:
        objects |= {path for path in kept.git_dir.rglob("*") if path.is_file()}
        script = """
            set -e
            git branch --show-current; git log -1 --format=%s; git config user.name
            git checkout -q -b feature; echo 'new = 1' > new.py; git add new.py
            git commit -q -m new; git tag mine; git branch other; git pack-refs --all
            git config core.hooksPath hooks; git gc -q; git stash list; git status --porcelain
            git worktree add -q ../another; git bisect start > bisect.log; git rev-parse HEAD
        """
        *told, commit = said(sandbox, script).splitlines()
        assert told == ["candidate/0", "candidate", "sandbox"]
        assert said(sandbox, "git log --oneline feature | wc -l") == "3\n"
        # What borrows its objects sees none of those that were made.
        assert project.git("cat-file", "--batch-check", text=commit) == f"{commit} missing"
    assert {path for path in kept.git_dir.rglob("*") if path.is_file()} == objects
    with layered(kept, "HEAD") as sandbox:
        assert (
            said(sandbox, "git branch --list feature other; git tag; git config -l").count(
                "hookspath"
            )
            == 0
        )
        assert shell(sandbox, f"git cat-file -e {commit}").code != 0


def test_tags_are_those_of_the_user(project: GitBox, kept: Store) -> None:
    project.git("tag", "-a", "v1", "-m", "one")
    project.commit({"calc.py": "x = 1\n"})
    with layered(kept, "HEAD") as sandbox:
        assert said(sandbox, "git tag; git describe").splitlines()[0] == "v1"
        assert said(sandbox, "git describe").startswith("v1-2-g")
    project.git("tag", "-d", "v1")
    with layered(kept, "HEAD") as sandbox:
        assert said(sandbox, "git tag") == ""


@pytest.mark.usefixtures("untouched")
def test_it_is_seen_at_the_users_own_path_and_is_not_it(project: GitBox, kept: Store) -> None:
    secret = project.top / "untracked.log"
    secret.write_text("only the user's")
    try:
        with layered(kept, "HEAD") as sandbox:
            assert sandbox.root == project.top
            assert said(sandbox, "pwd -P") == f"{project.top}\n"
            assert said(sandbox, "ls -A").split() == [".git", ".gitignore", "calc.py", "tests"]
            script = f"echo x > {project.top}/calc.py; rm -rf tests .git; mkdir -p new/folder"
            assert shell(sandbox, script).code == 0
            assert sandbox.read("calc.py") == b"x\n"
    finally:
        secret.unlink()


@pytest.fixture
def environment(project: GitBox) -> Path:
    """A virtual environment inside of the repository, with a module in it."""
    folder = project.top / ".venv"
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "thing.py").write_text("value = 1\n")
    (folder / "executable").touch(0o755)
    project.write({".gitignore": ".venv\n*.log\n*.env\n"})
    project.commit({})
    return site


def commit_without_environment(project: GitBox) -> None:
    project.git("rm", "-rq", "--cached", ".venv")
    project.git("commit", "-q", "-m", "without")


def test_an_environment_in_the_repository_is_written_to_and_stays_as_it_is(
    project: GitBox, kept: Store, environment: Path
) -> None:
    commit_without_environment(project)
    before = project.snapshot()
    view = View(str(project.top), environments=(str(project.top / ".venv"), sys.base_prefix))
    site = environment.relative_to(project.top)
    python = ".venv/bin/python -c"
    with layered(kept, "HEAD", view=view) as sandbox:
        where = said(sandbox, f"{python} 'import thing; print(thing.__file__, thing.value)'")
        assert where == f"{environment}/thing.py 1\n"
        script = f"""
            set -e
            echo 'value = 2' > {site}/thing.py; echo 'x = 3' > {site}/fresh.py
            rm -rf .venv/bin/activate; chmod 600 .venv/executable; mkdir .venv/share
            {python} 'import thing, fresh; print(thing.value, fresh.x)'; git status --porcelain
        """
        assert said(sandbox, script) == "2 3\n"
        assert sandbox.changed_files() == []
        assert said(sandbox, f"{python} 'import fresh'") == ""
        sandbox.restore()
        assert said(sandbox, f"{python} 'import thing; print(thing.value)'") == "1\n"
        assert shell(sandbox, f"{python} 'import fresh'").code == 1
    assert project.snapshot() == before


def test_carried_files_are_copies(project: GitBox, kept: Store) -> None:
    project.commit({".gitignore": "*.env\nbuilt\n"})
    project.write({"local.env": "mine\n", "deep/er/local.env": "too\n", "built/a/b.so": "x\n"})
    os.chmod(project.top / "built/a/b.so", 0o755)
    os.symlink("local.env", project.top / "link.env")
    before = project.snapshot()
    carried = carry.find_carried(kept.repository, ("**/*.env", "built"))
    for _ in range(2):
        with layered(kept, "HEAD", carried=carried) as sandbox:
            seen = said(sandbox, "cat local.env deep/er/local.env link.env built/a/b.so")
            assert seen == "mine\ntoo\nmine\nx\n"
            assert said(sandbox, "git status --porcelain") == ""
            shell(sandbox, "echo changed > local.env; rm -r built deep; echo new > new.env")
            assert said(sandbox, "cat local.env") == "changed\n"
            assert sandbox.changed_files() == []
            sandbox.restore()
            assert said(sandbox, "cat local.env deep/er/local.env") == "mine\ntoo\n"
    assert project.snapshot() == before
    with layered(kept, "HEAD", carried=carried) as sandbox:
        (project.top / "local.env").write_text("edited\n")
        assert said(sandbox, "cat local.env") == "mine\n"
    carried = carry.find_carried(kept.repository, ("**/*.env",))
    with layered(kept, "HEAD", carried=carried) as sandbox:
        names = said(sandbox, "cat local.env; ls").split()
        assert names == ["edited", "calc.py", "deep", "link.env", "local.env", "tests"]


def test_the_tree_wins_over_what_is_carried(project: GitBox, kept: Store) -> None:
    project.commit({".gitignore": "*.env\n"})
    base = project.head
    project.write({"local.env": "carried\n", "kind.env/in": "carried\n"})
    carried = carry.find_carried(kept.repository, ("local.env", "kind.env"))
    other = GitBox(project.top.parent / "other")
    other.git("fetch", "-q", str(project.top), "main:main2")
    other.git("checkout", "-q", "main2")
    wanted = other.commit({"local.env": "tracked\n", "kind.env": "a file\n"})
    project.git("fetch", "-q", str(other.top), wanted)
    with layered(kept, base, wanted, carried=carried) as sandbox:
        assert said(sandbox, "cat local.env kind.env") == "tracked\na file\n"
        assert said(sandbox, "git status --porcelain") == ""


def test_a_carried_file_stays_where_the_last_tracked_one_of_its_folder_goes(
    project: GitBox, kept: Store
) -> None:
    base = project.commit({"settings/default.ini": "x\n", ".gitignore": "*.env\n"})
    project.git("rm", "-q", "settings/default.ini")
    wanted = project.commit({})
    project.write({"settings/local.env": "mine\n"})
    carried = carry.find_carried(kept.repository, ("settings/local.env",))
    with layered(kept, base, wanted, carried=carried) as sandbox:
        assert said(sandbox, "cat settings/local.env") == "mine\n"


CHANGED = [
    ("echo 'x = 1' > calc.py", ["calc.py"]),
    ("sed -i 's/+/-/' calc.py", ["calc.py"]),
    ("rm calc.py", ["calc.py"]),
    ("chmod +x calc.py", ["calc.py"]),
    ("rm calc.py; ln -s tests/t.py calc.py", ["calc.py"]),
    ("rm calc.py; mkdir calc.py", ["calc.py"]),
    ("rm calc.py; mkfifo calc.py", ["calc.py"]),
    ("mv calc.py moved.py", ["calc.py"]),
    ("rm -rf tests", ["tests"]),
    ("rm -rf tests; mkdir tests", ["tests"]),
    ("mv tests elsewhere; mkdir tests; cp -r elsewhere/. tests", ["tests"]),
    ("rm -rf tests; echo > tests", ["tests"]),
    ("rm tests/deep/er/t.py", ["tests/deep/er/t.py"]),
    ("echo x >> tests/deep/er/t.py; echo x >> calc.py", ["calc.py", "tests/deep/er/t.py"]),
    ("ln -sfn tests/test_calc.py link", ["link"]),
    ("rm -rf given/in", ["given/in"]),
    ("echo x >> given/in/file", ["given/in/file"]),
    # What is no change of what git tracks.
    ("touch calc.py; chmod 600 calc.py", []),
    ("cp calc.py c; mv c calc.py", []),
    ("rm link; ln -s calc.py link", []),
    ("echo x > untracked; mkdir -p a/b; echo x > a/b/c; echo x > tests/new; mkdir tests/f", []),
    ("rm -rf .git; echo x > .gitlike", []),
    ("git commit -q --allow-empty -m x; git checkout -q -b other", []),
    ("echo x > given/new; rm -rf gone; mkdir gone; echo y > gone/again", []),
]


def test_changes_of_tracked_files_alone_are_seen(project: GitBox, kept: Store) -> None:
    os.symlink("calc.py", project.top / "link")
    base = project.commit({"tests/deep/er/t.py": "t = 1\n", "gone/file": "g\n"})
    project.git("rm", "-rq", "gone")
    wanted = project.commit({"given/in/file": "new\n", "given/more": "m\n"})
    wrong = []
    with layered(kept, base, wanted) as sandbox:
        for script, changed in CHANGED:
            assert shell(sandbox, f"set -e; {script}").code == 0, script
            if (seen := sandbox.changed_files()) != changed:
                wrong.append((script, seen))
            # Nothing that a run does is left after this.
            sandbox.restore()
            equals_a_checkout(project, sandbox, wanted)
    assert wrong == []


def test_odd_changed_names_come_back_as_they_are(varied: GitBox) -> None:
    kept = store.open_store(git.find_repository(varied.top))
    with layered(kept, "main", "odd_names") as sandbox:
        script = "find . -path ./.git -prune -o -type f -exec sh -c 'echo >> \"$1\"' - {} ';'"
        assert shell(sandbox, script).code == 0
        assert set(ODD) < set(sandbox.changed_files())


def test_restore_takes_back_all_that_was_written(project: GitBox, kept: Store) -> None:
    script = """
        rm -rf calc.py .git tests; echo x > new; for f in /tmp /var/tmp /dev/shm "$HOME"; do
        echo x > $f/left; done; rm "$HOME/.gitconfig"; mkdir -p /tmp/a/b; chmod 000 /tmp/a
    """
    with layered(kept, "HEAD") as sandbox:
        before = said(sandbox, f"{LISTING} ls -AR /tmp /var/tmp /dev/shm $HOME | grep -v repo")
        for _ in range(3):
            assert shell(sandbox, script).code == 0
            sandbox.restore()
            equals_a_checkout(project, sandbox, "HEAD")
            after = said(sandbox, f"{LISTING} ls -AR /tmp /var/tmp /dev/shm $HOME | grep -v repo")
            assert after == before


def test_what_is_read_is_a_file_of_the_sandbox(project: GitBox, kept: Store) -> None:
    script = """
        echo written > new; ln -s calc.py link; ln -s tests folder; mkfifo pipe; rm .gitignore
        ln -s /etc/passwd out; head -c 3000000 /dev/zero > large; touch empty
    """
    with layered(kept, "HEAD") as sandbox:
        assert sandbox.read("calc.py") == project.files()["calc.py"]
        assert sandbox.read("tests/test_calc.py") == project.files()["tests/test_calc.py"]
        shell(sandbox, script)
        assert sandbox.read("new") == b"written\n"
        assert sandbox.read("large") == bytes(3_000_000)
        assert sandbox.read("empty") == b""
        for path in (
            *("link", "folder/test_calc.py", "pipe", "out", ".gitignore", "tests", "gone"),
            *("calc.py/x", "/etc/passwd", "../home"),
        ):
            assert sandbox.read(path) is None, path
        sandbox.restore()
        assert sandbox.read("new") is None


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a server on this machine, that says one word to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.sendall(b"word\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("network", [False, True])
def test_the_network_is_there_when_it_is_asked_for(
    project: GitBox, kept: Store, server: int, network: bool
) -> None:
    view = View(str(project.top), environments=(sys.base_prefix,), network=network)
    question = (
        "import socket, sys\n"
        "print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).recv(9).decode())"
    )
    python = os.path.realpath(sys.executable)
    with layered(kept, "HEAD", view=view) as sandbox:
        done = sandbox.run([python, "-ISc", question, str(server)], LIMITS)
        assert (b"word" in done.stdout) is network
        assert (done.code == 0) is network
        # A network of its own has a loopback of its own.
        own = (
            "import socket\nwith socket.create_server(('127.0.0.1', 0)) as s:\n"
            "    socket.create_connection(s.getsockname()); print('own')"
        )
        assert sandbox.run([python, "-ISc", own], LIMITS).stdout == b"own\n"
        interfaces = said(sandbox, "cat /proc/net/dev").count(":")
        assert network or interfaces == 1


def test_folders_that_are_writable_are_really_written(
    project: GitBox, kept: Store, tmp_path: Path
) -> None:
    outside, inside = tmp_path / "out, side", project.top / "results"
    for folder in (outside, inside):
        folder.mkdir()
        (folder / "old").write_text("old\n")
    view = View(str(project.top), writable=(str(outside), str(inside)))
    with layered(kept, "HEAD", view=view) as sandbox:
        script = f"for f in '{outside}' results; do cat $f/old >> $f/new; rm -f \"$f/old\"; done"
        script = script.replace("$f/old >> $f/new", '"$f/old" > "$f/new"')
        assert shell(sandbox, script).code == 0
        assert shell(sandbox, f"echo x > '{tmp_path}/elsewhere'").code == 0
        sandbox.restore()
        assert said(sandbox, f"cat '{outside}/new' results/new") == "old\nold\n"
        assert sandbox.changed_files() == []
    for folder in (outside, inside):
        assert [path.name for path in folder.iterdir()] == ["new"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_writable_folder_that_is_not_there_is_named(
    project: GitBox, kept: Store, tmp_path: Path
) -> None:
    view = View(str(project.top), writable=(str(tmp_path / "nowhere"),))
    with pytest.raises(SandboxError, match="nowhere"), layered(kept, "HEAD", view=view):
        pass


def test_temporary_folders_and_home_are_private_and_empty(
    project: GitBox, kept: Store, tmp_path: Path
) -> None:
    (tmp_path / "home" / "secret").write_text("x")
    places = ("/tmp", "/var/tmp", "/dev/shm")
    token = f"left-by-{tmp_path.name}"
    with layered(kept, "HEAD") as sandbox:
        assert said(sandbox, "echo $HOME $TMPDIR").split() == ["/home/sandbox", "/tmp"]
        assert said(sandbox, "ls -A $HOME") == ".gitconfig\n"
        # The folders above that of the repository are all that is in `/tmp`.
        assert said(sandbox, f"find {tmp_path} -maxdepth 1") == f"{tmp_path}\n{project.top}\n"
        assert said(sandbox, "ls -A /var/tmp /dev/shm; stat -c %a /tmp /dev/shm").split() == [
            "/dev/shm:", "/var/tmp:", "1777", "1777",
        ]  # fmt: skip
        for place in (*places, "$HOME"):
            assert said(sandbox, f"echo x > {place}/{token}; cat {place}/{token}") == "x\n"
        assert not any((Path(place) / token).exists() for place in places)
        with layered(kept, "HEAD") as other:
            assert said(other, f"ls {' '.join(places)} $HOME | grep {token}; :") == ""


@pytest.mark.parametrize(
    ("limits", "script", "stop", "consumer"),
    [
        ({"disk_bytes": 2**22}, "head -c 9000000 /dev/zero > big", Stop.DISK, "/big`, 4 MiB"),
        (
            {"disk_bytes": 2**22},
            "head -c 9000000 /dev/zero > /dev/shm/big; sleep 20",
            Stop.DISK,
            "/shm/big`, 4 MiB",
        ),
        (
            {"inodes": 500},
            "mkdir full; i=0; while [ $i -lt 600 ]; do : > full/$i; i=$((i+1)); done",
            Stop.INODES,
            "/full`, 4",
        ),
        ({"cpu_s": 0.3}, "while :; do :; done", Stop.CPU, "`sh` (process "),
        (
            {"processes": 12},
            "for i in $(seq 30); do sleep 20 & done; wait",
            Stop.PROCESSES,
            "`sleep`",
        ),
        ({"wall_s": 0.4}, "sleep 20", Stop.TIME_OUT, ""),
        ({"output_bytes": 10_000}, "exec yes", Stop.OUTPUT, ""),
    ],
    ids=lambda value: str(value) if isinstance(value, Stop) else "",
)
def test_limits_stop_a_run_and_say_why(
    project: GitBox, kept: Store, limits: dict[str, float], script: str, stop: Stop, consumer: str
) -> None:
    wanted = Limits(**{"wall_s": 20, **limits})  # type: ignore[arg-type]
    with layered(kept, "HEAD", limits=wanted) as sandbox:
        done = shell(sandbox, script, wanted)
        assert done.stop is stop
        assert consumer in done.consumer
        assert done.elapsed_s < 10
        # The sandbox is as good as new after that.
        sandbox.restore()
        done = shell(sandbox, "echo well > file; cat file", wanted)
        assert (done.code, done.stop, done.stdout) == (0, None, b"well\n")


@pytest.mark.parametrize(
    ("limits", "script", "consumer"),
    [
        ({"disk_bytes": 2**22}, "head -c 9000000 /dev/zero > big", "/big`, 4 MiB"),
        (
            {"inodes": 300},
            "mkdir full; i=0; while [ $i -lt 400 ]; do : > full/$i; i=$((i+1)); done",
            "/full`, ",
        ),
    ],
)
def test_what_the_run_did_not_write_is_never_named_as_what_used_the_most(
    project: GitBox,
    kept: Store,
    tmp_path: Path,
    limits: dict[str, float],
    script: str,
    consumer: str,
) -> None:
    environment = tmp_path / "environment"
    (environment / "many").mkdir(parents=True)
    (environment / "library.so").write_bytes(bytes(30_000_000))
    for number in range(500):
        (environment / "many" / str(number)).touch()
    view = View(str(project.top), environments=(str(environment),))
    wanted = Limits(**{"wall_s": 20, **limits})  # type: ignore[arg-type]
    with layered(kept, "HEAD", view=view, limits=wanted) as sandbox:
        done = shell(sandbox, script, wanted)
        assert done.stop in (Stop.DISK, Stop.INODES)
        assert consumer in done.consumer, done.consumer


def test_what_the_candidate_has_does_not_count_as_written(project: GitBox, kept: Store) -> None:
    base = project.head
    wanted = project.commit({f"f/{n}": bytes(100_000) for n in range(60)})
    limits = Limits(wall_s=20, disk_bytes=2**20, inodes=50)
    with layered(kept, base, wanted, limits=limits) as sandbox:
        done = shell(sandbox, "cat f/* | wc -c", limits)
        assert (done.stop, done.stdout) == (None, b"6000000\n")


def test_two_at_once_do_not_see_each_other(project: GitBox, kept: Store) -> None:
    first = project.head
    second = project.commit({"calc.py": "second = 1\n"})
    with layered(kept, first) as one, layered(kept, first, second) as two:
        assert one.root == two.root
        assert said(one, "cat calc.py") != said(two, "cat calc.py")
        shell(one, "echo one > mine; git branch feature; echo x > calc.py")
        shell(two, "rm -rf tests; git branch feature")
        assert shell(two, "cat mine").code != 0
        assert said(two, "cat calc.py") == "second = 1\n"
        assert said(one, "ls tests") == "test_calc.py\n"
        assert said(one, "git branch --show-current") != said(two, "git branch --show-current")
        # Nor their processes.
        assert len(said(one, "ls -d /proc/[0-9]*").split()) <= 4


def test_many_at_once_from_many_threads(project: GitBox, kept: Store) -> None:
    commits = [project.commit({"calc.py": f"n = {n}\n"}) for n in range(4)]
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            opened = store.open_store(kept.repository)
            commit = commits[number % 4]
            with layered(opened, commits[0], commit, slots=4, wait_s=60) as sandbox:
                for _ in range(2):
                    if said(sandbox, "cat calc.py; echo x > calc.py") != f"n = {number % 4}\n":
                        wrong.append(number)
                    sandbox.restore()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_more_than_so_many_are_open(project: GitBox, kept: Store) -> None:
    with (
        layered(kept, "HEAD", slots=1),
        pytest.raises(SandboxBusyError, match="all 1 sandboxes"),
        layered(kept, "HEAD", slots=1),
    ):
        pass


def mentions(word: str) -> list[str]:
    """Return the lines of every process's mounts, and command lines, that hold `word`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("mountinfo", "cmdline"):
            with contextlib.suppress(OSError):
                text = os.fsdecode((process / name).read_bytes())
                found += [f"{process.name} {line}" for line in text.splitlines() if word in line]
    return found


@pytest.mark.usefixtures("untouched")
def test_nothing_is_mounted_and_nothing_runs_afterwards(project: GitBox, kept: Store) -> None:
    own = Path("/proc/self/mountinfo").read_text()
    store_path = str(kept.folder / "mount")
    with layered(kept, "HEAD") as sandbox:
        shell(sandbox, "setsid sleep 60 & setsid sh -c 'sleep 60 & sleep 60' & echo x > f")
        # Another process sees it all in its own namespace, this one nothing.
        assert mentions(store_path)
        assert Path("/proc/self/mountinfo").read_text() == own
        assert [list(folder.iterdir()) for folder in (kept.folder / "mount").iterdir()] == [[], []]
    assert wait_until(lambda: mentions(store_path) == [], 3), mentions(store_path)
    assert Path("/proc/self/mountinfo").read_text() == own


def test_an_error_in_the_block_leaves_nothing_either(project: GitBox, kept: Store) -> None:
    with pytest.raises(ZeroDivisionError), layered(kept, "HEAD", slots=1):
        raise ZeroDivisionError
    assert wait_until(lambda: mentions(str(kept.folder / "mount")) == [], 3)
    with layered(kept, "HEAD", slots=1) as sandbox:
        assert said(sandbox, "echo x") == "x\n"


ENGINE = """
import sys
sys.path[:0] = {path!r}
from layering import LIMITS, layered, shell
from sandbox_engine import git, store
kept = store.open_store(git.find_repository({top!r}))
from sandbox_engine.isolation import View
view = View({top!r}, writable=({out!r},))
with layered(kept, "HEAD", slots=1, view=view) as sandbox:
    shell(sandbox, "(trap '' TERM; setsid sleep 60) & echo up > {out}/up; sleep 60")
"""


def keeper_of(kept: Store) -> int:
    """Return the process that keeps the one sandbox that is open."""
    (keeper,) = {
        int(line.split()[0])
        for line in mentions(str(kept.folder / "mount"))
        if "keeper.server" in Path(f"/proc/{line.split()[0]}/cmdline").read_text()
    }
    return keeper


def test_a_killed_engine_leaves_nothing_and_gives_its_slot_back(
    project: GitBox, kept: Store, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    paths = [str(PROJECT / "tests"), str(PROJECT)]
    script = ENGINE.format(path=paths, top=str(project.top), out=str(out))
    with subprocess.Popen([sys.executable, "-c", script]) as engine:
        assert wait_until((out / "up").exists, 20)
        assert mentions(str(kept.folder / "mount"))
        locks = [kept.slots / "0.state" / "lock", layers_folder(kept) / "0.lock"]
        keeper = keeper_of(kept)
        os.kill(keeper, signal.SIGSTOP)
        engine.send_signal(signal.SIGKILL)
        engine.wait()
        # As long as the keeper has not cleared up, nobody else gets the slot or the layer.
        assert not any(map(is_free, locks))
        os.kill(keeper, signal.SIGCONT)
        assert wait_until(lambda: all(map(is_free, locks)), 5)
        assert wait_until(lambda: mentions(str(kept.folder / "mount")) == [], 5)
        assert mentions(str(out)) == []
    with layered(kept, "HEAD", slots=1, wait_s=2) as sandbox:
        equals_a_checkout(project, sandbox, "HEAD")


def test_a_keeper_that_is_killed_takes_all_of_it_along(
    project: GitBox, kept: Store, tmp_path: Path
) -> None:
    with layered(kept, "HEAD") as sandbox:
        keeper = keeper_of(kept)
        started = time.monotonic()
        threading.Timer(0.3, os.kill, (keeper, signal.SIGKILL)).start()
        done = shell(sandbox, "sleep 60")
        assert done.stop is Stop.SUPERVISOR_LOST
        assert time.monotonic() - started < 10
        for ask in (sandbox.changed_files, sandbox.restore, lambda: sandbox.read("calc.py")):
            with pytest.raises(SandboxError, match="is gone"):
                ask()
    assert wait_until(lambda: mentions(str(kept.folder / "mount")) == [], 5)


def test_daemons_do_not_outlive_their_run(project: GitBox, kept: Store, tmp_path: Path) -> None:
    token = f"daemon-of-{tmp_path.parent.parent.name}-{tmp_path.name}"
    view = View(str(project.top), writable=(str(tmp_path),))
    script = f"""
        ln -s /bin/sleep {token}
        setsid sh -c './{token} 60 & echo up > {tmp_path}/up; wait' &
        while ! [ -e {tmp_path}/up ]; do sleep 0.01; done; sleep 0.5; exit 3
    """
    with layered(kept, "HEAD", view=view) as sandbox, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(shell, sandbox, script)
        assert wait_until(lambda: any(token in line for line in mentions(f"{token}\0")))
        done = slow.result()
        assert (done.code, done.stop) == (3, None)
        assert mentions(f"{token}\0") == []


def test_a_run_is_who_the_user_is_without_any_capability(project: GitBox, kept: Store) -> None:
    with layered(kept, "HEAD") as sandbox:
        assert said(sandbox, "id -u; id -g").split() == [str(os.geteuid()), str(os.getegid())]
        status = said(sandbox, "cat /proc/self/status")
        lines = dict(line.split(":\t", 1) for line in status.splitlines())
        assert {lines[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")
        for script in (
            "mount -t tmpfs none /mnt", "unshare -U true", "umount /tmp", "echo x > /usr/x",
            "echo x > /etc/passwd", "ls /root /home/*/.ssh", "touch /x", "mknod n b 8 0",
        ):  # fmt: skip
            assert shell(sandbox, script).code != 0, script


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -15), ("kill -9 $$", -9)]
)
def test_exit_status(project: GitBox, kept: Store, script: str, code: int) -> None:
    with layered(kept, "HEAD") as sandbox:
        done = shell(sandbox, script)
        assert (done.code, done.stop) == (code, None)


def test_missing_program(project: GitBox, kept: Store) -> None:
    with layered(kept, "HEAD") as sandbox:
        for program in ("no-such-program", "./calc.py", "./gone"):
            with pytest.raises(CommandMissingError, match=f"`{program}` cannot be run"):
                sandbox.run([program], LIMITS)
        assert said(sandbox, "echo well") == "well\n"
