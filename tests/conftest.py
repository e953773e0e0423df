"""Real repositories in temporary folders, with every setting of the machine sealed off."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import confinement
import hypothesis
import pytest

from sandbox_engine import Engine, git, store
from sandbox_engine.cache import Cache
from sandbox_engine.isolation.tiers import WITHOUT, Obstacle, survey
from sandbox_engine.store import Store
from sandbox_engine.verdict import Tier

# Nothing is kept between runs, so a run needs no folder that it may write to.
hypothesis.settings.register_profile("sealed", database=None)
hypothesis.settings.load_profile("sealed")


class GitBox:
    """A real repository in a folder of its own, made and looked at with the git command."""

    def __init__(self, top: Path) -> None:
        self.top = top
        top.mkdir(parents=True)
        self.git("init", "-q", "--initial-branch=main")
        self.git("config", "user.name", "Ada")
        self.git("config", "user.email", "ada@example.org")

    def git(self, *arguments: str, text: str | bytes | None = None) -> str:
        """Run git in the work tree and return what it wrote, without the last line break."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.top,
            input=text.encode() if isinstance(text, str) else text,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return os.fsdecode(done.stdout).removesuffix("\n")

    def write(self, files: Mapping[str, str | bytes | None]) -> None:
        """Write files into the work tree; None removes one."""
        for name, content in files.items():
            path = self.top / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, files: Mapping[str, str | bytes | None], message: str = "change") -> str:
        """Write files, commit all of the work tree and return the commit."""
        self.write(files)
        self.git("add", "--all", "--force", ".")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.head

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def files(self, revision: str = "HEAD") -> dict[str, bytes]:
        """Return the content of every file of `revision`."""
        names = self.git("ls-tree", "-r", "-z", "--name-only", revision).split("\0")
        return {name: self.blob(f"{revision}:{name}") for name in names if name}

    def blob(self, name: str) -> bytes:
        done = subprocess.run(
            ["git", "cat-file", "blob", os.fsencode(name)],
            cwd=self.top,
            capture_output=True,
            check=True,
        )
        return done.stdout

    def diff_to(self, files: Mapping[str, str | bytes | None], *flags: str) -> bytes:
        """Return the diff that `git diff` writes for `files`, and undo them."""
        self.write(files)
        self.git("add", "--all", "--force", ".")
        done = subprocess.run(
            ["git", "diff", "--cached", "--no-color", *flags],
            cwd=self.top,
            capture_output=True,
            check=True,
        )
        self.git("reset", "-q", "--hard")
        return done.stdout

    def snapshot(self) -> dict[str, str]:
        """Return a digest of every file below the folder, `.git` with its objects included."""
        found = {}
        for parent, folders, names in os.walk(self.top):
            for name in (*names, *folders):
                path = os.path.join(parent, name)
                found[os.path.relpath(path, self.top)] = _state(path)
        return found


def _state(path: str) -> str:
    status = os.lstat(path)
    if os.path.islink(path):
        return f"{status.st_mode:o} -> {os.readlink(path)}"
    if os.path.isdir(path):
        return f"{status.st_mode:o} folder"
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    # Asking for an object that is there refreshes its time, as every git does.
    time_ns = 0 if "/objects/" in path else status.st_mtime_ns
    return f"{status.st_mode:o} {time_ns} {digest}"


@pytest.fixture(scope="session", autouse=True)
def sealed_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Shut out the machine's git configuration from fixtures that several tests share."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("GIT_"):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield


@pytest.fixture(autouse=True)
def sealed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Shut out the machine's git configuration, home and active environment."""
    for name in os.environ:
        if name.startswith(("GIT_", "SANDBOX_ENGINE_")) and name != WITHOUT:
            monkeypatch.delenv(name)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Compiling pytest anew takes longer than most tests, so all share one folder for that.
    compiled = tmp_path_factory.getbasetemp().parent / "compiled"
    compiled.mkdir(exist_ok=True)
    (tmp_path / "cache" / "sandbox-engine").mkdir(parents=True)
    (tmp_path / "cache" / "sandbox-engine" / "compiled").symlink_to(compiled)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_DATE", "2026-01-02T03:04:05+00:00")


@pytest.fixture
def box(tmp_path: Path) -> GitBox:
    """An empty repository."""
    return GitBox(tmp_path / "repo")


CODE = "def add(a, b):\n    return a + b\n"
TESTS = (
    "from calc import add\n\n\n"
    "def test_add():\n    assert add(1, 2) == 3\n\n\n"
    "def test_zero():\n    assert add(0, 0) == 0\n"
)


@pytest.fixture
def project(box: GitBox) -> GitBox:
    """A repository with `calc.py`, its tests, and one commit."""
    box.commit({"calc.py": CODE, "tests/test_calc.py": TESTS, ".gitignore": "*.log\n"})
    return box


@pytest.fixture
def engine(project: GitBox) -> Engine:
    return Engine(project.top)


@pytest.fixture
def no_reruns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what fails not run again, where nothing is to be learnt from that."""
    monkeypatch.setenv("SANDBOX_ENGINE_RERUNS", "0")


@pytest.fixture
def untouched(project: GitBox) -> Iterator[None]:
    """Assert that the project is bit for bit as it was when the test is over."""
    before = project.snapshot()
    yield
    assert project.snapshot() == before


@pytest.fixture(scope="session")
def obstacles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Tier, Obstacle]:
    """What stands in the way of each tier on this system."""
    folder = tmp_path_factory.mktemp("survey")
    return survey(Cache(folder / "cache.sqlite3"), folder).obstacles


@pytest.fixture
def full_tier(obstacles: Mapping[Tier, Obstacle]) -> None:
    """Skip a test where no file system of its own can be made for a sandbox."""
    if (obstacle := obstacles.get(Tier.FULL)) is not None:
        pytest.skip(f"no isolation `full` here: {obstacle.problem}; {obstacle.remedy}")


@pytest.fixture
def landlock_tier(obstacles: Mapping[Tier, Obstacle]) -> None:
    """Skip a test where there is no landlock."""
    if (obstacle := obstacles.get(Tier.LANDLOCK)) is not None:
        pytest.skip(f"no isolation `landlock` here: {obstacle.problem}; {obstacle.remedy}")


@pytest.fixture
def kept(project: GitBox) -> Store:
    """The store of the project."""
    return store.open_store(git.find_repository(project.top))


@pytest.fixture(params=confinement.USERS)
def user(request: pytest.FixtureRequest) -> int:
    """Whom a test acts as: the one who runs the tests, and for root an ordinary user too."""
    return int(request.param)


@pytest.fixture
def place(user: int) -> Iterator[Path]:
    """A folder of `user` outside of `tmp_path`, whose parents may be closed to that user."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, user, -1)
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def neighbour(user: int) -> Iterator[int]:
    """A process of `user` that has nothing to do with those of the test."""
    other = {} if user == os.getuid() else {"user": user, "group": user, "extra_groups": []}
    with subprocess.Popen(["sleep", "60"], **other) as process:
        yield process.pid
        process.kill()
