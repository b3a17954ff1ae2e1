"""A package, so that its platform ends with its last test rather than with the whole run."""
