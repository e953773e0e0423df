"""The agent's faces to the analyses: the manifest, and where code is large, complex, untested."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import GitBox

from agent.project_scanner import analyze_code_metrics, update_project_manifest
from sandbox_engine import UsageError

MODULE = '''\
"""A shop."""

import os


class Shop(Base, metaclass=Meta):
    """Sells things.

    To people.
    """

    def sell(self, thing: str, *, price: int = 1) -> bool:
        """Sell one thing."""
        if thing and price:
            return True
        return False

    class Shelf:
        def put(self): ...


async def open_shop(*names, **options):
    def inner(x):
        return x or 1

    return inner
'''


@pytest.fixture
def shop(box: GitBox) -> Path:
    box.commit(
        {
            "shop/core.py": MODULE,
            "shop/big.py": "x = 1\n" * 400,
            "shop/broken.py": "def f(:\n",
            "tests/test_big.py": "def test_it():\n    assert True\n",
            "notes.txt": "```\nnotes\n```\n",
            ".github/hidden.py": "x = 1\n",
            "build/made.py": "x = 1\n",
            "vendored/lib.py": "def g(): ...\n",
            ".gitignore": "*.log\n",
        }
    )
    return box.top


def manifest(root: Path) -> str:
    return (root / "AGENTS.md").read_text()


def test_the_manifest_has_the_tree_the_interfaces_and_the_targets(shop: Path) -> None:
    assert update_project_manifest(root_dir=str(shop), target_files=["notes.txt", "gone.py"])
    tree, interfaces, targets = (part for part in manifest(shop).split("\n## ")[1:])
    assert tree.startswith("1. ESTRUTURA DE ARQUIVOS")
    assert [line.strip() for line in tree.splitlines()[1:]] == [
        "repo/",
        "notes.txt",
        "shop/",
        "big.py",
        "broken.py",
        "core.py",
        "vendored/",
        "lib.py",
    ]
    assert "### Arquivo: `shop/core.py`\n- **Classe:** `Shop(Base, metaclass=Meta)`" in interfaces
    assert "  - *Sells things.*\n" in interfaces
    assert "- **Método:** `sell(self, thing: str, *, price: int=1) -> bool`" in interfaces
    assert "  - **Classe:** `Shelf`" in interfaces
    assert "- **Função:** `async open_shop(*names, **options)`" in interfaces
    assert "### Arquivo: `shop/broken.py`\n  - [ERRO] line 1: invalid syntax" in interfaces
    assert "hidden" not in interfaces and "made" not in interfaces and "test_it" not in interfaces
    # A fence in the text does not close the one around it.
    assert "### Arquivo: `notes.txt`\n\n````\n```\nnotes\n```\n\n````\n" in targets
    assert "# ARQUIVO NÃO ENCONTRADO" in targets


def test_the_manifest_is_written_only_if_it_changes(shop: Path) -> None:
    assert update_project_manifest(shop)
    before = os.stat(shop / "AGENTS.md")
    assert not update_project_manifest(shop)
    assert os.stat(shop / "AGENTS.md") == before
    (shop / "shop" / "core.py").write_text(MODULE + "\n\ndef added(): ...\n")
    assert update_project_manifest(shop)
    assert "`added()`" in manifest(shop)
    # Nothing of the writing is left.
    assert [name for name in os.listdir(shop) if name.startswith("AGENTS.md")] == ["AGENTS.md"]


def test_folders_are_left_out_by_name_by_path_and_by_pattern(shop: Path) -> None:
    update_project_manifest(shop, excluded_dir_patterns=["vend*"])
    assert "lib.py" not in manifest(shop)
    found = analyze_code_metrics(shop, excluded_dir_patterns=["shop"])["metrics"]
    assert list(found) == ["vendored/lib.py"]


def test_a_target_outside_of_the_project_is_not_read(shop: Path) -> None:
    (shop.parent / "secret.txt").write_text("hush")
    os.symlink(shop.parent / "secret.txt", shop / "link.txt")
    (shop / "bytes.bin").write_bytes(b"\xff\xfe")
    update_project_manifest(shop, ["../secret.txt", "link.txt", "bytes.bin", "shop"])
    text = manifest(shop)
    assert "hush" not in text
    assert text.count("# ERRO: outside of the project") == 2
    assert "# ERRO: no UTF-8 text" in text
    assert "# ERRO: Is a directory" in text


def test_a_manifest_that_cannot_be_written_is_one_sentence(shop: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written: No such file or directory"):
        update_project_manifest(shop, output_path="nowhere/AGENTS.md")
    with pytest.raises(UsageError, match="is not a folder"):
        update_project_manifest(shop / "nowhere")


def test_metrics_have_the_shapes_that_users_rely_on(shop: Path) -> None:
    found = analyze_code_metrics(
        str(shop), file_loc_threshold=300, func_loc_threshold=4, func_cc_threshold=2
    )
    core = found["metrics"]["shop/core.py"]
    assert core["file_loc"] == len(MODULE.splitlines())
    assert core["functions"][0] == {
        "name": "Shop.sell",
        "args": "self, thing, price",
        "loc": 5,
        "cc": 3,
        "is_large": True,
        "is_complex": True,
    }
    assert [one["name"] for one in core["functions"]] == [
        "Shop.sell",
        "Shop.Shelf.put",
        "open_shop",
        "open_shop.<locals>.inner",
    ]
    assert found["summary"] == {
        "large_files": [("shop/big.py", 400)],
        "large_functions": [("shop/core.py", "Shop.sell", 5), ("shop/core.py", "open_shop", 5)],
        "complex_functions": [("shop/core.py", "Shop.sell", 3)],
        "missing_tests": ["shop/core.py", "vendored/lib.py"],
        "unknown": [("shop/broken.py", "line 1: invalid syntax")],
    }
    assert found["metrics"]["shop/broken.py"] == {
        "file_loc": None,
        "functions": [],
        "error": "line 1: invalid syntax",
    }


def test_metrics_follow_the_files(shop: Path) -> None:
    assert "shop/core.py" in analyze_code_metrics(shop)["metrics"]
    (shop / "shop" / "core.py").unlink()
    (shop / "tests" / "test_shop_lib.py").write_text("")
    (shop / "tests" / "vendored_lib_test.py").write_text("")
    found = analyze_code_metrics(shop)
    assert "shop/core.py" not in found["metrics"]
    assert found["summary"]["missing_tests"] == []
