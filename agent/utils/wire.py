"""The only door to a model's server: where it is, who asks, and one request with its limits.

The client for HTTP is imported with the first request, because it costs an eighth of a second and
an answer from the cache needs none.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.errors import LlmError
from agent.utils.redaction import redact
from agent.utils.replies import Course, Failure, Response
from sandbox_engine import CommandMissingError, UsageError, __version__

if TYPE_CHECKING:
    import ssl
    from types import ModuleType

    import httpx2

    Connection = httpx2.AsyncClient

OPENROUTER = "https://openrouter.ai/api/v1"
KEY_VARIABLE = "OPENROUTER_API_KEY"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take: seconds to connect, between two bytes, and in all; and bytes.

    A model that does not stream sends its first byte when it has thought of the last one, so
    `read_s` bounds how long it may think.
    """

    connect_s: float = 10.0
    read_s: float = 120.0
    request_s: float = 300.0
    response_bytes: int = 32 * 1024**2


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that speaks OpenAI's protocol, and the key for it, which no text ever shows.

    Without `api_key` the one in `$OPENROUTER_API_KEY` is sent, and none where that is not set.
    Raises UsageError.
    """

    base_url: str = OPENROUTER
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        key = (os.environ.get(KEY_VARIABLE, "") if self.api_key is None else self.api_key).strip()
        object.__setattr__(self, "api_key", key)
        object.__setattr__(self, "base_url", self.base_url.strip().rstrip("/"))
        # The text of an error of the client's would show a header that it cannot send.
        if not key.isascii() or not key.isprintable():
            raise UsageError(
                "the API key holds characters that no key has",
                remedy=f"set `{KEY_VARIABLE}` anew: was more than the key copied?",
            )
        if not _is_plain(self.base_url):
            raise UsageError(
                "the base URL is not of the form `https://host/path`",
                remedy=f"give one such as `{OPENROUTER}`; a key belongs into `{KEY_VARIABLE}`",
            )

    def redact(self, text: str) -> str:
        """Return `text` without the key."""
        return redact(text, self.api_key or "")

    def require_key(self) -> None:
        """Raise LlmError where the server answers nobody without a key and there is none."""
        if not self.api_key and self.base_url == OPENROUTER:
            raise LlmError(
                f"there is no API key: `{KEY_VARIABLE}` is not set",
                remedy="set it, or give the base URL of a server that asks for none",
            )


class Wire:
    """Sends requests to one endpoint; safe to share between threads and event loops."""

    def __init__(self, endpoint: Endpoint, limits: Limits) -> None:
        self._endpoint = endpoint
        self._limits = limits

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Connection]:
        """Open connections that one call and its retries share; raises CommandMissingError."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"sandbox-engine/{__version__}",
        }
        if self._endpoint.api_key:
            headers["Authorization"] = f"Bearer {self._endpoint.api_key}"
        timeout = _httpx2().Timeout(self._limits.read_s, connect=self._limits.connect_s)
        # What the server redirects to has not been named by the user, and would get the key.
        async with _httpx2().AsyncClient(
            headers=headers, timeout=timeout, follow_redirects=False, verify=self._certificates
        ) as connection:
            yield connection

    async def send(
        self, connection: Connection, body: bytes, within_s: float
    ) -> Response | Failure:
        """Send `body` and return what came back whole, whatever its status, or what went wrong."""
        within_s = min(within_s, self._limits.request_s)
        try:
            async with asyncio.timeout(within_s):
                return await self._exchange(connection, body)
        except TimeoutError:
            return _failure(f"the server's answer was not there after {within_s:.3g} s")
        except _httpx2().ConnectTimeout:
            limit_s = self._limits.connect_s
            return _failure(f"`{self._endpoint.base_url}` took no connection in {limit_s:g} s")
        except _httpx2().TimeoutException:
            return _failure(f"the server sent nothing for {self._limits.read_s:g} s")
        except _httpx2().ConnectError as error:
            base_url, said = self._endpoint.base_url, self._endpoint.redact(str(error))
            return _failure(f"`{base_url}` cannot be reached: {said}", _NETWORK)
        except _httpx2().HTTPError as error:
            said = self._endpoint.redact(str(error) or type(error).__name__)
            return _failure(f"the connection broke: {said}")

    async def _exchange(self, connection: Connection, body: bytes) -> Response | Failure:
        url = f"{self._endpoint.base_url}/chat/completions"
        received = bytearray()
        async with connection.stream("POST", url, content=body) as response:
            async for chunk in response.aiter_bytes():
                received += chunk
                if len(received) > self._limits.response_bytes:
                    limit = self._limits.response_bytes
                    return _failure(f"the server's answer is longer than {limit:,} bytes")
        return Response(response.status_code, bytes(received), dict(response.headers))

    @functools.cached_property
    def _certificates(self) -> ssl.SSLContext:
        # Reading those of the system costs twenty milliseconds.
        context: ssl.SSLContext = _httpx2().create_ssl_context()
        return context


_NETWORK = "check the base URL and the network, and that the server runs"
_SLOW = "try again later, name a fallback model, or allow it more seconds"


def _failure(problem: str, remedy: str = _SLOW) -> Failure:
    return Failure(problem, remedy, Course.RETRY)


def _is_plain(base_url: str) -> bool:
    """Return whether `base_url` can be shown: no user, no password, no query."""
    try:
        parts = urllib.parse.urlsplit(base_url)
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_bare = not (parts.username or parts.password or parts.query or parts.fragment)
    is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
    return is_web and is_bare and port_is_sound and base_url.isprintable() and " " not in base_url


def _httpx2() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        raise CommandMissingError(
            "models cannot be asked: the package `httpx2` is not installed",
            remedy="`pip install 'sandbox-engine[agent]'` installs it",
        ) from error
    return httpx2
