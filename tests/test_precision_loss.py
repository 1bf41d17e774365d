"""benchmarks/precision_loss.py: what is counted as the same conversation, and what is lost in rank."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import script

from qcheck.tiles import Box

precision_loss = script("precision_loss", "benchmarks")
Case = precision_loss.Case


def verdict(score: float, left: int = 0, level: str = "obvious", crop: int = 0, words: str = "Dim.") -> Any:
    defect = SimpleNamespace(kind="noise", level=level, box=Box(left, 0, left + 8, 8))
    probe = SimpleNamespace(box=Box(crop, 0, crop + 64, 64))
    return SimpleNamespace(score=score, defects=(defect,), probes=(probe,), reasoning=words)


def cases(scores: list[float]) -> list[Any]:
    return [Case(Path(f"{n}.png"), score, f"{n}") for n, score in enumerate(scores)]


def test_a_bundle_beside_itself_has_lost_nothing() -> None:
    said = [verdict(score) for score in (1.5, 2.5, 3.0, 4.5)]
    row = precision_loss.row_of(said, said, cases([1, 2, 3, 4]))
    assert (row["same"], row["same_crops"], row["score_off"]) == (1, 1, 0)
    assert row["srcc"].value == pytest.approx(1)
    assert (row["srcc_lost"].low, row["srcc_lost"].high) == (0, 0)


def test_a_conversation_differs_by_its_crops_its_words_or_its_defects() -> None:
    reference = [verdict(score) for score in (1.0, 2.0, 3.0, 4.0, 5.0)]
    other = [
        verdict(2.0),
        verdict(1.0, left=1),
        verdict(3.0, level="severe"),
        verdict(4.0, crop=1),
        verdict(5.5, words="Bright."),
    ]
    row = precision_loss.row_of(other, reference, cases([1, 2, 3, 4, 5]))
    assert row["same"] == pytest.approx(1 / 5)  # a score of its own is told by `score_off`
    assert row["same_crops"] == pytest.approx(4 / 5)
    assert row["score_off"] == pytest.approx((1 + 1 + 0.5) / 5)
    assert row["srcc_lost"].value == pytest.approx(0.1)  # two neighbours of five changed places


def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vista.jsonl").write_text("")
    monkeypatch.setattr(precision_loss, "rated_photos", lambda folder: [])
    gone = str(tmp_path / "gone")
    monkeypatch.setattr(sys, "argv", ["precision_loss.py", gone, "--rated", str(tmp_path), "--vista", gone])
    assert precision_loss.main() == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_images_are_drawn_evenly_and_only_unseen_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [Case(Path(f"{n}.png"), n, "one", split="test" if n % 2 else "train") for n in range(20)]
    monkeypatch.setattr(precision_loss, "read_set", lambda folder: ("vista", seen))
    photos = [SimpleNamespace(path=Path(f"{n}.jpg"), score=n, split="test" if n < 6 else "dev") for n in range(9)]
    monkeypatch.setattr(precision_loss, "rated_photos", lambda folder: photos)
    drawn = precision_loss.cases_of(tmp_path, 2, tmp_path, 3)
    assert [case.score for case in drawn["rated"]] == [0, 2, 4]
    assert [case.score for case in drawn["vista"]] == [1, 9, 19]
