"""Programs of the long-lived helper process: started with -I -S, the standard library alone; they
import each other relatively and nothing of the engine."""
