"""What the agent's phases share and no single one owns."""
