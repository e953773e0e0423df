"""Gather compiled files of an environment below a folder, in the form of PYTHONPYCACHEPREFIX.

Run by the environment's own interpreter, outside of any sandbox: what is compiled is not run, and
what is imported is pytest alone. Arguments are the folder and the names of modules to import;
standard input has further sources, one a line: `plain` or `rewritten`, and the path. A compiled
file that the environment has, and that fits its source, is copied. Works on Python 3.8 and later,
with the standard library and pytest alone.
"""

import importlib
import importlib.util
import marshal
import os
import struct
import sys
import warnings


def main(folder, names):
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    asked = [line.rstrip("\n").partition(" ") for line in sys.stdin]
    loaded = [("plain", "", getattr(module, "__file__", None)) for module in modules()]
    for kind, _, source in dict.fromkeys(asked + loaded):
        if is_source(source):
            gather(kind, source, folder)


def modules():
    return list(sys.modules.values())


def gather(kind, source, folder):
    """Put what `source` is compiled to below `folder`, in the plain form or in pytest's."""
    make, name = (rewritten, pytest_name) if kind == "rewritten" else (compiled, str)
    try:
        present, target = (name(path) for path in places(source, folder))
        content = make(source, present)
    except Exception:
        # What cannot be compiled here is slow there, and pytest may change what it keeps.
        return
    if not os.path.exists(target):
        write(target, content)


def places(source, folder):
    """Yield where the environment keeps what `source` is compiled to, and where it is to go."""
    for prefix in (None, folder):
        sys.pycache_prefix = prefix
        yield importlib.util.cache_from_source(source)


def is_source(path):
    return isinstance(path, str) and path.endswith(".py") and os.path.isabs(path)


def header(source):
    status = os.stat(source)
    return struct.pack("<III", 0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)


def compiled(source, present):
    before = importlib.util.MAGIC_NUMBER + header(source)
    content = read(present)
    if content[:16] == before:
        return content
    return before + marshal.dumps(compile(read(source), source, "exec", dont_inherit=True))


def pytest_name(path):
    from _pytest.assertion.rewrite import PYC_TAIL

    return os.path.join(os.path.dirname(path), os.path.basename(path).split(".")[0] + PYC_TAIL)


def rewritten(source, present):
    """Compile as pytest does it for its plugins, see `_pytest/assertion/rewrite.py`."""
    import io
    from pathlib import Path

    from _pytest.assertion.rewrite import _read_pyc, _rewrite_test, _write_pyc_fp

    if _read_pyc(Path(source), Path(present)) is not None:
        return read(present)
    file = io.BytesIO()
    _write_pyc_fp(file, *_rewrite_test(Path(source), None))
    return file.getvalue()


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def write(target, content):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = "%s.%d" % (target, os.getpid())
    with open(temporary, "wb") as file:
        file.write(content)
    os.replace(temporary, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
