"""When to ask a server again: as it says in `Retry-After`, else ever later and never in step."""

from __future__ import annotations

import email.utils
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a model is asked at most, and how long to wait in between, in seconds.

    The first wait is about `first_s`, each next one twice as long; none is longer than
    `longest_s`, whatever the server asks for.
    """

    attempts: int = 4
    first_s: float = 0.5
    longest_s: float = 60.0

    def wait_s(
        self,
        failures: int,
        retry_after_s: float | None = None,
        draw: Callable[[], float] = random.random,
    ) -> float:
        """Return how long to wait after so many failures in a row, one or more.

        `draw` gives a number from 0 to 1. It takes up to half off a wait of our own, so that
        clients that failed together do not come back together; to a wait that the server named
        it only adds.
        """
        if retry_after_s is not None:
            return min(retry_after_s + self.first_s * draw(), self.longest_s)
        # The exponent is bounded because a float is: 2.0**1024 raises.
        longest = min(self.first_s * 2.0 ** min(failures - 1, 60), self.longest_s)
        return longest * (1 - draw() / 2)


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that `Retry-After` asks for, or None where it says nothing we can read.

    It holds seconds or an HTTP date (RFC 9110, 10.2.3). A date is compared with the server's own
    `Date` where there is one, because the two clocks may differ.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    then = _date(text)
    if then is None:
        return None
    start = _date(headers.get("date", "")) or now or datetime.now(UTC)
    return max(0.0, (then - start).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date
