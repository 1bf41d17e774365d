"""Light and colour: statistics answer to what they are for, lessons are as drawn, and tone corrects by half."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script
from shapes import photo

torch = library("torch")
known = script("tone")
lessons = script("tone_lessons")
perceive, train, visual = script("perceive"), script("train"), script("visual")
defects, encode, render, runs = script("defects"), script("encode"), script("render"), script("runs")
BANK = script("degradations").BANK

SHARES = 6 * len(known.DARKER)
BANDS = slice(-2 * known.OF_AXIS, -known.OF_AXIS)  # of rows; then of columns
COLUMNS = slice(-known.OF_AXIS, None)
COUNT = len(known.FREQUENCIES)
OF_STEP = 3 * known.PLANES + 2 * (known.PLANES - 1)


@torch.inference_mode()
def measured(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w, 3) -> (CHANNELS,)."""
    found: NDArray[np.float32] = known.ToneStatistics()(torch.from_numpy(encode.normalised(pixels)))[0].numpy()
    assert found.shape == (known.CHANNELS,)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_rolling_bands_show_at_their_frequency(seed: int) -> None:
    """Depth .22, level 4; told from the photo as it was, and from its columns."""
    clean = photo(seed)
    rows = np.arange(clean.shape[0])
    period = (70.0, 90.0, 120.0, 180.0)[seed]
    gain = 1 - 0.22 * (1 + np.sin(2 * np.pi * rows / period + seed)) / 2
    banded = np.clip(clean * gain[:, None, None] ** (1 / 2.2), 0, 255).astype(np.uint8)
    before, after = measured(clean), measured(banded)
    rise = np.exp(after[BANDS][:COUNT]) - np.exp(before[BANDS][:COUNT])
    # What so many rows tell apart.
    assert abs(known.FREQUENCIES[int(rise.argmax())] - 1 / period) < 1 / clean.shape[0]
    sure = slice(2 * COUNT, 3 * COUNT)
    assert after[BANDS][sure].max() > 1.5 * before[BANDS][sure].max()
    assert abs(np.exp(after[COLUMNS][:COUNT]) - np.exp(before[COLUMNS][:COUNT])).max() < 0.2 * rise.max()


def test_a_band_has_the_strength_of_its_amplitude() -> None:
    """Of the logarithm of light: a wave of amplitude a, seen through a sine window, has a / pi."""
    rows, a, f = np.arange(640), 0.05, known.FREQUENCIES[12]
    light = torch.from_numpy((a * np.sin(2 * np.pi * f * 4 * rows[: 640 // 4]))[:, None].repeat(160, 1)).float()
    found = known.ToneStatistics().bands(light)
    assert_allclose(np.exp(float(found[12])) - 1e-4, a / np.pi, rtol=0.1)
    assert_allclose(float(found[COUNT + 12]), 1, atol=0.02)  # alike in all columns


def test_colour_that_runs_sideways_changes_less_across_than_down() -> None:
    clean = photo()
    bled = BANK["chroma_bleed"](clean, 4, 1)
    at = SHARES + len(known.GREYER) + 2 * len(known.OPPOSED) + 2 * known.PLANES + 3 * (known.PLANES + 1) + known.PLANES
    for step in range(len(known.STEPS)):
        against = slice(at + step * OF_STEP + 2 * known.PLANES, at + step * OF_STEP + 3 * known.PLANES)
        change = measured(bled)[against] - measured(clean)[against]
        assert abs(change[0]) < 0.1  # of luma
        assert (change[1:] < -0.5).all()


def test_shares_are_those_of_the_pixels() -> None:
    """Half black, half of one colour: whatever is farther from the thresholds than their softness is counted whole."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:, 64:] = (255, 128, 0)
    shares = measured(pixels)[:SHARES].reshape(6, -1)
    assert_allclose(shares[0, 1:], 0.5, atol=0.05)  # red: 0 or 1
    assert_allclose(shares[2, 1:], 1, atol=0.1)  # no blue
    least, most = shares[5], shares[4]
    assert (least >= most - 1e-6).all()
    saturation = measured(pixels)[SHARES : SHARES + len(known.GREYER)]
    assert_allclose(saturation[1:-1], 0.5, atol=0.05)


def test_a_flat_photo_has_finite_statistics() -> None:
    for grey in (0, 77, 255):
        assert np.isfinite(measured(np.full((64, 64, 3), grey, np.uint8))).all()


@torch.inference_mode()
def test_who_was_taught_nothing_changes_nothing() -> None:
    said = torch.tensor([[1.5, 2.0, 3.0, 4.0, 4.5]])
    tone = known.Tone(5).eval()
    assert torch.equal(tone(torch.randn(1, known.CHANNELS), said), said)
    tone.share[2], tone.middle[2] = 0.5, 4.0
    assert_allclose(tone(torch.zeros(1, known.CHANNELS), said), [[1.5, 2.0, 3.5, 4.0, 4.5]])


def config_of(tmp_path: Path, **keys: Any) -> Any:
    return lessons.Config(tmp_path, tmp_path, **{"lessons": 512, "epochs": 12, **keys})


def test_tone_learns_what_it_is_taught_and_nothing_else(tmp_path: Path) -> None:
    """Statistics that eight things move, one of which spoils the exposure."""
    torch.manual_seed(3)
    moved = torch.randn(1280, 8)
    statistics = moved @ torch.randn(8, known.CHANNELS)
    truth = 3 + torch.randn(1280, 5)
    truth[:, 3] = (3 + moved[:, 2]).clamp(1, 5)
    tone = known.Tone(5)
    lessons.learn(tone, lessons.Lessons(statistics[:1024], truth[:1024]), [3], [3], config_of(tmp_path))
    found = lessons.ranked(tone, lessons.Lessons(statistics[1024:], truth[1024:]), [3], [3])
    assert found["dev_exposure_srcc"] > 0.8
    assert tone.share.tolist() == [0, 0, 0, lessons.SHARE, 0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clean photos, of both splits."""
    folder = tmp_path_factory.mktemp("photos")
    lines = ["file,role,split"]
    for index, split in enumerate(("train", "train", "dev")):
        Image.fromarray(photo(index, 256, 320)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,pristine,{split}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_lessons_are_what_was_drawn(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics are of the photo after all that broke it, the truth of all that did."""
    given = list[int]()
    monkeypatch.setattr(
        lessons, "broken_all_over", lambda pixels, rng: iter([("darken", 5, pixels // 8), ("jpeg", 2, pixels // 16)])
    )
    drawn = lessons.drawn
    monkeypatch.setattr(lessons, "drawn", lambda pixels, view: given.append(pixels.max()) or drawn(pixels, view))
    made = lessons.made(lessons.Photos(lessons.Config(photos, photos), "train"), 3, np.random.default_rng(1))
    assert len(given) == 3
    assert max(given) <= 255 // 16
    drop = render.LEVEL_DROP
    clean = defects.CLEAN_SCORE
    assert_allclose(made.truth, [[clean, clean, clean, clean - 5 * drop, clean - 2 * drop]] * 3)
    assert (made.statistics[:, 5] > 0.9).all()  # nearly all red samples are darker than .25


def test_the_stage_writes_what_the_eyes_take(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "tone", tmp_path / "tone.toml"
    file.write_text(
        f'[tone]\nphotos = "{photos}"\nout = "{out}"\nlessons = {lessons.BATCH}\nepochs = 2\nworkers = 1\nthreads = 1\n'
    )
    assert train.main(["perceive", "--config", str(file)]) == 0
    assert "dev_exposure_srcc" in (out / "metrics.json").read_text()
    made = out / "lessons-0.pt"
    stamp = made.stat().st_mtime_ns
    assert train.main(["perceive", "--config", str(file)]) == 0  # goes on from the lessons that are there
    assert made.stat().st_mtime_ns == stamp
    assert train.main(["perceive", "--config", str(file), "--restart"]) == 0
    assert made.stat().st_mtime_ns > stamp
    settings = perceive.Config(tmp_path, tmp_path, tone=out / "tone.pt")
    eyes = perceive.first_eyes(settings, defects.PHOTOS)
    assert eyes.tone.share.tolist() == [0, 0, lessons.SHARE, lessons.SHARE, 0]
    assert_allclose(eyes.tone.std, torch.load(made, weights_only=True)["statistics"].std(0) + lessons.LEAST_SPREAD)
    with pytest.raises(runs.RunError, match="other attributes"):
        perceive.first_eyes(settings, defects.Domain({"scratch": "gloss"}, ("gloss",)))


def test_wrong_configs_are_one_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(text: str) -> str:
        file = tmp_path / "wrong.toml"
        file.write_text(f'[tone]\nphotos = "{photos}"\nout = "{tmp_path / "out"}"\n{text}\n')
        assert train.main(["perceive", "--config", str(file)]) == 2
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return printed.err

    assert "lessons must be" in said("lessons = 3")
    assert "'gloss'" in said('attributes = ["gloss"]')
    assert "lesson" in said("lesson = 300")


def test_a_domain_without_light_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(runs.RunError, match=r"no 'color'.*gloss"):
        lessons.teach(lessons.Config(photos, tmp_path), defects.Domain({"scratch": "gloss"}, ("gloss",)))


def test_a_set_without_clean_photos_says_so(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("file,role,split\n")
    with pytest.raises(runs.RunError, match="no clean photo of the train split"):
        lessons.Photos(lessons.Config(tmp_path, tmp_path), "train")


@torch.inference_mode()
def test_the_vision_side_says_attributes_by_its_light() -> None:
    """Half of what the cells say and half of what tone does, of views and of overviews."""
    torch.manual_seed(4)
    side = visual.NanoVisual(32).eval()
    side.perception.tone.share[3], side.perception.tone.middle[3] = 0.5, 1.0
    pixels = torch.from_numpy(encode.normalised(photo()[:256, :320]))
    survey = torch.zeros(1, 4, 5, 8)
    evidence, judged = side.seen(pixels, survey, pixels, torch.zeros(1, 1))
    centre = script("nano_spec").SCORE_CENTRE
    assert_allclose(evidence.attributes, [centre, centre, centre, (centre + 1) / 2, centre], atol=1e-5)
    assert float(judged) < centre  # falls towards its worst attribute
    assert asdict(defects.PHOTOS)["attributes"][3] == "exposure"
