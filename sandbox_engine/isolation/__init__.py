"""Isolation: which tiers a system allows, and what a run sees and reaches in each.

`tiers` finds out what there is, `view` says what a run sees, `walls` and `bubblewrap` turn that
into a confinement. What each tier promises, and what it does not, is in `docs/isolation.md`.
"""

from sandbox_engine.isolation.tiers import (
    Obstacle,
    Survey,
    choose_tier,
    forget,
    obstacle_to,
    survey,
)
from sandbox_engine.isolation.view import SYSTEM, View, find_aliases, is_below, needed_roots
from sandbox_engine.isolation.walls import full_confinement, landlock_confinement

__all__ = [
    "SYSTEM",
    "Obstacle",
    "Survey",
    "View",
    "choose_tier",
    "find_aliases",
    "forget",
    "full_confinement",
    "is_below",
    "landlock_confinement",
    "needed_roots",
    "obstacle_to",
    "survey",
]
