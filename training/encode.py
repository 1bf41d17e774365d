"""Reads every rendered view with an encoder once, and glances at every photo: cells, glances and overviews on disk, so
that later lessons never wait for a convolution.

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
from glance import Glance
from nano_spec import TOKEN_PX
from numpy.typing import NDArray
from overviews import GLANCE, SUMMARY, overview_of, written
from pixels import Pixels
from render import RENDERED, drawn, overall
from runs import RunError
from stores import Item, Store, SurveyStore, ViewStore
from torch import Tensor, nn
from visual import summary

from qcheck import survey
from qcheck.errors import BundleError
from qcheck.tiles import Box, View

MEAN = np.array(IMAGENET_MEAN, np.float32)[:, None, None]
STD = np.array(IMAGENET_STD, np.float32)[:, None, None]


class CellStore(Store):
    """Cells of views, fp16."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory, name, CELL_CHANNELS, np.float16)


class Sight(nn.Module):
    """Pixels and survey as CellEncoder takes them -> its cells, and the glance at other pixels."""

    def __init__(self, encoder: CellEncoder, glance: Glance) -> None:
        super().__init__()
        self.encoder, self.glance = encoder, glance

    def forward(self, pixels: Tensor, survey: Tensor, glanced: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(pixels, survey), self.glance(glanced)


def export_sight(encoder: CellEncoder, glance: Glance, path: Path) -> None:
    """Writes both as ONNX: `pixels` (1, 3, h, w), `survey` (1, rows, cols, 8), `glanced` (1, 3, h', w') -> `cells` (1,
    h/32, w/32, CELL_CHANNELS), `glance` (1, glance.CHANNELS)."""
    shown, glanced = (
        {at: TOKEN_PX * torch.export.Dim(f"{name}{at}", min=1, max=128) for at in (2, 3)} for name in ("side", "glance")
    )
    sides = (torch.export.Dim(name, min=1, max=4096) for name in ("from_rows", "from_cols"))
    shapes = ((1, 3, 2 * TOKEN_PX, 3 * TOKEN_PX), (1, 5, 7, len(survey.STATISTICS)), (1, 3, 3 * TOKEN_PX, 2 * TOKEN_PX))
    program = torch.onnx.export(
        Sight(encoder, glance).eval(),
        tuple(map(torch.zeros, shapes)),
        input_names=["pixels", "survey", "glanced"],
        output_names=["cells", GLANCE],
        dynamic_shapes=(shown, dict(zip((1, 2), sides, strict=True)), glanced),
        dynamo=True,
        verbose=False,
    )
    program.save(str(path), external_data=False)


class Look:
    """Turns views into cells, and glances at photos."""

    def __init__(self, encoder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # ONNX Runtime, because it is twice as fast here as eager PyTorch and is what the shipped model runs on.
        self.session = onnxruntime.InferenceSession(str(encoder), options, providers=["CPUExecutionProvider"])

    def at(self, shown: Pixels, map_: NDArray[np.float32]) -> NDArray[np.float16]:
        """Of a view (h, w, 3) and the survey (1, rows, cols, 8) of what it shows: (h/32, w/32, CELL_CHANNELS)."""
        return self._run(shown, map_, shown[:TOKEN_PX, :TOKEN_PX])[0]  # to glance at a corner costs next to nothing

    def with_glance(self, shown: Pixels, map_: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """As `at`, and the glance at it, (glance.CHANNELS,)."""
        return self._run(shown, map_, shown)

    def _run(
        self, shown: Pixels, map_: NDArray[np.float32], glanced: Pixels
    ) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        given = {"pixels": normalised(shown), "survey": map_, "glanced": normalised(glanced)}
        cells, glances = self.session.run(["cells", GLANCE], given)
        return cells[0].astype(np.float16), glances[0].astype(np.float16)

    def whole(self, shown: Pixels, map_: NDArray[np.float32], box: Box) -> tuple[NDArray[np.float16], dict[str, str]]:
        """Of the global view of a photo, `box`, and its survey: the cells, and for the index what it is as a whole."""
        about = survey.under(map_, box)
        small = overview_of(box, View(box, shown.shape[1], shown.shape[0]))
        if small is None:
            cells, glance = self.with_glance(shown, about)
            return cells, {GLANCE: written(glance)}
        # Made of the view, for the photo is no longer there.
        reduced = drawn(shown, View(overall(shown), *small.size))
        cells, glance = self.with_glance(reduced, about)
        seen = summary(torch.from_numpy(cells.astype(np.float32))[None])[0].numpy()
        return self.at(shown, about), {GLANCE: written(glance), SUMMARY: written(seen)}


def normalised(shown: Pixels) -> NDArray[np.float32]:
    """(h, w, 3) -> (1, 3, h, w), as the encoders take them."""
    planes: NDArray[np.float32] = ((shown.transpose(2, 0, 1).astype(np.float32) / 255 - MEAN) / STD)[None]
    return planes


def views_of(item: Item, surveys: Item, look: Look) -> Iterator[tuple[dict[str, Any], NDArray[np.float16]]]:
    photos, map_ = 0, None
    for index, view in enumerate(item.sample["views"]):
        about = {key: value for key, value in view.items() if key not in {"offset", "rows", "cols"}}
        shown, box = item.read(index), Box(*view["box"])
        if view["role"] == "global":  # of another photo than the view before
            map_, photos = surveys.read(photos), photos + 1
            cells, judged = look.whole(shown, map_, box)
            yield about | judged, cells
        else:
            assert map_ is not None
            yield about, look.at(shown, survey.under(map_, box))


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
