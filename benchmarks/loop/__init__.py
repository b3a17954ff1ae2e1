"""Generations that serve a simulated world and learn from what they showed: `headwater bench loop`."""
