"""The process in which analysers run: files come in on standard input, results go out.

It reads frames from standard input and answers each with one: a length of four bytes, and so much
JSON. The first frame says where modules are found; each other one names functions and is followed
by the bytes of a file. It ends when its input does. What a function prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import struct
import sys
import threading
import warnings
from typing import Any, BinaryIO

LENGTH = struct.Struct(">I")
MEMORY_BYTES = 2 * 2**30
_STACK_BYTES = 256 * 2**20
_RECURSION = 20_000


def main() -> None:
    """Answer every frame until there is no more."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Deeply nested source needs a deep stack, and how deep must not depend on who asks.
    sys.setrecursionlimit(_RECURSION)
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(requests, answers), daemon=True)
    thread.start()
    thread.join()


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    opening = _frame(requests)
    if opening is None:
        return
    sys.path[:] = opening["path"]
    while (request := _frame(requests)) is not None:
        content = requests.read(request["size"])
        replies = [_reply(reference, content) for reference in request["functions"]]
        text = json.dumps(replies, separators=(",", ":")).encode("utf-8", "surrogatepass")
        answers.write(LENGTH.pack(len(text)) + text)
        answers.flush()


def _frame(requests: BinaryIO) -> Any:
    head = requests.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return json.loads(requests.read(LENGTH.unpack(head)[0]))


def _reply(reference: str, content: bytes) -> dict[str, Any]:
    """Return a value, why there is none, or what went wrong that need not go wrong again."""
    module, _, name = reference.partition(":")
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        value = function(content)
        json.dumps(value)
        return {"value": value}
    except (RecursionError, MemoryError):
        return {"unknown": "nested too deeply, or too large, to be analysed", "recurs": True}
    except Exception as error:
        if type(error).__name__ == "NotAnalysableError":
            return {"unknown": str(error), "recurs": True}
        return {"unknown": f"the analyser failed: {type(error).__name__}: {error}", "recurs": False}


if __name__ == "__main__":
    main()
