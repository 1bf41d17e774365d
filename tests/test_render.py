"""Rendered training views: fixed by their seed, true to what the runtime shows, and with the truth in its place."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

import oracle
from fake_model import library, script

from qcheck.tiles import Box, view_of

ndimage = library("scipy.ndimage")
render = script("render")
photos = script("photos")
stores = script("stores")
scores = script("vista_score")
PHOTOS, CLEAN_SCORE = script("defects").PHOTOS, script("defects").CLEAN_SCORE

SEEDS = range(8)
Pixels = NDArray[np.uint8]
Made = tuple[dict[str, Any], list[tuple[dict[str, Any], Pixels, NDArray[np.float32] | None]]]
# A photo, the box of it that was shown, and how: everything that a view was made from.
Shown = tuple[Pixels, Box, Any]


def textured(width: int, height: int, seed: int) -> Pixels:
    """Something at every scale, in colour."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 118.0)
    for sigma in (0.7, 1.5, 3, 12):
        grain = ndimage.gaussian_filter(rng.normal(0, 1, total.shape), (sigma, sigma, 0))
        total += 14 * grain / grain.std()
    return np.clip(total, 0, 255).astype(np.uint8)


CLEAN = textured(420, 330, 1)


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("rated") / "some.png"
    Image.fromarray(textured(300, 260, 2)).save(path)
    return photos.Rated(path, 3.9, "train")


def makers(rated: Any) -> dict[str, Callable[[np.random.Generator], Any]]:
    return {
        "rated": lambda rng: render.rated_sample(rated, [rated], rng),
        "patched": lambda rng: next(render.patched_pair(rated, rng)),
        "whole": lambda rng: render.whole_sample("train", "some", CLEAN, CLEAN_SCORE, rng),
        "local": lambda rng: next(render.local_pair("train", "some", CLEAN, CLEAN_SCORE, rng)),
    }


KINDS = ("rated", "patched", "whole", "local")


def made(maker: Callable[[np.random.Generator], Any], seed: int) -> Made:
    sample, views = maker(np.random.default_rng(seed))
    return sample, list(views)


@pytest.fixture(scope="module")
def samples(rated: Any) -> dict[str, list[tuple[Made, list[Shown]]]]:
    """A few samples of each kind, and what their views were made from."""
    shown: list[Shown] = []
    seen = render.seen

    def noted(pixels: Pixels, box: Box, spec: Any, role: str) -> Any:
        shown.append((pixels.copy(), box, spec))
        return seen(pixels, box, spec, role)

    found: dict[str, list[tuple[Made, list[Shown]]]] = {kind: [] for kind in KINDS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "seen", noted)
        for kind, maker in makers(rated).items():
            for seed in SEEDS:
                shown.clear()
                found[kind].append((made(maker, seed), list(shown)))
    return found


def each(samples: dict[str, list[tuple[Made, list[Shown]]]], *kinds: str) -> Iterator[tuple[dict[str, Any], Any]]:
    for kind in kinds:
        for (sample, views), _ in samples[kind]:
            yield sample, views


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_a_sample(kind: str, rated: Any) -> None:
    maker = makers(rated)[kind]
    (sample, views), (again, same), (_, others) = (made(maker, seed) for seed in (3, 3, 4))
    assert sample == again
    assert len(views) == len(same)
    for (about, pixels, map_), (about_, pixels_, survey_) in zip(views, same, strict=True):
        assert about == about_
        assert_array_equal(pixels, pixels_)
        assert (map_ is None) == (survey_ is None)
        if map_ is not None:
            assert_array_equal(map_, survey_)
    assert not all(a.shape == b.shape and (a == b).all() for (_, a, _), (_, b, _) in zip(views, others, strict=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_what_the_runtime_shows(kind: str, samples: dict[str, list[tuple[Made, list[Shown]]]]) -> None:
    """And a photo's first view has the survey of all of it."""
    for (_, views), shown in samples[kind]:
        assert views[0][0]["role"] == "global"
        for (about, pixels, map_), (photo, box, spec) in zip(views, shown, strict=True):
            assert about["box"] == box.as_list()
            assert spec == (render.GLOBAL_VIEW if about["role"] == "global" else render.CROP_VIEW)
            corners = (box.x1, box.y1, box.x2, box.y2)
            assert_array_equal(pixels, oracle.resized(photo, corners, view_of(box, spec).size))
            if about["role"] == "global":
                assert corners == (0, 0, photo.shape[1], photo.shape[0])
                assert_array_equal(map_, oracle.survey(photo))
            else:
                assert map_ is None


def test_defects_lie_in_the_photo_the_costliest_first(samples: dict[str, list[tuple[Made, list[Shown]]]]) -> None:
    count = 0
    for sample, views in each(samples, "patched", "whole", "local"):
        assert views[0][0]["box"] == [0, 0, sample["width"], sample["height"]]
        costs = [d["cost"] for d in sample["defects"]]
        assert costs == sorted(costs, reverse=True)
        for defect in sample["defects"]:
            x1, y1, x2, y2 = defect["box"]
            assert 0 <= x1 < x2 <= sample["width"]
            assert 0 <= y1 < y2 <= sample["height"]
            assert defect["kind"] == render.BANK[defect["name"]].kind
            assert defect["level"] in range(1, 6)
            assert 0 <= defect["cost"] <= 1
            count += 1
    assert count > len(SEEDS)


def test_scores_are_what_the_defects_leave(samples: dict[str, list[tuple[Made, list[Shown]]]]) -> None:
    clean = 0
    for kind, base in (("patched", 3.9), ("local", CLEAN_SCORE)):
        for sample, _ in each(samples, kind):
            expected = scores.score(base, [d["cost"] for d in sample["defects"]])
            assert sample["score"] == pytest.approx(expected, abs=1e-3)  # costs are rounded in the index
            clean += not sample["defects"]
    assert 0 < clean < 2 * len(SEEDS)


def test_a_defect_shows_in_the_pixels(samples: dict[str, list[tuple[Made, list[Shown]]]], rated: Any) -> None:
    """A patched photo differs from its original inside the box alone."""
    original = render.load(rated.path)
    for (sample, _), ((photo, _, _),) in samples["patched"]:
        h, w = photo.shape[:2]
        # A part, perhaps mirrored: found by its corner, which no defect of this size and place has touched everywhere.
        kept = np.ones((h, w), bool)
        for x1, y1, x2, y2 in (d["box"] for d in sample["defects"]):
            kept[y1:y2, x1:x2] = False
        places = [
            (plain, y, x)
            for plain in (original, original[:, ::-1])
            for y, x in np.argwhere(
                (plain[: plain.shape[0] - h + 1, : plain.shape[1] - w + 1] == photo[0, 0]).all(2)
                if kept[0, 0]
                else np.ones((plain.shape[0] - h + 1, plain.shape[1] - w + 1), bool)
            )
            if (plain[y : y + h, x : x + w][kept] == photo[kept]).all()
        ]
        assert len(places) == 1, sample["defects"]
        plain, y, x = places[0]
        for x1, y1, x2, y2 in (d["box"] for d in sample["defects"]):
            assert not np.array_equal(plain[y : y + h, x : x + w][y1:y2, x1:x2], photo[y1:y2, x1:x2])


def test_whole_samples_say_what_spoils_each_attribute(samples: dict[str, list[tuple[Made, list[Shown]]]]) -> None:
    sizes = set()
    for sample, _ in each(samples, "whole"):
        expected = dict.fromkeys(PHOTOS.attributes, CLEAN_SCORE)
        for defect in sample["defects"]:
            assert defect["box"] == [0, 0, sample["width"], sample["height"]]
            name = PHOTOS.attribute_of[defect["kind"]]
            expected[name] = min(expected[name], CLEAN_SCORE - render.LEVEL_DROP * defect["level"])
        assert sample["attributes"] == pytest.approx(expected)
        assert min(sample["attributes"].values()) >= 1
        assert 1 <= sample["score"] <= CLEAN_SCORE
        if not sample["defects"]:
            assert sample["score"] == CLEAN_SCORE
        # Two together cost about as much as the worse of them or more, never as little as none.
        if any(d["cost"] > 0.2 for d in sample["defects"]):
            assert sample["score"] < CLEAN_SCORE
        sizes.add(len(sample["defects"]))
    assert sizes == {0, 1, 2}


def test_local_samples_are_looked_at_where_they_are_broken(
    samples: dict[str, list[tuple[Made, list[Shown]]]],
) -> None:
    for sample, views in each(samples, "local"):
        boxes = [Box(*d["box"]) for d in sample["defects"]]
        roles = [about["role"] for about, _, _ in views]
        if boxes == [Box(0, 0, sample["width"], sample["height"])]:
            assert roles == ["global", "random", "random"], "all of it is broken: no place to aim at"
            continue
        near = ["near"] if boxes else []
        assert roles == ["global", *(f"truth{i}" for i in range(len(boxes))), *near, *["random"] * (1 if boxes else 2)]
        assert sample["scene"] in render.NEGATIVES
        for (about, pixels, _), box in zip(views[1:], boxes, strict=False):
            assert Box(*about["box"]).iou(box) > 0
            assert not any(side % 64 for side in pixels.shape[:2])


def test_a_scene_may_be_bad_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its one defect is all of it, every view of it differs from its twin's, and its score says so."""
    monkeypatch.setattr(render, "SPOILT_SHARE", 1.0)
    found = 0
    for seed in SEEDS:
        (sample, views), *rest = (
            (s, list(v)) for s, v in render.local_pair("train", "some", CLEAN, 4.1, np.random.default_rng(seed))
        )
        if not sample["defects"]:
            continue
        ((twin, plain),) = rest
        (defect,) = sample["defects"]
        assert defect["box"] == [0, 0, sample["width"], sample["height"]]
        assert sample["score"] == pytest.approx(scores.score(4.1, [defect["cost"]]), abs=1e-3)
        assert twin["score"] == 4.1
        for (about, pixels, _), (same, before, _) in zip(views, plain, strict=True):
            assert about == same
            assert not np.array_equal(pixels, before)
        found += 1
    assert found > 2


def test_some_scenes_are_of_photos_as_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another camera's nor saved again."""
    calls: list[str] = []
    monkeypatch.setattr(render, "varied", lambda pixels, _: calls.append("varied") or pixels)
    monkeypatch.setattr(render.Saving, "drawn", staticmethod(lambda _: calls.append("saved") or render.Saving(None, 0)))
    seen = []
    for seed in range(60):
        calls.clear()
        next(iter(render.local_pair("dev", "some", CLEAN, CLEAN_SCORE, np.random.default_rng(seed))))
        seen.append(tuple(calls))
    assert set(seen) == {(), ("varied", "saved")}
    assert 0.2 < seen.count(()) / len(seen) < 0.5


# As a JPEG with halved colours a photo changes in whole blocks of 16 px, and colours are smoothed into the next.
@pytest.mark.parametrize(("quality", "reach_px"), [(None, 2), (90, 20)])
def test_a_broken_training_sample_has_an_unbroken_twin(
    rated: Any, monkeypatch: pytest.MonkeyPatch, quality: int | None, reach_px: int
) -> None:
    """The same views of the same pixels, saved alike, but for the defects; nothing else has one."""
    monkeypatch.setattr(render.Saving, "drawn", staticmethod(lambda _: render.Saving(quality, 2)))
    other = photos.Rated(rated.path, 3.9, "dev")
    for maker, dev in (
        (
            lambda rng: render.local_pair("train", "some", CLEAN, CLEAN_SCORE, rng),
            lambda rng: render.local_pair("dev", "some", CLEAN, CLEAN_SCORE, rng),
        ),
        (lambda rng: render.patched_pair(rated, rng), lambda rng: render.patched_pair(other, rng)),
    ):
        found = 0
        for seed in SEEDS:
            assert len(list(dev(np.random.default_rng(seed)))) == 1
            (sample, views), *rest = ((s, list(v)) for s, v in maker(np.random.default_rng(seed)))
            assert len(rest) == bool(sample["defects"])
            for twin, plain in rest:
                found += 1
                assert twin["twin"]
                assert not twin["defects"]
                assert twin["score"] > sample["score"]
                assert [about for about, _, _ in views] == [about for about, _, _ in plain]
                boxes = [Box(*d["box"]) for d in sample["defects"]]
                for (about, pixels, _), (_, before, _) in zip(views, plain, strict=True):
                    box = Box(*about["box"])
                    y, x = np.nonzero((pixels != before).any(2))
                    assert len(y) or not any(box.iou(one) for one in boxes)
                    # A pixel of a view is made of some of the photo around it.
                    across, down = box.width / pixels.shape[1], box.height / pixels.shape[0]
                    for one in np.stack((box.x1 + across * (x + 0.5), box.y1 + down * (y + 0.5)), 1):
                        assert any(
                            b.x1 - 3 * across - reach_px <= one[0] <= b.x2 + 3 * across + reach_px
                            and b.y1 - 3 * down - reach_px <= one[1] <= b.y2 + 3 * down + reach_px
                            for b in boxes
                        )
        assert found > 2


def test_rated_samples_keep_their_score(rated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos to learn from have two more views, parts of them; others are seen as they are."""
    monkeypatch.setattr(render, "RATED_MOSAIC_SHARE", 0.0)
    for split, count in (("train", 3), ("dev", 1)):
        sample, views = made(
            lambda rng, s=split: render.rated_sample(photos.Rated(rated.path, 2.5, s), [rated], rng), 0
        )
        assert (sample["split"], sample["score"], sample["name"]) == (split, 2.5, "some.png")
        assert [about["role"] for about, _, _ in views] == ["global"] * count
        assert views[0][0]["box"] == [0, 0, 300, 260]
        for about, _, _ in views[1:]:
            _, _, width, height = about["box"]
            assert 0.5 < width / 300 <= 1
            assert 0.5 < height / 260 <= 1


def test_rated_photos_are_also_seen_among_those_rated_alike(rated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a large view is not a good one; where no other photos have about the score, they are not."""
    monkeypatch.setattr(render, "RATED_MOSAIC_SHARE", 1.0)
    photo = photos.Rated(rated.path, 2.5, "train")
    for scores_, count in (((2.4, 2.5, 2.6), 4), ((1.5, 2.5, 4.5), 3)):
        others = [photos.Rated(rated.path, score, "train") for score in scores_]
        sample, views = made(lambda rng, o=others: render.rated_sample(photo, o, rng), 0)
        assert sample["score"] == 2.5
        assert len(views) == count
        if count == 4:
            about, _, map_ = views[3]
            assert about["role"] == "global"
            assert map_ is not None
            _, _, width, height = about["box"]
            assert width % 260 == height % 260 == 0
            assert width * height >= 4 * 260**2


def test_no_photo_is_too_small_for_a_box() -> None:
    rng = np.random.default_rng(0)
    for width, height in ((64, 64), (40, 900), (3000, 70)):
        for _ in range(50):
            for box in (
                render.random_box(width, height, rng),
                render.jittered(Box(0, 0, 33, 20), 0.3, width, height, rng),
                render.jittered(Box(width - 5, height - 9, width, height), 2.0, width, height, rng),
            ):
                assert 0 <= box.x1 < box.x2 <= width
                assert 0 <= box.y1 < box.y2 <= height


def test_a_mosaic_is_of_whole_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "MOSAIC_TILES", 3)
    colours = [(10 * i, 255 - 10 * i, 50) for i in range(9)]
    for i, colour in enumerate(colours):
        Image.new("RGB", (40 + i, 60), colour).save(tmp_path / f"{i}.png")
    some = [photos.Rated(tmp_path / f"{i}.png", 4.0, "train") for i in range(9)]
    for seed in range(5):
        made_of, score = render.mosaic(some, np.random.default_rng(seed), 1)
        assert score == 4.0
        tiles = np.unique(made_of.reshape(-1, 3), axis=0)
        assert {tuple(int(c) for c in tile) for tile in tiles} <= set(colours)
        height, width = made_of.shape[:2]
        side = 40 + min(colours.index(tuple(int(c) for c in tile)) for tile in tiles)
        assert height % side == width % side == 0
        assert height * width == len(tiles) * side**2, "a photo twice"


def test_a_mosaic_is_of_photos_rated_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its score is theirs: the grey of each photo here says which it is."""
    monkeypatch.setattr(render, "MOSAIC_TILES", 2)
    greys = {}
    for i in range(60):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (40, 40), (4 * i, 0, 0)).save(path)
        greys[4 * i] = photos.Rated(path, 1 + 4 * i / 59, "train")
    means = []
    for seed in range(12):
        tiles, score = render.mosaic(list(greys.values()), np.random.default_rng(seed), 2)
        held = [greys[int(red)].score for red in np.unique(tiles[..., 0])]
        assert len(held) == 4
        assert score == pytest.approx(np.mean(held))
        assert max(held) - min(held) < 1.2
        means.append(score)
    assert max(means) - min(means) > 1.5, "mosaics of any score"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three clean photos and eight rated ones, in two folders with their tables."""
    (tmp_path / "rated" / "images").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "out").mkdir()
    rows = ["filename,mos"]
    for i in range(8):
        Image.fromarray(textured(256, 256, i)).save(tmp_path / "rated" / "images" / f"{i}.png")
        rows.append(f"{i}.png,{0.5 + i / 16}")
    (tmp_path / "rated" / "mos.csv").write_text("\n".join(rows))
    for i in range(3):
        Image.fromarray(textured(360, 300, 10 + i)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "photos.csv").write_text("file,role\n" + "".join(f"{i}.png,large\n" for i in range(3)))
    return tmp_path


def test_a_worker_writes_stores_that_go_together(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "MOSAIC_TILES", 2)
    args = Namespace(
        photos=data / "photos", extra=None, rated=data / "rated", out=data / "out", eyes=None, encoder=None
    )
    args.kinds, args.workers, args.seed = list(KINDS), 1, 1
    args.local, args.aimed, args.whole, args.patched = 3, 0, 3, 1
    render.work(0, args)
    written = {path.name: path.read_bytes() for path in args.out.iterdir()}
    splits = {path.name: path for path in args.out.glob("*.jsonl")}
    assert len(splits) == 2 * len(KINDS)
    for kind in KINDS:
        views = stores.ViewStore(args.out, f"{kind}-0")
        surveys = stores.SurveyStore(args.out, f"survey-{kind}-0")
        for sample, known in zip(views.samples(), surveys.samples(), strict=True):
            assert sample["split"] != "test"
            photos_seen = [view["box"] for view in sample["views"] if view["role"] == "global"]
            assert len(photos_seen) == len(known["views"])
            for (_, _, width, height), map_ in zip(photos_seen, known["views"], strict=True):
                assert (map_["rows"], map_["cols"]) == (-(-height // 32), -(-width // 32))
        assert len(views.data()) == sum(v["rows"] * v["cols"] for s in views.samples() for v in s["views"])
    # Each kind has a seed of its own: made again without the others, it is the same.
    args.kinds = ["local"]
    render.work(0, args)
    assert {path.name: path.read_bytes() for path in args.out.iterdir()} == written


@pytest.mark.parametrize("folder", [True, False])
def test_each_worker_aims_with_eyes_that_never_saw_its_photos(
    data: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    monkeypatch.setattr(render, "MOSAIC_TILES", 2)
    opened: list[Path] = []

    class Looker:
        def __init__(self, eyes: Path, encoder: Path) -> None:
            opened.append(eyes)

        def targets(self, shown: Pixels, map_: Any, width: int, height: int) -> Iterator[Box]:
            yield Box(width // 4, height // 4, width // 2, height // 2)

    monkeypatch.setattr(render, "Eyes", Looker)
    run = data / "run"
    run.mkdir()
    (run / "eyes.pt").touch()
    args = Namespace(
        photos=data / "photos",
        extra=None,
        rated=data / "rated",
        out=data / "out",
        encoder=data / "encoder.onnx",
        eyes=run if folder else run / "eyes.pt",
    )
    args.kinds, args.workers, args.seed = ["aimed"], 2, 1
    args.local, args.aimed, args.whole, args.patched = 0, 4, 0, 1
    for worker in (0, 1):
        render.work(worker, args)
    assert opened == ([run / "eyes-without-0.pt", run / "eyes-without-1.pt"] if folder else [run / "eyes.pt"] * 2)
    for worker in (0, 1):
        samples = stores.ViewStore(args.out, f"aimed-{worker}").samples()
        assert len(samples) == 2
        for sample in samples:
            assert not sample.get("twin")
            assert [view["role"] for view in sample["views"]][:2] == ["global", "aim0"]


def test_a_rated_sample_says_whose_scores_are_comparable(rated: Any) -> None:
    rng = np.random.default_rng(0)
    sample, _ = render.rated_sample(photos.Rated(rated.path, 2.5, "dev", "ss01"), [rated], rng)
    assert sample["domain"] == "ss01"


@pytest.mark.parametrize(
    ("mos", "table", "said"),
    [
        ("filename,mos\na.png,0.5\n", "file,role,split\nb.png,pristine,develop\n", "split 'develop'; it is one of"),
        ("filename,mos\nc.png,0.5\n", "file,role\nb.png,pristine\n", "c.png: is missing; add it, or take its row out"),
        ("filename,score\na.png,0.5\n", "file,role\nb.png,pristine\n", "no column 'mos': mos.csv has filename and mos"),
        ("filename,mos\na.png,good\n", "file,role\nb.png,pristine\n", "could not convert string to float: 'good'"),
    ],
)
def test_a_wrong_table_is_one_line_before_anything_is_made(
    mos: str, table: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for path in (tmp_path / "images" / "a.png", tmp_path / "b.png"):
        Image.fromarray(CLEAN).save(path)
    (tmp_path / "mos.csv").write_text(mos)
    (tmp_path / "photos.csv").write_text(table)
    out = tmp_path / "views"
    words = ["render.py", "--rated", str(tmp_path), "--photos", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        render.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
