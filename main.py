"""Trains, evaluates or samples a score-based model as a config file says.

    python main.py --config=configs/vp_digits.py --mode=train
    python main.py --config=configs/vp_digits.py --mode=eval
    python main.py --config=configs/vp_digits.py --mode=sample --config.sampling.num=100
    python main.py --config=configs/vp_digits.py --mode=plan
    python main.py --config=configs/vp_digits.py --mode=show
    python main.py --mode=compare --runs=runs/a,runs/b

Every setting of the config can be changed on the command line: --config.training.steps=500. The
folder of the run is --workdir, by default runs/<name of the config>. Run the same command again to
resume. `--mode=plan` compares forward processes, and steps, for these data before anything is
trained; `--mode=stats` takes the training data's features, once for all evaluations; `--mode=show`
prints every setting with its value and its meaning; `--mode=compare` puts runs next to each other,
as a table and one HTML page.
"""

from scoreflow import cli

if __name__ == "__main__":
    cli.run(__doc__)
