"""What a photo costs in memory: from its file to its pixels, and from those to a model's input.

    python benchmarks/memory.py [--megapixels 24 108]

Each figure is the peak of what a fresh process holds (Linux's RssAnon, looked at every millisecond from outside) over
what it held before, when everything was loaded and had run once on a small photo. Files that a decoder maps into memory
are not in it, because the system may drop them at any time. `file`: opening a photo, over the bytes of its RGB pixels;
the target is 2 for photos of more than 100 MP. `tiles`: the global view and three crops with the survey, MB beyond the
decoded photo and the results; the target is at most 64. Last, one JSON line.
"""

import argparse
import json
import selectors
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


def held(process: int) -> int:
    """Bytes of memory of its own that a process holds; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def watched(command: list[str]) -> list[tuple[int, int]]:
    """Of each step of a process, which it ends with a line of one number and which begins when that is answered: the
    number, and the bytes by which its memory grew at most."""
    steps, peak = [], 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        watch = selectors.DefaultSelector()
        watch.register(process.stdout, selectors.EVENT_READ)
        before = 0
        while process.poll() is None:
            peak = max(peak, held(process.pid))
            if not watch.select(timeout=0.001) or not (line := process.stdout.readline()):
                continue
            steps.append((int(line), peak - before))
            before = peak = held(process.pid)
            process.stdin.write("\n")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return steps


def measure(small: Path, path: Path) -> None:
    """In a process of its own, in three steps: warms up, opens the photo and makes tiles; prints the bytes of each."""
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

    def ended(step: int) -> None:
        print(step, flush=True)
        sys.stdin.readline()

    ended(tiles(Photo.open(small)))
    photo = Photo.open(path)
    ended(photo.pixels.nbytes)
    ended(tiles(photo))


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
                _, (pixels, opening), (results, making) = watched(command)
                opened, extra = opening / pixels, (making - results) / 1e6
                print(f"{megapixels:g} MP {way:12} file {opened:5.2f} x RGB   tiles {extra:6.1f} MB beyond the results")
                row[f"{way}_{megapixels:g}_file_x"] = round(opened, 2)
                row[f"{way}_{megapixels:g}_tiles_mb"] = round(extra, 1)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
