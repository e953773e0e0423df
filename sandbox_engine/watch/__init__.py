"""What may have changed below a folder, as a process says that watches it.

`client` asks, `server` answers; `journal` is what the server remembers and `folders` what it has
the kernel watch. docs/watching.md has the guarantees and the limits.
"""

from __future__ import annotations

from sandbox_engine.watch.client import Changes, ask

__all__ = ["Changes", "ask"]
