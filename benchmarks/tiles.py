"""From a photo's pixels to a model's input: the tile kernel against the common ways, on the same pixels.

    python benchmarks/tiles.py [--rounds 7] [--megapixels 8 20 24 30 48] [--photos PHOTO...]

Synthetic photos of each size, and the given ones; the global view (about 1 MP, Qwen2-VL's packed patches) and three
crops of 896 px brought to 448; then all four tensors from a JPEG file (quality 92). Rivals: transformers' PIL
processor, Pillow + NumPy, OpenCV by area where it is installed (its bicubic has no antialias), torch's antialiased
bicubic. Ways take turns within a round; medians. GB/s: bytes of the boxes and of the result, over the time; `copy` is
the share of what this machine copies in a second. What bounds it: reading every pixel once, then the products of the
pass across. Last, one JSON line; its ratios are transformers' PIL processor over ours at 24 MP, higher is better, and
`mismatches` counts values in which ours differ from that processor's; `survey_*` are the time with
the survey over the time without, lower is better.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qcheck import _kernels
from qcheck.photo import Photo
from qcheck.survey import empty_map
from qcheck.tiles import ViewSpec, normalise_table, smart_resize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE, MERGE, REPEATS = 14, 2, 2
GLOBAL: Final = ViewSpec(SIDE * MERGE, 56 * 56, 1024 * 1024, 2.0)
CROP, CROP_TO = 896, 448
OURS: Final = ("ours, 1 thread", "ours, 2 threads")
SURVEYING: Final = tuple(f"{name}, surveying" for name in OURS)
THEIRS: Final = "transformers' PIL processor"
Pixels = NDArray[np.uint8]
Job = tuple[list[tuple[int, int, int, int]], list[tuple[int, int]]]


def photo(megapixels: float) -> Pixels:
    width = round((megapixels * 1e6 * 3 / 2) ** 0.5)
    height = round(width * 2 / 3)
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += rng.integers(-8, 9, pixels.shape, dtype=np.int16)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def jobs(pixels: Pixels) -> dict[str, Job]:
    height, width = pixels.shape[:2]
    corners = [(width // 7 * i, height // 5 * i) for i in (1, 2, 3)]
    boxes = [(min(x, width - CROP), min(y, height - CROP)) for x, y in corners]
    return {
        "global": ([(0, 0, width, height)], [smart_resize(width, height, GLOBAL)]),
        "crops": ([(x, y, x + CROP, y + CROP) for x, y in boxes], [(CROP_TO, CROP_TO)] * 3),
    }


def ours(threads: int, surveying: bool = False) -> Callable[[Pixels, Job], NDArray[np.float32]]:
    table = normalise_table(MEAN, STD)

    def run(pixels: Pixels, job: Job) -> NDArray[np.float32]:
        survey = empty_map(pixels.shape[1], pixels.shape[0]) if surveying else None
        return _kernels.render(pixels, *job, table, (SIDE, MERGE, REPEATS), threads, "", survey)

    return run


def packed(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    _, height, width = planes.shape
    rows, cols = height // SIDE, width // SIDE
    cut = np.broadcast_to(planes, (REPEATS, *planes.shape))
    cut = cut.reshape(REPEATS, 3, rows // MERGE, MERGE, SIDE, cols // MERGE, MERGE, SIDE)
    return cut.transpose(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * cols, -1)


def pillow_numpy(pixels: Pixels, job: Job) -> NDArray[np.float32]:
    out, image = [], Image.fromarray(pixels)
    for box, size in zip(*job, strict=True):
        part = np.asarray(image.crop(box).resize(size, Image.Resampling.BICUBIC))
        unit = part.astype(np.float32) * np.float32(1 / 255)
        out.append(packed(((unit - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)))
    return np.concatenate(out)


def opencv(pixels: Pixels, job: Job) -> NDArray[np.float32]:
    import cv2

    out = []
    for (x1, y1, x2, y2), size in zip(*job, strict=True):
        part = cv2.resize(pixels[y1:y2, x1:x2], size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        out.append(packed(((part - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)))
    return np.concatenate(out)


def torch_bicubic(pixels: Pixels, job: Job) -> NDArray[np.float32]:
    import torch

    out, image = [], torch.from_numpy(pixels).permute(2, 0, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    for (x1, y1, x2, y2), (width, height) in zip(*job, strict=True):
        part = image[None, :, y1:y2, x1:x2]
        part = torch.nn.functional.interpolate(part, (height, width), mode="bicubic", antialias=True)[0].float() / 255
        out.append(packed(((part - mean) / std).numpy()))
    return np.concatenate(out)


def transformers_pil() -> Callable[[Pixels, Job], NDArray[np.float32]]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processors: dict[int, Any] = {}

    def run(pixels: Pixels, job: Job) -> NDArray[np.float32]:
        out, image = [], Image.fromarray(pixels)
        for box, (width, height) in zip(*job, strict=True):
            whole = box == (0, 0, *image.size)
            most = GLOBAL.max_pixels if whole else width * height
            if most not in processors:
                limits = {"shortest_edge": GLOBAL.min_pixels if whole else most, "longest_edge": most}
                processors[most] = Qwen2VLImageProcessorPil(size=limits)
            values = processors[most](images=[image if whole else image.crop(box)], return_tensors="np")["pixel_values"]
            out.append(np.asarray(values))
        return np.concatenate(out)

    return run


def available(name: str, way: Callable[..., Any], pixels: Pixels, job: Job) -> bool:
    try:
        way(pixels, job)
    except ImportError as missing:
        print(f"{name}: not measured ({missing})")
        return False
    return True


def copy_bandwidth(rounds: int) -> float:
    """GB/s of one thread that copies memory: read and written bytes."""
    source = np.ones(128 << 20, np.uint8)
    target, times = np.empty_like(source), []
    for _ in range(rounds):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    return 2 * source.nbytes / float(np.median(times)) / 1e9


def medians_of(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """ms; the ways take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: float(np.median(each)) for name, each in times.items()}


def from_file(path: Path, rounds: int) -> tuple[dict[str, float], int]:
    """From a JPEG to the global view's and three crops' tensors: ms of each way, and how many values differ."""
    theirs, two = transformers_pil(), ours(2)

    def ours_of() -> list[NDArray[np.float32]]:
        pixels = Photo.open(path).pixels
        return [two(pixels, job) for job in jobs(pixels).values()]

    def pillow_of(way: Callable[[Pixels, Job], NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        return [way(pixels, job) for job in jobs(pixels).values()]

    pairs = zip(ours_of(), pillow_of(theirs), strict=True)
    differing = sum(int((a != b).sum()) if a.shape == b.shape else a.size for a, b in pairs)
    ways: dict[str, Callable[[], Any]] = {
        OURS[1]: ours_of,
        THEIRS: lambda: pillow_of(theirs),
        "Pillow + NumPy": lambda: pillow_of(pillow_numpy),
    }
    return medians_of(ways, rounds), differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megapixels", type=float, nargs="*", default=[8, 20, 24, 30, 48])
    parser.add_argument("--photos", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    ways: dict[str, Callable[[Pixels, Job], NDArray[np.float32]]] = {
        OURS[0]: ours(1),
        OURS[1]: ours(2),
        THEIRS: transformers_pil(),
        "Pillow + NumPy": pillow_numpy,
        "OpenCV, area": opencv,
        "torch, 1 thread": torch_bicubic,
    }
    surveying = {name: ours(threads, True) for threads, name in enumerate(SURVEYING, 1)}
    bandwidth = copy_bandwidth(args.rounds)
    print(f"processor: {_kernels.processors()[0]}; one thread copies {bandwidth:.1f} GB/s")
    row: dict[str, float] = {}
    mismatches = 0
    pictures: list[tuple[str, Callable[[], Pixels]]] = [(f"{m:g} MP", partial(photo, m)) for m in args.megapixels]
    pictures += [(path.name[:12], partial(pixels_of, path)) for path in args.photos]
    for label, make in pictures:
        pixels = make()
        for task, job in jobs(pixels).items():
            # Beside each other, because what was just run leaves its mark on the next.
            tried = {**surveying, **ways} if task == "global" else ways
            used = {name: way for name, way in tried.items() if available(name, way, pixels, job)}
            want, got = used[THEIRS](pixels, job), used[OURS[1]](pixels, job)
            # Another size than ours means that the processor chose another: then there is nothing to compare.
            mismatches += int((want != got).sum()) if want.shape == got.shape else want.size
            medians = medians_of({name: partial(way, pixels, job) for name, way in used.items()}, args.rounds)
            read = sum((x2 - x1) * (y2 - y1) * 3 for x1, y1, x2, y2 in job[0]) + got.nbytes
            for name, ms in medians.items():
                speed = read / ms / 1e6
                print(
                    f"{label:12} {task:6} {name:28} {ms:8.1f} ms {speed:6.2f} GB/s {speed / bandwidth:5.0%} copy "
                    f"{medians[THEIRS] / ms:6.1f}x"
                )
            if label == "24 MP":
                for threads, name in enumerate(OURS, 1):
                    suffix = "1thread_x" if threads == 1 else "2threads_x"
                    row[f"{task}_{suffix}"] = medians[THEIRS] / medians[name]
                    if task == "global":
                        row[f"survey_{suffix}"] = medians[SURVEYING[threads - 1]] / medians[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "24.jpg"
        Image.fromarray(photo(24)).save(path, quality=92)
        medians, differing = from_file(path, args.rounds)
    for name, ms in medians.items():
        print(f"{'24 MP':12} {'file':6} {name:28} {ms:8.1f} ms {medians[THEIRS] / ms:32.1f}x")
    row["file_to_tensors_x"] = medians[THEIRS] / medians[OURS[1]]
    if "crops_1thread_x" in row:
        row["crops_x"] = row.pop("crops_1thread_x")
    print(json.dumps({**{k: round(v, 2) for k, v in row.items()}, "mismatches": mismatches + differing}))


def pixels_of(path: Path) -> Pixels:
    return Photo.open(path).pixels


if __name__ == "__main__":
    main()
