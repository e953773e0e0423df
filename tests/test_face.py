"""The face of the engine: every name that it promises is there, and costs only what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sandbox_engine


def test_every_promised_name_is_there() -> None:
    for name in sandbox_engine.__all__:
        assert getattr(sandbox_engine, name) is not None
        assert name in dir(sandbox_engine)


def test_a_name_that_is_not_promised_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        sandbox_engine.Motor  # noqa: B018


def test_a_module_of_values_does_not_load_the_pipeline() -> None:
    code = (
        "import sys, sandbox_engine.verdict\n"
        "print([name for name in sys.modules if name == 'pygit2' or name.endswith('.engine')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
