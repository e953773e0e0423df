"""The project's own interpreter: which one, what it has, and a fingerprint of its environment.

Tests run under the interpreter that has the project's dependencies, not under ours. Asking it
what it has costs a process, so the answer is remembered for as long as its environment's folders
look the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_engine import git, process
from sandbox_engine.cache import Cache
from sandbox_engine.errors import CommandMissingError
from sandbox_engine.git import Repository

_DESCRIBE_S = 60.0
_QUOTED = re.compile(r"'([^'\n]+)'")
_NOT_SOURCE = frozenset({"__pycache__", ".git", ".venv", "venv", "node_modules"})
_ENVIRONMENT_FOLDERS = (".venv", "venv")
_QUESTION = """
import hashlib, json, os, site, sys, sysconfig
from importlib import metadata, util
def version(name):
    if util.find_spec(name) is None:
        return None
    try:
        return metadata.version("pytest-xdist" if name == "xdist" else name)
    except metadata.PackageNotFoundError:
        return "unknown"
def identity(distribution):
    try:
        return str(distribution.metadata["Name"]), str(distribution.version)
    except Exception:
        return "unreadable", str(getattr(distribution, "_path", ""))
found = {identity(distribution) for distribution in metadata.distributions()}
sites = [p for p in sys.path if os.path.isdir(p) and os.path.basename(p).endswith("-packages")]
print(json.dumps({
    "version": list(sys.version_info[:3]), "prefix": sys.prefix, "base_prefix": sys.base_prefix,
    "sites": sites, "user_base": site.getuserbase() if site.ENABLE_USER_SITE else None,
    "pytest": version("pytest"), "xdist": version("xdist"),
    "distributions": hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest(),
    "platform": sysconfig.get_platform(), "implementation": sys.implementation.cache_tag,
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter and what is installed for it; `sites` are its `site-packages` folders.

    `distributions` is a digest of the names and versions of all that is installed.
    """

    executable: str
    version: tuple[int, int, int]
    prefix: str
    base_prefix: str
    sites: tuple[str, ...]
    user_base: str | None
    pytest: str | None
    xdist: str | None
    distributions: str
    platform: str
    implementation: str

    @property
    def is_virtual(self) -> bool:
        return self.prefix != self.base_prefix

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that all its own modules lie in: of packages, and of the library."""
        major, minor, _ = self.version
        return (*self.sites, os.path.join(self.base_prefix, "lib", f"python{major}.{minor}"))

    @property
    def signature(self) -> str:
        """A digest of the interpreter and of what is installed for it."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode())
        digest.update(_signature(self.sites).encode())
        return digest.hexdigest()

    @property
    def editable_folders(self) -> frozenset[str]:
        """The folders that editable installs point to."""
        return frozenset(_editable_folders(self.sites))

    def fingerprint(self, project: Path | None) -> str:
        """Return a digest of the interpreter, of what is installed, and of what that points to.

        Editable installs from other folders than `project` count with the state of each file:
        their code runs in the tests too. The project's own is what the sandbox replaces.
        """
        digest = hashlib.sha256(self.signature.encode())
        for folder in sorted(self.editable_folders):
            if project is None or not Path(folder).is_relative_to(project):
                digest.update(_files_signature(folder).encode())
        return digest.hexdigest()


def choose_interpreter(wanted: str | None, repository: Repository) -> str:
    """Return the path of the interpreter to use: `wanted`, the project's own, the active one, ours.

    A linked worktree without an environment uses that of the main one. In an environment that a
    hook manager has made for us alone, which it calls the active one, it is the next Python of
    PATH: the one that was found before. Raise CommandMissingError when `wanted` is not there.
    """
    if wanted is not None:
        return _wanted(wanted, repository.top)
    for top in filter(None, (repository.top, repository.main_top)):
        for folder in _ENVIRONMENT_FOLDERS:
            path = top / folder / "bin" / "python"
            if os.access(path, os.X_OK):
                return str(path)
    if _is_made_for_us(Path(sys.prefix)):
        return _next_of_path() or sys.executable
    active = os.environ.get("VIRTUAL_ENV")
    if active and os.access(os.path.join(active, "bin", "python"), os.X_OK):
        return os.path.join(active, "bin", "python")
    return sys.executable


def _is_made_for_us(prefix: Path) -> bool:
    """Tell whether pre-commit or prek has made the environment, which they mark in this way."""
    return any(prefix.glob(".install_state_v*")) or (prefix / ".prek-hook.json").exists()


def _next_of_path() -> str | None:
    """Return the first Python of PATH that is none of our own environment."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    others = [folder for folder in folders if folder and not _is_ours(folder)]
    found = (shutil.which(name, path=folder) for folder in others for name in ("python", "python3"))
    return next(filter(None, found), None)


def _is_ours(folder: str) -> bool:
    return Path(folder).resolve().is_relative_to(Path(sys.prefix).resolve())


def _wanted(wanted: str, top: Path | None) -> str:
    path = str((top or Path()) / os.path.expanduser(wanted))
    if os.path.isdir(path):
        path = os.path.join(path, "bin", "python")
    elif os.sep not in wanted:
        path = shutil.which(wanted) or path
    if not os.access(path, os.X_OK):
        raise CommandMissingError(
            f"there is no interpreter `{wanted}`",
            remedy="give the path of a Python, or of its environment, with `--python`",
        )
    return path


def describe_interpreter(executable: str, cache: Cache) -> Interpreter:
    """Return what `executable` is and has; raise CommandMissingError when it does not run."""
    key = f"interpreter {executable} {_program_signature(executable)}"
    known = cache.note(key)
    if known is not None and known["signature"] == _signature(known["fields"]["sites"]):
        return _from_fields(executable, known["fields"])
    fields = _ask(executable)
    cache.set_note(key, {"fields": fields, "signature": _signature(fields["sites"])})
    return _from_fields(executable, fields)


def _ask(executable: str) -> dict[str, Any]:
    environment = git.plain_environment()
    environment.pop("PYTHONPATH", None)
    environment.pop("PYTHONHOME", None)
    done = process.run_tool(
        # Without -B its start would compile what the environment's `.pth` files import.
        [executable, "-B", "-c", _QUESTION],
        cwd=Path("/"),
        env=environment,
        timeout_s=_DESCRIBE_S,
    )
    try:
        fields = json.loads(done.stdout)
    except ValueError:
        fields = None
    if done.code != 0 or not isinstance(fields, dict):
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise CommandMissingError(
            f"`{executable}` does not work as a Python interpreter"
            + (f": {said[-1]}" if said else ""),
            remedy="name one that does with `--python`, or make the environment anew",
        )
    return fields


def _from_fields(executable: str, fields: dict[str, Any]) -> Interpreter:
    major, minor, micro = fields["version"]
    return Interpreter(
        executable,
        **{**fields, "version": (major, minor, micro), "sites": tuple(fields["sites"])},
    )


def _program_signature(executable: str) -> str:
    parts = []
    settings = os.path.join(os.path.dirname(os.path.dirname(executable)), "pyvenv.cfg")
    for path in (executable, settings):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        parts.append(f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}")
    return " ".join(parts)


def _editable_folders(sites: Iterable[str]) -> set[str]:
    """Return the folders that `.pth` files, and the finders of editable installs, point to."""
    folders: set[str] = set()
    for site in filter(os.path.isdir, sites):
        for name in os.listdir(site):
            if name.endswith((".pth", "_finder.py")):
                text = Path(site, name).read_text(encoding="utf-8", errors="replace")
                found = text.splitlines() if name.endswith(".pth") else _QUOTED.findall(text)
                folders.update(path for path in found if os.path.isabs(path))
    inside = tuple(os.path.join(site, "") for site in sites)
    return {path for path in folders if os.path.isdir(path) and not f"{path}/".startswith(inside)}


def _files_signature(folder: str) -> str:
    digest = hashlib.sha256()
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_SOURCE)
        for name in sorted(names):
            try:
                status = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue
            state = f"{parent}/{name}\0{status.st_mtime_ns}\0{status.st_size}\n"
            digest.update(state.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _signature(sites: Iterable[str]) -> str:
    """Return a digest of the names and times of all that lies directly in `sites`."""
    digest = hashlib.sha256()
    for folder in sites:
        for name, modified_ns, size in sorted(_entries(folder)):
            digest.update(f"{name}\0{modified_ns}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _entries(folder: str) -> Iterator[tuple[str, int, int]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name != "__pycache__":
                    status = entry.stat(follow_symlinks=False)
                    yield entry.name, status.st_mtime_ns, status.st_size
    except FileNotFoundError:
        yield "absent", 0, 0


def require_pytest(interpreter: Interpreter) -> None:
    """Raise CommandMissingError, with the command that helps, when there is no usable pytest."""
    install = (
        f"`{interpreter.executable} -m pip install pytest` installs it; a `.venv` of the project, "
        "or `python` in its configuration, names another interpreter"
    )
    if interpreter.pytest is None:
        raise CommandMissingError(f"`{interpreter.executable}` has no pytest", remedy=install)
    major = interpreter.pytest.split(".")[0]
    if major.isdigit() and int(major) < 7:
        raise CommandMissingError(
            f"`{interpreter.executable}` has pytest {interpreter.pytest}, older than 7",
            remedy=install.replace("install pytest", "install 'pytest>=7'"),
        )
