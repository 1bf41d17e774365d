"""Reads every rendered view with an encoder once, and glances at it: cells and glances on disk, so that later lessons
never wait for a convolution.

    python training/encode.py --views VIEWS --out CELLS [--encoder RUN/encoder.pt] [--kinds local ...]

--encoder may also be a bundle, whose convolutions are then used. Without it: MobileNetV2 as it learned ImageNet. Writes
CELLS/encoder.onnx and a store of cells for each of views.
"""

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from cells import CELL_CHANNELS, IMAGENET_MEAN, IMAGENET_STD, CellEncoder
from glance import KEY, Glance, written
from nano_spec import TOKEN_PX
from numpy.typing import NDArray
from render import RENDERED
from runs import RunError
from stores import Item, Store, SurveyStore, ViewStore
from torch import Tensor, nn

from qcheck import survey
from qcheck.errors import BundleError
from qcheck.tiles import Box

MEAN = np.array(IMAGENET_MEAN, np.float32)[:, None, None]
STD = np.array(IMAGENET_STD, np.float32)[:, None, None]


class CellStore(Store):
    """Cells of views, fp16."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory, name, CELL_CHANNELS, np.float16)


class Sight(nn.Module):
    """Pixels and survey as CellEncoder takes them -> its cells, and the glance."""

    def __init__(self, encoder: CellEncoder, glance: Glance) -> None:
        super().__init__()
        self.encoder, self.glance = encoder, glance

    def forward(self, pixels: Tensor, survey: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(pixels, survey), self.glance(pixels)


def export_sight(encoder: CellEncoder, glance: Glance, path: Path) -> None:
    """Writes both as ONNX: `pixels` (1, 3, h, w), `survey` (1, rows, cols, 8) -> `cells` (1, h/32, w/32,
    CELL_CHANNELS), `glance` (1, glance.CHANNELS)."""
    rows, cols = (TOKEN_PX * torch.export.Dim(name, min=1, max=128) for name in ("rows", "cols"))
    sides = (torch.export.Dim(name, min=1, max=4096) for name in ("from_rows", "from_cols"))
    program = torch.onnx.export(
        Sight(encoder, glance).eval(),
        (torch.zeros(1, 3, 2 * TOKEN_PX, 3 * TOKEN_PX), torch.zeros(1, 5, 7, len(survey.STATISTICS))),
        input_names=["pixels", "survey"],
        output_names=["cells", KEY],
        dynamic_shapes=({2: rows, 3: cols}, dict(zip((1, 2), sides, strict=True))),
        dynamo=True,
        verbose=False,
    )
    program.save(str(path), external_data=False)


class Look:
    """Turns views into cells and glances."""

    def __init__(self, encoder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # ONNX Runtime, because it is twice as fast here as eager PyTorch and is what the shipped model runs on.
        self.session = onnxruntime.InferenceSession(str(encoder), options, providers=["CPUExecutionProvider"])

    def at(
        self, shown: NDArray[np.uint8], map_: NDArray[np.float32]
    ) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Of a view (h, w, 3) and the survey (1, rows, cols, 8) of what it shows: (h/32, w/32, CELL_CHANNELS) and
        (glance.CHANNELS,)."""
        pixels = ((shown.transpose(2, 0, 1).astype(np.float32) / 255 - MEAN) / STD)[None]
        cells, glances = self.session.run(["cells", KEY], {"pixels": pixels, "survey": map_})
        return cells[0].astype(np.float16), glances[0].astype(np.float16)


def views_of(item: Item, surveys: Item, look: Look) -> Iterator[tuple[dict[str, Any], NDArray[np.float16]]]:
    photos, map_ = 0, None
    for index, view in enumerate(item.sample["views"]):
        if view["role"] == "global":  # of another photo than the view before
            map_, photos = surveys.read(photos), photos + 1
        assert map_ is not None
        about = {key: value for key, value in view.items() if key not in {"offset", "rows", "cols"}}
        cells, glance = look.at(item.read(index), survey.under(map_, Box(*view["box"])))
        yield about | {KEY: written(glance)}, cells


def work(name: str, args: argparse.Namespace) -> None:
    look, started = Look(args.out / "encoder.onnx"), time.monotonic()
    views, surveys = ViewStore(args.views, name), SurveyStore(args.views, f"survey-{name}")
    writer, data, maps = CellStore(args.out, name).writer(), views.data(), surveys.data()
    for done, (sample, known) in enumerate(zip(views.samples(), surveys.samples(), strict=True), 1):
        kept = {key: value for key, value in sample.items() if key != "views"}
        writer.add(kept, views_of(Item(sample, data), Item(known, maps), look))
        if done % 100 == 0:
            print(f"{name} {done}, {time.monotonic() - started:.0f} s", flush=True)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=RENDERED, default=RENDERED)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        encoder, glance = CellEncoder.tuned(args.encoder), Glance.pretrained()
    except (BundleError, RunError) as error:
        parser.error(str(error))
    export_sight(encoder, glance, args.out / "encoder.onnx")
    names = [index.stem for kind in args.kinds for index in sorted(args.views.glob(f"{kind}-*.jsonl"))]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        pool.starmap(work, [(name, args) for name in names], chunksize=1)


if __name__ == "__main__":
    main()
