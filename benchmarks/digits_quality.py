"""How good the samples of a run on digits are: python benchmarks/digits_quality.py runs/digits

Draws 1,000 samples as `diffuse-jax sample` does and prints what `diffuse_jax.evaluation.digits_report` finds: the
Fréchet ratio to the real digits, the share of each class, how many a support vector machine is sure of, how many
are close copies, and of a run with classes how many it takes for the class that was asked for.
"""

import argparse
import json
import sys

import numpy as np

from diffuse_jax.cli.common import conditions_in_turn, sampler, to_data
from diffuse_jax.config import build
from diffuse_jax.config.workdir import read_run, restore
from diffuse_jax.evaluation import digits_report
from diffuse_jax.evaluation.digits import digits_classifier
from diffuse_jax.training import make_mesh


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    experiment = build(*read_run(args.workdir))
    params, extra, step = restore(experiment, args.workdir)
    conditions = conditions_in_turn(experiment)
    cond = None if conditions is None else conditions(np.arange(args.num))
    model = experiment.method.model(params, extra)
    drawn = sampler(experiment, make_mesh())(model, seed=args.seed, n=args.num, cond=cond)
    images = to_data(experiment, drawn.x)
    found = {"step": step, **digits_report(images)}
    if cond is not None and "label" in cond:
        classes = digits_classifier(0)(images.reshape(len(images), -1) * (16 / 255)).argmax(axis=1)
        found["as_asked"] = float(np.mean(classes == cond["label"]))
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
