"""Programs of the long-lived helper process: started with -I -S, the standard library alone.

They import each other relatively and nothing of the engine.
"""
