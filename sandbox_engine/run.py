"""One candidate under one recipe: what its steps need, each found out when first asked for.

A rejected or a known candidate asks for little of it, and so costs little.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager

from sandbox_engine import (
    carry,
    compiled,
    containment,
    control,
    delta,
    isolation,
    prepare,
    pytest_step,
    tree,
    trial,
)
from sandbox_engine.cache import Cache
from sandbox_engine.cancellation import Cancellation
from sandbox_engine.carry import Carried
from sandbox_engine.config import Config
from sandbox_engine.delta import BaseTests
from sandbox_engine.errors import CancelledError, DiskFullError, SandboxBusyError, SandboxError
from sandbox_engine.explain import explain
from sandbox_engine.interpreter import (
    Interpreter,
    choose_interpreter,
    describe_interpreter,
    require_pytest,
)
from sandbox_engine.isolation import Obstacle, View, is_below
from sandbox_engine.layer_sandbox import open_layers
from sandbox_engine.patch import File
from sandbox_engine.progress import Progress, Watch, unwatched
from sandbox_engine.pytest_step import PYTEST_NEEDS, Doubt, Observed, Session
from sandbox_engine.receipt import Receipt, seal
from sandbox_engine.recipe import Recipe, Step, StepKind
from sandbox_engine.sandbox import Sandbox, Setup, allowed_variables
from sandbox_engine.slot_sandbox import open_slot
from sandbox_engine.stage import Stage
from sandbox_engine.steps import RUNNING, Bench, run_steps
from sandbox_engine.store import Store, commit_candidate, in_use, tags_signature
from sandbox_engine.tree import CandidateTree
from sandbox_engine.trial import Court, Observe
from sandbox_engine.verdict import (
    Explanation,
    StepResult,
    Tier,
    TreeId,
    count_categories,
    count_outcomes,
)
from sandbox_engine.version import VERSION

_LOCK_FILE = re.compile(rb"requirements.*\.txt|(poetry|uv|pdm|Pipfile)\.lock")
_OTHER_LOCKS = re.compile(
    rb"constraints.*\.txt|(package-lock|npm-shrinkwrap)\.json|yarn\.lock|pnpm-lock\.yaml|"
    rb"pixi\.lock|Cargo\.lock|go\.sum|Gemfile\.lock|composer\.lock"
)


@functools.cache
def _platform() -> str:
    """Return the system, its machine and its C library: what to find that out reads a program."""
    system = platform.uname()
    parts = (system.system, system.release, system.machine, *platform.libc_ver())
    return " ".join(filter(None, parts))


class Run:
    """A candidate, a recipe, and where to look for the rest."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        config: Config,
        candidate: CandidateTree,
        recipe: Recipe,
        *,
        use_cache: bool = True,
        cancellation: Cancellation | None = None,
        watch: Watch = unwatched,
    ) -> None:
        """Take what all else is found out from; without `use_cache` the base is run anew.

        `watch` is told what is being done.
        """
        self._watch = watch
        self._use_cache = use_cache
        self._cancellation = cancellation
        self._store = store
        self._cache = cache
        self._config = config
        self._top = store.repository.top
        self.candidate = candidate
        self.recipe = recipe
        self._others: dict[TreeId, Run] = {}

    @functools.cached_property
    def interpreter(self) -> Interpreter:
        """The project's interpreter."""
        executable = choose_interpreter(self._config.python, self._store.repository)
        return describe_interpreter(executable, self._cache)

    @property
    def runs_something(self) -> bool:
        """Whether any of the steps runs code of the candidate."""
        return any(step.kind in RUNNING for step in self.recipe.steps)

    @property
    def openings(self) -> tuple[str, ...]:
        """What its runs reach outside of the sandbox, in words."""
        if not self.runs_something:
            return ()
        is_open = self._config.setup and self._config.setup_network
        return (*self.recipe.openings, *(("network for `setup`",) if is_open else ()))

    @functools.cached_property
    def tier(self) -> Tier:
        """How far what is run is kept from all else; `none` where nothing is run."""
        if not self.runs_something:
            return Tier.NONE
        return isolation.choose_tier(
            self._config.wanted_tier, self._cache, self._store.folder, without=self._obstacles
        )

    @property
    def _obstacles(self) -> Mapping[Tier, Obstacle]:
        """Return what stands in the way of a tier for this project on any system."""
        top = os.fspath(self._top or "/nowhere")
        for folder in self._environments:
            inner = os.path.relpath(folder, top)
            if is_below(top, (folder,)) or (
                is_below(folder, (top,))
                and tree.has_entry(self._store, self.candidate, os.fsencode(inner))
            ):
                return {
                    Tier.FULL: Obstacle(
                        f"the environment `{folder}` lies over files of the repository",
                        "make the environment in a folder of its own, such as `.venv`",
                    )
                }
        return {}

    @property
    def _environments(self) -> tuple[str, ...]:
        interpreter = self.interpreter
        folders = (interpreter.prefix, interpreter.base_prefix)
        return tuple(
            folder
            for folder in (*folders, *map(os.path.realpath, folders))
            if not is_below(folder, isolation.SYSTEM)
        )

    def is_isolated_less_than(self, tier: str) -> bool:
        """Tell whether something would be run with less than `tier`."""
        return self.runs_something and self.tier.is_less_than(tier)

    @functools.cached_property
    def _carried(self) -> Carried:
        return carry.find_carried(self._store.repository, self._config.carry)

    @functools.cached_property
    def _roots(self) -> tuple[str, ...]:
        if self._config.source_roots is not None:
            return self._config.source_roots
        return ("src",) if tree.has_folder(self._store, self.candidate, b"src") else ("",)

    @functools.cached_property
    def _variables(self) -> dict[str, str]:
        """The environment of every command in the sandbox, but for what is private to a lease."""
        allowed = allowed_variables(self._config.env)
        folder = os.path.dirname(self.interpreter.executable)
        allowed["PATH"] = os.pathsep.join(filter(None, (folder, allowed.get("PATH", os.defpath))))
        if self.interpreter.is_virtual:
            allowed["VIRTUAL_ENV"] = self.interpreter.prefix
        if self.interpreter.user_base:
            allowed["PYTHONUSERBASE"] = self.interpreter.user_base
        return allowed

    @functools.cached_property
    def environment(self) -> str:
        """A digest of all that can change what the steps find, apart from tree and recipe.

        Whatever a receipt says of the environment is in it, so a known verdict's receipt is true.
        """
        parts: list[object] = [VERSION, self._conditions, self.candidate.base]
        if self.runs_something:
            parts += [
                self._config.readable,
                self.interpreter.fingerprint(self._top), self._variables,
                self._carried.fingerprint, self._config.setup, self._config.setup_network,
                self._roots,
                # With the base, what `git describe` says in the sandbox.
                tags_signature(self._store.repository),
            ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def _conditions(self) -> dict[str, str]:
        """What can be named of the environment, as facts that a person can compare or digests."""
        interpreter = self.interpreter
        version = ".".join(map(str, interpreter.version))
        return {
            "interpreter": f"{interpreter.implementation} {version} {interpreter.executable}",
            "distributions": interpreter.distributions,
            "platform": _platform(),
            "isolation": str(self.tier),
        }

    @property
    def facts(self) -> dict[str, str]:
        """What a receipt says of the environment, by name."""
        return {
            **self._conditions,
            "lock_files": self._lock_files,
            "environment": self.environment,
        }

    @property
    def _lock_files(self) -> str:
        return self._digest_of(_LOCK_FILE)

    @functools.cached_property
    def _all_locks(self) -> str:
        return self._digest_of(_LOCK_FILE, _OTHER_LOCKS)

    def _digest_of(self, *patterns: re.Pattern[bytes]) -> str:
        """Return a digest of files at the candidate's top that say what is to be installed."""
        digest = hashlib.sha256()
        for name in tree.top_names(self._store, self.candidate):
            is_one = any(pattern.fullmatch(name) for pattern in patterns)
            if is_one and (file := self._read(name)) is not None:
                digest.update(b"%s %s\0" % (tree.blob_id(file).encode(), name))
        return digest.hexdigest()

    def receipt(self, steps: tuple[StepResult, ...]) -> Receipt:
        """Return the receipt of the candidate, which passed with `steps`."""
        return seal(
            Receipt(
                base=self.candidate.base,
                base_tree=self.candidate.base_tree,
                tree=self.candidate.id,
                strategy=self.recipe.name,
                recipe=self.recipe.fingerprint(),
                demands=self.recipe.demands.to_json(),
                environment=self.facts,
                categories=count_categories(steps),
                outcomes=count_outcomes(steps),
                engine_version=VERSION,
            )
        )

    def steps(self) -> tuple[StepResult, ...]:
        """Run the recipe's steps, in sandboxes that are opened when one of them needs it."""
        with self._stage() as stage:
            observe = functools.partial(self._observe, stage)
            court = Court(
                self.candidate,
                self.recipe,
                observe,
                lambda arguments: self._known(observe, arguments),
                self._learn,
                lambda: self._session.first_party | self._session.near,
                self._read,
                functools.partial(tree.restored, self._store, self.candidate),
                lambda: stage.spent_s,
            )
            return run_steps(Bench(court, stage))

    def _stage(self) -> Stage:
        return Stage(self._open_at, self._search_path, self.recipe.limits, self._watch)

    def test_control(self, results: Iterable[StepResult]) -> tuple[str, ...]:
        """Return those of the changed paths that steer the tests, as text that is safe to show."""
        tests = {test.node_id for step in results for test in step.tests}
        before, after = self.candidate.before, self.candidate.after
        words = [word for step in self.recipe.steps for word in step.args]
        found = control.find_control(before, after, tests, PYTEST_NEEDS, self._read, words)
        return tuple(path.decode("utf-8", "backslashreplace") for path in found)

    def explain(
        self,
        failed: Step,
        tests: Sequence[str],
        count: int,
        build: Callable[[frozenset[int]], CandidateTree | None],
    ) -> Explanation:
        """Return which of the patch's `count` edits break `tests` of the step that failed.

        `build` makes a candidate of some of the edits, None where they do not fit by themselves.
        """
        with self._stage() as stage:
            for step in self.recipe.steps[: self.recipe.steps.index(failed)]:
                if step.kind is StepKind.COMMAND:
                    stage.remember(step.args)
            observe = functools.partial(self._observe, stage)

            def try_subset(edits: frozenset[int]) -> Mapping[str, bool] | None:
                some = build(edits)
                return None if some is None else self._failing(observe, failed, some, tests)

            alone = self._failing(observe, failed, tree.unchanged(self.candidate), tests) or {}
            # What needs an earlier test fails with any edits, and without one.
            fit = [test for test in tests if alone.get(test) is False]
            told = explain(count, fit, try_subset, self._config.explain_runs)
            unfit = (test for test in tests if test not in fit)
            return dataclasses.replace(told, unexplained=(*told.unexplained, *unfit))

    def _failing(
        self, observe: Observe, step: Step, some: CandidateTree, tests: Sequence[str]
    ) -> Mapping[str, bool] | None:
        """Tell which of `tests` fail with some of the edits alone; None where none can be judged.

        A test that does not run is left out. What becomes of the tests of a tree is kept.
        """
        names = trial.names_in(some, self.candidate, tests)
        key = f"{self._base_key([step.name, *step.args, *names.values()])} {some.id}"
        known = self._cache.find_base(key)
        if known is None:
            seen = observe(some, step.args, only=sorted(names.values()))
            if seen.doubt is not None:
                return None
            report = seen.report
            known = delta.base_tests(report.tests, report.ids, report.collect_errors)
            self._keep_base(key, known)
        return delta.failing(known, names)

    def _open_at(self, where: CandidateTree) -> AbstractContextManager[Sandbox]:
        return self._at(where).open_sandbox()

    def _observe(
        self,
        stage: Stage,
        where: CandidateTree,
        arguments: Sequence[str],
        *,
        only: Sequence[str] | None = None,
        expected: Set[str] = frozenset(),
    ) -> Observed:
        with stage.session(where) as sandbox:
            # Only now are the objects of the tree written.
            session = dataclasses.replace(
                self._at(where)._session, heard=self._hearing(where, is_again=only is not None)
            )
            seen = pytest_step.observe(
                sandbox, session, arguments, self.recipe.limits, only=only, expected=expected
            )
        if only is None and not session.workers and seen.doubt is None and seen.report.tests:
            # A run under xdist does not tell how long the tests take alone.
            self._cache.set_note(self._duration_key, seen.done.elapsed_s)
        return seen

    def _hearing(self, where: CandidateTree, *, is_again: bool) -> Callable[[int], None]:
        """Return what tells the watcher how many tests of `where` have ended."""
        of = {self.candidate.id: "tests", self.candidate.base_tree: "tests without the patch"}
        phase = of.get(where.id, "tests, with some of it") + (" again" if is_again else "")
        self._watch(Progress(phase))
        return lambda count: self._watch(Progress(phase, count))

    def _at(self, candidate: CandidateTree) -> Run:
        """Return the run of another candidate under the same recipe."""
        if candidate.id == self.candidate.id:
            return self
        if candidate.id not in self._others:
            run = Run(
                self._store,
                self._cache,
                self._config,
                candidate,
                self.recipe,
                cancellation=self._cancellation,
                watch=self._watch,
            )
            self._others[candidate.id] = run
        return self._others[candidate.id]

    def _known(self, observe: Observe, arguments: Sequence[str]) -> BaseTests | Doubt:
        """Return what the base's tests do; several that want to know wait for the first."""
        key = self._base_key(arguments)
        if known := self._find_base(key):
            return known
        with self._alone(key):
            if known := self._find_base(key):
                return known
            base = tree.unchanged(self.candidate)
            found = trial.find_base(observe, base, arguments, self.recipe.reruns)
            if isinstance(found, BaseTests) and not found.broken:
                self._keep_base(key, found)
            return found

    def _find_base(self, key: str) -> BaseTests | None:
        return self._cache.find_base(key) if self._use_cache else None

    def _learn(self, arguments: Sequence[str], red: Set[str], green: Mapping[str, int]) -> None:
        """Remember what became of the base's tests when they were run again."""
        key = self._base_key(arguments)
        if known := self._cache.find_base(key):
            self._keep_base(key, delta.with_reruns(known, red, green))

    def _keep_base(self, key: str, tests: BaseTests) -> None:
        with contextlib.suppress(DiskFullError):
            # It is right even if it cannot be remembered.
            self._cache.keep_base(key, tests)

    def _base_key(self, arguments: Sequence[str]) -> str:
        base = self._at(tree.unchanged(self.candidate))
        parts = [self.recipe.base_fingerprint(), *arguments]
        recipe = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return f"{self.candidate.base_tree} {recipe} {base.environment}"

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Let nobody else find out the same; who has waited too long does so all the same."""
        with contextlib.ExitStack() as held:
            name = f"base-{hashlib.sha256(key.encode()).hexdigest()[0]}"
            with contextlib.suppress(SandboxBusyError):
                wait_s, cancellation = self._config.lease_wait_s, self._cancellation
                held.enter_context(self._store.locked(name, wait_s, cancellation))
            yield

    @contextlib.contextmanager
    def open_sandbox(self) -> Iterator[Sandbox]:
        """Yield a sandbox of the tier that holds the candidate, which is written for it.

        What `setup` makes is in it; raise PreparationError where that fails.
        """
        with self._prepared() as made, self._opened(made, self._view) as sandbox:
            yield sandbox

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[Carried]:
        """Hold what is carried and what `setup` has made for a tree with the same lock files."""
        if not self._config.setup:
            yield self._carried
            return
        base = self._at(tree.unchanged(self.candidate))
        is_same = base._all_locks == self._all_locks
        where = base if is_same else self
        parts = [
            *(VERSION, self._conditions, self._config.setup, self._carried.fingerprint),
            *(self.interpreter.fingerprint(self._top), self._variables, self._all_locks),
            # Nobody else is to be judged with what a patch has made.
            "" if is_same else self.candidate.id,
        ]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        view = dataclasses.replace(where._view, network=self._config.setup_network)
        work = prepare.Work(
            self._config.setup,
            self.interpreter,
            self.recipe.limits,
            self._carried.paths,
            lambda: where._opened(self._carried, view),
        )
        self._watch(Progress("what `setup` makes"))
        with prepare.held(self._store, key, work, self._cancellation) as made:
            yield self._carried.beside(made)

    @contextlib.contextmanager
    def _opened(self, carried: Carried, view: View) -> Iterator[Sandbox]:
        self._watch(Progress("a sandbox"))
        containment.warm_up()
        provided_for = compiled.held(self._store, self.interpreter)
        with in_use(self._store), provided_for as provided:
            tree.write_tree(self._store, self.candidate)
            commit = commit_candidate(self._store, self.candidate.base, self.candidate.id)
            setup = Setup(
                self.tier,
                view,
                self.recipe.limits,
                self._variables,
                carried,
                provided.folder / "files" if provided else None,
                self._config.slots,
                self._config.lease_wait_s,
                self._cancellation,
            )
            if self.tier is Tier.FULL:
                try:
                    opened = open_layers(self._store, self.candidate, commit, setup)
                    with opened as layered:
                        yield layered
                except CancelledError:
                    raise
                except SandboxError:
                    isolation.forget(self._cache)
                    raise
            else:
                with open_slot(self._store, commit, setup) as slot:
                    yield slot

    @property
    def _view(self) -> View:
        """What the runs see, beside the sandbox: the interpreter, and where commands are."""
        interpreter = self.interpreter
        top = str(self._top or self._store.slots / "0")
        wanted = (
            *(os.path.dirname(interpreter.executable), *interpreter.sites),
            *interpreter.editable_folders,
            *self._variables["PATH"].split(os.pathsep),
            *self._config.readable,
        )
        environments, readable = isolation.needed_roots(self._environments, wanted, top=top)
        return View(
            top,
            environments,
            readable,
            self.recipe.writable,
            self.recipe.network,
            isolation.find_aliases(wanted, top=top),
        )

    def _read(self, path: bytes) -> File | None:
        return tree.read_file(self._store, self.candidate, path)

    def _search_path(self, sandbox: Sandbox) -> Mapping[str, str]:
        roots = (os.path.normpath(sandbox.root / root) for root in self._roots)
        return {"PYTHONPATH": os.pathsep.join(roots)}

    @functools.cached_property
    def _session(self) -> Session:
        require_pytest(self.interpreter)
        provided = {
            which: tree.first_party(self._store, which, self._roots)
            for which in (self.candidate.base_tree, self.candidate.id)
        }
        return Session(
            self.interpreter,
            self._top,
            self._roots,
            # Tests import their helpers from the top, but it must not hide the standard library.
            ("",) if self._roots == ("src",) else (),
            provided[self.candidate.base_tree] | provided[self.candidate.id],
            tree.near_modules(self._store, self.candidate),
            functools.partial(tree.is_copied_from, self._store, self.candidate),
            # Asked of the base: a patch must not bring a `pytest.py` that is imported first.
            is_early=bool(PYTEST_NEEDS & provided[self.candidate.base_tree]),
            learn=functools.partial(compiled.learn, self._store, self.interpreter),
            heard=lambda count: None,
            workers=self._workers(),
        )

    def _workers(self) -> int:
        last_s = self._cache.note(self._duration_key)
        if self.interpreter.xdist is None or last_s is None or last_s <= self.recipe.xdist_after_s:
            return 0
        return len(os.sched_getaffinity(0))

    @property
    def _duration_key(self) -> str:
        return f"duration {self.recipe.base_fingerprint()}"
