"""The ablation's rows: configs that train.py takes, each stage run once however many rows share it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

from qcheck.bundle import Bundle

library("torch")
library("transformers")
ablation, measures = script("ablation", "benchmarks"), script("measures", "benchmarks")
Case = script("rated_sets", "benchmarks").Case
train, config = script("train"), script("config")
SIZES = ablation.Sizes(drill=12, lessons=10, policy=4, images=5, photos=6)
PATHS = ("looked", "eyes", "encoder", "blind_looked", "blind_eyes", "rated", "vista")
NO_START = {"start": None}


@pytest.fixture
def runs(tmp_path: Path) -> Any:
    return ablation.Runs(tmp_path, {name: tmp_path / name for name in PATHS} | NO_START, SIZES, 3)


def test_every_row_is_made_of_configs_that_are_taken(runs: Any) -> None:
    """And no stage is run twice."""
    seen: list[Any] = []

    def run(stage: str, path: Path) -> None:
        kind, _ = train.STAGES[stage]
        seen.append(config.read(path, kind))

    ends = {name: runs.checkpoint(chain, run) for name, chain in ablation.rows_of(aimed=True).items()}
    assert len(set(ends.values())) == len(ends), "two rows are the same run"
    assert len({one.out for one in seen}) == len(seen)
    first = len(seen)
    for chain in ablation.rows_of(aimed=True).values():
        runs.checkpoint(chain, run)
    assert len(seen) == first
    starts = [one.start for one in seen]
    assert starts.count(None) == 2, "one drill, and one with blind eyes"


def test_a_bundle_s_decoder_is_where_every_chain_begins(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in (*PATHS, "start")}
    runs, starts = ablation.Runs(tmp_path, paths, SIZES, 3), list[Any]()

    def run(stage: str, path: Path) -> None:
        starts.append(config.read(path, train.STAGES[stage][0]).start)

    runs.checkpoint(ablation.rows_of(aimed=True)["0+2+3"], run)
    assert starts[0] == tmp_path / "start"
    assert [start.parent.name.split("-")[0] for start in starts[1:]] == ["drill", "sft"]


def test_reinforcement_may_have_a_rate_of_its_own(runs: Any, tmp_path: Path) -> None:
    step = ablation.rows_of(aimed=True)["0+2+3"][-1]
    faster = ablation.Runs(tmp_path, runs.paths, SIZES, 3, rate=1e-3)
    assert faster.config(step, tmp_path / "x.pt")["policy"] == {**step.policy, "rate": 1e-3}
    assert "rate" not in runs.config(step, tmp_path / "x.pt")["policy"]


def test_rows_differ_in_what_they_are_about(runs: Any) -> None:
    made: dict[str, Any] = {}

    def last_of(name: str) -> Any:
        def run(stage: str, path: Path) -> None:
            made[path.stem] = config.read(path, train.STAGES[stage][0])

        path = runs.checkpoint(ablation.rows_of(aimed=True)[name], run)
        return made[path.parent.name]

    base, lessons = last_of("0+2+3"), last_of("0+2")
    assert (base.policy.a, base.policy.b, base.policy.uncertainty_weight) == (1.0, 0.2, False)
    assert last_of("0+2+3, without R_loc").policy.b == 0
    assert last_of("0+2+3, a = 2, b = 0.05").policy.a == 2
    assert last_of("0+2+3, uncertainty weight").policy.uncertainty_weight
    assert last_of("0+2+3, perception loss").policy.perception_loss
    assert set(last_of("0+1, attributes").policy.attributes) == set(ablation.ATTRIBUTES)
    assert lessons.context
    assert not last_of("0+2, degradation only").context
    assert last_of("0+2, eyes without the survey").eyes.name == "blind_eyes"
    for name, share in (("0+2", 2), ("0+2, low:high 1:1", 1), ("0+2, low:high 4:1", 3.8)):
        counts = last_of(name).batch
        assert sum(counts[k] for k in ("rated", "patched", "whole")) == share * (counts["local"] + counts["aimed"])
    assert last_of("0+1+2").start.parent.name.startswith("rank-")


def test_the_table_has_a_line_a_row() -> None:
    figures = {name: [0.5, 0.4, 0.6] for name in ablation.COLUMNS} | {"vista_ms_0": 512.4}
    text = ablation.table([{"row": "0+2", **figures}, {"row": "0+2+3", **figures}]).splitlines()
    assert len(text) == 4
    assert text[2].startswith("| 0+2 | 0.500 [0.400, 0.600] |")
    assert text[2].endswith("| 512 |")
    assert len({line.count("|") for line in text}) == 1


def test_every_row_but_one_is_a_change_of_another() -> None:
    names = ablation.rows_of(aimed=True)
    assert {ablation.reference_of(name) for name in names} <= {None, *names}
    assert [name for name in names if ablation.reference_of(name) is None] == ["0+2"]
    assert ablation.reference_of("0+2+3, a = 1, b = 0.3") == "0+2+3"
    assert ablation.reference_of("0+1+2+3") == "0+2"


def test_rows_are_compared_image_by_image(tmp_path: Path) -> None:
    """By differences whose interval is narrower than the rows' own, because both err on the same images."""
    rng = np.random.default_rng(5)
    cases = [Case(tmp_path / f"{i}.png", float(score), f"source {i // 2}") for i, score in enumerate(rng.random(60))]
    shared = rng.normal(0, 0.3, 60)
    lines = []
    for row, spoilt in (("0+2", 0.01), ("0+1", 0.1)):
        results, own = tmp_path / f"{row}.jsonl", rng.normal(0, spoilt, 60)
        with results.open("w") as file:
            for what in ablation.GAINS:
                for case, error in zip(cases, shared + own, strict=True):
                    judged = {"score": case.score + error, "ms": 1.0, "boxes": None, "probes": 0, "shift": None}
                    about = {"scorer": f"{row}: {what}", "image": case.path.name}
                    file.write(json.dumps({**about, **judged}) + "\n")
        lines.append({"row": row, "judgements": str(results)})
    images = ablation.Images(tmp_path, cases, tmp_path, cases)
    base, other = lines
    found = ablation.gains(other, base, images)["vista@3"]
    assert found.value < 0
    truth = [case.score for case in cases]
    groups = [case.group for case in cases]
    alone = ablation.bootstrap(measures.srcc, (np.array(truth) + shared).tolist(), truth, groups=groups)
    assert found.high - found.low < alone.high - alone.low
    assert set(ablation.gains(base, base, images).values()) == {ablation.Estimate(0, 0, 0)}
    text = ablation.changes(lines, images).splitlines()
    assert len(text) == 3
    assert text[2].startswith(f"| 0+1 | 0+2 | {found.value:+.3f} [")


def test_what_nothing_beats_at_both_is_the_front() -> None:
    points = {"a = 1, b = 1": (0.5, 0.3), "a = 1, b = 2": (0.4, 0.4), "a = 2, b = 1": (0.4, 0.3), "b": (0.9, 0.9)}
    lines = [
        {"row": f"0+2+3, {name}", "vista_srcc_3": [rank, 0, 1], "vista_iou": [place, 0, 1]}
        for name, (rank, place) in points.items()
    ]
    assert ablation.front(lines) == ["0+2+3, a = 1, b = 1", "0+2+3, a = 1, b = 2"]


def test_a_larger_view_has_more_pixels_and_nothing_else_is_new() -> None:
    contract = Bundle.open(None).contract
    other = ablation.widened(contract, 2)
    assert other.global_view.max_pixels == 2 * contract.global_view.max_pixels
    assert dataclasses.replace(other, global_view=contract.global_view) == contract
    for shown, of in ablation.LARGER_VIEW.values():
        assert shown in ablation.rows_of(aimed=True)
        assert of > 1


def test_an_unknown_row_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    options = [part for name in ("looked", "eyes", "encoder", "vista", "rated", "out") for part in (f"--{name}", "x")]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *options, "--rows", "4"])
    assert ablation.main() == 2
    assert "there is no row '4'; the rows are 0, 0+1" in capsys.readouterr().err
