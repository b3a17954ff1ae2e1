"""How good a list is, and how sure we are of it."""
