"""The project's interpreter and what its tests need: editable installs, carried files, versions."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import GitBox

from sandbox_engine import CommandMissingError, Config, ConfigError, Engine, Outcome, git
from sandbox_engine.cache import Cache
from sandbox_engine.interpreter import choose_interpreter, describe_interpreter, require_pytest
from sandbox_engine.recipe import Recipe, Step, StepKind
from sandbox_engine.verdict import Category

pytestmark = pytest.mark.usefixtures("no_reruns")

PACKAGE = {
    ".gitignore": ".venv/\n*.egg-info/\n_version.py\n.env\nnode_modules/\n",
    "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\n'
    'build-backend = "setuptools.build_meta"\n'
    '[project]\nname = "thing"\nversion = "1.2"\n'
    '[tool.setuptools.packages.find]\nwhere = ["{root}"]\n',
    "{root}/thing/__init__.py": "def answer():\n    return 42\n",
    "tests/test_thing.py": (
        "import thing\n\n\ndef test_answer():\n    assert thing.answer() == 42\n"
    ),
}


def package(box: GitBox, root: str, *, editable: str) -> GitBox:
    """Commit a package below `root`, with a `.venv` of its own that has it installed editable."""
    box.commit({k.format(root=root): v.replace("{root}", root) for k, v in PACKAGE.items()})
    environment = box.top / ".venv"
    venv.create(environment, system_site_packages=False, symlinks=True)
    sites = next((environment / "lib").glob("python*/site-packages"))
    # pytest of the environment that runs these tests, after what is installed here.
    (sites / "zz.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")) + "\n")
    info = sites / "thing-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.2\n")
    _INSTALL[editable](box.top / root, sites)
    return box


def _by_path(source: Path, sites: Path) -> None:
    (sites / "__editable__.thing.pth").write_text(f"{source}\n")


def _by_finder(source: Path, sites: Path) -> None:
    """Do what setuptools does for a layout that no path entry can say."""
    mapping = {"thing": str(source / "thing")}
    (sites / "__editable___thing_finder.py").write_text(
        "import sys, importlib.util, os\n"
        f"MAPPING = {mapping!r}\nNAMESPACES = {{}}\n"
        "class F:\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        top = name.partition('.')[0]\n"
        "        if name in MAPPING:\n"
        "            return importlib.util.spec_from_file_location(\n"
        "                name, os.path.join(MAPPING[name], '__init__.py'),\n"
        "                submodule_search_locations=[MAPPING[name]])\n"
        "def install():\n    sys.meta_path.append(F)\n"
    )
    (sites / "__editable__.thing.pth").write_text(
        "import __editable___thing_finder; __editable___thing_finder.install()\n"
    )


def _by_first_finder(source: Path, sites: Path) -> None:
    """Do what meson-python does: a finder that comes before every path."""
    _by_finder(source, sites)
    finder = sites / "__editable___thing_finder.py"
    finder.rename(sites / "_thing_editable_loader.py")
    (sites / "__editable__.thing.pth").write_text(
        "import _thing_editable_loader, sys; sys.meta_path.insert(0, _thing_editable_loader.F)\n"
    )


def _installed(source: Path, sites: Path) -> None:
    """Install a copy, as `pip install .` does."""
    (sites / "thing").mkdir()
    (sites / "thing" / "__init__.py").write_bytes((source / "thing/__init__.py").read_bytes())


_INSTALL = {
    "path": _by_path,
    "finder": _by_finder,
    "first-finder": _by_first_finder,
    "copy": _installed,
}
BREAKING = json.dumps(
    [
        {
            "file_path": "{root}/thing/__init__.py",
            "operation": "REPLACE",
            "block_to_replace": "42",
            "content": "41",
        }
    ]
)


@pytest.mark.parametrize("editable", ["path", "finder", "copy"])
@pytest.mark.parametrize("root", ["src", "lib", "."])
def test_the_patched_code_is_what_runs(box: GitBox, root: str, editable: str) -> None:
    package(box, root, editable=editable)
    before = box.snapshot()
    verdict = Engine(box.top).validate(BREAKING.replace("{root}", root))
    assert box.snapshot() == before
    if (root, editable) == ("lib", "copy"):
        # Nothing says that `lib` holds packages, so the installed copy is what ran.
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "`thing` came from" in verdict.reason
        return
    assert verdict.outcome is Outcome.FAILED, verdict
    assert "assert 41 == 42" in (verdict.red_tests[0].message or "")


@pytest.mark.parametrize("root", ["src", "lib"])
def test_code_from_elsewhere_is_inconclusive_and_says_why(box: GitBox, root: str) -> None:
    package(box, root, editable="first-finder")
    config = Config(isolation="none")
    verdict = Engine(box.top, config=config).validate(BREAKING.replace("{root}", root))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert f"`thing` came from `{box.top}/{root}/thing/__init__.py`" in verdict.reason
    assert "source_roots" in (verdict.hint or "")


def test_a_copy_that_shadows_the_tree_is_inconclusive(box: GitBox) -> None:
    package(box, "lib", editable="copy")
    config = Config(source_roots=("tests",))
    tests = {"file_path": "tests/thing.py", "operation": "REPLACE", "content": "answer = None\n"}
    verdict = Engine(box.top, config=Config(source_roots=("lib",))).validate(
        BREAKING.replace("{root}", "lib")
    )
    assert verdict.outcome is Outcome.FAILED
    shadowed = Engine(box.top, config=config).validate(
        json.dumps([tests, {**tests, "file_path": "tests/conftest.py", "content": SHADOW}])
    )
    assert shadowed.outcome is Outcome.INCONCLUSIVE, shadowed.steps[1].output
    assert "`thing` came from" in shadowed.reason


SHADOW = (
    "import sys\nsys.path.insert(0, next(p for p in sys.path if 'repo/.venv/lib' in p))\n"
    "import thing\n"
)


def test_a_commands_python_means_the_patched_code_too(box: GitBox) -> None:
    package(box, "src", editable="path")
    step = Step(StepKind.COMMAND, ("python", "-c", "import thing; assert thing.answer() == 42"))
    config = Config(strategy="OWN", strategies={"OWN": Recipe("OWN", (step,))})
    verdict = Engine(box.top, config=config).validate(BREAKING.replace("{root}", "src"))
    assert verdict.outcome is Outcome.FAILED
    assert "AssertionError" in verdict.steps[0].output


def test_the_projects_own_environment_is_found_first(
    box: GitBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.commit({"a": "a"})
    repository = git.find_repository(box.top)
    assert choose_interpreter(None, repository) == sys.executable
    for name in ("active", "repo/venv", "repo/.venv"):
        venv.create(tmp_path / name, symlinks=True)
        if name == "active":
            monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / name))
        assert choose_interpreter(None, repository) == str(tmp_path / name / "bin" / "python")
    for name in ("./venv", "venv", "venv/bin/python"):
        assert choose_interpreter(name, repository) == str(box.top / "venv" / "bin" / "python")
    assert choose_interpreter(str(tmp_path / "active"), repository).startswith(str(tmp_path))
    with pytest.raises(CommandMissingError, match="no interpreter `./gone`"):
        choose_interpreter("./gone", repository)
    box.git("worktree", "add", "-q", str(tmp_path / "linked"))
    linked = git.find_repository(tmp_path / "linked")
    assert choose_interpreter(None, linked) == str(box.top / ".venv" / "bin" / "python")


@pytest.mark.parametrize("mark", [".install_state_v2", ".prek-hook.json"])
def test_an_environment_that_is_made_for_us_alone_is_not_the_projects(
    box: GitBox, tmp_path: Path, mark: str
) -> None:
    box.commit({"a": "a"})
    for name in ("ours", "active"):
        venv.create(tmp_path / name, symlinks=True)
        (packages,) = (tmp_path / name).glob("lib/python*/site-packages")
        (packages / "engine.pth").write_text(
            f"{sysconfig.get_path('purelib')}\n{Path(__file__).parent.parent}\n"
        )
    (tmp_path / "ours" / mark).touch()
    question = (
        "from sandbox_engine import git, interpreter\n"
        "print(interpreter.choose_interpreter(None, git.find_repository('.')))"
    )

    def chosen(*folders: Path) -> str:
        done = subprocess.run(
            [str(tmp_path / "ours" / "bin" / "python"), "-c", question],
            cwd=box.top,
            env={
                **os.environ,
                "PATH": os.pathsep.join([f"{tmp_path}/ours/bin", *map(str, folders), "/nowhere"]),
                "VIRTUAL_ENV": str(tmp_path / "ours"),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git_folder = Path(shutil.which("git") or "").parent
    assert chosen(tmp_path / "active" / "bin", git_folder) == f"{tmp_path}/active/bin/python"
    venv.create(box.top / ".venv", symlinks=True)
    assert chosen(tmp_path / "active" / "bin", git_folder) == f"{box.top}/.venv/bin/python"


def test_a_missing_pytest_names_the_command_that_installs_it(box: GitBox) -> None:
    box.commit({"a.py": "x = 1\n"})
    venv.create(box.top / ".venv", symlinks=True)
    edit = json.dumps([{"file_path": "a.py", "operation": "INSERT", "content": "y = 2"}])
    with pytest.raises(CommandMissingError, match=r"\.venv/bin/python -m pip install pytest"):
        Engine(box.top).validate(edit)


def test_an_interpreter_that_does_not_run_is_named(box: GitBox, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(CommandMissingError, match="no such luck"):
        describe_interpreter(str(broken), Cache(tmp_path / "cache.sqlite3"))


def test_what_is_installed_is_part_of_the_fingerprint(box: GitBox, tmp_path: Path) -> None:
    package(box, "src", editable="path")
    cache = Cache(tmp_path / "cache.sqlite3")
    python = choose_interpreter(None, git.find_repository(box.top))
    interpreter = describe_interpreter(python, cache)
    require_pytest(interpreter)
    before = interpreter.fingerprint(box.top)
    assert describe_interpreter(python, cache).fingerprint(box.top) == before
    (Path(interpreter.sites[0]) / "new_module.py").write_text("x = 1\n")
    assert describe_interpreter(python, cache).fingerprint(box.top) != before


def test_distributions_are_told_by_name_and_version(box: GitBox, tmp_path: Path) -> None:
    package(box, "src", editable="path")
    cache = Cache(tmp_path / "cache.sqlite3")
    python = choose_interpreter(None, git.find_repository(box.top))
    interpreter = describe_interpreter(python, cache)
    sites = Path(interpreter.sites[0])
    (sites / "new_module.py").write_text("x = 1\n")
    assert describe_interpreter(python, cache).distributions == interpreter.distributions
    info = sites / "thing-1.2.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.3\n")
    newer = info.rename(sites / "thing-1.3.dist-info")
    changed = describe_interpreter(python, cache).distributions
    assert changed != interpreter.distributions
    # What cannot be read is an installed thing too.
    (newer / "METADATA").unlink()
    newer.rename(sites / "thing.dist-info")
    assert describe_interpreter(python, cache).distributions not in (
        changed,
        interpreter.distributions,
    )


def test_a_dependency_that_is_edited_elsewhere_counts(box: GitBox, tmp_path: Path) -> None:
    package(box, "src", editable="path")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "dep.py").write_text("ANSWER = 42\n")
    sites = next((box.top / ".venv" / "lib").glob("python*/site-packages"))
    (sites / "__editable__.dep.pth").write_text(f"{tmp_path / 'lib'}\n")
    tests = "import dep\n\n\ndef test_dep():\n    assert dep.ANSWER == 42\n"
    box.commit({"tests/test_dep.py": tests})
    edit = json.dumps([{"file_path": "a.txt", "operation": "INSERT", "content": "edit"}])
    assert Engine(box.top).validate(edit).outcome is Outcome.PASSED
    assert Engine(box.top).validate(edit).is_cached
    (tmp_path / "lib" / "dep.py").write_text("ANSWER = 4100\n")
    # It is the base's fault too, and nothing is known of either any more.
    verdict = Engine(box.top).validate(edit)
    assert not verdict.is_cached
    assert [test.category for test in verdict.red_tests] == [Category.PRE_EXISTING]


@pytest.mark.parametrize(
    ("installed", "changed"),
    [
        ("ns/tools/a.py", "lib/ns/tools/a.py"),
        ("other/__init__.py", "lib/other/data.json"),
        ("single.py", "lib/single.py"),
    ],
)
def test_an_installed_copy_of_what_changes_is_inconclusive(
    box: GitBox, installed: str, changed: str
) -> None:
    package(box, "src", editable="path")
    content = "ANSWER = 42\n"
    module = installed.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    box.commit(
        {
            f"lib/{installed}": content,
            changed: "[1]\n" if changed.endswith("json") else content,
            "tests/test_it.py": f"import {module} as m\n\n\ndef test_it():\n    assert m.ANSWER\n",
        }
    )
    sites = next((box.top / ".venv" / "lib").glob("python*/site-packages"))
    (sites / installed).parent.mkdir(parents=True, exist_ok=True)
    (sites / installed).write_text(content)
    edit = {"file_path": changed, "operation": "REPLACE", "content": "[0]\n"}
    verdict = Engine(box.top).validate(json.dumps([edit]))
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict
    assert f"`{module}`" in verdict.reason


@pytest.mark.parametrize("path", ["app/core/types.py", "scripts/json.py", "examples/pytest.py"])
def test_a_name_of_the_standard_library_is_not_blamed(project: GitBox, path: str) -> None:
    edit = {"file_path": path, "operation": "REPLACE", "content": "x = 1\n"}
    assert Engine(project.top).validate(json.dumps([edit])).outcome is Outcome.PASSED


def test_a_module_at_the_top_of_a_src_layout_hides_nothing(box: GitBox) -> None:
    package(box, "src", editable="path")
    box.commit({"queue.py": "raise SystemExit('not the standard library')\n"})
    verdict = Engine(box.top).validate(BREAKING.replace("{root}", "src"))
    assert verdict.outcome is Outcome.FAILED
    assert "assert 41 == 42" in (verdict.red_tests[0].message or "")


def test_settings_of_folders_above_the_sandbox_do_not_count(project: GitBox) -> None:
    engine = Engine(project.top)
    (engine.store.folder.parent / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    edit = {"file_path": "a.txt", "operation": "INSERT", "content": "a"}
    assert engine.validate(json.dumps([edit])).outcome is Outcome.PASSED


def carrying(box: GitBox, *patterns: str) -> Engine:
    show = Step(StepKind.COMMAND, ("sh", "-c", "find . -path ./.git -prune -o -type f -print"))
    recipe = Recipe("OWN", (show,))
    return Engine(box.top, config=Config("OWN", carry=patterns, strategies={"OWN": recipe}))


EDIT = json.dumps([{"file_path": "a.txt", "operation": "INSERT", "content": "edit"}])


def seen(engine: Engine) -> set[str]:
    output = engine.validate(EDIT).steps[0].output
    return {line[2:] for line in output.splitlines()}


def test_ignored_files_are_carried_only_when_named(box: GitBox) -> None:
    box.commit({".gitignore": PACKAGE[".gitignore"], "a.txt": "a\n"})
    ignored = {"src/p/_version.py": "v\n", ".env": "S=1\n", "node_modules/x/y.js": "js\n"}
    box.write({**ignored, "untracked.txt": "not ignored\n"})
    tracked = {".gitignore", "a.txt"}
    assert seen(carrying(box)) == tracked
    assert seen(carrying(box, "src/p/_version.py")) == {*tracked, "src/p/_version.py"}
    assert seen(carrying(box, "**/_version.py", "node_modules/", ".env")) == {*tracked, *ignored}
    assert seen(carrying(box, "untracked.txt")) == tracked


def test_what_is_carried_is_a_copy_and_part_of_the_key(box: GitBox) -> None:
    box.commit({".gitignore": PACKAGE[".gitignore"], "a.txt": "a\n"})
    box.write({".env": "S=1\n"})
    script = "cat .env; echo written >> .env"
    recipe = Recipe("OWN", (Step(StepKind.COMMAND, ("sh", "-c", script)),))
    engine = Engine(box.top, config=Config("OWN", carry=(".env",), strategies={"OWN": recipe}))
    assert engine.validate(EDIT).steps[0].output == "S=1\n"
    assert (box.top / ".env").read_text() == "S=1\n"
    assert engine.validate(EDIT).is_cached
    box.write({".env": "S=2\n"})
    assert engine.validate(EDIT).steps[0].output == "S=2\n"


def test_a_pattern_that_leaves_the_repository_is_refused(box: GitBox) -> None:
    box.commit({"a.txt": "a\n"})
    with pytest.raises(ConfigError, match="carry"):
        carrying(box, "../outside").validate(EDIT)


def test_variables_pass_only_when_named(box: GitBox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.commit({"a.txt": "a\n"})
    monkeypatch.setenv("TOKEN", "hidden")
    recipe = Recipe("OWN", (Step(StepKind.COMMAND, ("env",)),))
    for names, expected in (((), False), (("TOKEN",), True)):
        engine = Engine(box.top, config=Config("OWN", env=names, strategies={"OWN": recipe}))
        assert ("TOKEN=hidden" in engine.validate(EDIT).steps[0].output) is expected


def test_a_real_editable_install_runs_the_patched_code(box: GitBox) -> None:
    """The most common false green: tests in a copy that import the original's code."""
    box.commit({k.format(root="src"): v.replace("{root}", "src") for k, v in PACKAGE.items()})
    environment = box.top / ".venv"
    venv.create(environment, with_pip=True, symlinks=True)
    sites = next((environment / "lib").glob("python*/site-packages"))
    (sites / "zz.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")) + "\n")
    done = subprocess.run(
        [environment / "bin" / "pip", "install", "-q", "-e", str(box.top)],
        capture_output=True,
        env={**os.environ, "HOME": pwd.getpwuid(os.getuid()).pw_dir},
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"pip cannot install here: {done.stderr.decode()[-300:]}")
    engine = Engine(box.top)
    assert engine.validate(BREAKING.replace("{root}", "src")).outcome is Outcome.FAILED
    harmless = BREAKING.replace("{root}", "src").replace('"41"', '"42 + 0"')
    assert engine.validate(harmless).outcome is Outcome.PASSED


def test_tags_are_part_of_what_is_known(project: GitBox) -> None:
    recipe = Recipe("OWN", (Step(StepKind.COMMAND, ("git", "describe", "--tags")),))
    engine = Engine(project.top, config=Config("OWN", strategies={"OWN": recipe}))
    edit = json.dumps([{"file_path": "a.txt", "operation": "INSERT", "content": "a"}])
    assert engine.validate(edit).outcome is Outcome.INCONCLUSIVE
    project.git("tag", "v1")
    assert engine.validate(edit).outcome is Outcome.PASSED
    project.git("tag", "-d", "v1")
    project.git("tag", "v1/a")
    assert "v1/a" in engine.validate(edit).steps[0].output
    (project.top / ".git" / "refs" / "tags" / "broken").write_text("1" * 40 + "\n")
    assert engine.validate(edit).outcome is Outcome.PASSED


def test_another_name_of_a_foreign_module_is_not_blamed(box: GitBox) -> None:
    """`requests.packages` does this for the libraries that it once brought along."""
    package(box, "src", editable="path")
    alias = "import sys\nimport iniconfig\n\nsys.modules['thing.vendored'] = iniconfig\n"
    box.commit({"src/thing/__init__.py": alias + "\n\ndef answer():\n    return 42\n"})
    verdict = Engine(box.top).validate(BREAKING.replace("{root}", "src"))
    assert verdict.outcome is Outcome.FAILED, verdict
