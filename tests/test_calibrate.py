"""The factor that makes score_std as wide as the errors are, and the contract it is written to."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import plain_contract, script

from qcheck.contract import CONTRACT_FILE, Contract

calibrate = script("calibrate")


def test_two_in_three_errors_are_within_the_scaled_spread() -> None:
    rng = np.random.default_rng(3)
    spreads = rng.uniform(0.2, 0.6, 400)
    errors = np.abs(rng.normal(0, 1.7 * spreads))
    scale = calibrate.scale_of(errors.tolist(), spreads.tolist())
    assert scale == pytest.approx(1.7, rel=0.1)
    assert np.mean(errors <= scale * spreads) == pytest.approx(calibrate.COVERED, abs=0.005)


def test_a_handful_of_photos_is_too_few() -> None:
    with pytest.raises(calibrate.TooFewPhotos, match=r"3 development photos .* 30 or more"):
        calibrate.scale_of([0.1] * 3, [0.2] * 3)


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose judge is off by 0.3 on every photo, says a spread of 0.6, and is scaled as its contract says."""
    contract = tmp_path / CONTRACT_FILE

    class Judge:
        def __init__(self, engine: Any) -> None:
            self.scale = Contract.from_json(contract.read_text()).score_std_scale

        def judge(self, photo: float, limits: Any) -> Any:
            return SimpleNamespace(score=photo + 0.3, score_std=0.6 * self.scale)

    contract.write_text(plain_contract().to_json())
    monkeypatch.setattr(calibrate, "Prober", Judge)
    monkeypatch.setattr(calibrate.Engine, "open", lambda bundle: None)
    monkeypatch.setattr(calibrate.Photo, "open", lambda path: float(path.name))
    read = Contract.from_json
    opened = lambda path: SimpleNamespace(contract=read((path / CONTRACT_FILE).read_text()))  # noqa: E731
    monkeypatch.setattr(calibrate.Bundle, "open", opened)
    return tmp_path


def test_the_contract_gets_it_and_nothing_else_changes(judged: Path) -> None:
    photos = [(Path(f"{score:.2f}"), score) for score in np.linspace(1, 4, 31).round(2).tolist()]
    for _ in range(2):  # the second time from a contract that has one
        assert calibrate.calibrate(judged, photos) == pytest.approx(0.5)
        found = Contract.from_json((judged / CONTRACT_FILE).read_text())
        assert found == dataclasses.replace(plain_contract(), score_std_scale=0.5)
