"""python -m scoreflow: the command line."""

from scoreflow.cli import run

run()
