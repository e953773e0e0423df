"""What a patch did to each test: its session beside that of its base.

Identity is the node id. Ids of renamed files are followed; a repeated id counts once, by its worst
outcome, and is missed where it comes less often. All is pure: who ran what is `trial`'s.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from sandbox_engine.verdict import Category, TestOutcome, TestRecord

_GREEN = (TestOutcome.PASSED, TestOutcome.XPASSED)
_SEVERITY = (
    TestOutcome.PASSED,
    TestOutcome.XPASSED,
    TestOutcome.SKIPPED,
    TestOutcome.XFAILED,
    TestOutcome.ERROR,
    TestOutcome.FAILED,
)
_PASSING = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{6,}")
"""Addresses, UUIDs, and numbers as long as those of times."""
_UNEXPECTED = ("[XPASS(strict)]", "Unexpected success")
"""What pytest says of a test that passes and may not, by its own mark or by `unittest`'s."""


@dataclass(frozen=True, slots=True)
class BaseTests:
    """The tests of a base.

    `outcomes` has each collected node id, None for one that did not run; `repeated` how often an
    id came, where that is more than once. `flaky` are those that ended now so, now otherwise,
    `steady` says how often those that stayed green were run again.
    `broken` are the files and folders that could not be collected. `patched` are the functions of
    pytest that the base's own code replaces. `codes` has a digest of the code of each test
    function that ran. `reached` are the files that asked the interpreter for all its objects.
    `is_gated` says that pytest ended with 1 although no test failed.
    """

    outcomes: Mapping[str, TestOutcome | None] = field(default_factory=dict)
    repeated: Mapping[str, int] = field(default_factory=dict)
    flaky: frozenset[str] = frozenset()
    steady: Mapping[str, int] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    patched: frozenset[str] = frozenset()
    codes: Mapping[str, str] = field(default_factory=dict)
    reached: frozenset[str] = frozenset()
    is_gated: bool = False

    @property
    def red(self) -> frozenset[str]:
        """What fails or may fail without the patch."""
        failed = (node for node, outcome in self.outcomes.items() if outcome and outcome.is_red)
        return self.flaky | self.broken | frozenset(failed)

    @property
    def files(self) -> frozenset[str]:
        """The files that tests come from."""
        return frozenset(map(file_of, self.outcomes)) | self.broken

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; node ids are grouped by outcome."""
        groups: dict[str, list[str]] = {}
        for node, outcome in self.outcomes.items():
            groups.setdefault(str(outcome or ""), []).append(node)
        return {
            "outcomes": groups,
            "repeated": dict(self.repeated),
            "flaky": sorted(self.flaky),
            "steady": dict(self.steady),
            "broken": sorted(self.broken),
            "patched": sorted(self.patched),
            "codes": dict(self.codes),
            "reached": sorted(self.reached),
            "is_gated": self.is_gated,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> BaseTests:
        """Return what `to_json` wrote."""
        return cls(
            {
                node: TestOutcome(word) if word else None
                for word, nodes in record["outcomes"].items()
                for node in nodes
            },
            record["repeated"],
            frozenset(record["flaky"]),
            record["steady"],
            frozenset(record["broken"]),
            frozenset(record["patched"]),
            record["codes"],
            frozenset(record["reached"]),
            record["is_gated"],
        )


def with_reruns(base: BaseTests, red: Set[str], green: Mapping[str, int]) -> BaseTests:
    """Return `base` with what became of tests that were run again: red once, or green so often."""
    steady = {
        node: base.steady.get(node, 0) + green.get(node, 0) for node in {*base.steady, *green}
    }
    flaky = base.flaky | (red & base.outcomes.keys())
    return dataclasses.replace(
        base, flaky=flaky, steady={node: steady[node] for node in steady.keys() - flaky}
    )


def base_tests(
    tests: Sequence[TestRecord], ids: Sequence[str], broken: Sequence[TestRecord]
) -> BaseTests:
    """Return what a session on a base found: its records, collected ids, and collect errors."""
    counts = Counter(ids)
    outcomes: dict[str, TestOutcome | None] = dict.fromkeys(ids)
    outcomes.update((test.node_id, test.outcome) for test in _folded(tests))
    return BaseTests(
        outcomes,
        {node: count for node, count in counts.items() if count > 1},
        broken=frozenset(error.node_id for error in broken),
    )


def codes_by_function(codes: Mapping[str, str]) -> dict[str, str]:
    """Return the digest of each test's code, without parameters, where it is known and one."""
    found: dict[str, set[str]] = defaultdict(set)
    for node, code in codes.items():
        found[function_of(node)].add(code)
    return {
        name: next(iter(known))
        for name, known in found.items()
        if len(known) == 1 and "" not in known
    }


def find_altered(
    base: BaseTests, tests: Iterable[TestRecord], codes: Mapping[str, str], changed: Set[str]
) -> list[str]:
    """Return the tests that passed and ran other code than the base's, or none, from the same file.

    `codes` has digests of what ran, `changed` are the files that the patch changes.
    """
    passed = [test.node_id for test in tests if test.is_green]
    return [
        node
        for node in passed
        if file_of(node) not in changed
        and (code := base.codes.get(function_of(node))) is not None
        and codes.get(node) != code
    ]


def file_of(node_id: str) -> str:
    """Return the file that a test comes from, as its node id has it."""
    return node_id.partition("::")[0]


def function_of(node_id: str) -> str:
    """Return the node id of a test without its parameters."""
    file, colons, rest = node_id.partition("::")
    return file + colons + rest.partition("[")[0]


def compare(
    base: BaseTests,
    tests: Sequence[TestRecord],
    broken: Sequence[TestRecord],
    *,
    renames: Mapping[str, str],
    changed: Set[str],
    removed: Callable[[Sequence[str]], Set[str]],
) -> tuple[TestRecord, ...]:
    """Return the records of a candidate with their categories, and one for each test that is gone.

    `renames` maps the old name of a file to the new one, `changed` are the files that the patch
    changes, by new name. `removed` gets node ids, as the base has them, that are gone though
    their file could be collected, and returns those that the patch took out.
    """
    names = {node: renamed(node, renames) for node in base.outcomes}
    old = {name: node for node, name in names.items()}
    errors = {error.node_id for error in broken}
    folded = _folded(tests)
    lost = _lost(base, names, tests, errors)
    paired = _paired(lost, [test.node_id for test in folded if test.node_id not in old], changed)
    old |= paired
    lost = [node for node in lost if node not in paired.values()]
    base_broken = {renamed(node, renames) for node in base.broken}
    base_files = {file_of(name) for name in old}
    compared = [
        *(_broken(error, base_broken, base_files) for error in broken),
        *(_compared(test, old.get(test.node_id), base, base_broken) for test in folded),
    ]
    taken_out = removed(lost) if lost else frozenset()
    for node in lost:
        category = Category.REMOVED if node in taken_out else Category.VANISHED
        compared.append(TestRecord(names[node], None, category=category, base=base.outcomes[node]))
    return tuple(compared)


def _folded(tests: Iterable[TestRecord]) -> list[TestRecord]:
    """Return one record for each node id: the worst."""
    worst: dict[str, TestRecord] = {}
    for test in tests:
        known = worst.get(test.node_id)
        if known is None or _severity(test) > _severity(known):
            worst[test.node_id] = test
    return list(worst.values())


def _severity(test: TestRecord) -> int:
    return -1 if test.outcome is None else _SEVERITY.index(test.outcome)


def renamed(node_id: str, renames: Mapping[str, str]) -> str:
    """Return `node_id` with the new name of its file."""
    file = file_of(node_id)
    return renames.get(file, file) + node_id[len(file) :]


def _lost(
    base: BaseTests, names: Mapping[str, str], tests: Iterable[TestRecord], errors: Set[str]
) -> list[str]:
    """Return the base's node ids that have no record, less those of files that are broken now."""
    counts = Counter(test.node_id for test in tests)
    return [
        node
        for node, name in names.items()
        if counts[name] < base.repeated.get(node, 1)
        and not any(part in errors for part in parents(name))
    ]


def parents(node_id: str) -> Iterator[str]:
    """Yield the file of a test and the folders above it, all of which may fail to be collected."""
    path = file_of(node_id)
    while path:
        yield path
        path = path.rpartition("/")[0]


def _paired(lost: Iterable[str], added: Iterable[str], changed: Set[str]) -> dict[str, str]:
    """Return which lost test each added one is, where parameters have names that change.

    An address or a time in a node id is another one in every session. In a file that the patch
    does not change, as many cases of a function as were lost are the same ones, if nothing else in
    their names differs.
    """
    before, after = _by_function(lost), _by_function(added)
    return {
        new: old
        for function, olds in before.items()
        if file_of(function) not in changed
        and sorted(map(_lasting, olds)) == sorted(map(_lasting, after.get(function, ())))
        for old, new in zip(
            sorted(olds, key=_lasting), sorted(after[function], key=_lasting), strict=True
        )
    }


def _lasting(node_id: str) -> str:
    """Return a node id without what may be another one in every session."""
    return _PASSING.sub("*", node_id)


def _by_function(node_ids: Iterable[str]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for node in node_ids:
        found[function_of(node)].append(node)
    return found


def _broken(error: TestRecord, base_broken: Set[str], base_files: Set[str]) -> TestRecord:
    if error.node_id in base_broken:
        return dataclasses.replace(error, category=Category.PRE_EXISTING, base=TestOutcome.ERROR)
    below = f"{error.node_id}/"
    was_there = any(file == error.node_id or file.startswith(below) for file in base_files)
    category = Category.REGRESSED if was_there else Category.NEW_FAILED
    return dataclasses.replace(error, category=category)


def _compared(
    test: TestRecord, old: str | None, base: BaseTests, base_broken: Set[str]
) -> TestRecord:
    is_new = old is None
    before = None if old is None else base.outcomes[old]
    if any(part in base_broken for part in parents(test.node_id)):
        is_new, before = False, TestOutcome.ERROR
    assert test.outcome is not None
    is_flaky = old in base.flaky
    category = _category(test.outcome, before, is_new=is_new, is_flaky=is_flaky)
    return dataclasses.replace(test, category=category, base=before)


def _category(
    now: TestOutcome, before: TestOutcome | None, *, is_new: bool, is_flaky: bool
) -> Category:
    was_red = before is not None and before.is_red
    if now in _GREEN:
        if is_flaky:
            return Category.FLAKY
        if is_new:
            return Category.NEW_PASSED
        return Category.FIXED if was_red else Category.PASSED
    if not now.is_red:
        return Category.SKIPPED
    if is_flaky:
        return Category.FLAKY
    if is_new:
        return Category.NEW_FAILED
    return Category.PRE_EXISTING if was_red else Category.REGRESSED


def with_category(
    tests: Iterable[TestRecord], ids: Set[str], category: Category
) -> tuple[TestRecord, ...]:
    """Return `tests` with `category` for those in `ids`."""
    return tuple(
        dataclasses.replace(test, category=category) if test.node_id in ids else test
        for test in tests
    )


def green(tests: Iterable[TestRecord]) -> frozenset[str]:
    """Return the ids of the tests that passed every time that they ran."""
    return frozenset(test.node_id for test in _folded(tests) if test.outcome in _GREEN)


def failing(known: BaseTests, names: Mapping[str, str]) -> dict[str, bool]:
    """Return for each key of `names` whether the test that is its value fails.

    One that could not be collected fails; one that did not run is left out.
    """
    found = {}
    for test, node in names.items():
        outcome = known.outcomes.get(node)
        if any(part in known.broken for part in parents(node)):
            found[test] = True
        elif outcome is not None and (outcome.is_red or outcome in _GREEN):
            found[test] = outcome.is_red
        elif "::" not in node and node in known.files:
            found[test] = False
    return found


def unexpected_passes(base: BaseTests, tests: Iterable[TestRecord]) -> frozenset[str]:
    """Return the tests that are red because they pass, and were expected to fail on the base."""
    return frozenset(
        test.node_id
        for test in tests
        if base.outcomes.get(test.node_id) is TestOutcome.XFAILED
        and (test.message or "").startswith(_UNEXPECTED)
    )


def newly_skipped(tests: Iterable[TestRecord]) -> list[TestRecord]:
    """Return the tests that ran on the base and, with the patch, do not or may fail."""
    quiet = (None, TestOutcome.SKIPPED, TestOutcome.XFAILED)
    return [test for test in tests if test.category is Category.SKIPPED and test.base not in quiet]
