"""The command line: one program, every command with an example."""
