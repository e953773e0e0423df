"""Gather compiled files of an environment below a folder, in the form of PYTHONPYCACHEPREFIX.

Run by the environment's own interpreter, outside of any sandbox: what is compiled is not run, and
what is imported is pytest alone. Arguments are the folder and the names of modules to import;
standard input has the paths of further sources, one a line. A compiled file that the environment
has, and that fits its source, is copied. Works on Python 3.8 and later, with the standard library
alone.
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
    sources = [line.rstrip("\n") for line in sys.stdin]
    sources += [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    for source in dict.fromkeys(filter(is_source, sources)):
        sys.pycache_prefix = None
        present = importlib.util.cache_from_source(source)
        sys.pycache_prefix = folder
        target = importlib.util.cache_from_source(source)
        try:
            content = fitting(source, present) or compiled(source)
        except (OSError, SyntaxError, ValueError, RecursionError):
            # Nobody imports what does not compile, and what is gone is not looked for.
            continue
        if not os.path.exists(target):
            write(target, content)


def is_source(path):
    return isinstance(path, str) and path.endswith(".py") and os.path.isabs(path)


def header(source):
    status = os.stat(source)
    return struct.pack("<III", 0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)


def fitting(source, present):
    """Return the compiled file of the environment if it is that of its source, else None."""
    try:
        with open(present, "rb") as file:
            content = file.read()
    except OSError:
        return None
    return content if content[:16] == importlib.util.MAGIC_NUMBER + header(source) else None


def compiled(source):
    before = header(source)
    with open(source, "rb") as file:
        code = compile(file.read(), source, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + before + marshal.dumps(code)


def write(target, content):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = "%s.%d" % (target, os.getpid())
    with open(temporary, "wb") as file:
        file.write(content)
    os.replace(temporary, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
