"""One candidate under one recipe: what its steps need, each found out when first asked for.

A rejected or a known candidate asks for little of it, and so costs little.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping

from sandbox_engine import carry, compiled, containment, isolation, tree
from sandbox_engine.cache import Cache
from sandbox_engine.carry import Carried
from sandbox_engine.config import Config
from sandbox_engine.errors import SandboxError
from sandbox_engine.interpreter import (
    Interpreter,
    choose_interpreter,
    describe_interpreter,
    require_pytest,
)
from sandbox_engine.isolation import Obstacle, View, is_below
from sandbox_engine.layer_sandbox import open_layers
from sandbox_engine.patch import File
from sandbox_engine.pytest_step import PYTEST_NEEDS, Session
from sandbox_engine.receipt import Receipt, seal
from sandbox_engine.recipe import Recipe
from sandbox_engine.sandbox import Sandbox, Setup, allowed_variables
from sandbox_engine.slot_sandbox import open_slot
from sandbox_engine.steps import RUNNING, Bench, run_steps
from sandbox_engine.store import Store, commit_candidate, tags_signature
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import StepResult, Tier, count_categories, count_outcomes
from sandbox_engine.version import VERSION

_LOCK_FILE = re.compile(rb"requirements.*\.txt|(poetry|uv|pdm|Pipfile)\.lock")


class Run:
    """A candidate, a recipe, and where to look for the rest."""

    def __init__(
        self, store: Store, cache: Cache, config: Config, candidate: CandidateTree, recipe: Recipe
    ) -> None:
        self._store = store
        self._cache = cache
        self._config = config
        self._top = store.repository.top
        self._candidate = candidate
        self._recipe = recipe

    @functools.cached_property
    def interpreter(self) -> Interpreter:
        """The project's interpreter."""
        executable = choose_interpreter(self._config.python, self._store.repository)
        return describe_interpreter(executable, self._cache)

    @property
    def runs_something(self) -> bool:
        """Whether any of the steps runs code of the candidate."""
        return any(step.kind in RUNNING for step in self._recipe.steps)

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
                and tree.has_entry(self._store, self._candidate, os.fsencode(inner))
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
        return ("src",) if tree.has_folder(self._store, self._candidate, b"src") else ("",)

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
        parts: list[object] = [VERSION, self._conditions, self._candidate.base]
        if self.runs_something:
            parts += [
                self._config.readable,
                self.interpreter.fingerprint(self._top), self._variables,
                self._carried.fingerprint, self._roots,
                # With the base, what `git describe` says in the sandbox.
                tags_signature(self._store.repository),
            ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def _conditions(self) -> dict[str, str]:
        """What can be named of the environment, as facts that a person can compare or digests."""
        interpreter = self.interpreter
        version = ".".join(map(str, interpreter.version))
        system = platform.uname()
        libc = " ".join(platform.libc_ver())
        return {
            "interpreter": f"{interpreter.implementation} {version} {interpreter.executable}",
            "distributions": interpreter.distributions,
            "platform": f"{system.system} {system.release} {system.machine} {libc}".rstrip(),
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
        """A digest of the files at the candidate's top that say what is to be installed."""
        digest = hashlib.sha256()
        for name in tree.top_names(self._store, self._candidate):
            if _LOCK_FILE.fullmatch(name) and (file := self._read(name)) is not None:
                digest.update(b"%s %s\0" % (tree.blob_id(file).encode(), name))
        return digest.hexdigest()

    def receipt(self, steps: tuple[StepResult, ...]) -> Receipt:
        """Return the receipt of the candidate, which passed with `steps`."""
        return seal(
            Receipt(
                base=self._candidate.base,
                base_tree=self._candidate.base_tree,
                tree=self._candidate.id,
                strategy=self._recipe.name,
                recipe=self._recipe.fingerprint(),
                demands=self._recipe.demands.to_json(),
                environment=self.facts,
                categories=count_categories(steps),
                outcomes=count_outcomes(steps),
                engine_version=VERSION,
            )
        )

    def steps(self) -> tuple[StepResult, ...]:
        """Run the recipe's steps, in a sandbox if one of them needs it."""
        with contextlib.ExitStack() as leases:
            opened: list[Sandbox] = []

            def sandbox() -> Sandbox:
                if not opened:
                    opened.append(leases.enter_context(self.open_sandbox()))
                return opened[0]

            session = functools.cache(self._session)
            bench = Bench(
                self._candidate, self._recipe, sandbox, session,
                lambda: self._search_path(sandbox()), self._read,
            )  # fmt: skip
            results = run_steps(bench)
        self._note_duration(results)
        return results

    @contextlib.contextmanager
    def open_sandbox(self) -> Iterator[Sandbox]:
        """Yield a sandbox of the tier that holds the candidate, which is written for it."""
        containment.warm_up()
        tree.write_tree(self._store, self._candidate)
        commit = commit_candidate(self._store, self._candidate.base, self._candidate.id)
        with compiled.held(self._store, self.interpreter) as provided:
            setup = Setup(
                self.tier,
                self._view,
                self._recipe.limits,
                self._variables,
                self._carried,
                provided.folder / "files" if provided else None,
                self._config.slots,
                self._config.lease_wait_s,
            )
            if self.tier is Tier.FULL:
                try:
                    opened = open_layers(self._store, self._candidate, commit, setup)
                    with opened as layered:
                        yield layered
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
            self._recipe.writable,
            self._recipe.network,
            isolation.find_aliases(wanted, top=top),
        )

    def _read(self, path: bytes) -> File | None:
        return tree.read_file(self._store, self._candidate, path)

    def _search_path(self, sandbox: Sandbox) -> Mapping[str, str]:
        roots = (os.path.normpath(sandbox.root / root) for root in self._roots)
        return {"PYTHONPATH": os.pathsep.join(roots)}

    def _session(self) -> Session:
        require_pytest(self.interpreter)
        provided = {
            which: tree.first_party(self._store, which, self._roots)
            for which in (self._candidate.base_tree, self._candidate.id)
        }
        return Session(
            self.interpreter,
            self._top,
            self._roots,
            # Tests import their helpers from the top, but it must not hide the standard library.
            ("",) if self._roots == ("src",) else (),
            provided[self._candidate.base_tree] | provided[self._candidate.id],
            tree.near_modules(self._store, self._candidate),
            functools.partial(tree.is_copied_from, self._store, self._candidate),
            # Asked of the base: a patch must not bring a `pytest.py` that is imported first.
            is_early=bool(PYTEST_NEEDS & provided[self._candidate.base_tree]),
            learn=functools.partial(compiled.learn, self._store, self.interpreter),
            workers=self._workers(),
        )

    def _workers(self) -> int:
        last_s = self._cache.note(self._duration_key)
        if self.interpreter.xdist is None or last_s is None or last_s <= self._recipe.xdist_after_s:
            return 0
        return len(os.sched_getaffinity(0))

    @property
    def _duration_key(self) -> str:
        return f"duration {self._recipe.fingerprint()}"

    def _note_duration(self, results: tuple[StepResult, ...]) -> None:
        """Remember how long the tests take alone: a run under xdist says nothing about that."""
        if self._cache.note(self._duration_key) is None or not self._workers():
            ran = [step.elapsed_s for step in results if step.tests and not step.red_tests]
            if ran:
                self._cache.set_note(self._duration_key, max(ran))
