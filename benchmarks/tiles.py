"""From a photo's pixels to a model's input: the tile kernel against the common ways, on the same pixels.

    python benchmarks/tiles.py [--rounds 7] [--megapixels 8 24 48]

Synthetic photos of each size; the global view (about 1 MP, Qwen2-VL's packed patches) and three crops of 896 px
brought to 448. Rivals: transformers' PIL processor, Pillow + NumPy, OpenCV by area where it is installed (its bicubic
has no antialias), torch's antialiased bicubic. Ways take turns within a round; medians. What bounds it: reading every
pixel once, then the products of the pass across. Last, one JSON line; its ratios are transformers' PIL processor over
ours at 24 MP, higher is better, and `mismatches` counts values in which ours differ from that processor's.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qcheck import _kernels
from qcheck.tiles import ViewSpec, normalise_table, smart_resize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE, MERGE, REPEATS = 14, 2, 2
GLOBAL: Final = ViewSpec(SIDE * MERGE, 56 * 56, 1024 * 1024, 2.0)
CROP, CROP_TO = 896, 448
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


def ours(threads: int) -> Callable[[Pixels, Job], NDArray[np.float32]]:
    table = normalise_table(MEAN, STD)
    return lambda pixels, job: _kernels.render(pixels, *job, table, (SIDE, MERGE, REPEATS), threads)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[8, 24, 48])
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    ways: dict[str, Callable[[Pixels, Job], NDArray[np.float32]]] = {
        "ours, 1 thread": ours(1),
        "ours, 2 threads": ours(2),
        "transformers' PIL processor": transformers_pil(),
        "Pillow + NumPy": pillow_numpy,
        "OpenCV, area": opencv,
        "torch, 1 thread": torch_bicubic,
    }
    print("processor:", _kernels.processors()[0])
    row: dict[str, float] = {}
    mismatches = 0
    for megapixels in args.megapixels:
        pixels = photo(megapixels)
        for task, job in jobs(pixels).items():
            used = {name: way for name, way in ways.items() if available(name, way, pixels, job)}
            want, got = used["transformers' PIL processor"](pixels, job), used["ours, 2 threads"](pixels, job)
            # Another size than ours means that the processor chose another: then there is nothing to compare.
            mismatches += int((want != got).sum()) if want.shape == got.shape else want.size
            times: dict[str, list[float]] = {name: [] for name in used}
            for _ in range(args.rounds):
                for name, way in used.items():
                    started = time.perf_counter()
                    way(pixels, job)
                    times[name].append(1000 * (time.perf_counter() - started))
            medians = {name: float(np.median(each)) for name, each in times.items()}
            read = sum((x2 - x1) * (y2 - y1) * 3 for x1, y1, x2, y2 in job[0]) + got.nbytes
            for name, ms in medians.items():
                ratio = medians["transformers' PIL processor"] / ms
                print(f"{megapixels:4g} MP {task:6} {name:28} {ms:8.1f} ms {read / ms / 1e6:6.2f} GB/s {ratio:6.1f}x")
            if megapixels == 24:
                base = medians["transformers' PIL processor"]
                row[f"{task}_1thread_x"] = base / medians["ours, 1 thread"]
                row[f"{task}_2threads_x"] = base / medians["ours, 2 threads"]
    print(json.dumps({**{k: round(v, 2) for k, v in row.items()}, "mismatches": mismatches}))


if __name__ == "__main__":
    main()
