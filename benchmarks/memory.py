"""What a photo costs in memory: from its file to its pixels, and from those to a model's input.

    python benchmarks/memory.py [--megapixels 24 108]

Each figure is the peak of a fresh process (Linux's VmHWM) over what it held before, when everything was loaded and had
run once on a small photo. `file`: opening a photo, over the bytes of its RGB pixels; the target is 2. `tiles`: the
global view and three crops with the survey, MB beyond the decoded photo and the results; the target is at most 64.
Last, one JSON line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WAYS = ("jpeg", "turned.jpeg", "png", "lzw.tiff")
ORIENTATION = 0x0112


def write(folder: Path, megapixels: float) -> dict[str, Path]:
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    size = (width, round(megapixels * 1e6 / width))
    coarse = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image, turned = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), Image.Exif()
    turned[ORIENTATION] = 6
    options = {"turned.jpeg": {"exif": turned.tobytes()}, "lzw.tiff": {"compression": "tiff_lzw"}}
    paths = {way: folder / f"{megapixels:g}.{way}" for way in WAYS}
    for way, path in paths.items():
        image.save(path, **options.get(way, {}))
    return paths


def held(field: str) -> int:
    """Bytes, of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(small: Path, path: Path) -> None:
    """In a process of its own: prints the two figures."""
    from qcheck import _kernels
    from qcheck.photo import Photo
    from qcheck.survey import empty_map
    from qcheck.tiles import normalise_table

    table = normalise_table((0.5,) * 3, (0.5,) * 3)

    def tiles(photo: Photo) -> int:
        """Bytes of the results, which live until it returns."""
        crop = [(i, i, min(i + 896, photo.width), min(i + 896, photo.height)) for i in (0, 1, 2)]
        survey = empty_map(photo.width, photo.height)
        whole, size = [(0, 0, photo.width, photo.height)], [(1176, 868)]
        view = _kernels.render(photo.pixels, whole, size, table, (14, 2, 2), 2, "", survey)
        crops = _kernels.render(photo.pixels, crop, [(448, 448)] * 3, table, (14, 2, 2), 2)
        return view.nbytes + crops.nbytes + survey.nbytes

    tiles(Photo.open(small))
    before, _ = held("VmRSS"), Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    photo = Photo.open(path)
    opened = (held("VmHWM") - before) / photo.pixels.nbytes
    before, _ = held("VmRSS"), Path("/proc/self/clear_refs").write_text("5")
    results = tiles(photo)
    print(json.dumps([opened, (held("VmHWM") - before - results) / 1e6]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="*", default=[24, 108])
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    row: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        small = write(Path(folder), 1)["jpeg"]
        for megapixels in args.megapixels:
            for way, path in write(Path(folder), megapixels).items():
                command = [sys.executable, __file__, "--measure", str(small), str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                opened, extra = json.loads(done.stdout)
                print(f"{megapixels:g} MP {way:12} file {opened:5.2f} x RGB   tiles {extra:6.1f} MB beyond the results")
                row[f"{way}_{megapixels:g}_file_x"] = round(opened, 2)
                row[f"{way}_{megapixels:g}_tiles_mb"] = round(extra, 1)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
