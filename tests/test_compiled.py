"""Compiled files that the engine provides: used, never stale, and the same for every run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import py_compile
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GitBox
from layering import LIMITS, layered, said

from sandbox_engine import Config, Engine, Outcome, compiled
from sandbox_engine.cache import Cache
from sandbox_engine.compiled import copied, held, learn
from sandbox_engine.interpreter import Interpreter, describe_interpreter
from sandbox_engine.isolation import View
from sandbox_engine.sandbox import Setup, allowed_variables
from sandbox_engine.shelf import Place, open_shelf
from sandbox_engine.slot_sandbox import SlotSandbox, open_slot
from sandbox_engine.store import Store
from sandbox_engine.verdict import CommitId, Tier

MODULES = [f"thing{number}" for number in range(10)]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment without pytest, and with a package in it; its site folder."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "package").mkdir()
    (site / "package" / "__init__.py").write_text("")
    for name in MODULES:
        (site / "package" / f"{name}.py").write_text(f"value = {name!r}\n")
    return site


@pytest.fixture
def interpreter(environment: Path, tmp_path: Path) -> Interpreter:
    executable = environment.parents[2] / "bin" / "python"
    return describe_interpreter(str(executable), Cache(tmp_path / "interpreter.sqlite3"))


@pytest.fixture
def own(kept: Store) -> Store:
    """The project's store, with a folder of compiled files that no other test uses."""
    kept.compiled.unlink()
    return kept


@contextlib.contextmanager
def provided(store: Store, interpreter: Interpreter) -> Iterator[Place]:
    with held(store, interpreter) as place:
        assert place is not None
        yield place


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def place_of(source: Path) -> str:
    """Return where below a folder what `source` is compiled to has its place."""
    return importlib.util.cache_from_source(str(source)).replace("/__pycache__/", "/").lstrip("/")


def library(name: str) -> Path:
    return Path(sysconfig.get_path("stdlib")) / name


def states(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes())
        for name in names(folder)
    }


def imports(interpreter: Interpreter, folder: Path, source: str) -> str:
    """Run `source` with `folder` as PYTHONPYCACHEPREFIX."""
    done = subprocess.run(
        [interpreter.executable, "-c", source],
        env={"PATH": os.defpath, "PYTHONPYCACHEPREFIX": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_what_nearly_every_session_imports_is_gathered(
    own: Store, interpreter: Interpreter
) -> None:
    with provided(own, interpreter) as place:
        found = names(place.folder / "files")
    assert {
        place_of(library("json/__init__.py")),
        place_of(library("asyncio/__init__.py")),
    } <= found
    assert len(found) > 50


def test_what_is_gathered_is_believed_and_nothing_is_written(
    own: Store, interpreter: Interpreter
) -> None:
    with provided(own, interpreter) as place:
        before = states(place.folder / "files")
        imports(interpreter, place.folder / "files", "import json, asyncio, unittest.mock")
        assert states(place.folder / "files") == before
        # The check rings: what is not gathered is written.
        imports(interpreter, place.folder / "files", "import package.thing1")
        assert states(place.folder / "files") != before


def test_it_is_gathered_once_and_shared(
    own: Store, interpreter: Interpreter, project: GitBox
) -> None:
    with provided(own, interpreter) as one, provided(own, interpreter) as two:
        assert one.folder == two.folder
        before = states(one.folder / "files")
    with provided(own, interpreter) as again:
        assert again.folder == one.folder
        assert states(again.folder / "files") == before


def test_another_environment_has_another_place(
    own: Store, interpreter: Interpreter, environment: Path
) -> None:
    with provided(own, interpreter) as before:
        pass
    (environment / "installed.py").write_text("x = 1\n")
    with provided(own, interpreter) as after:
        assert after.folder != before.folder
        assert after.label != before.label


def learned(environment: Path, modules: list[str]) -> list[str]:
    return [str(environment / "package" / f"{name}.py") for name in modules]


def test_what_a_session_has_loaded_is_learned(
    own: Store, interpreter: Interpreter, environment: Path
) -> None:
    with provided(own, interpreter) as before:
        learn(own, interpreter, learned(environment, MODULES), [])
        wanted = {place_of(Path(path)) for path in learned(environment, MODULES)}
        # Who has the old place keeps it as it is.
        assert not wanted & names(before.folder / "files")
        with provided(own, interpreter) as after:
            assert after.folder != before.folder
            assert names(after.folder / "files") == names(before.folder / "files") | wanted
            files = states(after.folder / "files")
            source = "import package.thing3, json; print(package.thing3.value)"
            assert imports(interpreter, after.folder / "files", source) == "thing3"
            # The package itself was not told of.
            name = place_of(environment / "package" / "__init__.py")
            assert names(after.folder / "files") - files.keys() == {name}


def test_few_new_sources_are_not_worth_it(
    own: Store, interpreter: Interpreter, environment: Path
) -> None:
    with provided(own, interpreter) as before:
        learn(own, interpreter, learned(environment, MODULES[:7]), [])
        learn(own, interpreter, learned(environment, MODULES[:7]) * 3, [])
    with provided(own, interpreter) as after:
        assert after.folder == before.folder


def test_what_is_known_is_not_learned_again(
    own: Store, interpreter: Interpreter, environment: Path
) -> None:
    with provided(own, interpreter):
        learn(own, interpreter, learned(environment, MODULES), [])
    with provided(own, interpreter) as second:
        learn(own, interpreter, learned(environment, MODULES), [])
    with provided(own, interpreter) as third:
        assert third.folder == second.folder


def test_only_sources_of_the_environment_are_learned(
    own: Store, interpreter: Interpreter, environment: Path, tmp_path: Path
) -> None:
    outside = [tmp_path / f"outside{number}.py" for number in range(20)]
    for path in outside:
        path.write_text("x = 1\n")
    told = [
        *map(str, outside),
        *(f"{environment}/../../../../{path.name}" for path in outside),
        *("relative.py", "", f"{environment}/gone.py", f"{environment}/a\nb.py"),
    ]
    with provided(own, interpreter) as before:
        learn(own, interpreter, told, told)
        learn(own, interpreter, [*told, *learned(environment, MODULES)], [])
        with provided(own, interpreter) as after:
            more = names(after.folder / "files") - names(before.folder / "files")
    assert more == {place_of(Path(path)) for path in learned(environment, MODULES)}


def test_a_stale_source_is_not_believed(
    own: Store, interpreter: Interpreter, environment: Path
) -> None:
    path = environment / "package" / "thing1.py"
    with provided(own, interpreter):
        learn(own, interpreter, learned(environment, MODULES), [])
    source = "import package.thing1; print(package.thing1.value)"
    with provided(own, interpreter) as place:
        files = place.folder / "files"
        assert imports(interpreter, files, source) == "thing1"
        path.write_text("value = 'edited since'\n")
        # Deep in a package, so that the environment looks as before.
        with provided(own, interpreter) as same:
            assert same.folder == place.folder
        assert imports(interpreter, files, source) == "edited since"


def test_what_the_environment_has_compiled_is_taken_only_if_it_fits(
    own: Store, interpreter: Interpreter, environment: Path
) -> None:
    crafted = environment / "package" / "thing2.py"
    evil = environment / "evil.py"
    evil.write_text("value = 'evil'\n")
    target = importlib.util.cache_from_source(str(crafted))
    py_compile.compile(str(evil), target)
    evil.unlink()
    stale = environment / "package" / "thing3.py"
    py_compile.compile(str(stale))
    stale.write_text("value = 'edited since'\n")
    fitting = environment / "package" / "thing4.py"
    py_compile.compile(str(fitting))
    with provided(own, interpreter):
        learn(own, interpreter, learned(environment, MODULES), [])
    with provided(own, interpreter) as place:
        files = place.folder / "files"
        before = states(files)
        for name, value in (("thing2", "thing2"), ("thing3", "edited since"), ("thing4", "thing4")):
            source = f"import package.{name}; print(package.{name}.value)"
            assert imports(interpreter, files, source) == value
        # None of them had to be made anew for that; but for that of the package.
        assert {name for name in states(files) if states(files)[name] != before.get(name)} == {
            place_of(environment / "package" / "__init__.py")
        }
        kept = Path(importlib.util.cache_from_source(str(fitting))).read_bytes()
        assert (files / place_of(fitting)).read_bytes() == kept


def test_sources_that_do_not_compile_are_left_out(
    own: Store, interpreter: Interpreter, environment: Path
) -> None:
    (environment / "package" / "thing5.py").write_text("def (\n")
    (environment / "package" / "thing6.py").unlink()
    (environment / "package" / "thing7.py").write_bytes(b"\xff\x00")
    with provided(own, interpreter):
        learn(own, interpreter, learned(environment, MODULES), [])
    with provided(own, interpreter) as place:
        found = names(place.folder / "files")
    for name in MODULES:
        is_whole = name not in ("thing5", "thing6", "thing7")
        assert (place_of(environment / "package" / f"{name}.py") in found) is is_whole


def variants(interpreter: Interpreter, count: int) -> list[Interpreter]:
    return [dataclasses.replace(interpreter, platform=f"p{number}") for number in range(count)]


def test_the_number_of_places_is_bounded(
    own: Store, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_PLACES", 2)
    monkeypatch.setattr(compiled, "_KEPT", 2)
    # What is gathered does not matter here.
    monkeypatch.setattr(compiled, "_MODULES", ())
    for variant in variants(interpreter, 6):
        with provided(own, variant):
            pass
    shelf = open_shelf(own.compiled, most=2, kept=2)
    assert len(shelf.labels()) == 2
    with contextlib.ExitStack() as stack:
        for variant in variants(interpreter, 3):
            stack.enter_context(provided(own, variant))
        # Without a free place a run goes without.
        assert stack.enter_context(held(own, variants(interpreter, 4)[3])) is None
        assert len(shelf.labels()) == 3


def test_places_are_made_by_one_process_at_a_time(
    own: Store, interpreter: Interpreter, environment: Path
) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom sandbox_engine import git, store\n"
        "from sandbox_engine.cache import Cache\nfrom sandbox_engine.compiled import held\n"
        "from sandbox_engine.interpreter import describe_interpreter\n"
        "kept = store.open_store(git.find_repository(sys.argv[1]))\n"
        "interpreter = describe_interpreter(sys.argv[2], Cache(Path(sys.argv[3])))\n"
        "with held(kept, interpreter) as place:\n    print(place.folder.name)\n"
    )
    arguments = (str(own.repository.top), interpreter.executable, f"{own.folder}/other.sqlite3")
    workers = [
        subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert {worker.communicate(timeout=60)[0] for worker in workers} == {b"0\n"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for name in ("a.pyc", "deep/er/b.pyc", "c.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def texts(folder: Path) -> dict[str, str]:
    """Return what is below `folder`; links are not followed."""
    return {
        str(path.relative_to(folder)): "link" if path.is_symlink() else path.read_text()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def test_a_copy_that_nobody_touched_stays(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path / "copy")
    assert texts(folder) == texts(source)
    inodes = {name: (folder / name).stat().st_ino for name in names(folder)}
    assert copied(source, tmp_path / "copy") == folder
    assert {name: (folder / name).stat().st_ino for name in names(folder)} == inodes
    # It shares no file with what it is a copy of.
    assert not set(inodes.values()) & {(source / name).stat().st_ino for name in names(source)}


@pytest.mark.parametrize(
    "script",
    [
        "echo evil > a.pyc",
        # As long as before, with the time of before.
        "cp -p a.pyc ../old; printf 'A.pyc' > a.pyc; touch -r ../old a.pyc",
        "rm a.pyc",
        "rm a.pyc; echo evil > a.pyc",
        "mv c.pyc a.pyc",
        "echo more > deep/more.pyc",
        "mkdir -p x/y; echo more > x/y/z.pyc",
        "rm a.pyc; ln -s c.pyc a.pyc",
        "ln -s /etc/passwd new.pyc",
        "rm -rf deep; ln -s /tmp deep",
        "mv deep ../moved; ln -s ../moved deep; echo evil > deep/er/b.pyc",
        "ln -s deep alias",
        "chmod 000 a.pyc",
        "ln a.pyc ../kept; echo evil >> ../kept",
        "rm -rf deep; echo evil > deep",
        "mkdir a; chmod 000 a",
        "cd ..; rm -rf copy; mkdir copy",
        "cd ..; rm -rf copy; ln -s source copy",
        "cd ..; rm -rf copy; echo > copy",
        "rm ../copy.json",
        "echo torn > ../copy.json; echo evil > a.pyc",
        "echo '{}' > ../copy.json; echo evil > a.pyc",
    ],
)
def test_a_copy_that_was_touched_is_made_anew(source: Path, tmp_path: Path, script: str) -> None:
    folder = copied(source, tmp_path / "copy")
    wanted = texts(source)
    subprocess.run(["sh", "-ec", script], cwd=folder, check=True)
    copied(source, folder)
    assert texts(folder) == wanted
    assert not folder.is_symlink()
    assert texts(source) == wanted
    assert (folder / "a.pyc").stat().st_mode & 0o600


def test_a_copy_follows_what_is_provided(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path / "copy")
    (source / "new.pyc").write_text("new")
    (source / "c.pyc").unlink()
    assert texts(copied(source, folder)) == texts(source)
    assert texts(copied(None, folder)) == {}
    assert texts(copied(source, folder)) == texts(source)


@contextlib.contextmanager
def slot(store: Store, tier: Tier, place: Place, interpreter: Interpreter) -> Iterator[SlotSandbox]:
    assert store.repository.top is not None
    view = View(
        str(store.repository.top), environments=(interpreter.prefix, interpreter.base_prefix)
    )
    setup = Setup(
        tier, view, LIMITS, allowed_variables(()), compiled=place.folder / "files", slots=1
    )
    with open_slot(store, commit_of(store), setup) as sandbox:
        yield sandbox


def commit_of(store: Store) -> CommitId:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=store.repository.top, capture_output=True, check=True
    )
    return CommitId(head.stdout.decode().strip())


POISON = """
import glob, importlib.util, os, sys
target = importlib.util.cache_from_source(importlib.util.find_spec("json").origin)
content = open(target, "rb").read()[:16]
import marshal
code = marshal.dumps(compile("evil = True", "json", "exec"))
os.chmod(target, 0o644)
open(target, "wb").write(content + code)
"""
ASK = "import json; print(getattr(json, 'evil', False))"


@pytest.mark.parametrize("tier", [Tier.LANDLOCK, Tier.NONE])
def test_a_run_in_a_slot_cannot_change_what_the_next_one_gets(
    request: pytest.FixtureRequest, own: Store, interpreter: Interpreter, tier: Tier
) -> None:
    if tier is Tier.LANDLOCK:
        request.getfixturevalue("landlock_tier")
    python = interpreter.executable
    with provided(own, interpreter) as place:
        before = states(place.folder / "files")
        with slot(own, tier, place, interpreter) as sandbox:
            poisoned = sandbox.run([python, "-c", POISON], LIMITS)
            assert poisoned.code == 0, poisoned.stderr
            # In its own copy it has worked.
            assert sandbox.run([python, "-c", ASK], LIMITS).stdout == b"True\n"
        assert states(place.folder / "files") == before
        with slot(own, tier, place, interpreter) as sandbox:
            assert sandbox.run([python, "-c", ASK], LIMITS).stdout == b"False\n"


def test_a_run_in_layers_cannot_change_what_the_next_one_gets(
    own: Store, interpreter: Interpreter, full_tier: None
) -> None:
    python = interpreter.executable
    view = View(str(own.repository.top), environments=(interpreter.prefix, interpreter.base_prefix))
    with provided(own, interpreter) as place:
        files = place.folder / "files"
        before = states(files)
        with layered(own, "HEAD", view=view, compiled=files) as sandbox:
            poisoned = sandbox.run([python, "-c", POISON], LIMITS)
            assert poisoned.code == 0, poisoned.stderr
            assert sandbox.run([python, "-c", ASK], LIMITS).stdout == b"True\n"
            sandbox.restore()
            assert sandbox.run([python, "-c", ASK], LIMITS).stdout == b"False\n"
            sandbox.run([python, "-c", POISON], LIMITS)
        assert states(files) == before
        with layered(own, "HEAD", view=view, compiled=files) as sandbox:
            assert sandbox.run([python, "-c", ASK], LIMITS).stdout == b"False\n"


def test_a_run_in_layers_writes_no_compiled_file_of_the_environment(
    own: Store, interpreter: Interpreter, full_tier: None
) -> None:
    python = interpreter.executable
    view = View(str(own.repository.top), environments=(interpreter.prefix, interpreter.base_prefix))
    listing = "find $PYTHONPYCACHEPREFIX /usr /tmp -newer /tmp/start -name '*.pyc' 2>/dev/null; :"
    with (
        provided(own, interpreter) as place,
        layered(own, "HEAD", view=view, compiled=place.folder / "files") as sandbox,
    ):
        said(sandbox, "touch /tmp/start")
        time.sleep(0.02)
        source = "import json, asyncio, unittest.mock"
        assert sandbox.run([python, "-c", source], LIMITS).code == 0
        assert said(sandbox, listing) == ""
        # The check rings.
        assert sandbox.run([python, "-c", "import package.thing1"], LIMITS).code == 0
        assert "thing1" in said(sandbox, listing)


def test_a_second_session_of_pytest_compiles_nothing_of_the_environment(engine: Engine) -> None:
    """What pytest loads of its own and of its plugins is learned from the first session."""
    engine.config = Config(isolation="none")
    patch = json.dumps(
        [{"file_path": "calc.py", "operation": "INSERT", "line_number": 2, "content": "    # sum"}]
    )
    interpreter = describe_interpreter(sys.executable, engine.cache)
    assert engine.validate(patch).outcome is Outcome.PASSED
    with provided(engine.store, interpreter) as place:
        known = names(place.folder / "files")
    assert engine.validate(patch, use_cache=False).outcome is Outcome.PASSED
    made = names(engine.store.slots / "0.state" / "compiled")
    assert len(made & known) > 100
    # The project's own files are compiled by each session.
    assert [name for name in made - known if f"/{name}".startswith(interpreter.roots)] == []
    (calc,) = (name for name in made - known if "/calc." in name)
    assert calc


def test_a_report_cannot_have_files_written_elsewhere(engine: Engine) -> None:
    interpreter = describe_interpreter(sys.executable, engine.cache)
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:20]
    with compiled.held(engine.store, interpreter) as before:
        assert before is not None
    forged = ["/.." + os.fspath(source) for source in sources]
    compiled.learn(engine.store, interpreter, forged, ())
    with compiled.held(engine.store, interpreter) as after:
        assert after is not None and after.label == before.label
