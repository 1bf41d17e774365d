"""What each part of the training is worth: small runs that differ in one thing, judged on the same held-out images.

    python benchmarks/ablation.py --looked RUN/looked --eyes RUN/eyes/eyes.pt --encoder RUN/encoder.pt --vista SET
        --rated DATA/biq2021 --out RUNS [--blind-looked ... --blind-eyes ...] [--rows '0+2' '0+2+3' ...]

Every row is a chain of stages of training/train.py, whose configs are written to RUNS; rows share what they have in
common, and what was run is not run again. The eyes (stage 0) are the same in all rows but those that are blind to the
survey (perceive's `survey = false`). Judged on the test splits of a Vista-like set and of rated photos by the runtime's
loop over PyTorch, in fp32; what the eyes see of a view is kept in RUNS/sights, as all rows look at the same photos.
Rows whose views differ are also exported and timed, on a few images. With `--start BUNDLE` all of them begin at the
decoder of a bundle: one that never learned to read its eyes' numbers says little of what stage 3 does. Rows that are
known stand in RUNS/rows.jsonl. Prints in Markdown the table of all of them, how each differs from the row it is a
change of (same images, resampled together, which tells more than two intervals), and which of the rewards' weights no
other beats both at ranking and at finding.
"""

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accuracy import kept_of, measured
from measures import Estimate, bootstrap, gain
from rated_sets import Case, read_set
from scorers import ForcedClean, Qcheck

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from photos import rated_photos
from rollouts import RecordingEngine
from sft import start_of
from sights import Sights

from qcheck.bundle import Bundle
from qcheck.contract import CONTRACT_FILE, Contract
from qcheck.engine import Engine
from qcheck.probe import Prober

TRAINING: Final = Path(__file__).resolve().parent.parent / "training"
ATTRIBUTES: Final = dict.fromkeys(("sharpness", "noise", "color", "exposure", "compression"), 0.1)
COLUMNS: Final = {
    "rated_srcc": "rated, SRCC",
    "vista_srcc_0": "Vista-like, SRCC, 0 probes",
    "vista_srcc_3": "3 probes",
    "vista_iou": "IoU",
    "vista_f1": "F1",
    "false_alarms_clean": "false alarms, clean",
    "crop_shift": "clean crop's shift",
    "vista_ms_0": "ms, 0 probes",
}
GAINS: Final = {"rated@0": "rated, SRCC", "vista@0": "Vista-like, SRCC, 0 probes", "vista@3": "3 probes"}
BLIND: Final = "0+2, eyes without the survey"
# Rows that are judged with a larger global view than another, whose model they share: what the survey is worth against
# more pixels. As many times its pixels.
LARGER_VIEW: Final = {f"{BLIND}, larger view": (BLIND, 1.36)}
TIMED_ROWS: Final = ("0+2", BLIND, *LARGER_VIEW)

TIMED: Final = 9  # images


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of train.py, and the keys of its config that are not as usual; `policy`: those of its table."""

    stage: str
    keys: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Steps of each stage, and how many images a row is judged on."""

    drill: int
    lessons: int
    policy: int
    images: int
    photos: int


def batch(low: int, high: int, aimed: bool) -> dict[str, int]:
    """Conversations of a step: with one view mostly, and with crops."""
    return {
        "rated": low - 8,
        "patched": 4,
        "whole": 4,
        "local": 4 if aimed else high,
        "aimed": high - 4 if aimed else 0,
    }


def rows_of(aimed: bool) -> dict[str, list[Step]]:
    """Every row's name and stages. "0" alone is the drill: a decoder that reads out what the eyes see."""
    drill, lessons = Step("drill"), Step("sft", {"batch": batch(32, 16, aimed)})
    rank = Step("rank", policy={"reward": "ranking", "images": 6, "rollouts": 6})
    refine = {"reward": "decoupled", "max_probes": 3, "images": 4, "rollouts": 4}

    def refined(**keys: Any) -> list[Step]:
        return [drill, lessons, Step("refine", policy={**refine, **keys})]

    rows = {
        "0": [drill],
        "0+1": [drill, rank],
        "0+2": [drill, lessons],
        "0+1+2": [drill, rank, lessons],
        "0+2+3": refined(),
        "0+1+2+3": [drill, rank, lessons, Step("refine", policy=refine)],
        BLIND: [Step("drill", {"blind": True}), Step("sft", {**lessons.keys, "blind": True})],
        "0+2, low:high 1:1": [drill, Step("sft", {"batch": batch(24, 24, aimed)})],
        "0+2, low:high 4:1": [drill, Step("sft", {"batch": batch(38, 10, aimed)})],
        "0+2, degradation only": [drill, Step("sft", {**lessons.keys, "context": False})],
        "0+1, attributes": [drill, Step("rank", policy={**rank.policy, "attributes": ATTRIBUTES})],
        "0+2+3, without R_loc": refined(b=0.0),
        "0+2+3, uncertainty weight": refined(uncertainty_weight=True),
        "0+2+3, perception loss": refined(perception_loss=True),
    }
    for a in (0.5, 1.0, 2.0):
        for b in (0.05, 0.15, 0.3):
            rows[f"0+2+3, a = {a:g}, b = {b:g}"] = refined(a=a, b=b)
    return rows


class Runs:
    """Where chains of stages are run, each once. `paths`: looked, eyes, encoder, blind_looked, blind_eyes, rated,
    vista, and start, the bundle whose decoder the first stage begins at, None for a fresh one."""

    def __init__(
        self,
        out: Path,
        paths: dict[str, Path | None],
        sizes: Sizes,
        seed: int,
        rate: float | None = None,
        threads: int = 2,
    ) -> None:
        """`rate`: of reinforcement; grpo.Settings' unless given. `threads`: of each stage; nothing else hangs on it."""
        self.out, self.paths, self.sizes, self.seed, self.rate = out, paths, sizes, seed, rate
        self.threads = threads
        self.sights = out / "sights"

    def checkpoint(self, chain: list[Step], run: Callable[[str, Path], None]) -> Path:
        """That of the last stage of a chain. `run`: a stage of train.py by its config."""
        start = self.paths["start"]
        for step in chain:
            config = self.config(step, start)
            name = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
            folder = self.out / f"{step.stage}-{name}"
            steps = config["steps"]
            start = folder / (f"step{steps}.pt" if step.stage in ("drill", "sft") else "best.pt")
            done = folder / "done"
            if not done.exists():
                folder.mkdir(parents=True, exist_ok=True)
                path = self.out / f"{step.stage}-{name}.toml"
                path.write_text(toml({"out": str(folder), "threads": self.threads, **config}))
                run("sft" if step.stage == "drill" else step.stage, path)
                done.touch()
        assert start is not None
        return start

    def config(self, step: Step, start: Path | None) -> dict[str, Any]:
        keys = {k: v for k, v in step.keys.items() if k != "blind"} | {"seed": self.seed}
        if start is not None:
            keys["start"] = str(start)
        if step.stage in ("drill", "sft"):
            sight = "blind_" if step.keys.get("blind") else ""
            for key, name in (("looked", f"{sight}looked"), ("eyes", f"{sight}eyes"), ("encoder", "encoder")):
                keys[key] = str(self.paths[name])
            steps = self.sizes.drill if step.stage == "drill" else self.sizes.lessons
            return {**keys, "steps": steps, "drill_steps": steps if step.stage == "drill" else 0, "every": steps}
        eyes = self.paths["eyes"]
        assert eyes is not None
        keys |= {"eyes": str(eyes.parent), "sights": str(self.sights)}
        keys |= {"steps": self.sizes.policy, "every": self.sizes.policy, "dev_photos": 12}
        keys["small"] = step.stage == "rank"
        for name in ("rated", "vista") if step.stage == "rank" else ("vista",):
            keys[name] = str(self.paths[name])
        return {**keys, "policy": step.policy if self.rate is None else {**step.policy, "rate": self.rate}}


def toml(table: dict[str, Any]) -> str:
    """Of texts, numbers, truths and tables of those."""
    plain = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items() if not isinstance(value, dict))
    return plain + "".join(_table(key, value) for key, value in table.items() if isinstance(value, dict))


def _table(name: str, table: dict[str, Any]) -> str:
    inner = "".join(_table(f"{name}.{key}", value) for key, value in table.items() if isinstance(value, dict))
    plain = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items() if not isinstance(value, dict))
    return f"[{name}]\n{plain}{inner}"


def train(stage: str, config: Path) -> None:
    """In a process of its own, so that its memory is given back."""
    subprocess.run([sys.executable, str(TRAINING / "train.py"), stage, "--config", str(config)], check=True)


@dataclass(frozen=True, slots=True)
class Images:
    """What every row is judged on: of the set `vista`, and of the rated photos in the folder `rated`."""

    vista: Path
    cases: list[Case]
    rated: Path
    photos: list[Case]


def judged(
    name: str, checkpoint: Path, sights: Path, images: Images, results: Path, larger: float
) -> dict[str, Estimate | float]:
    """`results`: where what the row `name` says of each image is kept; `larger`: as widened has it."""
    model, tokenizer, domain = start_of(checkpoint)
    engine = RecordingEngine(model.eval(), tokenizer, domain)
    engine.contract, engine.eyes.sights = widened(engine.contract, larger), Sights(sights)
    prober, vista, cases = Prober(engine), images.vista, images.cases
    rated = measured(Qcheck(f"{name}: rated@0", prober, 0), images.photos, images.rated, results)
    rows: dict[str, Estimate | float] = {"rated_srcc": rated["srcc"]}
    found = {n: measured(Qcheck(f"{name}: vista@{n}", prober, n), cases, vista, results) for n in (0, 3)}
    rows |= {f"vista_srcc_{probes}": row["srcc"] for probes, row in found.items()}
    rows |= {"vista_iou": found[3]["iou"], "vista_f1": found[3]["f1"]}
    rows["false_alarms_clean"] = found[3]["false_alarms_clean"]
    rows["crop_shift"] = measured(ForcedClean("forced", engine), cases, vista, None)["crop_shift"]
    return rows


def timed(checkpoint: Path, larger: float, cases: list[Case]) -> float:
    """Milliseconds of one look by the exported model, median."""
    from export_nano import export

    bundle = export(checkpoint, TRAINING / "MODEL_CARD.md", checkpoint.with_suffix(".bundle"), "fp32").directory
    contract = bundle / CONTRACT_FILE
    contract.write_text(widened(Contract.from_json(contract.read_text()), larger).to_json())
    look = Qcheck("exported", Prober(Engine.open(Bundle.open(bundle))), 0)
    return float(np.median([look.judge(case).ms for case in spread(cases, TIMED)]))


def reference_of(name: str) -> str | None:
    """The row that another is a change of; None for the one that all others come back to."""
    stages, changed, _ = name.partition(", ")
    return stages if changed else None if stages == "0+2" else "0+2"


def gains(line: dict[str, Any], other: dict[str, Any], images: Images) -> dict[str, Estimate]:
    """How much better a row ranks than another, each by its line of rows.jsonl."""
    found = {}
    for what in GAINS:
        root, cases = (images.rated, images.photos) if what.startswith("rated") else (images.vista, images.cases)
        said = [kept_of(Path(one["judgements"]), f"{one['row']}: {what}") for one in (line, other)]
        names = [case.path.relative_to(root).as_posix() for case in cases]
        columns = [[row[name].score for name in names] for row in said]
        truth, groups = [case.score for case in cases], [case.group for case in cases]
        found[what] = bootstrap(gain, *columns, truth, groups=groups)
    return found


def front(lines: list[dict[str, Any]]) -> list[str]:
    """The rows of rewards' weights that no other one of them beats both at ranking and at finding."""
    points = {line["row"]: (line["vista_srcc_3"][0], line["vista_iou"][0]) for line in lines if ", a = " in line["row"]}
    return [
        row
        for row, (rank, place) in points.items()
        if not any(r >= rank and p >= place and (r, p) != (rank, place) for r, p in points.values())
    ]


def widened(contract: Contract, times: float) -> Contract:
    """Of a model that looks at the whole photo with so many times the pixels."""
    view = dataclasses.replace(contract.global_view, max_pixels=int(times * contract.global_view.max_pixels))
    return dataclasses.replace(contract, global_view=view)


def spread(things: list[Any], count: int) -> list[Any]:
    """At most `count` of them, drawn evenly."""
    return [things[i] for i in sorted({round(i) for i in np.linspace(0, len(things) - 1, min(count, len(things)))})]


def shown(figure: list[float] | float | None) -> str:
    """A figure of rows.jsonl: with its interval, or milliseconds, or nothing."""
    if figure is None:
        return ""
    return f"{figure:.0f}" if isinstance(figure, float) else str(Estimate(*figure))


def table(lines: list[dict[str, Any]]) -> str:
    """Of rows.jsonl, in Markdown."""
    text = f"| row | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * len(COLUMNS)}\n"
    for line in lines:
        figures = (shown(line.get(name)) for name in COLUMNS)
        text += f"| {line['row']} | {' | '.join(figures)} |\n"
    return text


def changes(lines: list[dict[str, Any]], images: Images) -> str:
    """How each row differs from that which it is a change of, where both are known; in Markdown."""
    text = f"| row | against | {' | '.join(GAINS.values())} |\n|---|---|{'---|' * len(GAINS)}\n"
    by_row = {line["row"]: line for line in lines}
    for line in lines:
        other = by_row.get(reference_of(line["row"]) or "")
        if other is not None:
            figures = " | ".join(
                f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]" for e in gains(line, other, images).values()
            )
            text += f"| {line['row']} | {other['row']} | {figures} |\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("looked", "eyes", "encoder", "vista", "rated", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("blind-looked", "blind-eyes", "start"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--rows", nargs="+", help="only these")
    for name, default in (("drill", 120), ("lessons", 120), ("policy", 20), ("images", 60), ("photos", 150)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="1 where another run goes on beside it")
    parser.add_argument("--rate", type=float, help="of reinforcement; few steps want more than the usual one")
    args = parser.parse_args()
    rows = rows_of(any(args.looked.glob("aimed-*.jsonl")))
    rows |= {name: rows[of] for name, (of, _) in LARGER_VIEW.items()}
    if args.blind_looked is None or args.blind_eyes is None:
        rows = {name: chain for name, chain in rows.items() if not any(step.keys.get("blind") for step in chain)}
    if unknown := set(args.rows or ()) - set(rows):
        print(f"ablation.py: there is no row {sorted(unknown)[0]!r}; the rows are {', '.join(rows)}", file=sys.stderr)
        return 2
    sizes = Sizes(args.drill, args.lessons, args.policy, args.images, args.photos)
    paths = {name: getattr(args, name) for name in ("looked", "eyes", "encoder", "blind_looked", "blind_eyes", "start")}
    paths |= {"rated": args.rated, "vista": args.vista}
    runs = Runs(args.out, paths, sizes, args.seed, args.rate, args.threads)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "rows.jsonl"
    known = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    _, cases = read_set(args.vista)
    cases = spread([c for c in cases if c.split == "test" and c.regions is not None], sizes.images)
    photos = spread([p for p in rated_photos(args.rated) if p.split == "test"], sizes.photos)
    rated = [Case(photo.path, photo.score, photo.path.name) for photo in photos]
    images = Images(args.vista, cases, args.rated, rated)
    for name, chain in rows.items():
        if (args.rows and name not in args.rows) or any(line["row"] == name for line in known):
            continue
        started = time.monotonic()
        checkpoint = runs.checkpoint(chain, train)
        results, larger = checkpoint.with_suffix(".jsonl"), LARGER_VIEW.get(name, ("", 1.0))[1]
        figures = judged(name, checkpoint, runs.sights, images, results, larger)
        if name in TIMED_ROWS:
            figures["vista_ms_0"] = timed(checkpoint, larger, cases)
        flat = {key: value.as_list() if isinstance(value, Estimate) else value for key, value in figures.items()}
        line = {"row": name, **flat, "judgements": str(results)}
        known.append({**line, "seconds": round(time.monotonic() - started), **vars_of(sizes)})
        known[-1] |= {"seed": args.seed, "rate": args.rate}
        with kept.open("a") as file:
            file.write(json.dumps(known[-1]) + "\n")
    print(table(known))
    print(changes(known, images))
    print(f"Not beaten at both: {'; '.join(front(known)) or 'none of them was run'}")
    return 0


def vars_of(sizes: Sizes) -> dict[str, int]:
    return {f"{name}_count": getattr(sizes, name) for name in Sizes.__slots__}


if __name__ == "__main__":
    sys.exit(main())
