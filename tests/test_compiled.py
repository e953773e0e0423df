from __future__ import annotations

import os
import sys
from pathlib import Path

from sandbox_engine import Engine, compiled
from sandbox_engine.interpreter import describe_interpreter


def test_a_report_cannot_have_files_written_elsewhere(engine: Engine) -> None:
    interpreter = describe_interpreter(sys.executable, engine.cache)
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:20]
    with compiled.held(engine.store, interpreter) as before:
        assert before is not None
    forged = ["/.." + os.fspath(source) for source in sources]
    compiled.learn(engine.store, interpreter, forged, ())
    with compiled.held(engine.store, interpreter) as after:
        assert after is not None and after.label == before.label
