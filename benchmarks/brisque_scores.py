"""BRISQUE (the PyPI package `brisque`) of the photos named on standard input, a number a line; `nan` where it fails.

It needs an environment of its own, because it does not run on numpy 2.4:

    python -m venv peers && peers/bin/pip install brisque opencv-python-headless 'numpy<2.4'
"""

import sys

import numpy as np
from brisque import BRISQUE
from PIL import Image

metric = BRISQUE(url=False)
for line in sys.stdin:
    try:
        print(float(metric.score(np.asarray(Image.open(line.rstrip("\n")).convert("RGB")))), flush=True)
    except Exception:  # it raises many things on flat photos
        print("nan", flush=True)
