from __future__ import annotations

import pytest
from conftest import GitBox

from sandbox_engine import git, store, tree
from sandbox_engine.errors import PatchError
from sandbox_engine.patch import parse_patch
from sandbox_engine.store import Store


@pytest.fixture
def opened(project: GitBox) -> Store:
    return store.open_store(git.find_repository(project.top))


def build(opened: Store, text: bytes) -> tree.CandidateTree:
    commit, base_tree = git.resolve_commit(opened.repository, "HEAD")
    candidate = tree.build_tree(opened, commit, base_tree, parse_patch(text))
    assert candidate.id not in opened.objects
    tree.write_tree(opened, candidate)
    assert candidate.id in opened.objects
    return candidate


@pytest.mark.parametrize(
    "files",
    [
        {"calc.py": "changed\n"},
        {"deep/er/new.py": "x = 1\n"},
        {"calc.py": None},
        {"tests/test_calc.py": None},
        {"calc.py": None, "calc.py/inner.py": "x = 1\n"},
        {"b\xe9.py": "x = 1\n", "sp ace.py": "", "-rf": "x\n"},
        {"latin.txt": b"\xe9\xff\n"},
    ],
    ids=lambda files: ",".join(files),
)
def test_the_tree_is_the_one_git_makes(
    project: GitBox, opened: Store, files: dict[str, str | bytes | None]
) -> None:
    text = project.diff_to(files)
    before = project.snapshot()
    candidate = build(opened, text)
    assert project.snapshot() == before
    project.git("apply", "--index", text=text)
    assert candidate.id == project.git("write-tree")


def test_a_name_that_is_not_utf8_is_written(project: GitBox, opened: Store) -> None:
    text = (
        b'diff --git "a/\\377.txt" "b/\\377.txt"\nnew file mode 100644\n'
        b'--- /dev/null\n+++ "b/\\377.txt"\n@@ -0,0 +1 @@\n+x\n'
    )
    candidate = build(opened, text)
    project.git("apply", "--index", text=text)
    assert candidate.id == project.git("write-tree")


def test_a_file_over_a_folder_is_refused(opened: Store) -> None:
    text = b"--- /dev/null\n+++ b/tests\n@@ -0,0 +1 @@\n+x\n"
    with pytest.raises(PatchError, match="folder"):
        build(opened, text)


def test_modes_and_additions_are_known(opened: Store) -> None:
    text = (
        b"diff --git a/run.sh b/run.sh\nnew file mode 100755\n--- /dev/null\n+++ b/run.sh\n"
        b"@@ -0,0 +1 @@\n+true\n"
    )
    candidate = build(opened, text)
    assert candidate.added == (b"run.sh",)
    assert candidate.after[b"run.sh"] == tree.File(b"true\n", 0o100755)
    assert candidate.before[b"run.sh"] is None


def test_first_party_modules_are_those_a_root_provides(project: GitBox) -> None:
    project.commit(
        {"src/pkg/__init__.py": "", "src/mod.py": "", "data/x.txt": "", "src/no-module.py": ""}
    )
    opened = store.open_store(git.find_repository(project.top))
    _, base_tree = git.resolve_commit(opened.repository, "HEAD")
    assert tree.first_party(opened, base_tree, ("src",)) == {"pkg", "mod"}
    assert tree.first_party(opened, base_tree, ("", "gone")) == {"calc"}
