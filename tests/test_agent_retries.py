"""How long to wait before a server is asked again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agent.utils.retries import Retries, retry_after_s

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
LATER = "Mon, 04 May 2026 03:02:31 GMT"


def test_waits_grow_are_bounded_and_never_in_step() -> None:
    retries = Retries(first_s=1.0, longest_s=10.0)
    assert [retries.wait_s(n, draw=lambda: 0.0) for n in (1, 2, 3, 4, 5, 2_000)] == [
        *(1, 2, 4, 8, 10, 10)
    ]
    assert retries.wait_s(3, draw=lambda: 1.0) == 2
    waits = {retries.wait_s(3) for _ in range(20)}
    assert len(waits) > 10 and all(2 <= wait <= 4 for wait in waits)


def test_the_servers_own_wait_is_only_ever_lengthened() -> None:
    retries = Retries(first_s=1.0, longest_s=10.0)
    assert retries.wait_s(1, 3.0, draw=lambda: 0.0) == 3
    assert retries.wait_s(1, 3.0, draw=lambda: 1.0) == 4
    assert retries.wait_s(1, 3_000.0) == 10


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": LATER}, 30.0),
        ({"retry-after": LATER, "date": "Mon, 04 May 2026 03:02:30 GMT"}, 1.0),
        ({"retry-after": "Mon, 04 May 2026 03:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_what_retry_after_says(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds
