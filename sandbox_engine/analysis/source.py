"""Python source as bytes: decoded and parsed as the interpreter would, once for all analysers."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
import warnings

from sandbox_engine.analysis.analysers import MAX_BYTES, NotAnalysableError


@functools.lru_cache(maxsize=1)
def parsed(content: bytes) -> ast.Module:
    """Return the syntax tree of a file; raise NotAnalysableError if it has none."""
    if len(content) > MAX_BYTES:
        size = f"{len(content) / 2**20:.1f} MiB"
        raise NotAnalysableError(f"larger than {MAX_BYTES / 2**20:g} MiB ({size})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(content)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        raise NotAnalysableError(f"{where}{error.msg}") from error
    except (ValueError, LookupError) as error:
        raise NotAnalysableError(str(error)) from error


def text_of(content: bytes) -> str:
    """Return the text of a file that `parsed` accepts, without a byte order mark."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding)
