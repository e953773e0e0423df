"""Run pytest on the tree in the sandbox and report, over a pipe, what really happened.

`python .../sandbox_engine_probe.py <arguments of pytest>` is the launcher: it sees to it that the
sandbox's modules are imported and nobody else's, then runs pytest with this same file as a plugin.
The plugin writes one JSON line for each event to a descriptor that the engine reads. Under
xdist the workers load it too; they hand their modules to the main process, which alone writes.

The settings come on standard input. An environment variable holds no more than 128 KiB, and
`/proc` shows for ever what the first environment of a process held.

It runs in the project's own interpreter, beside its tests: Python 3.8 and later, pytest 7 and
later, the standard library alone, and everything it needs is bound before the first test runs.

PYTEST_DONT_REWRITE
"""

import os
import sys

_PATH = sys.path[:]
# A PYTHONPATH or an editable install may put a `json.py` of the user's before the real one.
_STDLIB = os.path.dirname(os.__file__)
sys.path[:] = [p for p in sys.path if p.startswith(_STDLIB) and "site-packages" not in p]
import hashlib  # noqa: E402
import json  # noqa: E402
import site  # noqa: E402
from importlib import import_module  # noqa: E402
from importlib.machinery import all_suffixes  # noqa: E402

sys.path[:] = _PATH

NAME = "sandbox_engine_probe"
SETTINGS_ENV = "SANDBOX_ENGINE_PROBE"
REPORT_ENV = "SANDBOX_ENGINE_REPORT_FD"
ID_CHARS = 4000
MESSAGE_CHARS = 8000
HEAD_CHARS = 2000
IDS_IN_A_LINE = 100
CODE_CHARS = 16
MOST_WRAPPERS = 50
CODE = type((lambda: None).__code__)
NAMES = 50
MODULES_KEY = "sandbox_engine_modules"
SETTINGS_KEY = "sandbox_engine_settings"
PATCHED_KEY = "sandbox_engine_patched"
SEEN_KEY = "sandbox_engine_seen"
CODE_KEY = "sandbox_engine_code"
RAN = "ran"
NO_SETTINGS = {
    "root": "",
    "repo": "",
    "environment": [],
    "roots": [],
    "last_roots": [],
    "first_party": [],
    "early": False,
    "nonce": "",
    "only": None,
}


class Places:
    """Where the sandbox, the user's repository and the environments are; all paths are real."""

    def __init__(self, settings):
        self.root = real(settings["root"])
        self.repo = real(settings["repo"])
        environment = settings["environment"]
        if isinstance(environment, str):
            environment = [environment]
        self.environments = [real(path) for path in environment if path]
        self.roots = [os.path.normpath(os.path.join(self.root, r)) for r in settings["roots"]]
        self.last_roots = [
            os.path.normpath(os.path.join(self.root, r)) for r in settings["last_roots"]
        ]
        self.first_party = frozenset(settings["first_party"])

    def is_sandbox(self, path):
        """Whether real `path` is of the sandbox.

        Where that is seen at the path of the user's work tree, an environment may lie in it.
        """
        return is_inside(path, self.root) and not self.is_environment(path)

    def is_environment(self, path):
        return any(is_inside(path, environment) for environment in self.environments)

    def is_users(self, path):
        """Whether real `path` is the user's own, of which the sandbox holds a copy."""
        return (
            is_inside(path, self.repo)
            and not is_inside(path, self.root)
            and not self.is_environment(path)
        )

    def counterpart(self, path):
        """Return the sandbox's copy of the user's `path`; any other path as it is."""
        if not isinstance(path, str) or not os.path.isabs(path):
            return path
        path_real = real(path)
        if not self.is_users(path_real) or is_own(path_real):
            return path
        return os.path.normpath(os.path.join(self.root, os.path.relpath(path_real, self.repo)))

    def is_first_party(self, name, path):
        return (
            name.partition(".")[0] in self.first_party
            or self.is_sandbox(path)
            or self.is_users(path)
        )


def real(path):
    return os.path.realpath(path) if path else ""


def is_inside(path, directory):
    return bool(directory) and (path + os.sep).startswith(directory.rstrip(os.sep) + os.sep)


HERE = os.path.dirname(os.path.abspath(__file__))


def is_own(path):
    """Whether `path` is this file or its folder: they may lie in a repository under test."""
    return is_inside(path, real(HERE))


def launch(arguments, settings, report):
    """Run pytest with `arguments` on the sandbox's modules; return its exit code."""
    sys.modules[NAME] = sys.modules["__main__"]
    # The workers of xdist need most of them before anything is sent to them.
    os.environ[SETTINGS_ENV] = json.dumps(dict(settings, only=None))
    places = Places(settings)
    path = [entry for entry in sys.path if real(entry) != real(HERE)]
    if not settings["early"]:
        # A `pytest.py` in the tree must not take the place of pytest.
        sys.path[:] = [entry for entry in path if not places.is_sandbox(real(entry))]
        sys.path[:] = [entry for entry in sys.path if places.counterpart(entry) == entry]
        import pytest
    redirect_imports(places)
    mapped = [entry for entry in map(places.counterpart, path) if entry not in places.last_roots]
    sys.path[:] = dict.fromkeys([*places.roots, *mapped, *places.last_roots])
    # The workers of xdist get a copy of this path, and have to find this plugin on it.
    sys.path.append(HERE)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    children = [*places.roots, *(places.counterpart(entry) for entry in inherited if entry)]
    if children:
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(children))
    import pytest

    launched = Launched(settings, report, load_originals())
    tell_reaching(launched.report.reach, places)
    sys.argv[0] = os.path.join(os.path.dirname(pytest.__file__), "__main__.py")
    return int(pytest.main(["-p", NAME, *arguments], plugins=[launched]))


def take_settings():
    """Return the settings from standard input, and leave nothing there for anybody else."""
    try:
        with open(0, "rb", closefd=False) as stream:
            given = json.loads(stream.read() or "{}")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    except (ValueError, OSError):
        given = {}
    return dict(NO_SETTINGS, **given)


def read_settings():
    """Return the settings as a process that the launcher's session started finds them."""
    try:
        given = json.loads(os.environ.get(SETTINGS_ENV, "{}"))
    except (ValueError, AttributeError):
        # In a worker of xdist `json` may be the tree's own.
        given = {}
    return dict(NO_SETTINGS, **given)


def redirect_imports(places):
    """Lead what editable installs have set up to the sandbox's copy of the user's files."""
    for name, module in list(sys.modules.items()):
        attributes = attributes_of(module)
        if name.startswith("__editable__"):
            mapping = attributes.get("MAPPING")
            if isinstance(mapping, dict):
                for package, path in list(mapping.items()):
                    mapping[package] = existing(places.counterpart(path), path)
            namespaces = attributes.get("NAMESPACES")
            if isinstance(namespaces, dict):
                for package, paths in list(namespaces.items()):
                    namespaces[package] = [places.counterpart(path) for path in paths]
        file = attributes.get("__file__")
        if isinstance(file, str) and name != "__main__" and places.counterpart(file) != file:
            # A `.pth` file imported it; the next import is to find the sandbox's.
            del sys.modules[name]
            continue
        paths = attributes.get("__path__")
        if isinstance(paths, list):
            paths[:] = [places.counterpart(path) for path in paths]


def existing(path, otherwise):
    """Return `path` when there is a package or a module of that name, else `otherwise`."""
    names = [path] + [path + suffix for suffix in all_suffixes()]
    return path if any(map(os.path.exists, names)) else otherwise


def attributes_of(module):
    """Return what `module` holds without asking it: lazy modules import when they are asked."""
    try:
        attributes = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return {}
    return attributes if isinstance(attributes, dict) else {}


def take_report_fd():
    """Return the descriptor to report to, -1 for none; no child process gets to know it."""
    try:
        fd = int(os.environ.pop(REPORT_ENV, "-1"))
        os.set_inheritable(fd, False)
    except (ValueError, OSError):
        return -1
    return fd


class Report:
    """Writes numbered JSON lines to a descriptor until that fails for the first time.

    `nonce` is in its first line and its last: whoever does not know it cannot end the report in our
    place.

    Tests replace `os.write`, close descriptors that are not theirs and fork: what is needed is
    held here, and a process other than the one that began, or another file under the same
    number, is not written to.
    """

    def __init__(self, fd, nonce=""):
        self.fd = fd
        self.nonce = nonce
        self.count = 0
        self.os = (os.write, os.fstat, os.getpid)
        encoder = json.JSONEncoder()
        encoder.iterencode = encoder.iterencode
        self.encode = encoder.encode if fd >= 0 else None
        self.owner = os.getpid()
        self.file = self.identity()
        self.reached = set()
        self.line, self.end, self.reach = self.line, self.end, self.reach

    def begin(self):
        self.line("begin", nonce=self.nonce)

    def reach(self, call, path):
        """Tell at once what code under test calls that can find what judges it."""
        if path not in self.reached:
            self.reached.add(path)
            self.line("reached", call=call, path=path)

    def end(self, **fields):
        self.line("end", nonce=self.nonce, **fields)
        # Code that is run at the exit of the process may reach for objects too.
        self.file = None

    def identity(self):
        fstat = self.os[1]
        try:
            status = fstat(self.fd)
        except OSError:
            return None
        return (status.st_dev, status.st_ino)

    def line(self, kind, **fields):
        write, _, getpid = self.os
        if self.file is None or getpid() != self.owner:
            return
        if self.identity() != self.file:
            self.file = None
            return
        fields.update(n=self.count, kind=kind)
        self.count += 1
        try:
            text = memoryview((self.encode(fields) + "\n").encode("ascii"))
            while text:
                text = text[write(self.fd, text) :]
        except Exception:
            # Whatever a test did to `json` or to the pipe: the session goes on, unreported.
            self.file = None


class Modules:
    """Every first-party module that was seen, with its file.

    One that was seen outside the sandbox stays so: a test may delete it from `sys.modules`.
    """

    def __init__(self, places):
        self.places = places
        self.files = {}
        self.loaded = sys.modules
        self.known = {}
        self.directories = {}

    def look(self):
        for name, module in list(self.loaded.items()):
            path = module_path(module)
            if not isinstance(name, str) or path is None or self.known.get(name) == path:
                continue
            self.known[name] = path
            path = self.real(path)
            if not is_own(path) and self.places.is_first_party(name, path):
                self.add(name, path)

    def add(self, name, path):
        name = printable(name)
        if name not in self.files or self.places.is_sandbox(self.files[name]):
            self.files[name] = printable(path)

    def real(self, path):
        """Return the real path; a thousand modules lie in a hundred directories."""
        directory, base = os.path.split(os.path.abspath(path))
        if os.path.islink(path):
            return real(path)
        if directory not in self.directories:
            self.directories[directory] = real(directory)
        return os.path.join(self.directories[directory], base)


def environment_sources(modules):
    """Return the sources of the environment that were loaded, for the engine to compile.

    Those of plugins are told apart: pytest rewrites their assertions.
    """
    found = {"sources": set(), "rewritten": set()}
    for name, path in modules.known.items():
        if name not in modules.files and path.endswith(".py"):
            loader = attributes_of(modules.loaded.get(name)).get("__loader__")
            is_rewritten = type(loader).__name__ == "AssertionRewritingHook"
            found["rewritten" if is_rewritten else "sources"].add(printable(path))
    for hook in sys.meta_path:
        # One that fails to be imported is compiled all the same, and is not among the loaded.
        for name, path in dict(attributes_of(hook).get("_rewritten_names") or {}).items():
            if name not in modules.files:
                found["rewritten"].add(printable(path))
    return {kind: sorted(paths) for kind, paths in found.items()}


def module_path(module):
    """Return the file of a module, or the first folder of a namespace package, or None."""
    attributes = attributes_of(module)
    path = attributes.get("__file__")
    if path is None:
        try:
            path = next(iter(attributes.get("__path__") or ()), None)
        except Exception:
            return None
    return path if isinstance(path, str) else None


def printable(text):
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def name_of(node_id):
    """Return `node_id` as the report has it."""
    return printable(node_id)[:ID_CHARS]


class Originals:
    """The functions that decide what becomes of a test, as they were before the tree's code ran.

    They are those of pytest, pluggy and `unittest.case`, the built-in ones and our own. `__code__`
    is held too: it can be replaced in a function that stays the same.
    """

    PACKAGES = ("_pytest", "pluggy", "pytest")
    MODULES = ("builtins", "unittest.case", __name__)

    def __init__(self):
        self.replaced = set()
        self.owners = []
        self.codes = []
        for module_name, module in list(sys.modules.items()):
            is_kept = module_name.partition(".")[0] in self.PACKAGES or module_name in self.MODULES
            if is_kept and isinstance(module, type(sys)):
                name = NAME if module_name == __name__ else module_name
                self.keep(name, module)
                for value in list(attributes_of(module).values()):
                    if isinstance(value, type) and value.__module__ == module_name:
                        self.keep(name + "." + value.__qualname__, value)

    def keep(self, name, owner):
        held = dict(vars(owner))
        self.owners.append((name, owner, held))
        for value in held.values():
            function = getattr(value, "__func__", value)
            code = getattr(function, "__code__", None)
            if code is not None:
                own_name = "{}.{}".format(function.__module__, function.__qualname__)
                self.codes.append((own_name, function, code))

    def look(self, places):
        """Take down the names of what has been replaced, but for what plugins replaced.

        A plugin is a file of the environment other than pytest's own and the standard library's,
        whose functions may hold one that somebody else made up.
        """
        for name, function, code in self.codes:
            if function.__code__ is not code and not is_of_a_plugin(function, places):
                self.replaced.add(name)
        for name, owner, held in self.owners:
            now = vars(owner)
            for key in now.keys() | held.keys():
                old, new = held.get(key), now.get(key)
                if old is not new and self.is_suspect(old, new, places):
                    self.replaced.add(name + "." + key)

    def look_at_tracer(self, places):
        """Take down a function that steps through tests: it may jump over a line."""
        tracer = sys.gettrace()
        if tracer is not None and not is_of_environment(source_of(tracer), places):
            self.replaced.add("sys.settrace")

    def names(self):
        return sorted(map(name_of, self.replaced))[:NAMES]

    def is_suspect(self, old, new, places):
        """Tell whether code was replaced, or code that nobody knows was added."""
        if is_code(old):
            return not is_of_a_plugin(new, places)
        return is_code(new) and not is_of_environment(source_of(new), places)


def is_code(value):
    return callable(value) or hasattr(type(value), "__get__")


def source_of(value):
    """Return the real path of the code that is run for `value`, "" where that cannot be told."""
    try:
        for name in ("__func__", "fget", "func", "__wrapped__"):
            if not hasattr(value, "__code__"):
                value = getattr(value, name, value)
        if hasattr(value, "__code__"):
            path = value.__code__.co_filename
        else:
            kind = value if isinstance(value, type) else type(value)
            path = module_path(sys.modules.get(kind.__module__)) or ""
        return real(path) if os.path.isabs(path) else ""
    except Exception:
        # The tree's own objects do what they like when they are asked.
        return ""


def is_of_environment(path, places):
    prefixes = (sys.prefix, sys.base_prefix, site.USER_BASE)
    is_installed = any(is_inside(path, real(prefix)) for prefix in prefixes)
    return is_installed and not places.is_sandbox(path)


def is_of_a_plugin(value, places):
    path = source_of(value)
    parts = path.split(os.sep)
    is_core = "site-packages" not in parts and "dist-packages" not in parts
    is_core = is_core or any(package in parts for package in Originals.PACKAGES)
    # A plugin that comes with pytest, and gives it back what it once had.
    is_core = is_core and parts[-2:] != ["_pytest", "legacypath.py"]
    return is_of_environment(path, places) and not is_core


def load_originals():
    """Return the originals, once all is imported that pytest is going to import anyway."""
    from _pytest.config import default_plugins

    for name in ("unittest.case", *("_pytest." + plugin for plugin in default_plugins)):
        import_module(name)
    return Originals()


def tell_reaching(tell, places):
    """Have `tell` called when code under test asks the collector for objects that it was not given.

    That is told before it gets them, so it cannot be taken back. No audit hook can be removed.
    """
    calls = ("gc.get_objects", "gc.get_referrers", "gc.get_referents")
    caller = sys._getframe

    def hook(event, arguments):
        if event not in calls:
            return
        try:
            path = real(caller(1).f_code.co_filename)
            if not is_of_environment(path, places) and not is_own(path):
                tell(event, name_of(os.path.relpath(path, places.root)))
        except Exception:
            tell(event, "")

    sys.addaudithook(hook)


class Filter:
    """The plugin that keeps the tests that are asked for, where they are collected.

    An id without `::` is a file and stands for all of its tests. Files from which nothing is
    wanted are not imported; what else pytest has to look at is not known here.
    """

    def __init__(self, config, only):
        self.root = str(config.rootpath)
        self.ids = frozenset(only)
        self.files = frozenset(node_id.partition("::")[0] for node_id in only)

    def pytest_ignore_collect(self, collection_path):
        path = printable(os.path.relpath(str(collection_path), self.root))
        # The part of an id before `::` is not the whole of a path that holds it.
        is_wanted = "::" in path or path.replace(os.sep, "/") in self.files
        if is_wanted or collection_path.name in ("__init__.py", "conftest.py"):
            return None
        return True if collection_path.is_file() else None

    def pytest_collection_modifyitems(self, config, items):
        kept = [item for item in items if self.keeps(name_of(item.nodeid))]
        if len(kept) < len(items):
            ids = set(map(id, kept))
            config.hook.pytest_deselected(items=[item for item in items if id(item) not in ids])
            items[:] = kept

    def keeps(self, name):
        return name in self.ids or name.partition("::")[0] in self.ids


class Watch:
    """The plugin that sees what a test does before any hook can say otherwise.

    What it saw goes with the reports, which may come from a worker of xdist or from a fork. Of a
    test that is run more than once the last time counts: that is the one to be reported.
    """

    def __init__(self, root, originals, places):
        from _pytest import outcomes

        self.root = root
        self.originals = originals
        self.places = places
        self.no_failures = (
            KeyboardInterrupt,
            outcomes.Exit,
            outcomes.Skipped,
            outcomes.XFailed,
        )
        self.seen = {}
        self.codes = {}

    def pytest_runtest_setup(self, item):
        yield from self.watch(item, "setup")

    def pytest_runtest_call(self, item):
        if type(item).__name__ == "TestCaseFunction":
            self.look(item)
        yield from self.watch(item, "call")

    def pytest_pyfunc_call(self, pyfuncitem):
        self.look(pyfuncitem)
        yield from self.watch(pyfuncitem, "call")

    def look(self, item):
        self.codes[item.nodeid] = code_of(item, self.root)
        self.originals.look_at_tracer(self.places)

    def pytest_runtest_teardown(self, item):
        yield from self.watch(item, "teardown")

    def watch(self, item, when):
        self.seen[item.nodeid, when] = RAN
        outcome = yield
        kind = outcome.excinfo[0] if outcome.excinfo else unittest_failure(item)
        if isinstance(kind, type) and not issubclass(kind, self.no_failures) and not is_skip(kind):
            self.seen[item.nodeid, when] = printable(kind.__name__)

    def pytest_runtest_makereport(self):
        outcome = yield
        if outcome.excinfo is None:
            self.mark(outcome.get_result())

    def pytest_runtest_logreport(self, report):
        self.mark(report)

    def mark(self, report):
        seen = self.seen.get((report.nodeid, report.when))
        if seen is not None:
            setattr(report, SEEN_KEY, seen)
        if report.when == "call" and self.codes.get(report.nodeid) is not None:
            setattr(report, CODE_KEY, self.codes[report.nodeid])

    def pytest_runtest_logfinish(self, nodeid):
        for when in ("setup", "call", "teardown"):
            self.seen.pop((nodeid, when), None)
        self.codes.pop(nodeid, None)


def unittest_failure(item):
    """Return the class of what a `TestCase` kept of its failure, which it does not raise."""
    kept = getattr(item, "_excinfo", None)
    return getattr(kept[0], "type", None) if kept and isinstance(kept, list) else None


def is_skip(kind):
    unittest = sys.modules.get("unittest")
    return unittest is not None and issubclass(kind, unittest.SkipTest)


def code_of(item, root):
    """Return a digest of the code that is about to run for a test, None where it has none.

    It is that of its own file, which is the same in every session as long as the file is; "" tells
    that the code comes from elsewhere.
    """
    function = getattr(item, "obj", None)
    if not callable(function):
        return None
    path = str(item.path)
    for _ in range(MOST_WRAPPERS):
        function = getattr(function, "__func__", function)
        code = getattr(function, "__code__", None)
        if isinstance(code, CODE) and code.co_filename == path:
            digest = hashlib.sha256()
            add_code(digest, code, root)
            return digest.hexdigest()[:CODE_CHARS]
        inner = getattr(function, "__wrapped__", None) or getattr(function, "func", None)
        if inner is None:
            break
        function = inner
    return ""


def add_code(digest, code, root):
    """Add to `digest` what `code` does; where a file lies does not matter, nor a set's order."""
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    digest.update(repr((code.co_code, code.co_flags, names)).encode("utf-8", "replace"))
    for value in code.co_consts:
        if isinstance(value, CODE):
            add_code(digest, value, root)
        else:
            text = repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
            digest.update(text.replace(root, "").encode("utf-8", "replace") + b"\n")


class Worker:
    """The plugin in a worker of xdist: it hands over the modules that it saw."""

    def __init__(self, config, originals):
        self.config = config
        self.originals = originals
        self.settings = config.workerinput.get(SETTINGS_KEY) or read_settings()
        self.modules = Modules(Places(self.settings))

    def pytest_collection_finish(self):
        self.look()
        watch_tests(self.config, self.originals, self.modules.places)

    def pytest_sessionfinish(self):
        self.look()
        self.config.workeroutput[MODULES_KEY] = self.modules.files
        self.config.workeroutput[PATCHED_KEY] = self.originals.names()

    def look(self):
        self.modules.look()
        self.originals.look(self.modules.places)


class Main:
    """The plugin in the main process: it writes the report."""

    def __init__(self, config, settings, report, originals):
        self.report = report
        self.originals = originals
        self.settings = settings
        self.modules = Modules(Places(self.settings))
        self.session = None
        self.is_over = False
        self.collected = None
        self.broken = set()
        self.open = {}
        self.counts = {}
        self.has_workers = config.pluginmanager.hasplugin("dsession")

    def pytest_sessionstart(self, session):
        import pytest

        self.session = session
        self.has_workers = session.config.pluginmanager.hasplugin("dsession")
        version = ".".join(map(str, sys.version_info[:3]))
        self.report.line("start", python=version, pytest=pytest.__version__, xdist=self.has_workers)

    def pytest_collection_finish(self, session):
        if not self.has_workers:
            self.collect([item.nodeid for item in session.items])
        self.look()
        watch_tests(session.config, self.originals, self.modules.places)

    def look(self):
        self.modules.look()
        self.originals.look(self.modules.places)

    def pytest_xdist_node_collection_finished(self, ids):
        self.collect(list(ids))

    def collect(self, ids):
        if self.collected is None:
            self.collected = len(ids)
            names = [name_of(node_id) for node_id in ids]
            for start in range(0, len(names) or 1, IDS_IN_A_LINE):
                end = start + IDS_IN_A_LINE
                self.report.line("collected", ids=names[start:end], more=end < len(names))

    def pytest_configure_node(self, node):
        node.workerinput[SETTINGS_KEY] = self.settings

    def pytest_testnodedown(self, node):
        handed = getattr(node, "workeroutput", None) or {}
        for name, path in (handed.get(MODULES_KEY) or {}).items():
            self.modules.add(name, path)
        self.originals.replaced.update(handed.get(PATCHED_KEY) or ())

    def pytest_collectreport(self, report):
        # Under xdist every worker reports the same error.
        if report.failed and report.nodeid not in self.broken:
            self.broken.add(report.nodeid)
            self.report.line("collect-error", id=name_of(report.nodeid), message=message_of(report))

    def pytest_runtest_logreport(self, report):
        key = (report.nodeid, getattr(report, "worker_id", None))
        # A plugin that runs a test again has a word of its own for the time before.
        if report.outcome not in ("passed", "failed", "skipped"):
            self.open.pop(key, None)
            return
        if report.when == "setup":
            self.open[key] = Test()
        test = self.open.setdefault(key, Test())
        test.add(report)
        # A worker that crashed has no phase.
        if report.when not in ("setup", "call"):
            del self.open[key]
            # Without its call it did not run, or a plugin keeps that to itself and runs it again.
            if test.was_called or test.outcome != "passed":
                self.close(report.nodeid, test)

    def close(self, node_id, test):
        self.counts[test.outcome] = self.counts.get(test.outcome, 0) + 1
        self.report.line(
            "test",
            id=name_of(node_id),
            outcome=test.outcome,
            duration_s=round(test.duration_s, 6),
            message=test.message,
            code=test.code,
        )

    def pytest_sessionfinish(self, session):
        self.session = session
        self.is_over = True
        self.look()

    def pytest_unconfigure(self):
        if not self.is_over:
            return
        self.modules.look()
        self.report.line("environment", **environment_sources(self.modules))
        self.report.line("patched", names=self.originals.names())
        self.report.line("modules", modules=self.modules.files)
        self.report.end(exit=int(self.session.exitstatus), counts=self.counts)


class Test:
    """One test while its phases come in."""

    RANK = ("passed", "skipped", "xfailed", "xpassed", "error", "failed")

    __test__ = False

    def __init__(self):
        self.outcome = "passed"
        self.duration_s = 0.0
        self.message = None
        self.was_called = False
        self.code = None

    def add(self, report):
        duration = getattr(report, "duration", 0.0)
        self.duration_s += duration if isinstance(duration, (int, float)) else 0.0
        outcome = outcome_of(report)
        # A subtest that was skipped says nothing about its test; one that failed does.
        if is_subtest(report) and outcome != "failed":
            return
        if report.when == "call":
            self.was_called = True
            self.code = getattr(report, CODE_KEY, None)
        outcome, message = unearned(report) or (outcome, None)
        if self.RANK.index(outcome) > self.RANK.index(self.outcome):
            self.outcome = outcome
            self.message = message or message_of(report)


def unearned(report):
    """Return the outcome and the message for a pass that the test did not earn, else None."""
    seen = getattr(report, SEEN_KEY, None)
    if report.outcome != "passed" or seen == RAN:
        return None
    if seen is not None:
        return ("failed", "its failure was turned into a pass by a hook: " + printable(seen))
    if report.when == "call":
        return ("error", "it was reported as passed, but did not run")
    return None


def is_subtest(report):
    return type(report).__name__.lower() == "subtestreport"


def outcome_of(report):
    if report.outcome == "skipped":
        return "xfailed" if hasattr(report, "wasxfail") else "skipped"
    if report.outcome == "passed":
        return "xpassed" if hasattr(report, "wasxfail") else "passed"
    return "error" if report.when in ("setup", "teardown") else "failed"


def message_of(report):
    """Return what a report says, its assertion first when it is too long to be kept whole."""
    try:
        if hasattr(report, "wasxfail"):
            return printable(report.wasxfail)[:MESSAGE_CHARS]
        longrepr = report.longrepr
        if isinstance(longrepr, tuple) and len(longrepr) == 3:
            return printable(longrepr[2])[:MESSAGE_CHARS]
        text = printable(report.longreprtext)
        if len(text) <= MESSAGE_CHARS:
            return text
        crash = printable(getattr(getattr(longrepr, "reprcrash", None), "message", text))
        head = crash[:HEAD_CHARS] + "\n[...]\n"
        return head + text[len(head) - MESSAGE_CHARS :]
    except Exception as error:
        return printable("the report cannot be shown: " + type(error).__name__)


class Launched:
    """The plugin that has what only the launcher was given; no name of a module leads to it."""

    def __init__(self, settings, report, originals):
        self.__name__ = NAME + "_launched"
        self.settings = settings
        self.report = report
        self.originals = originals

    def pytest_configure(self, config):
        start(config, Main(config, self.settings, self.report, self.originals))


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        start(config, Worker(config, ORIGINALS or Originals()))
    elif not config.pluginmanager.hasplugin(NAME + "_launched"):
        start(config, Main(config, read_settings(), Report(-1), Originals()))


def start(config, plugin):
    mark_hooks()
    config.pluginmanager.register(plugin, NAME + "_session")
    only = plugin.settings["only"]
    if only is not None:
        config.pluginmanager.register(Filter(config, only), NAME + "_filter")


def watch_tests(config, originals, places):
    """Register Watch after all others, so that no wrapper of a conftest comes between."""
    if not config.pluginmanager.hasplugin(NAME + "_watch"):
        watch = Watch(str(config.rootpath), originals, places)
        config.pluginmanager.register(watch, NAME + "_watch")


def mark_hooks():
    """Mark the hooks that only xdist knows, and those that have to be first or last."""
    from pytest import hookimpl

    innermost = hookimpl(hookwrapper=True, trylast=True)
    innermost(Watch.pytest_runtest_setup)
    innermost(Watch.pytest_runtest_call)
    innermost(Watch.pytest_runtest_teardown)
    innermost(Watch.pytest_pyfunc_call)
    hookimpl(hookwrapper=True, tryfirst=True)(Watch.pytest_runtest_makereport)
    hookimpl(tryfirst=True)(Watch.pytest_runtest_logreport)
    hookimpl(trylast=True)(Filter.pytest_collection_modifyitems)
    hookimpl(optionalhook=True)(Main.pytest_xdist_node_collection_finished)
    hookimpl(optionalhook=True)(Main.pytest_configure_node)
    hookimpl(optionalhook=True)(Main.pytest_testnodedown)
    hookimpl(trylast=True)(Main.pytest_unconfigure)
    hookimpl(trylast=True)(Main.pytest_sessionfinish)


def begin():
    settings = take_settings()
    report = Report(take_report_fd(), settings.pop("nonce"))
    # Before anything of the tree is imported, which might write a beginning of its own.
    report.begin()
    return launch(sys.argv[1:], settings, report)


ORIGINALS = None

if __name__ == "__main__":
    sys.exit(begin())
elif __name__ == NAME and "PYTEST_XDIST_WORKER" in os.environ:
    redirect_imports(Places(read_settings()))
    ORIGINALS = load_originals()
