"""The evaluation: published layouts on small made-up trees, figures on answers that are known."""

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

sets = script("rated_sets", "benchmarks")
accuracy = script("accuracy", "benchmarks")
measures = script("measures", "benchmarks")
scorers = script("scorers", "benchmarks")
savemat = library("scipy.io").savemat

NAMES = ("a.png", "b.png", "c.png", "d.png")
SCORES = (1.5, 3.25, 2.0, 4.75)


def images(folder: Path, names: tuple[str, ...] = NAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        shade = np.random.default_rng(index).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(shade).save(folder / name, "PNG")


def write_csv(path: Path, head: list[str], rows: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def biq2021(root: Path) -> None:
    images(root / "images")
    rows = [(n, s, "01") for n, s in zip(NAMES, SCORES, strict=True)]
    write_csv(root / "mos.csv", ["filename", "mos", "subset"], rows)


def koniq10k(root: Path) -> None:
    images(root / "1024x768")
    rows = [(n, 1, s, 0.5) for n, s in zip(NAMES, SCORES, strict=True)]
    write_csv(root / "koniq10k_scores_and_distributions.csv", ["image_name", "c1", "MOS", "SD"], rows)


def spaq(root: Path) -> None:
    images(root / "TestImage")
    rows = [(n, s, 7) for n, s in zip(NAMES, SCORES, strict=True)]
    write_csv(root / "Annotations" / "MOS and Image attribute scores.csv", ["Image name", "MOS", "Brightness"], rows)


def kadid10k(root: Path) -> None:
    images(root / "images")
    rows = [(n, f"ref{i // 2}.png", s, 1) for i, (n, s) in enumerate(zip(NAMES, SCORES, strict=True))]
    write_csv(root / "dmos.csv", ["dist_img", "ref_img", "dmos", "var"], rows)


def tid2013(root: Path) -> None:
    images(root / "distorted_images", ("I01_01_1.bmp", "i01_02_1.bmp", "i02_01_1.bmp", "I02_02_1.bmp"))
    named = ("I01_01_1.bmp", "I01_02_1.bmp", "I02_01_1.bmp", "I02_02_1.bmp")
    (root / "mos_with_names.txt").write_text("".join(f"{s} {n}\n" for n, s in zip(named, SCORES, strict=True)))


def pipal(root: Path) -> None:
    images(root / "Train_Dist")
    (root / "Train_Label").mkdir()
    for label, part in (("A0", slice(0, 2)), ("A1", slice(2, 4))):
        lines = (f"{n},{s}\n" for n, s in zip(NAMES[part], SCORES[part], strict=True))
        (root / "Train_Label" / f"{label}.txt").write_text("".join(lines))


def agiqa3k(root: Path) -> None:
    names = tuple(name.replace("png", "jpg") for name in NAMES)
    images(root / "AGIQA-3K", names)
    rows = [(n, "a cat", s, 1.0) for n, s in zip(names, SCORES, strict=True)]
    write_csv(root / "data.csv", ["name", "prompt", "mos_quality", "mos_align"], rows)


def clive(root: Path) -> None:
    """The real list begins with seven images that lie elsewhere."""
    images(root / "Images")
    names = (*(f"t{i}.bmp" for i in range(1, 8)), *NAMES)
    (root / "Data").mkdir()
    listed = np.empty((len(names), 1), object)
    listed[:, 0] = names
    savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": listed})
    savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.array([[50.0] * 7 + list(SCORES)])})


def vista(root: Path) -> None:
    images(root / "images")
    rows = []
    for index, (name, score) in enumerate(zip(NAMES, SCORES, strict=True)):
        regions: list[dict[str, Any]] | None = [{"box": [10, 5, 30, 25], "kind": "noise"}] if index < 2 else []
        regions = None if index == 1 else regions
        row = {"image": f"images/{name}", "source": f"s{index // 2}", "split": "test" if index else "train"}
        rows.append({**row, "score": score, "scene": "bokeh" if index == 3 else "clean", "regions": regions})
    (root / "vista.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


LAYOUTS = (biq2021, koniq10k, spaq, kadid10k, tid2013, pipal, agiqa3k, clive, vista)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_published_layouts_are_recognised_and_read(tmp_path: Path, layout: Any) -> None:
    layout(tmp_path)
    name, cases = sets.read_set(tmp_path)
    assert name == layout.__name__
    assert tuple(case.score for case in cases) == SCORES
    assert all(case.path.is_file() for case in cases)
    pairs = layout in (kadid10k, tid2013, pipal, vista)
    assert len({case.group for case in cases}) == (2 if pairs else 4)


def test_every_layout_is_tested() -> None:
    assert {layout.__name__ for layout in LAYOUTS} == set(sets.LAYOUTS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.png", "1", "x"), ("z.png", "2", "x")], "line 3: .*z.png is missing"),
        ([("a.png", "1", "x"), ("b.png", "nan", "x")], "line 3: the score of b.png is 'nan'"),
        ([("a.png", "", "x")], "line 2: the score of a.png is ''"),
        ([("a.png", "1", "x"), ("b.png", "1", "x"), ("a.png", "2", "x")], "line 4: a.png is already in line 2"),
        ([], "has no rows"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
    images(tmp_path / "images")
    write_csv(tmp_path / "mos.csv", ["filename", "mos", "subset"], rows)
    with pytest.raises(sets.SetError, match=message):
        sets.read_set(tmp_path)


def test_what_is_no_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(sets.SetError, match=r"is none of vista \(vista.jsonl\)"):
        sets.read_set(tmp_path)
    with pytest.raises(sets.SetError, match="is no folder"):
        sets.read_set(tmp_path / "none")
    write_csv(tmp_path / "mos.csv", ["file", "mos"], [("a.png", 1)])
    with pytest.raises(sets.SetError, match="has no column 'filename'"):
        sets.read_set(tmp_path)


# Figures


def judged(*boxes: tuple[int, int, int, int, str, float], score: float = 3.0) -> Any:
    return scorers.Judged(score, 1.0, list(boxes))


def case(
    *regions: tuple[tuple[int, int, int, int], str], score: float = 3.0, scene: str = "clean", group: str = "g"
) -> Any:
    known = tuple({"box": list(box), "kind": kind} for box, kind in regions)
    return sets.Case(Path("x.png"), score, group, "test", scene, known)


def test_boxes_are_matched_once_and_by_confidence() -> None:
    truth = case(((0, 0, 100, 100), "noise"), ((200, 0, 300, 100), "defocus"))
    found = judged((0, 0, 100, 90, "noise", 0.9), (0, 0, 100, 100, "noise", 0.8), (205, 0, 300, 100, "noise", 0.7))
    got = accuracy.matched(found, truth)
    assert (got.found, got.right, got.boxes, got.regions) == (2, 1, 3, 2)
    assert got.iou == pytest.approx(0.9)
    assert accuracy.matched(judged(), truth) == accuracy.Matched(0.0, 0, 0, 0, 2)
    many = judged(*[(500, 500, 510, 510, "noise", 0.9)] * 4, (0, 0, 100, 100, "noise", 0.1))
    assert accuracy.matched(many, truth).found == 0  # the fifth does not count


def test_localisation_by_hand() -> None:
    cases = [
        case(((0, 0, 100, 100), "noise"), group="a"),
        case(((0, 0, 100, 100), "noise"), group="b"),
        case(group="c"),
        case(group="d"),
        case(scene="bokeh", group="e"),
        case(scene="panned", group="f"),
    ]
    box = (0, 0, 100, 100, "noise", 0.9)
    wrong = (0, 0, 100, 20, "defocus", 0.5)
    rows = accuracy.localisation(cases, [judged(box), judged(wrong), judged(box), judged(), judged(), judged()])
    assert rows["precision"].value == pytest.approx(1 / 3)
    assert rows["recall"].value == pytest.approx(1 / 2)
    assert rows["f1"].value == pytest.approx(2 / 5)
    assert rows["kind_right"].value == 1
    assert rows["iou"].value == pytest.approx((1 + 0.2) / 2)
    assert rows["false_alarms_clean"].value == pytest.approx(1 / 2)
    assert rows["false_alarms_bokeh"].value == 0


def test_agreement_of_a_monotone_guess() -> None:
    truth = np.linspace(1, 5, 30)
    cases = [case(score=float(t), group=str(i)) for i, t in enumerate(truth)]
    rows = accuracy.agreement(cases, [judged(score=float(np.tanh((t - 3) / 1.5))) for t in truth])
    assert rows["srcc"].value == pytest.approx(1)
    assert rows["krcc"].value == pytest.approx(1)
    assert rows["plcc"].value > 0.99
    assert rows["rmse"].value < 0.15
    turned = accuracy.agreement(cases, [judged(score=-float(t)) for t in truth])
    assert turned["srcc"].value == pytest.approx(-1)
    failed = accuracy.agreement(cases, [judged(score=float("nan") if t == truth[0] else float(t)) for t in truth])
    assert failed["srcc"].value > 0.99  # the worst image, on which it failed, counts as its worst


def test_ranks_within_domains_are_not_ranks_of_domains() -> None:
    """All of one domain above all of the other is most of what a correlation over both sees."""
    truth, domains = np.array([1.0, 2, 3, 4, 11, 12, 13, 14]), np.array([0.0] * 4 + [1] * 4)
    assert measures.srcc_within(-truth + 20 * domains, truth, domains) == pytest.approx(-1)
    assert measures.srcc(-truth + 30 * domains, truth) > 0.4
    one_more = np.append(truth, 5.0), np.append(domains, 2.0)
    assert measures.srcc_within(one_more[0], one_more[0], one_more[1]) == pytest.approx(1), "one photo has no rank"


def test_peoples_scores_and_the_proxy_are_ranked_apart() -> None:
    proxy = [case(score=1.0 + i / 10, group=str(i)) for i in range(10)]
    people = [dataclasses.replace(case(score=5.0 - i / 10, group=f"p{i}"), regions=None) for i in range(10)]
    answers = [judged(score=1.0 + i / 10) for i in range(10)]
    rows = accuracy.by_scale([*proxy, *people], [*answers, *answers])
    assert (rows["images"], rows["images_people"]) == (10, 10)
    assert rows["srcc"].value == pytest.approx(1)
    assert rows["srcc_people"].value == pytest.approx(-1)
    alone = accuracy.by_scale(people, answers)
    assert alone["srcc"].value == pytest.approx(-1)
    assert "srcc_people" not in alone
    few = accuracy.by_scale([*proxy, *people[:2]], [*answers, *answers[:2]])
    assert few["images_people"] == 2
    assert "srcc_people" not in few


# The command


def test_a_table_and_json_of_a_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vista(tmp_path)
    monkeypatch.setattr(measures, "RESAMPLES", 50)
    results = tmp_path / "results.jsonl"
    arguments = [
        str(tmp_path),
        "--scorers",
        "nano@0",
        "nano@1",
        "nano@1:random",
        "nano@0:scan",
        "nano@0:large",
        "nano@1:clean",
    ]
    assert accuracy.main([*arguments, "--json", "--results", str(results)]) == 0
    got = json.loads(capsys.readouterr().out)
    assert [row["scorer"] for row in got["rows"]] == arguments[2:]
    assert all((row["images"], row["images_people"], len(row["srcc"])) == (3, 1, 3) for row in got["rows"])
    assert all("f1" in row for row in got["rows"][:-1])
    assert "crop_shift" in got["rows"][-1]
    # Killed in the middle of a line; what is kept is not judged again.
    lines = results.read_text().splitlines()
    assert len(lines) == 24
    for index, line in enumerate(lines):
        lines[index] = json.dumps({**json.loads(line), "score": 1 + index % 4, "ms": 7.0})
    results.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    assert accuracy.main([*arguments, "--json", "--results", str(results)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["ms"] for row in again["rows"]][:4] == [7.0] * 4
    assert accuracy.main([str(tmp_path), "--scorers", "nano@0", "--split", "test"]) == 0
    assert "vista, test" in capsys.readouterr().out


def test_wrong_commands_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    biq2021(tmp_path)
    for arguments, message in (
        ([str(tmp_path), "--scorers", "what"], "what: give BUNDLE@PROBES"),
        ([str(tmp_path), "--scorers", "brisque"], "needs --peers-python"),
        ([str(tmp_path), "--split", "dev"], "too few to rank"),
        ([str(tmp_path), "--scorers", "nano@1:clean"], "nano@1:clean: needs a set whose regions are known"),
        ([str(tmp_path / "none")], "is no folder"),
        ([str(tmp_path), "--scorers", f"{tmp_path}@1"], "accuracy.py: "),
    ):
        assert accuracy.main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    (tmp_path / "images" / "a.png").write_bytes(b"no photo")
    assert accuracy.main([str(tmp_path), "--scorers", "nano@0"]) == 2
    assert "a.png" in capsys.readouterr().err


def test_peers_rank_the_same_photos(tmp_path: Path) -> None:
    """Each in a process of its own; a photo that one fails on gets its worst score."""
    gates = script("gates", "benchmarks")
    python = tmp_path / "python"  # the number in a photo's name, backwards for PIQE
    python.write_text(
        '#!/bin/sh\nsign=; [ "$2" = piqe ] && sign=-\n'
        'while read -r path; do n=$(basename "$path" .png); [ "$n" = 1 ] && echo nan || echo "$sign$n"; done\n'
    )
    python.chmod(0o755)
    photos = [gates.Rated(tmp_path / f"{n}.png", 1 + n / 4, "test") for n in range(1, 13)]
    rows = gates.peer_rows(python, photos)
    assert {name: row.value for name, row in rows.items() if name != "piqe_srcc"} == {
        "brisque_srcc": pytest.approx(1, abs=0.01),
        "niqe_srcc": pytest.approx(1, abs=0.01),
        "image_quality_ai_srcc": pytest.approx(1, abs=0.01),
    }
    # The first, which would be its best, is as bad as its worst.
    given = [-12, *range(-2, -13, -1)]
    assert rows["piqe_srcc"].value == pytest.approx(measures.srcc(np.array(given), np.arange(12)), abs=1e-6)
    assert set(gates.peer_rows(None, photos).values()) == {None}


def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    """Of the same model and data only, and not with a line that was being written when it was killed."""
    kept_rows = script("kept_rows", "benchmarks")
    path, asked = tmp_path / "rows.jsonl", []

    def measure() -> dict[str, Any]:
        asked.append(1)
        return {"srcc": measures.Estimate(0.5, 0.25, 0.75), "photos": 3.0, "peer": None}

    def part(name: str, model: str) -> dict[str, Any]:
        rows: dict[str, Any] = kept_rows.KeptRows(path, {"model": model, "limit": None}).part(name, measure)
        return rows

    first = part("rated", "a")
    assert part("rated", "a") == first == measure()
    assert len(asked) == 2
    for name, model in (("rated", "b"), ("vista 3", "a")):  # another model, another part
        part(name, model)
    assert len(asked) == 4
    text = path.read_text()
    path.write_text(text[: len(text) - 20])
    part("rated", "b")
    part("vista 3", "a")
    assert len(asked) == 5
    kept_rows.KeptRows(None, {}).part("rated", measure)
    assert len(asked) == 6
