"""The project as a model sees it: its manifest, and where its code is large, complex or untested.

Both functions look at a project again and again, and cost what has changed since: analyses are
the engine's, which computes none twice, and what is made of a file is kept while its content is.
The headings of the manifest are those that prompts and tools of its users know.
"""

from __future__ import annotations

import atexit
import fnmatch
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from sandbox_engine import (
    FileAnalysis,
    Scan,
    Scanner,
    Unknown,
    UsageError,
    analyse_revision,
    read_revision,
)

MANIFEST = "AGENTS.md"
_LEFT_OUT = frozenset(
    {
        "venv",
        "env",
        "__pycache__",
        "node_modules",
        "build",
        "dist",
        "tests",
        "test",
        "site-packages",
    }
)
_LEFT_OUT_ENDINGS = (".egg-info", ".dist-info")
_UNTESTED = ("__init__.py", "__main__.py", "conftest.py", "setup.py")
_SMALL = 20
"""A module of so many lines without a function needs no test of its own."""
_PROJECTS_KEPT = 4
_NOT_FOUND = "# ARQUIVO NÃO ENCONTRADO OU NÃO PROCESSADO"
_ID = re.compile(r"[0-9a-f]{40}")

_T = TypeVar("_T")
_Sizes: TypeAlias = tuple[int, list[tuple[str, str, int, int]]]
"""A file's lines, and name, arguments, lines and complexity of each of its functions."""


def update_project_manifest(
    root_dir: str | os.PathLike[str],
    target_files: Iterable[str] = (),
    output_path: str | os.PathLike[str] = MANIFEST,
    excluded_dir_patterns: Sequence[str] | None = None,
    *,
    revision: str | None = None,
) -> bool:
    """Write the manifest of the project at `root_dir`, and tell whether it had to be changed.

    It has the file tree, the classes and functions of each Python file, and the whole text of
    `target_files`. `output_path` is relative to the root. Hidden folders, environments, caches,
    build output and tests are left out of the first two, and so are folders whose name or path
    is like one of `excluded_dir_patterns`. With `revision` it is what that commit of the
    repository holds, whatever edits there are. Raise UsageError for a root that is no folder, a
    revision that does not exist, or a manifest that cannot be written.
    """
    project = _project(root_dir)
    output = project.root / output_path
    scan = project.scan(revision)
    shown = [path for path in scan.paths if _is_shown(path, excluded_dir_patterns or ())]
    parts = [
        "# MANIFESTO DO PROJETO HEPHAESTUS\n\n## 1. ESTRUTURA DE ARQUIVOS (OTIMIZADA)\n",
        *_tree(project.root.name, [path for path in shown if project.root / path != output]),
        "\n## 2. RESUMO DAS INTERFACES (APIs Internas)\n",
        *(project.interface(scan.files[path]) for path in shown if path in scan.files),
        "\n## 3. CONTEÚDO COMPLETO DOS ARQUIVOS ALVO\n",
        *(_fenced(path, text) for path, text in project.texts(target_files, revision)),
    ]
    return _write_if_changed(output, "".join(parts).encode("utf-8", "backslashreplace"))


def analyze_code_metrics(
    root_dir: str | os.PathLike[str],
    excluded_dir_patterns: Sequence[str] | None = None,
    file_loc_threshold: int = 300,
    func_loc_threshold: int = 50,
    func_cc_threshold: int = 10,
    *,
    revision: str | None = None,
) -> dict[str, Any]:
    """Return the metrics of the Python files below `root_dir`, or in `revision`, that are no tests.

    `metrics` has for each path `file_loc` and `functions`, each with `name` (of a method with its
    class), `args`, `loc`, `cc`, `is_large` and `is_complex`; of a file that cannot be analysed
    `file_loc` is None and `error` says why. `summary` has `large_files` as (path, loc),
    `large_functions` as (path, name, loc), `complex_functions` as (path, name, cc),
    `missing_tests` as paths, and `unknown` as (path, reason). Raise UsageError for no folder.
    """
    project = _project(root_dir)
    scan = project.scan(revision)
    metrics = {
        path: _metrics(project.sizes(file), func_loc_threshold, func_cc_threshold)
        for path, file in scan.files.items()
        if _is_shown(path, excluded_dir_patterns or ())
    }
    known = {path: one for path, one in metrics.items() if "error" not in one}
    functions = [(path, one) for path in known for one in known[path]["functions"]]
    tests = {path.rpartition("/")[2] for path in scan.paths if _is_test(path)}
    return {
        "metrics": metrics,
        "summary": {
            "large_files": [
                (path, one["file_loc"])
                for path, one in known.items()
                if one["file_loc"] > file_loc_threshold
            ],
            "large_functions": [
                (path, one["name"], one["loc"]) for path, one in functions if one["is_large"]
            ],
            "complex_functions": [
                (path, one["name"], one["cc"]) for path, one in functions if one["is_complex"]
            ],
            "missing_tests": [
                path
                for path, one in known.items()
                if (one["functions"] or one["file_loc"] > _SMALL) and _is_untested(path, tests)
            ],
            "unknown": [(path, one["error"]) for path, one in metrics.items() if "error" in one],
        },
    }


def _metrics(sizes: _Sizes | Unknown, large: int, complex: int) -> dict[str, Any]:
    if isinstance(sizes, Unknown):
        return {"file_loc": None, "functions": [], "error": sizes.reason}
    loc, functions = sizes
    return {
        "file_loc": loc,
        "functions": [
            {
                "name": name,
                "args": args,
                "loc": lines,
                "cc": cc,
                "is_large": lines > large,
                "is_complex": cc > complex,
            }
            for name, args, lines, cc in functions
        ],
    }


class _Project:
    """One project's scanner, and what was made of its files so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._scanner = Scanner(root)
        self._made: dict[tuple[str, str, str], Any] = {}
        self._of_revision: tuple[str, Scan | None] = ("", None)

    def scan(self, revision: str | None = None) -> Scan:
        """Return the analyses of the files as they are, or as a revision has them."""
        scan = self._scanner.scan() if revision is None else self._scan_of(revision)
        if len(self._made) > 4 * len(scan.files) + 100:
            self._made.clear()
        return scan

    def _scan_of(self, revision: str) -> Scan:
        known, scan = self._of_revision
        if scan is None or revision != known or not _ID.fullmatch(revision):
            scan = analyse_revision(self.root, revision)
            self._of_revision = (revision, scan)
        return scan

    def texts(self, paths: Iterable[str], revision: str | None) -> Iterator[tuple[str, str]]:
        """Yield the whole text of each of `paths`, or why there is none."""
        if revision is None:
            yield from ((path, _text(self.root, path)) for path in paths)
            return
        wanted = list(paths)
        contents = read_revision(self.root, revision, wanted)
        for path in wanted:
            yield path, _decoded(contents[path]) if path in contents else _NOT_FOUND

    def close(self) -> None:
        self._scanner.close()

    def interface(self, file: FileAnalysis) -> str:
        """Return what the manifest says of a file's classes and functions."""
        return self._kept("interface", file, _interface)

    def sizes(self, file: FileAnalysis) -> _Sizes | Unknown:
        """Return how large a file and its functions are, or why that is not known."""
        return self._kept("sizes", file, _sizes)

    def _kept(self, what: str, file: FileAnalysis, make: Callable[[FileAnalysis], _T]) -> _T:
        key = (what, file.path, file.blob)
        if not file.blob:
            return make(file)
        if key not in self._made:
            self._made[key] = make(file)
        made: _T = self._made[key]
        return made


_projects: dict[Path, _Project] = {}
_projects_lock = threading.Lock()


def _project(root_dir: str | os.PathLike[str]) -> _Project:
    root = Path(root_dir).resolve()
    with _projects_lock:
        project = _projects.pop(root, None) or _Project(root)
        # The last one is the one that was used last.
        _projects[root] = project
        while len(_projects) > _PROJECTS_KEPT:
            _projects.pop(next(iter(_projects))).close()
    return project


@atexit.register
def _close_projects() -> None:
    with _projects_lock:
        for project in _projects.values():
            project.close()
        _projects.clear()


def _is_shown(path: str, patterns: Sequence[str]) -> bool:
    *folders, name = path.split("/")
    if name.startswith(".") or _is_test(path):
        return False
    for depth, folder in enumerate(folders, 1):
        if folder.startswith(".") or folder in _LEFT_OUT or folder.endswith(_LEFT_OUT_ENDINGS):
            return False
        whole = "/".join(folders[:depth])
        if any(fnmatch.fnmatch(one, pattern) for pattern in patterns for one in (folder, whole)):
            return False
    return True


def _is_test(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.endswith(".py") and (name.startswith("test_") or name.endswith("_test.py"))


def _is_untested(path: str, tests: set[str]) -> bool:
    """Tell whether no test is named after the module, with or without its package."""
    *folders, name = path.split("/")
    if name in _UNTESTED:
        return False
    stem = name.removesuffix(".py")
    names = {stem, *(f"{folder}_{stem}" for folder in folders[-1:])}
    return not any(test in tests for one in names for test in (f"test_{one}.py", f"{one}_test.py"))


def _tree(name: str, paths: Sequence[str]) -> Iterator[str]:
    yield f"{name}/\n"
    shown: set[str] = set()
    for path in sorted(paths, key=lambda path: path.split("/")):
        *folders, file = path.split("/")
        for depth, folder in enumerate(folders, 1):
            if (whole := "/".join(folders[:depth])) not in shown:
                shown.add(whole)
                yield f"{'    ' * depth}{folder}/\n"
        yield f"{'    ' * (len(folders) + 1)}{file}\n"


def _sizes(file: FileAnalysis) -> _Sizes | Unknown:
    metrics = file.result("metrics")
    if isinstance(metrics, Unknown):
        return metrics
    return metrics["loc"], [
        (one["qualname"], ", ".join(one["args"]), one["loc"], one["cc"])
        for one in metrics["functions"]
    ]


def _interface(file: FileAnalysis) -> str:
    skeleton = file.result("skeleton")
    lines = [f"\n### Arquivo: `{file.path}`"]
    if isinstance(skeleton, Unknown):
        lines.append(f"  - [ERRO] {skeleton.reason}")
    else:
        for one in skeleton["classes"]:
            lines += _class_lines(one, "")
        for one in skeleton["functions"]:
            lines += _function_lines(one, "Função", "")
    return "\n".join(lines) + "\n"


def _class_lines(one: Mapping[str, Any], indent: str) -> Iterator[str]:
    bases = f"({', '.join(one['bases'])})" if one["bases"] else ""
    yield f"{indent}- **Classe:** `{one['name']}{bases}`"
    if one["doc"]:
        yield f"{indent}  - *{one['doc']}*"
    for method in one["methods"]:
        yield from _function_lines(method, "Método", f"{indent}  ")
    for inner in one["classes"]:
        yield from _class_lines(inner, f"{indent}  ")


def _function_lines(one: Mapping[str, Any], kind: str, indent: str) -> Iterator[str]:
    yield f"{indent}- **{kind}:** `{'async ' * one['is_async']}{one['name']}{one['signature']}`"
    if one["doc"]:
        yield f"{indent}  - *{one['doc']}*"


def _fenced(path: str, text: str) -> str:
    """Return the text of a target file in a fence that nothing in it can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"\n### Arquivo: `{path}`\n\n{fence}\n{text}\n{fence}\n"


def _text(root: Path, path: str) -> str:
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        return "# ERRO: outside of the project"
    try:
        return _decoded(file.read_bytes())
    except FileNotFoundError:
        return _NOT_FOUND
    except OSError as error:
        return f"# ERRO: {error.strerror}"


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "# ERRO: no UTF-8 text"


def _write_if_changed(path: Path, content: bytes) -> bool:
    """Replace the file in one step, where a link leads to; an equal one is left alone."""
    path = path.resolve()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        if path.exists() and path.read_bytes() == content:
            return False
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"the manifest `{path}` cannot be written: {error.strerror}",
            remedy="see that the folder exists and that you may write there",
        ) from error
    return True
