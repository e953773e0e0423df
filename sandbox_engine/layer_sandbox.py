"""Sandboxes in layers: the base's files read-only, the candidate's over them, writes thrown away.

It is seen at the path of the user's own work tree, so that absolute paths, editable installs and
the scripts of an environment mean the candidate. All of it is in the memory of the keeper's mount
namespace, and gone with it (docs/adr/0005-layers-and-tiers.md).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox_engine import carry, inside, layers, slots
from sandbox_engine import store as store_module
from sandbox_engine.containment import Confinement, Keeper, Mount, open_keeper
from sandbox_engine.isolation import full_confinement
from sandbox_engine.isolation.view import COMPILED, HOME, INSIDE, is_below, object_places, shown
from sandbox_engine.process import Completed, Limits
from sandbox_engine.sandbox import GIT_CONFIG, PRIVATE, Setup
from sandbox_engine.store import Store
from sandbox_engine.tree import CandidateTree
from sandbox_engine.verdict import CommitId

_HOME = {".gitconfig": GIT_CONFIG}


@dataclass(frozen=True)
class LayerSandbox:
    """A directory in a mount namespace, that holds exactly one tree until its keeper ends."""

    root: Path
    inside: Path
    _keeper: Keeper
    _variables: Mapping[str, str]
    _confinement: Confinement
    _marker: str

    def real(self, path: str) -> str:
        # The report says where files really are, and no link of this system is there.
        return os.path.normpath(path)

    def run(
        self,
        argv: list[str],
        limits: Limits,
        *,
        variables: Mapping[str, str] | None = None,
        input: bytes = b"",
        report_env: str | None = None,
        on_report: Callable[[bytes], None] | None = None,
    ) -> Completed:
        return self._keeper.run(
            argv,
            cwd=self.root,
            env={**self._variables, **(variables or {})},
            limits=limits,
            confinement=self._confinement,
            marker=self._marker,
            input=input,
            report_env=report_env,
            on_report=on_report,
        )

    def changed_files(self) -> list[str]:
        return self._keeper.changes()

    def restore(self) -> None:
        self._keeper.reset()

    def read(self, path: str) -> bytes | None:
        return self._keeper.read(path)


@contextlib.contextmanager
def open_layers(
    store: Store, candidate: CandidateTree, commit: CommitId, setup: Setup
) -> Iterator[LayerSandbox]:
    """Lay `candidate`, whose objects and `commit` are written, over its base, and yield it.

    Raise SandboxBusyError when too many sandboxes are open.
    """
    root = setup.view.root
    objects = object_places(layers.object_folders(store))
    with contextlib.ExitStack() as stack:
        leased = slots.leased(store, setup.slots, setup.wait_s, setup.cancellation)
        slot, lease = stack.enter_context(leased)
        store_module.tidy(store)
        base = stack.enter_context(layers.held_base(store, candidate))
        brought = stack.enter_context(carry.held_layer(store, setup.carried))
        held = (lease, base.lease, *([brought.lease] if brought else []))
        keeper = stack.enter_context(open_keeper(held, setup.cancellation))
        git_folder = layers.git_folder(store, commit, slot.branch, list(objects))
        layer = layers.candidate_layer(store, base, candidate, git_folder, setup.carried.all_paths)
        lowers = [str(base.files), *([str(brought.folder / "files")] if brought else [])]
        mounts = _mounts(setup, lowers)
        folders = _mount_points(store)
        seen = shown(
            setup.view,
            space=folders[1],
            mounted={root: mounts[0].name, **_own_places(setup, mounts)},
            readable={
                **objects,
                INSIDE: str(inside.FOLDER),
                # What a repository of the user's borrows is shown in a place of its own.
                **{
                    f"{place}/info/alternates": f"{folders[1]}/empty"
                    for place, folder in objects.items()
                    if os.path.exists(f"{folder}/info/alternates")
                },
            },
        )
        keeper.prepare(layer, mounts, seen, folders=folders, limits=setup.limits, home=_HOME)
        confinement = full_confinement(setup.view, layer=folders[0], space=folders[1])
        keeper.prepared()
        private = {
            "HOME": HOME,
            "TMPDIR": "/tmp",
            "PYTHONPYCACHEPREFIX": COMPILED,
            **PRIVATE,
        }
        yield LayerSandbox(
            Path(root),
            Path(INSIDE),
            keeper,
            {**setup.variables, **private},
            confinement,
            slot.marker,
        )


def _mount_points(store: Store) -> tuple[str, str]:
    """Return two empty folders; what each keeper mounts there is seen by no other process."""
    folders = (store.folder / "mount" / "layer", store.folder / "mount" / "space")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return str(folders[0]), str(folders[1])


def _mounts(setup: Setup, base: list[str]) -> list[Mount]:
    """Return what is laid over what: the tree, then each environment, then what is compiled."""
    mounts = [Mount("root", tuple(base))]
    root = setup.view.root
    for number, folder in enumerate(setup.view.environments):
        place = os.path.relpath(folder, root) if is_below(folder, (root,)) else ""
        mounts.append(Mount(f"environment-{number}", (folder,), place))
    if setup.compiled is not None:
        mounts.append(Mount("compiled", (str(setup.compiled),)))
    return mounts


def _own_places(setup: Setup, mounts: list[Mount]) -> dict[str, str]:
    """Return where each mount that does not lie in the tree is seen."""
    places = {
        folder: mount.name
        for folder, mount in zip(setup.view.environments, mounts[1:], strict=False)
        if not mount.place
    }
    if setup.compiled is not None:
        places[COMPILED] = "compiled"
    return places
