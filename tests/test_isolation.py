"""Which tiers there are, how that is found out, and what a run sees in each."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import GitBox
from layering import LIMITS, layered, said, shell

from sandbox_engine import Config, Engine, IsolationError, Outcome
from sandbox_engine.cache import Cache
from sandbox_engine.doctor import Check, examine
from sandbox_engine.isolation import (
    Obstacle,
    Survey,
    View,
    choose_tier,
    forget,
    full_confinement,
    landlock_confinement,
    needed_roots,
    survey,
)
from sandbox_engine.isolation.tiers import WITHOUT
from sandbox_engine.isolation.view import SETTINGS, SYSTEM, is_below, object_places, shown
from sandbox_engine.recipe import Recipe, Step, StepKind
from sandbox_engine.sandbox import Setup, allowed_variables
from sandbox_engine.slot_sandbox import open_slot
from sandbox_engine.store import Store
from sandbox_engine.verdict import CommitId, Tier

PATCH = json.dumps(
    [{"file_path": "calc.py", "operation": "INSERT", "line_number": 2, "content": "    # sum"}]
)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache.sqlite3")


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the engine do without `names`, beside what the whole session does without."""
    monkeypatch.setenv(WITHOUT, ",".join((*names, os.environ.get(WITHOUT, ""))))


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_tier: None) -> Path:
    """A bubblewrap that writes down each of its starts, in the file returned."""
    found = shutil.which("bwrap")
    starts = tmp_path / "starts"
    starts.touch()
    program = tmp_path / "bin" / "bwrap"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho start >> {starts}\nexec {found} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return starts


def test_a_survey_is_made_once(cache: Cache, tmp_path: Path, counted: Path) -> None:
    first = survey(cache, tmp_path)
    assert Tier.FULL not in first.obstacles
    assert counted.read_text() == "start\n"
    # Neither this process nor another one tries again.
    assert survey(cache, tmp_path) == first
    assert survey(Cache(tmp_path / "cache.sqlite3"), tmp_path) == first
    assert counted.read_text() == "start\n"
    assert not list(tmp_path.glob("probe-*"))


def test_a_survey_is_made_again_when_something_has_changed(
    cache: Cache, tmp_path: Path, counted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert survey(cache, tmp_path).best is Tier.FULL
    program = tmp_path / "bin" / "bwrap"
    program.write_text(program.read_text().replace("exec", "  exec"))
    assert survey(cache, tmp_path).best is Tier.FULL
    assert counted.read_text() == "start\nstart\n"
    without(monkeypatch, "userns")
    assert survey(cache, tmp_path).best is not Tier.FULL


def test_a_survey_that_was_forgotten_is_made_again(
    cache: Cache, tmp_path: Path, counted: Path
) -> None:
    survey(cache, tmp_path)
    forget(cache)
    survey(cache, tmp_path)
    assert counted.read_text() == "start\nstart\n"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'bwrap: Unknown option --disable-userns' >&2; exit 1", "Unknown option"),
        ("exit 0", "bubblewrap could not make the sandbox"),
        ("exec sleep 30", "trial"),
        ("kill -9 $$", "trial"),
    ],
)
def test_a_bubblewrap_that_does_not_work_is_an_obstacle(
    cache: Cache,
    tmp_path: Path,
    counted: Path,
    script: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sandbox_engine.isolation.tiers._PROBE_LIMITS", type(LIMITS)(wall_s=0.5))
    (tmp_path / "bin" / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
    found = survey(cache, tmp_path)
    assert problem in found.obstacles[Tier.FULL].problem
    assert found.obstacles[Tier.FULL].remedy
    assert found.best is not Tier.FULL


def skip_where_another_obstacle_comes_first(name: str, obstacles: Mapping[Tier, Obstacle]) -> None:
    if name == "userns" and Tier.FULL in obstacles:
        pytest.skip(f"`full` cannot be had here anyway: {obstacles[Tier.FULL].problem}")


TIERS = [
    ("bubblewrap", Tier.FULL, "bubblewrap"),
    ("userns", Tier.FULL, f"user namespaces are switched off by {WITHOUT}"),
    ("landlock", Tier.LANDLOCK, f"landlock is switched off by {WITHOUT}"),
]


@pytest.mark.parametrize(("name", "lost", "problem"), TIERS)
def test_what_is_not_there_leaves_the_next_tier(
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    obstacles: Mapping[Tier, Obstacle],
    name: str,
    lost: Tier,
    problem: str,
) -> None:
    skip_where_another_obstacle_comes_first(name, obstacles)
    without(monkeypatch, name)
    found = survey(cache, tmp_path)
    assert found.obstacles.keys() == {*obstacles.keys(), lost}
    assert problem in found.obstacles[lost].problem
    assert found.obstacles[lost].remedy
    assert found.best is next(tier for tier in Tier if tier not in found.obstacles)
    assert choose_tier(None, cache, tmp_path) is found.best
    with pytest.raises(IsolationError, match=f"`{lost}` cannot be had here: .*{problem}") as raised:
        choose_tier(lost, cache, tmp_path)
    assert raised.value.remedy == found.obstacles[lost].remedy


def test_bubblewrap_that_was_switched_off_is_not_told_as_missing(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_tier: None
) -> None:
    without(monkeypatch, "bubblewrap")
    assert WITHOUT in survey(cache, tmp_path).obstacles[Tier.FULL].problem


def test_a_system_without_bubblewrap_says_how_to_get_it(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WITHOUT, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    obstacle = survey(cache, tmp_path).obstacles[Tier.FULL]
    assert obstacle.problem == "bubblewrap is not installed"
    assert "apt-get install bubblewrap" in obstacle.remedy


def test_with_nothing_there_is_the_last_tier(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "bubblewrap", "landlock")
    assert survey(cache, tmp_path).best is Tier.NONE
    assert choose_tier(None, cache, tmp_path) is Tier.NONE


def test_the_last_tier_is_had_without_a_look(cache: Cache, tmp_path: Path, counted: Path) -> None:
    assert choose_tier(Tier.NONE, cache, tmp_path) is Tier.NONE
    assert counted.read_text() == ""


def test_tiers_are_in_order() -> None:
    assert Tier.NONE.is_less_than("landlock") and Tier.LANDLOCK.is_less_than(Tier.FULL)
    assert not any(tier.is_less_than(tier) or tier.is_less_than("none") for tier in Tier)
    assert Survey({}).best is Tier.FULL
    obstacle = Obstacle("p", "r")
    assert Survey({Tier.FULL: obstacle, Tier.LANDLOCK: obstacle}).best is Tier.NONE


def isolation_checks(project: GitBox) -> list[Check]:
    return [check for check in examine(project.top) if check.name.startswith("isolation")]


@pytest.mark.parametrize(("name", "lost", "problem"), TIERS)
def test_doctor_says_what_is_missing_why_and_how_to_get_it(
    project: GitBox,
    monkeypatch: pytest.MonkeyPatch,
    obstacles: Mapping[Tier, Obstacle],
    name: str,
    lost: Tier,
    problem: str,
) -> None:
    skip_where_another_obstacle_comes_first(name, obstacles)
    without(monkeypatch, name)
    chosen, *missing = isolation_checks(project)
    assert chosen.is_well and chosen.remedy is None
    assert chosen.detail.split(":")[0] in set(Tier) - {lost}
    (told,) = (check for check in missing if check.name == f"isolation {lost}")
    assert problem in told.detail
    assert told.remedy
    # It is no fault as long as nothing more is asked for.
    assert told.is_well


def test_doctor_holds_the_best_tier_against_the_configuration(
    project: GitBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "bubblewrap")
    (project.top / "sandbox-engine.toml").write_text('min_isolation = "full"\n')
    chosen, *missing = isolation_checks(project)
    assert not chosen.is_well
    assert chosen.remedy == "`min_isolation` in the configuration asks for `full`"
    assert not missing[0].is_well
    (project.top / "sandbox-engine.toml").write_text('isolation = "none"\n')
    assert isolation_checks(project)[0].detail.startswith("none: ")


def test_doctor_does_not_promise_a_tier_that_is_not_there(
    project: GitBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "bubblewrap")
    (project.top / "sandbox-engine.toml").write_text('isolation = "full"\n')
    chosen = isolation_checks(project)[0]
    assert not chosen.is_well
    assert chosen.remedy is not None
    assert "`none`" not in chosen.remedy


def configured(engine: Engine, **settings: str) -> Engine:
    command = Step(StepKind.COMMAND, ("true",))
    engine.config = Config(
        strategy="OWN",
        strategies={"OWN": Recipe("OWN", (command,))},
        **settings,  # type: ignore[arg-type]
    )
    return engine


@pytest.mark.usefixtures("untouched")
def test_with_less_than_is_asked_for_nothing_is_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "bubblewrap", "landlock")
    for least in ("full", "landlock"):
        verdict = configured(engine, min_isolation=least).validate(PATCH)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.reason == (
            f"nothing was run: the isolation here is `none`, and `min_isolation` asks for `{least}`"
        )
        assert verdict.hint and "doctor" in verdict.hint
        assert (verdict.steps, verdict.isolation) == ((), "none")
        assert not verdict.is_final
    # A verdict that was kept is not used to get round it.
    assert configured(engine).validate(PATCH).outcome is Outcome.PASSED
    again = configured(engine, min_isolation="full").validate(PATCH)
    assert again.outcome is Outcome.INCONCLUSIVE
    # Where nothing is run there is nothing to isolate.
    syntax = engine.validate(PATCH, strategy="SYNTAX_ONLY")
    assert syntax.outcome is Outcome.PASSED


@pytest.mark.usefixtures("untouched")
def test_a_tier_that_is_asked_for_and_not_there_is_an_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "bubblewrap")
    with pytest.raises(IsolationError, match="`full` cannot be had here") as raised:
        configured(engine, isolation="full").validate(PATCH)
    assert "unset SANDBOX_ENGINE_WITHOUT" in raised.value.remedy


def test_a_verdict_of_another_tier_is_not_known(
    engine: Engine, obstacles: Mapping[Tier, Obstacle]
) -> None:
    for tier in Tier:
        if tier not in obstacles:
            first = configured(engine, isolation=tier).validate(PATCH)
            assert (first.isolation, first.is_cached) == (tier, False)
            assert engine.validate(PATCH).is_cached


def test_secrets_are_not_seen(
    project: GitBox, kept: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_tier: None
) -> None:
    secrets = {
        "home": tmp_path / "home" / ".ssh" / "id_ed25519",
        "ignored": project.top / "secret.log",
        "neighbour": tmp_path / "neighbour" / "file",
        "user configuration": tmp_path / "home" / ".config" / "git" / "config",
        "git configuration": project.top / ".git" / "config",
        "hooks": project.top / ".git" / "hooks" / "pre-commit",
    }
    word = f"word-of-{tmp_path.parent.parent.name}"
    for path in secrets.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"# {word}\n")
    monkeypatch.setenv("SECRET_TOKEN", word)
    with layered(kept, "HEAD") as sandbox:
        for path in (*secrets.values(), "/etc/shadow", "/etc/gshadow", "/root/.bashrc"):
            assert word not in shell(sandbox, f"cat {path}").stdout.decode()
        for path in ("/etc/shadow", "/root", tmp_path / "home", tmp_path / "neighbour"):
            assert shell(sandbox, f"test -e {path}").code == 1, path
        folders = "-path /proc -o -path /sys -o -path /usr -o -path /dev"
        files = f"find / \\( {folders} \\) -prune -o -type f -print0"
        everywhere = f"{files} | xargs -0 grep -lsa {word}; :"
        assert said(sandbox, everywhere) == ""
        assert word not in said(sandbox, "env; cat /proc/[0-9]*/environ | tr '\\0' '\\n'")
        assert "SECRET_TOKEN" not in said(sandbox, "env")
        # Nor is there a process of the user's to ask, or a socket of theirs.
        assert str(os.getpid()) not in said(sandbox, "ls /proc").split()
        assert said(
            sandbox, "ls -A /run /var /srv /opt /mnt /media /home 2>/dev/null; :"
        ).split() == ["/home:", "sandbox", "/run:", "sandbox-engine", "/var:", "tmp"]


def test_what_a_run_must_not_write_it_cannot(project: GitBox, kept: Store, full_tier: None) -> None:
    with layered(kept, "HEAD") as sandbox:
        seen = said(sandbox, "cat /proc/self/mountinfo").splitlines()
        places = {line.split()[4]: line.split()[5].split(",")[0] for line in seen}
        writable = {place for place, mode in places.items() if mode == "rw"}
        own = {"/tmp", "/var/tmp", "/dev/shm", "/home/sandbox", str(project.top)}
        system = {"/proc", "/dev", "/dev/pts", "/dev/console", "/dev/mqueue"}
        devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
        assert writable <= own | system | devices
        assert own <= writable
        for name in ("/run/sandbox-engine/objects/0", "/run/sandbox-engine/inside", "/", "/etc"):
            assert shell(sandbox, f"touch {name}/x").code != 0, name
        for name in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"):
            assert shell(sandbox, f"test -w {name} && echo > {name}").code != 0, name


def test_landlock_refuses_what_is_not_needed(
    project: GitBox, kept: Store, tmp_path: Path, landlock_tier: None
) -> None:
    secret = tmp_path / "home" / "secret"
    secret.write_text("secret\n")
    (project.top / "ignored.log").write_text("ignored\n")
    allowed, out = tmp_path / "allowed", tmp_path / "out"
    for folder in (allowed, out):
        folder.mkdir()
    (allowed / "file").write_text("read\n")
    view = View(str(project.top), readable=(str(allowed),), writable=(str(out),))
    setup = Setup(Tier.LANDLOCK, view, LIMITS, allowed_variables(()))
    with open_slot(kept, CommitId(project.head), setup) as sandbox:
        for script in (
            f"cat {secret}", f"cat {project.top}/ignored.log", "cat /etc/shadow",
            f"echo x > {tmp_path}/new", f"echo x >> {project.top}/calc.py",
            f"echo x > {allowed}/file", f"ls {tmp_path}", f"mkdir {kept.slots}/1",
            f"echo x > {kept.slots}/0.state/state", f"echo x > {kept.git_dir}/HEAD",
        ):  # fmt: skip
            done = shell(sandbox, script)
            assert done.code != 0, script
            assert b"ermission denied" in done.stderr, done
        script = f"cat {allowed}/file calc.py; echo x | tee {out}/x calc.py $TMPDIR/y"
        assert shell(sandbox, script).code == 0
    assert (out / "x").read_text() == "x\n"
    assert project.git("status", "--porcelain") == ""


def test_confinements_name_what_the_view_shows(full_tier: None) -> None:
    view = View("/root/of/it", ("/env",), ("/read",), ("/write",), network=True)
    full = full_confinement(view, layer="/layer", space="/space")
    assert full.space == "/space" and not full.measured and full.landlock is None
    assert "--unshare-net" not in full.wrapper
    closed = full_confinement(View("/root/of/it"), layer="/layer", space="/space")
    assert "--unshare-net" in closed.wrapper
    assert closed.seccomp and full.seccomp
    landlock = landlock_confinement(view, readable=["/more"], writable=["/slot"])
    assert landlock.landlock is not None
    reads, writes, network = landlock.landlock
    assert {"/env", "/read", "/more", "/usr"} <= set(reads)
    assert {"/write", "/slot"} <= set(writes)
    # An environment is shared with others, so there is no copy to write to.
    assert "/env" not in writes
    assert network is True
    assert landlock.measured == ("/slot",)
    assert landlock.wrapper == ()
    # Without a network of its own, sockets are refused call by call.
    closed = landlock_confinement(View("/root/of/it"), readable=[], writable=[])
    assert closed.landlock is not None and closed.landlock[2] is False
    assert closed.seccomp != landlock.seccomp


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("top/.venv/bin", "env/lib", "env/inner", "code/pkg", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("env")
    (tmp_path / "file").touch()
    return tmp_path


def roots(
    folders: Path, environments: list[str], readable: list[str]
) -> tuple[list[str], list[str]]:
    def full(names: list[str]) -> list[str]:
        raw = ("", "not/absolute")
        return [name if name in raw or name[0] == "/" else f"{folders}/{name}" for name in names]

    found = needed_roots(full(environments), full(readable), top=str(folders / "top"))
    first, second = ([path.removeprefix(f"{folders}/") for path in paths] for paths in found)
    return first, second


@pytest.mark.parametrize(
    ("environments", "readable", "found"),
    [
        ([], [], ([], [])),
        (["env"], ["code", "bin"], (["env"], ["bin", "code"])),
        # What lies in another one that is shown need not be.
        (["env", "env/inner"], ["env/lib", "code/pkg", "code"], (["env"], ["code"])),
        (["env/inner", "env"], [], (["env"], [])),
        (["/usr", "/usr/lib"], ["/usr/bin", "/bin", "/usr"], ([], [])),
        # The work tree is never shown, but for an environment in it.
        (["top/.venv"], ["top", "top/.venv/bin", "top/src"], (["top/.venv"], [])),
        # Links are shown by both names.
        (["link"], [], (["env", "link"], [])),
        (["env"], ["link/lib"], (["env"], ["link/lib"])),
        # What is not there, is no folder or would be all there is.
        (["gone", "", "not/absolute"], ["gone", "file", "", "/"], ([], [])),
        ([], ["code/", "code/../code", "code"], ([], ["code"])),
        # A name that only begins like another one is another one.
        (["env"], ["environ"], (["env"], ["environ"])),
    ],
)
def test_only_what_is_needed_is_shown(
    folders: Path,
    environments: list[str],
    readable: list[str],
    found: tuple[list[str], list[str]],
) -> None:
    if "environ" in readable:
        (folders / "environ").mkdir()
    first, second = roots(folders, environments, readable)
    assert (sorted(first), sorted(second)) == found


def test_what_lies_in_another_folder_is_shown_after_it(tmp_path: Path) -> None:
    view = View("/tmp/a/top", ("/env",), ("/", "/tmp/a"), ("/tmp/a/top/out",))
    found = shown(view, space="/space", mounted={"/tmp/a/top": "root"}, readable={"/run/x": "/y"})
    places = [one.place for one in found]
    for number, place in enumerate(places):
        inner = [other for other in places[:number] if is_below(other, (place,))]
        assert not [other for other in inner if other.count("/") > place.count("/")], place
    by_place = {one.place: one for one in found}
    assert by_place["/tmp/a/top"].source == "/space/root" and by_place["/tmp/a/top"].is_writable
    assert by_place["/tmp"].source == "/space/tmp"
    assert by_place["/run/x"].source == "/y" and not by_place["/run/x"].is_writable
    assert by_place["/tmp/a/top/out"].is_writable
    assert {one.place for one in found if one.is_writable} == {
        *("/tmp", "/var/tmp", "/dev/shm", "/home/sandbox", "/tmp/a/top", "/tmp/a/top/out"),
    }


def test_no_secret_is_among_the_settings_that_every_run_sees() -> None:
    for path in (*SYSTEM, *SETTINGS):
        assert not is_below("/etc/shadow", (path,)) and not is_below("/root", (path,))
        if os.path.isfile(path):
            assert os.stat(path).st_mode & 0o004, path


def test_places_of_objects_are_told_apart() -> None:
    assert object_places(["/a", "/b"]) == {
        "/run/sandbox-engine/objects/0": "/a",
        "/run/sandbox-engine/objects/1": "/b",
    }


def test_the_interpreters_folders_are_all_that_is_seen_beside(
    project: GitBox, kept: Store, full_tier: None
) -> None:
    executable = os.path.realpath(sys.executable)
    view = View(str(project.top), environments=(sys.base_prefix,))
    with layered(kept, "HEAD", view=view) as sandbox:
        question = "import sys, json; print(sys.base_prefix); import ssl, sqlite3, ctypes"
        done = sandbox.run([executable, "-I", "-c", question], LIMITS)
        assert done.stdout.decode().strip() == sys.base_prefix, done.stderr
        parent = Path(sys.base_prefix).parent
        if parent != Path("/") and not is_below(str(parent), SYSTEM):
            assert said(sandbox, f"ls {parent}").split() == [Path(sys.base_prefix).name]
