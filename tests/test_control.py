from __future__ import annotations

from collections.abc import Mapping

import pytest

from sandbox_engine.control import find_control
from sandbox_engine.patch import File
from sandbox_engine.pytest_step import PYTEST_NEEDS


def control(
    before: Mapping[str, str | None],
    after: Mapping[str, str | None],
    *,
    tests: frozenset[str] = frozenset(),
    others: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = (),
) -> list[str]:
    def files(texts: Mapping[str, str | None]) -> dict[bytes, File | None]:
        return {
            name.encode(): None if text is None else File(text.encode())
            for name, text in texts.items()
        }

    unchanged = files(others or {})
    now = files(after)
    found = find_control(
        files(before),
        now,
        tests,
        PYTEST_NEEDS,
        lambda path: now.get(path, unchanged.get(path)),
        arguments,
    )
    return [path.decode() for path in found]


@pytest.mark.parametrize(
    "path",
    [
        *("conftest.py", "src/pkg/conftest.py", "test_a.py", "pkg/a_test.py", "tests/data/x.json"),
        *("pytest.ini", ".pytest.ini", "pytest.toml", "sitecustomize.py", "src/usercustomize.py"),
        *("a.pth", "pytest.py", "src/_pytest/x.py", "pluggy/__init__.py", "src/pytest.py"),
        *("evil.egg-info/entry_points.txt", "src/x.dist-info/METADATA", "test/helper.py"),
        *("sitecustomize/__init__.py", "testdata/a.json", "src/test_data/a.json"),
    ],
)
def test_what_steers_the_tests_by_its_name(path: str) -> None:
    assert control({path: None}, {path: "x"}) == [path]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "src/pkg/core.py",
            "README.md",
            "pkg/test/client.py",
            "src/pkg/testing/x.py",
            "contest.py",
        ),
        *("pkg/sub/packaging/x.py", "latest.py", "x.ini", "docs/conf.py"),
    ],
)
def test_what_does_not(path: str) -> None:
    assert control({path: None}, {path: "x"}) == []


def test_a_file_that_tests_come_from() -> None:
    assert control({"a.py": ""}, {"a.py": ">>> 1"}, tests=frozenset({"a.py"})) == ["a.py"]


@pytest.mark.parametrize(
    ("path", "steers"),
    [
        *(("src/pkg/test/wanted.json", True), ("src/pkg/test/deep/x.json", True)),
        *(("unit_tests/helper.py", True), ("src/pkg/core.py", False), ("contest/x.py", False)),
    ],
)
def test_what_lies_in_a_folder_that_tests_come_from(path: str, steers: bool) -> None:
    tests = frozenset(
        f"{folder}/test_a.py::test_a" for folder in ("src/pkg/test", "unit_tests", "contest")
    )
    assert control({path: "x"}, {path: "y"}, tests=tests) == ([path] if steers else [])


def test_a_base_class_of_tests() -> None:
    suite = "class Suite:\n    def test_a(self): ...\n    def test_b(self): ...\n"
    tests = frozenset({"tests/test_x.py::TestX::test_a", "tests/test_y.py::test_b"})
    own = {"tests/test_x.py": "class TestX(Suite): ...\n", "tests/test_y.py": "def test_b(): ...\n"}
    change = {"pkg/suite.py": suite}, {"pkg/suite.py": ""}
    assert control(*change, tests=tests, others=own) == ["pkg/suite.py"]
    # Their file has a test of the same name itself.
    assert control(*change, tests=tests - {"tests/test_x.py::TestX::test_a"}, others=own) == []


@pytest.mark.parametrize(
    ("path", "before", "after", "steers"),
    [
        ("pyproject.toml", "", "[project]\nversion = '2'\n", False),
        ("pyproject.toml", "", "[tool.pytest.ini_options]\naddopts = '-x'\n", True),
        ("pyproject.toml", "", "[tool.pytest]\naddopts = ['-x']\n", True),
        ("pyproject.toml", "a = 1", "a = ", True),
        ("setup.cfg", "[metadata]\nname = a\n", "[metadata]\nname = b\n", False),
        ("setup.cfg", "", "[tool:pytest]\naddopts = -x\n", True),
        ("setup.cfg", "[tool:pytest]\naddopts = -x\n", "", True),
        ("setup.cfg", "", "x", True),
        ("tox.ini", "", "[pytest]\naddopts = -x\n", True),
        ("tox.ini", "", "[tox]\nenvlist = py\n", False),
        ("sub/pyproject.toml", "", "[tool.pytest.ini_options]\naddopts = '-x'\n", True),
    ],
)
def test_settings_steer_where_they_are_pytests(
    path: str, before: str, after: str, steers: bool
) -> None:
    assert control({path: before}, {path: after}) == ([path] if steers else [])


@pytest.mark.parametrize(
    "others",
    [
        {"conftest.py": 'pytest_plugins = ["helpers.fixtures"]\n'},
        {"tests/conftest.py": 'pytest_plugins = "helpers.fixtures"\n'},
        {"pytest.ini": "[pytest]\naddopts = -v -p helpers.fixtures\n"},
        {"pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-p helpers.fixtures"\n'},
    ],
)
def test_a_plugin_that_is_named(others: Mapping[str, str]) -> None:
    changes = {"src/helpers/fixtures.py": "x", "src/other.py": "y"}
    before = dict.fromkeys(changes, "")
    assert control(before, changes, others=others) == ["src/helpers/fixtures.py"]
    assert control(before, changes) == []
    assert control(before, changes, arguments=("-v", "-p", "helpers.fixtures")) == [
        "src/helpers/fixtures.py"
    ]


@pytest.mark.parametrize(
    ("decorator", "steers"),
    [
        *(("pytest.fixture", True), ("fixture(scope='module')", True)),
        *(("pytest_asyncio.fixture()", True), ("wraps(fixture)", False)),
    ],
)
def test_a_file_of_fixtures(decorator: str, steers: bool) -> None:
    source = f"@{decorator}\ndef wanted():\n    return 3\n"
    change = {"pkg/fixtures.py": source}, {"pkg/fixtures.py": source.replace("3", "4")}
    assert control(*change) == (["pkg/fixtures.py"] if steers else [])
