"""Builds the TensorRT engines of a bundle ahead of its first photo.

    python export/tensorrt.py BUNDLE [--device N]

They are built for this machine's GPU and kept where `qcheck --model BUNDLE --device tensorrt` looks for them; it builds
them itself where they are missing, or were built for another GPU, version or graph. Takes minutes. Needs the packages
tensorrt and cuda-bindings, and a bundle of `export.py --provider tensorrt --form std24`.

Exit codes: 0 they are there; 2 something was wrong, and one line says what.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qcheck.backends.engines import EngineCache
from qcheck.backends.tensorrt import TensorRt
from qcheck.bundle import Bundle
from qcheck.errors import QcheckError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", type=int, metavar="N", help="which GPU, as nvidia-smi counts; default: the first")
    args = parser.parse_args(arguments)
    # Whoever imports tensorrt from here on means the package, not this file.
    sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    if args.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(args.device)  # before CUDA starts; the runtime takes the first it sees
    started, cache = time.monotonic(), EngineCache.of_user()
    try:
        runtime = TensorRt(Bundle.open(args.bundle), cache)
    except (QcheckError, OSError) as error:
        print(f"tensorrt: error: {error}", file=sys.stderr)
        return 2
    for part, key in runtime.keys.items():
        path = cache.folder / key.file_name
        print(f"{part:8} {path.stat().st_size / 1e6:9.1f} MB  {path}")
    print(f"for {runtime.gpu}, TensorRT {runtime.keys['vision'].tensorrt}, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
