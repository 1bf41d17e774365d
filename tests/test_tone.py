"""Light and colour: statistics answer to what they are for, lessons are as drawn, and tone has its share."""

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

torch = library("torch")
known = script("tone")
measure, bands = script("tone_statistics"), script("bands")
lessons = script("tone_lessons")
perceive, train, visual = script("perceive"), script("train"), script("visual")
defects, encode, render, runs = script("defects"), script("encode"), script("render"), script("runs")
BANK = script("degradations").BANK


@torch.inference_mode()
def measured(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w, 3) -> (CHANNELS,)."""
    found: NDArray[np.float32] = measure.ToneStatistics()(torch.from_numpy(encode.normalised(pixels)))[0].numpy()
    assert found.shape == (measure.CHANNELS,)
    return found


def photo(seed: int = 0, height: int = 512, width: int = 640) -> NDArray[np.uint8]:
    """Coloured shapes on a soft ground, with grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([90 + x * 60 / width, 120 - y * 50 / height, 100 + 20 * np.sin(x / 90)], 2)
    for _ in range(14):
        top, left = rng.integers(0, height), rng.integers(0, width)
        pixels[top : top + height // 5, left : left + width // 6] += rng.uniform(-80, 80, 3)
    return np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


def after(**counts: int) -> dict[str, slice]:
    """Where in the statistics each group lies."""
    found, at = {}, 0
    for name, count in counts.items():
        found[name] = slice(at, at + count)
        at += count
    assert at == measure.CHANNELS
    return found


GROUPS = after(
    ends=measure.OF_ENDS,
    lights=len(measure.LIGHTS) * measure.OF_LIGHT,
    steps=measure.OF_STEPS,
    near=len(measure.PLACES),
    skew=len(measure.AFTER),
    touching=len(measure.TOUCHING),
    rows=bands.CHANNELS,
    columns=bands.CHANNELS,
)


@torch.inference_mode()
def waves(pixels: NDArray[np.uint8]) -> tuple[Any, Any, Any]:
    """What Bands makes of the light of a photo's rows."""
    small = pixels.reshape(pixels.shape[0] // 4, 4, pixels.shape[1] // 4, 4, 3).mean((1, 3)) / 255
    light = np.log((small @ (0.299, 0.587, 0.114)) ** 2.2 + 0.01)
    return tuple(each.numpy() for each in bands.Bands().waves(torch.from_numpy(light).float()))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(4))
def test_rolling_bands_show_at_their_frequency(seed: int) -> None:
    """Depth .22, level 4; told from the photo as it was, and from its columns."""
    clean = photo(seed)
    rows = np.arange(clean.shape[0])
    period = (70.0, 90.0, 120.0, 180.0)[seed]
    gain = 1 - 0.22 * (1 + np.sin(2 * np.pi * rows / period + seed)) / 2
    banded = np.clip(clean * gain[:, None, None] ** (1 / 2.2), 0, 255).astype(np.uint8)
    before, now = waves(clean), waves(banded)
    # What so many rows tell apart.
    rise = now[0] - before[0]
    assert abs(bands.FREQUENCIES[int(rise.argmax())] - 1 / period) < 1 / clean.shape[0]
    assert now[2].max() > 1.5 * before[2].max()
    sure = 2  # in CHANNELS
    told = [measured(pixels)[GROUPS[axis]][sure] for pixels in (clean, banded) for axis in ("rows", "columns")]
    assert told[2] > 1.5 * told[0]
    assert abs(told[3] - told[1]) < 0.5 * (told[2] - told[0])


@torch.inference_mode()
def test_a_band_has_the_strength_of_its_amplitude() -> None:
    """Of the logarithm of light: a wave of amplitude a, seen through a sine window, has a / pi."""
    rows, a, f = np.arange(640), 0.05, bands.FREQUENCIES[12]
    light = torch.from_numpy((a * np.sin(2 * np.pi * f * 4 * rows[: 640 // 4]))[:, None].repeat(160, 1)).float()
    together, alike, _ = bands.Bands().waves(light)
    assert_allclose(float(together[12]), a / np.pi, rtol=0.1)
    assert_allclose(float(alike[12]), 1, atol=0.02)


def test_colour_that_runs_sideways_changes_less_across_than_down() -> None:
    clean = photo()
    bled = BANK["chroma_bleed"](clean, 4, 1)
    change = measured(bled)[GROUPS["steps"]] - measured(clean)[GROUPS["steps"]]
    for step in range(len(measure.NEAR_STEPS) + len(measure.FAR_STEPS)):
        at = step * measure.OF_STEP + measure.PLANES
        against = change[at : at + measure.PLANES]
        assert abs(against[0]) < 0.1  # of luma
        assert (against[1:] < -0.3).all()


@pytest.mark.parametrize("move", [(0, 4), (6, 0), (-4, 0), (2, 2), (0, 0)])
def test_one_colour_beside_the_others_correlates_where_it_lies(move: tuple[int, int]) -> None:
    """Green moved by so many px down and right."""
    moved = photo()
    moved[..., 1] = np.roll(moved[..., 1], move, (0, 1))
    near = measured(moved)[GROUPS["near"]]
    assert measure.PLACES[int(near.argmax())] == (-move[0] // 2, -move[1] // 2)
    skew = dict(zip(measure.AFTER, measured(moved)[GROUPS["skew"]], strict=True))
    for (down, right), found in skew.items():
        against = near[measure.PLACES.index((down, right))] - near[measure.PLACES.index((-down, -right))]
        assert_allclose(found, against, atol=1e-5)


def test_ends_tell_what_is_lifted_and_what_is_clipped() -> None:
    """A photo from black to white: lifted, nothing of it is nearly black; clipped, much of it is white."""
    ramp = np.repeat(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], 128, 0).repeat(3, 2)

    def shares(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(red, green, blue, luma, most, least; from black, from white; ENDS)"""
        count = 12 * len(measure.ENDS)
        return np.exp(measured(pixels)[GROUPS["ends"]][:count].reshape(6, 2, -1)) - measure.FEW

    plain, lifted = shares(ramp), shares((40 + ramp * (215 / 255)).astype(np.uint8))
    bright = shares(np.minimum(ramp.astype(int) * 2, 255).astype(np.uint8))
    assert_allclose(plain, np.broadcast_to(measure.ENDS, plain.shape), atol=0.01)
    assert (lifted[:, 0, :8] < 1e-3).all()  # .15 is darker than the darkest
    assert_allclose(bright[:, 1, 2], 0.5 + measure.ENDS[2] / 2, atol=0.02)


def test_light_is_told_apart_and_with_its_colour() -> None:
    """Dark red beside bright grey."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:, :64] = (90, 20, 20)
    pixels[:, 64:] = 200
    told = measured(pixels)[GROUPS["lights"]].reshape(measure.OF_LIGHT, len(measure.LIGHTS))
    dark, bright = (int(np.abs(np.array(measure.LIGHTS) - luma / 255).argmin()) for luma in (40.9, 200))
    assert np.isin(np.argsort(told[0])[-4:], [dark - 1, dark, dark + 1, bright - 1, bright, bright + 1]).all()
    assert_allclose(told[2, [dark, bright]], [70 / 255, 0], atol=0.02)  # largest channel less the least
    assert_allclose(told[3, [dark, bright]], [70 / 255, 0], atol=0.02)  # red less green


def test_a_flat_photo_has_finite_statistics() -> None:
    for grey in (0, 77, 255):
        assert np.isfinite(measured(np.full((64, 64, 3), grey, np.uint8))).all()


@torch.inference_mode()
def test_who_was_taught_nothing_changes_nothing() -> None:
    said = torch.tensor([[1.5, 2.0, 3.0, 4.0, 4.5]])
    tone = known.Tone(5).eval()
    assert torch.equal(tone(torch.randn(1, measure.CHANNELS), said), said)
    tone.share[2], tone.middle[2] = 0.5, 4.0
    assert_allclose(tone(torch.zeros(1, measure.CHANNELS), said), [[1.5, 2.0, 3.5, 4.0, 4.5]])


def config_of(tmp_path: Path, **keys: Any) -> Any:
    return lessons.Config(tmp_path, tmp_path, **{"lessons": 512, "epochs": 12, **keys})


def test_tone_learns_what_it_is_taught_and_nothing_else(tmp_path: Path) -> None:
    """Statistics that eight things move, one of which spoils the exposure."""
    torch.manual_seed(3)
    moved = torch.randn(1280, 8)
    statistics = moved @ torch.randn(8, measure.CHANNELS)
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
    dark = measure.ENDS.index(0.11)  # of red
    assert (made.statistics[:, dark] > np.log(0.9)).all()


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
