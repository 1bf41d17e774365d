"""What can be asked how good an image is: qcheck at any budget, ways to look that are not its own, and classical peers.

| name | what it does |
|---|---|
| nano@3, PATH@3 | a qcheck bundle, the embedded one or that at PATH, with up to three probes |
| nano@3:random | the same with its crops anywhere: does it matter where one looks? |
| nano@0:large | one pass over a view of as many pixels as the global one and three crops: does one have to zoom? |
| nano@0:scan | every tile at full resolution, each judged by itself: the worst score. What zooming could know |
| nano@1:clean | one crop forced on a place without defects, on a Vista-like set: its score less that of a single pass |
| brisque, niqe, piqe, image-quality-ai | PyPI's brisque, scikit-video, pypiqe and image-quality-ai, in --peers-python |
"""

import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from rated_sets import Case

from qcheck import prompt
from qcheck.bundle import Bundle
from qcheck.engine import Engine
from qcheck.grammar import Matcher
from qcheck.photo import Photo
from qcheck.probe import Limits, Prober
from qcheck.tiles import Box, CropSpec, crop_box, view_of, whole
from qcheck.verdict import Defect, Verdict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from crops import clean_crop
from negatives import BOKEH as BOKEH

PEERS: Final = ("brisque", "niqe", "piqe", "image-quality-ai")
SEED: Final = 2026
CROPS_OF_LARGE: Final = 3


@dataclass(frozen=True, slots=True)
class Judged:
    """`score`: more is better, in any unit. `boxes`: x1, y1, x2, y2, kind and confidence, the most confident first;
    None for what finds no boxes. `probes`: crops that were looked at."""

    score: float
    ms: float
    boxes: list[tuple[int, int, int, int, str, float]] | None = None
    probes: int = 0
    shift: float | None = None  # points that a forced look at a clean place moved the score by


class Scorer(Protocol):
    name: str

    def judge(self, case: Case) -> Judged: ...


class UnknownScorer(Exception):
    """In one line that names the fix."""


class RandomAim:
    """Crops of the size the model asked for, anywhere."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, target: Box, spec: CropSpec, width: int, height: int) -> Box:
        crop = crop_box(target, spec, width, height)
        x, y = (
            int(self.rng.integers(0, limit - side + 1)) for limit, side in ((width, crop.width), (height, crop.height))
        )
        return Box(x, y, x + crop.width, y + crop.height)


def _judged(verdict: Verdict, ms: float) -> Judged:
    return Judged(verdict.score, ms, [_boxed(d) for d in verdict.defects], len(verdict.probes))


def _boxed(defect: Defect) -> tuple[int, int, int, int, str, float]:
    x1, y1, x2, y2 = defect.box.as_list()
    return x1, y1, x2, y2, defect.kind, defect.confidence


@dataclass
class Qcheck:
    """A bundle at a budget; decoding is in its time."""

    name: str
    prober: Prober
    probes: int

    def judge(self, case: Case) -> Judged:
        started = time.perf_counter()
        verdict = self.prober.judge(Photo.open(case.path), Limits(self.probes))
        return _judged(verdict, 1000 * (time.perf_counter() - started))


@dataclass
class Scan:
    """Every tile of a photo at full resolution and the whole: the worst score, and all boxes."""

    name: str
    engine: Engine
    prober: Prober = field(init=False)

    def __post_init__(self) -> None:
        self.prober = Prober(self.engine)

    def judge(self, case: Case) -> Judged:
        started = time.perf_counter()
        photo = Photo.open(case.path)
        verdicts = [(self.prober.judge(photo, Limits(0)), 0, 0)]
        side = self.engine.contract.crop.min_side_px
        rows, columns = (max(1, math.ceil(length / side)) for length in (photo.height, photo.width))
        for row in range(rows):
            for column in range(columns):
                y, x = (
                    round(i * max(0, n - side) / max(1, k - 1))
                    for i, n, k in ((row, photo.height, rows), (column, photo.width, columns))
                )
                tile = Photo.from_pixels(photo.pixels[y : y + side, x : x + side])
                verdicts.append((self.prober.judge(tile, Limits(0)), x, y))
        boxes = [
            (b[0] + x, b[1] + y, b[2] + x, b[3] + y, b[4], b[5])
            for verdict, x, y in verdicts
            for b in map(_boxed, verdict.defects)
        ]
        boxes = sorted(boxes, key=lambda b: -b[5])[:4]
        score = min(verdict.score for verdict, _, _ in verdicts)
        return Judged(score, 1000 * (time.perf_counter() - started), boxes, rows * columns)


class Spoken(Matcher):
    """A turn that is not left to the model."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def forced(self) -> list[int]:
        return self.tokens

    @property
    def done(self) -> bool:
        return True


@dataclass
class ForcedClean:
    """Makes a model look at a place without defects: a model with crop bias takes any crop for bad news."""

    name: str
    engine: Engine

    def judge(self, case: Case) -> Judged:
        started = time.perf_counter()
        photo, contract = Photo.open(case.path), self.engine.contract
        single = Prober(self.engine).judge(photo, Limits(0)).score
        seed = int.from_bytes(case.path.name.encode()[-8:], "big")
        rng = np.random.default_rng([SEED, seed])
        # Where nobody knows what is clean, nothing is forced.
        crop = None if case.regions is None else clean_crop(case.regions, photo.width, photo.height, rng)
        if crop is None:
            return Judged(single, 1000 * (time.perf_counter() - started))
        talk = self.engine.conversation()
        talk.show("first", photo.pixels, view_of(whole(photo.width, photo.height), contract.global_view))
        corners = (1000 * c / side for c, side in zip(crop, (photo.width, photo.height) * 2, strict=True))
        numbers = [min(contract.language.coordinate_tokens, key=lambda t: abs(float(t) - c)) for c in corners]
        ids = {text: i for i, text in enumerate(self.engine.texts)}
        talk.say(Spoken([ids[text] for text in prompt.spell_call(numbers, contract.kinds[0])]))
        talk.show("crop_final", photo.pixels, view_of(Box(*crop), contract.crop_view))
        said = talk.say(self.engine.grammar.matcher(after_crop=True, may_call=False))
        answer = prompt.parse_turn(said, contract.attributes).move
        assert isinstance(answer, prompt.Answer)
        return Judged(answer.score, 1000 * (time.perf_counter() - started), probes=1, shift=answer.score - single)


@dataclass
class Peer:
    """A classical measure, asked in a process of another environment that answers a line a photo."""

    name: str
    python: Path
    process: "subprocess.Popen[str] | None" = None

    def judge(self, case: Case) -> Judged:
        if self.process is None:
            script = Path(__file__).with_name("peer_scores.py")
            self.process = subprocess.Popen(
                [str(self.python), str(script), self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        started = time.perf_counter()
        self.process.stdin.write(f"{case.path}\n")
        line = self.process.stdout.readline()
        if not line:
            raise UnknownScorer(f"{self.name}: {self.python} ended; install it there (see peer_scores.py)")
        return Judged(float(line), 1000 * (time.perf_counter() - started))


def scorer(name: str, peers: Path | None) -> Scorer:
    """By its name in the table above. Raises UnknownScorer."""
    if name in PEERS:
        if peers is None:
            raise UnknownScorer(f"{name}: needs --peers-python, an environment that has it (see peer_scores.py)")
        return Peer(name, peers)
    bundle, at, rest = name.rpartition("@")
    budget, _, way = rest.partition(":")
    if not at or not budget.isdigit() or way not in ("", "random", "large", "scan", "clean"):
        raise UnknownScorer(
            f"{name}: give BUNDLE@PROBES, with :random, :large, :scan or :clean, or one of {', '.join(PEERS)}"
        )
    engine = Engine.open(Bundle.open(None if bundle == "nano" else Path(bundle)))
    if way == "scan":
        return Scan(name, engine)
    if way == "clean":
        return ForcedClean(name, engine)
    if way == "large":
        contract = engine.contract
        most = contract.global_view.max_pixels + CROPS_OF_LARGE * contract.crop_view.max_pixels
        view = dataclasses.replace(contract.global_view, max_pixels=most)
        engine.contract = dataclasses.replace(contract, global_view=view)
    aim: Callable[[Box, CropSpec, int, int], Box] = RandomAim(SEED) if way == "random" else crop_box
    return Qcheck(name, Prober(engine, aim=aim), int(budget))
