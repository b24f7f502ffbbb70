"""python -m scoreflow: the command line."""

from scoreflow.cli import run

if __name__ == "__main__":
    run()
