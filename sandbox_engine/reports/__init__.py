"""Verdicts for readers: people at a terminal or in a browser, and other programs.

Each module turns `Judged` values into one form, and touches neither files nor repositories.
"""

from __future__ import annotations

from sandbox_engine.reports.judged import Judged

__all__ = ["Judged"]
