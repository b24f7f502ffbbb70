"""Trains, evaluates or samples a score-based model as a config file says.

    python main.py --config=configs/vp_digits.py --mode=train   trains, or goes on
    python main.py --workdir=runs/vp_digits --mode=eval         bits/dim and sample metrics
    python main.py --workdir=runs/vp_digits --mode=sample       samples, as an array and a picture
    python main.py --config=configs/vp_digits.py --mode=show    every setting with value and meaning
    python main.py --config=configs/vp_digits.py --mode=plan    how many steps which process needs
    python main.py --config=configs/vp_digits.py --mode=stats   features of the training data
    python main.py --mode=compare --runs=runs/a,runs/b          runs next to each other, on one page

`--config` is a file; what follows a colon goes to its `get_config`. `--workdir` is the folder of
the run, by default runs/<name of the config>; a run remembers its settings, so that it needs no
`--config`. Every setting is a flag: --config.training.steps=500. Run the same command again to
resume. The exit code is 2 for input that cannot work, 1 for a run that cannot go on, and 130 after
an interruption; the reason is one line.
"""

from scoreflow import cli

if __name__ == "__main__":
    cli.run(__doc__)
