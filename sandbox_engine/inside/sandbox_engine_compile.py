"""Compile Python sources and say which do not: run by the interpreter whose opinion counts.

Reads from standard input, for each source, a line `NUMBER LENGTH` and that many bytes; writes, for
each that does not compile, one JSON line with its number, message, line, column and text.
Works on Python 3.8 and later, with the standard library alone.
"""

import json
import sys
import warnings


def complaint(source: bytes) -> "dict[str, object] | None":
    """Return what is wrong with `source` as a dict, or None."""
    try:
        compile(source, "<source>", "exec", dont_inherit=True, optimize=0)
    except SyntaxError as error:
        return {
            "message": error.msg,
            "line": error.lineno,
            "column": error.offset,
            "text": error.text,
        }
    except (ValueError, OverflowError) as error:
        return {"message": str(error)}
    except (RecursionError, MemoryError):
        return {"message": "nested too deeply to compile"}
    return None


def main() -> None:
    warnings.simplefilter("ignore")
    stream = sys.stdin.buffer
    for header in iter(stream.readline, b""):
        number, length = map(int, header.split())
        wrong = complaint(stream.read(length))
        if wrong is not None:
            print(json.dumps(dict(wrong, number=number)), flush=True)
        else:
            print(json.dumps({"number": number}), flush=True)


if __name__ == "__main__":
    main()
