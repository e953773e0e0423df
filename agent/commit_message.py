"""Commit messages by rule: Conventional Commits from what was meant and what was changed.

See https://www.conventionalcommits.org/en/v1.0.0/. The type comes from the changed paths where they
leave no choice, else from the words of the objective; without either there is no confident answer.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

TYPES = ("feat", "fix", "docs", "style", "refactor", "perf", "test", "build", "ci", "chore")
COLUMNS = 72
_HEADER = re.compile(rf"(?:{'|'.join(TYPES)})(?:\([^()\s]+\))?!?: \S.*")
_WORDS = {
    "fix": "fix|fixes|bug|bugs|crash|error|errors|broken|repair|correct|corrigir|corrija|erro",
    "refactor": "refactor|refactoring|split|simplify|extract|rename|move|deduplicate|modularize|"
    "refatorar|refatore|dividir|simplificar|extrair",
    "perf": "performance|speed|faster|optimize|optimise|slow|otimizar|desempenho",
    "test": "test|tests|testing|coverage|teste|testes",
    "docs": "document|documentation|docstring|docstrings|readme|documentar",
    "style": "format|formatting|lint|style|whitespace",
    "feat": "add|adds|implement|create|introduce|support|feature|adicionar|implementar|criar",
}
_LEADING = 6
"""Among so many first words of an objective its verb is found."""
_DOCUMENT = (".md", ".rst", ".txt", ".adoc")
_BUILD = (
    *("setup.py", "setup.cfg", "pyproject.toml", "requirements.txt", "Makefile", "Dockerfile"),
    *("tox.ini", "package.json", "package-lock.json", "poetry.lock", "uv.lock"),
)
_CI = (".github", ".gitlab-ci.yml", ".circleci", ".ci", "azure-pipelines.yml", "Jenkinsfile")
_ROOTS = ("src", "lib")
_TAG = re.compile(r"^\s*(?:\[[^\]]*\]\s*)+")


def by_rule(objective: str, paths: Sequence[str]) -> str | None:
    """Return a message for a commit that changes `paths`, None if its type is a guess."""
    kind = _kind_of_paths(paths) or _kind_of_words(objective)
    return None if kind is None else written(kind, objective, paths)


def written(kind: str, objective: str, paths: Sequence[str]) -> str:
    """Return a message of a type: a header of at most 72 columns, and the rest below it."""
    scope = _scope(paths)
    head = f"{kind}({scope}): " if scope else f"{kind}: "
    text = " ".join(_plain(_TAG.sub("", objective)).split()) or "change what was asked for"
    subject = _subject(text)
    room = COLUMNS - len(head)
    if len(subject) <= room and subject.lower() == text.rstrip(".").lower():
        return head + subject
    cut = textwrap.shorten(subject, room, placeholder="...")
    return f"{head}{cut}\n\n{textwrap.fill(text, COLUMNS, break_long_words=False)}"


def is_header(text: str) -> bool:
    """Tell whether a text is one line that may stand at the head of a commit message."""
    return len(text) <= COLUMNS and text.isprintable() and bool(_HEADER.fullmatch(text))


def _kind_of_paths(paths: Sequence[str]) -> str | None:
    kinds = {_kind_of_path(path) for path in paths}
    return kinds.pop() if len(kinds) == 1 else None


def _kind_of_path(path: str) -> str | None:
    name, top = PurePosixPath(path).name, PurePosixPath(path).parts[0]
    if top in _CI:
        return "ci"
    if name in _BUILD:
        return "build"
    if name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py":
        return "test"
    return "docs" if top == "docs" or name.endswith(_DOCUMENT) else None


def _kind_of_words(objective: str) -> str | None:
    """Return the type whose word comes first among the first words of an objective."""
    words = re.findall(r"[^\W\d_]+", _TAG.sub("", objective).lower())[:_LEADING]
    for word in words:
        for kind, known in _WORDS.items():
            if word in known.split("|"):
                return kind
    return None


def _scope(paths: Sequence[str]) -> str:
    """Return the module that alone is changed, or the folder that all changes are in, or ""."""
    parts = [PurePosixPath(path).parts for path in paths]
    if not parts:
        return ""
    folders = [part[1:-1] if part[0] in _ROOTS and len(part) > 2 else part[:-1] for part in parts]
    if len(parts) == 1:
        name = PurePosixPath(parts[0][-1])
        stem = name.stem if name.suffix == ".py" else ""
        found = stem if stem and stem != "__init__" else (folders[0] or ("",))[-1]
    else:
        shared = folders[0]
        for folder in folders[1:]:
            same = [one == other for one, other in zip(shared, folder, strict=False)]
            shared = shared[: (*same, False).index(False)]
        found = shared[-1] if shared else ""
    return found if re.fullmatch(r"[\w.-]{1,24}", found, re.ASCII) else ""


def _subject(text: str) -> str:
    """Return the first sentence of `text`, as a header has it."""
    sentence = re.split(r"(?<=[^\W\d_]{2})[.;:!?](?:\s|$)", text, maxsplit=1)[0].rstrip(". ")
    first = sentence.split(" ", 1)[0]
    is_name = not first[1:].islower() and len(first) > 1
    return sentence if is_name else sentence[:1].lower() + sentence[1:]


def _plain(text: str) -> str:
    """Return `text` without control characters, which a terminal that shows a log would obey."""
    return "".join(
        char if char.isspace() or unicodedata.category(char)[0] != "C" else "" for char in text
    )
