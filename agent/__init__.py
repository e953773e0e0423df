"""Hephaestus: an agent that improves a code base in cycles, its patches judged by the engine."""
