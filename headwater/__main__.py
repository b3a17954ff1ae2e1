"""``python -m headwater`` is the command line."""

from headwater.cli.main import run

run()
