"""Hephaestus, an agent that improves a code base in cycles, each patch judged by `sandbox_engine`."""
