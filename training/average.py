"""The mean of the weights of neighbouring checkpoints of one run, as a checkpoint.

    python training/average.py RUN/step1300.pt RUN/step1400.pt --out RUN/mean.pt

Between a checkpoint that misses much and one that alarms much, the mean does a bit of both.
"""

import argparse
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    models = [torch.load(path, weights_only=True)["model"] for path in args.checkpoints]
    mean = {
        name: torch.stack([model[name] for model in models]).mean(0) if value.is_floating_point() else value
        for name, value in models[0].items()
    }
    torch.save({"model": mean}, args.out)


if __name__ == "__main__":
    main()
