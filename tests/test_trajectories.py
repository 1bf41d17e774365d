"""Probe-CoT: conversations that hold to the context-aware rule, the mixture, pairs, and the flywheel's filter."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import script

from qcheck.tiles import Box

paths = script("trajectories")
vista = script("vista")
crops = script("crops")

EXAMPLES = Path(__file__).parent.parent / "examples"
SIZE = (4000, 3000)


def region(box: tuple[int, int, int, int], kind: str = "noise", level: int = 3, cost: float = 0.4) -> dict[str, Any]:
    return {"box": list(box), "name": "white_noise", "kind": kind, "level": level, "cost": cost}


def row(*regions: dict[str, Any], scene: str = "clean") -> dict[str, Any]:
    known = {"image": "images/0.jpg", "width": SIZE[0], "height": SIZE[1], "source": "s", "split": "train"}
    return {**known, "scene": scene, "score": 3.1, "regions": list(regions)}


def holds(outer: list[int], inner: list[int]) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


BOXES = [(500, 600, 1100, 900), (0, 0, 80, 90), (3700, 2800, 4000, 3000), (10, 1500, 3990, 1600)]


@pytest.mark.parametrize("box", BOXES)
def test_a_crop_holds_the_defect_and_its_surroundings(box: tuple[int, int, int, int]) -> None:
    places = set()
    for seed in range(50):
        crop = crops.context_crop(box, *SIZE, np.random.default_rng(seed))
        assert holds(list(crop), list(box))
        assert holds([0, 0, *SIZE], list(crop))
        share = Box(*box).area / Box(*crop).area
        assert share <= 0.72, "some of it is normal"
        places.add(crop)
    assert len(places) > 10


def test_probes_go_by_cost_and_some_are_clean() -> None:
    mild, bad = region(BOXES[0], cost=0.1), region((2500, 2000, 2800, 2300), kind="defocus", cost=0.6)
    lines = [paths.high(row(mild, bad), np.random.default_rng(seed)) for seed in range(200)]
    looked = [[bool(p["findings"]) for p in line["probes"]] for line in lines]
    for line in lines:
        kinds = [p["label"] for p in line["probes"] if p["findings"]]
        assert kinds == ["defocus", "noise"]
        for probe in line["probes"]:
            for found in probe["findings"]:
                assert Box(*probe["box"]).iou(Box(*found["box"])) > 0
            if not probe["findings"]:
                assert all(Box(*probe["box"]).iou(Box(*r["box"])) == 0 for r in (mild, bad))
    assert 0.2 < np.mean([not all(one) for one in looked]) < 0.5
    assert any(not one[0] for one in looked), "a clean crop may come first"
    assert lines[0]["answer"]["findings"][0] == {"kind": "defocus", "level": "obvious", "box": [2500, 2000, 2800, 2300]}


def test_clean_photos_and_bokeh_are_looked_at_too() -> None:
    for scene in ("clean", "bokeh"):
        line = paths.high(row(scene=scene), np.random.default_rng(1))
        assert [p["findings"] for p in line["probes"]] == [[]]
        assert line["answer"]["findings"] == []
    assert line["probes"][0]["label"] == "defocus"


def test_the_ablation_shows_defects_only() -> None:
    line = paths.high(row(region(BOXES[0])), np.random.default_rng(1), degradation_only=True)
    assert [p["box"] for p in line["probes"]] == [list(BOXES[0])]
    assert paths.high(row(), np.random.default_rng(1), degradation_only=True) is None


def test_small_copies_have_their_own_boxes() -> None:
    line = paths.low("small/0.jpg", (400, 300), row(region((500, 600, 1100, 900))))
    assert line["answer"]["findings"][0]["box"] == [50, 60, 110, 90]
    assert line["probes"] == []
    assert (line["width"], line["height"], line["resolution"]) == (400, 300, "low")


def test_the_mixture_is_two_to_one() -> None:
    rng = np.random.default_rng(0)
    for lows, highs, want in ((10, 3, (6, 3)), (5, 9, (4, 2)), (40, 4, (8, 4))):
        mixed = paths.hybrid([{"resolution": "low"}] * lows, [{"resolution": "high"}] * highs, rng)
        count = [sum(line["resolution"] == name for line in mixed) for name in ("low", "high")]
        assert tuple(count) == want
    with pytest.raises(vista.SetError, match="2 : 1"):
        paths.hybrid([{}], [{}] * 5, rng)


def test_the_flywheel_keeps_what_agrees() -> None:
    truth = row(region((100, 100, 300, 300)))
    right = {"kind": "noise", "level": "obvious", "box": [110, 100, 300, 300]}
    elsewhere = {**right, "box": [2000, 100, 2300, 300]}

    def line(score: float, *findings: dict[str, Any]) -> dict[str, Any]:
        return {"answer": {"score": score, "findings": list(findings)}}

    assert paths.agrees(line(3.3, right), truth)
    assert not paths.agrees(line(3.7, right), truth)  # the score is wrong
    assert not paths.agrees(line(3.1), truth)  # missed
    assert not paths.agrees(line(3.1, elsewhere), truth)
    assert not paths.agrees(line(3.1, right, elsewhere), truth)  # a false alarm
    assert paths.agrees(line(3.0), row())
    assert not paths.agrees(line(3.0, elsewhere), row())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A set, and the photos that it was made from; all of them train."""
    photos, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("set")
    with Image.open(EXAMPLES / "coffee.jpg") as image:
        large = image.convert("RGB").resize((1280, 960), Image.Resampling.LANCZOS)
    for index in range(8):
        path = photos / f"{index}.png"
        large.crop((index, index, 1260 + index, 940 + index)).save(path)
        if vista.clean_photos(photos)[-1].split != "train":
            path.unlink()
    assert vista.main(["build", str(photos), str(out), "--count", "12", "--seed", "3"]) == 0
    return out, photos


def test_a_set_becomes_conversations(made: tuple[Path, Path], tmp_path: Path) -> None:
    root, photos = made
    out = tmp_path / "cot"
    assert paths.main(["make", str(root), str(out), "--photos", str(photos)]) == 0
    lines = [json.loads(line) for line in (out / "trajectories.jsonl").read_text().splitlines()]
    assert sum(line["resolution"] == "low" for line in lines) == 2 * sum(line["resolution"] == "high" for line in lines)
    rows = {str((root / r["image"]).resolve()): r for r in map(json.loads, (root / "vista.jsonl").open())}
    for line in lines:
        assert line["format"] == "probe-cot-1"
        assert line["split"] == "train"
        with Image.open(line["image"]) as image:
            assert image.size == (line["width"], line["height"])
        if line["counterfactual"]:
            broken, clean = (np.asarray(Image.open(line[k])).astype(int) for k in ("image", "counterfactual"))
            change = np.abs(broken - clean).max(2)
            inside = np.zeros(change.shape, bool)
            for known in rows[line["image"]]["regions"]:
                x1, y1, x2, y2 = known["box"]
                inside[y1:y2, x1:x2] = True
            assert change[inside].mean() > 4 * change[~inside].mean() + 0.2
    again = tmp_path / "again"
    assert paths.main(["make", str(root), str(again)]) == 0
    without = [{**line, "counterfactual": None} for line in lines]
    assert [json.loads(line) for line in (again / "trajectories.jsonl").read_text().splitlines()] == without


def test_the_shipped_model_can_turn_the_flywheel(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "AGREEING_SCORE", 9)
    assert paths.main(["flywheel", str(made[0]), str(tmp_path / "kept")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "kept" / "trajectories.jsonl").read_text().splitlines()]
    assert "12 proposed" in capsys.readouterr().out
    rows = {str((made[0] / r["image"]).resolve()): r for r in map(json.loads, (made[0] / "vista.jsonl").open())}
    assert lines, "clean photos in which it finds nothing agree"
    for line in lines:
        assert paths.agrees(line, rows[line["image"]])


def test_no_set_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paths.main(["make", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "make the set first" in capsys.readouterr().err


def test_no_rated_photos_is_said(made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paths.main(["make", str(made[0]), str(tmp_path / "out"), "--rated", str(tmp_path)]) == 2
    assert "has no mos.csv" in capsys.readouterr().err
