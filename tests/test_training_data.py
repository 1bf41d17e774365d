"""What nano learns from: defects with their truth, splits that do not leak, conversations as the runtime has them."""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import plain_contract, script, tokenizer

from qcheck import prompt
from qcheck.contract import IMAGE_SLOT
from qcheck.grammar import Grammar
from qcheck.verdict import DEFECT_LEVELS

defects = script("defects")
gather = script("gather")
photos = script("photos")
words = script("vocabulary")

KINDS = defects.PHOTOS.kinds


# Splits


def test_splits_are_disjoint_and_cover_everything() -> None:
    shares = np.arange(0, 1, 0.001)
    splits = np.array([photos.split_of(float(share), 0.16, 0.08) for share in shares])
    assert_array_equal(splits[shares < 0.16], "test")
    assert_array_equal(splits[(shares >= 0.16) & (shares < 0.24)], "dev")
    assert_array_equal(splits[shares >= 0.24 + 1e-9], "train")


def test_a_share_depends_on_the_bytes_alone(tmp_path: Path) -> None:
    one, copy, other = (tmp_path / name for name in ("a.jpg", "b.png", "c.jpg"))
    one.write_bytes(b"photo")
    copy.write_bytes(b"photo")
    other.write_bytes(b"photp")
    os.utime(copy, (0, 0))
    share = photos.content_share(one)
    assert share == photos.content_share(copy)
    assert share != photos.content_share(other)
    assert share != photos.content_share(one, "another salt")
    # Pinned: if this number changes, test photos of yesterday become training photos of today.
    assert share == pytest.approx(0.82690170945229, abs=1e-15)
    shares = []
    for i in range(400):
        one.write_bytes(i.to_bytes(4, "big"))
        shares.append(photos.content_share(one))
    assert all(0 <= s < 1 for s in shares)
    assert np.histogram(shares, 4, (0, 1))[0].min() > 70, "not uniform"


def test_rated_photos(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = ["filename,mos"]
    for i in range(60):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(bytes([i]))
        rows.append(f"{i}.jpg,{i / 59}")
    (tmp_path / "mos.csv").write_text("\n".join(rows))
    rated = photos.rated_photos(tmp_path)
    assert [p.path.name for p in rated] == [f"{i}.jpg" for i in range(60)]
    assert [p.score for p in rated] == pytest.approx([1 + 4 * i / 59 for i in range(60)])
    assert {p.split for p in rated} == {"train", "dev", "test"}
    (tmp_path / "mos.csv").write_text("\n".join([rows[0], *rows[:0:-1]]))
    assert {p.path: p.split for p in photos.rated_photos(tmp_path)} == {p.path: p.split for p in rated}
    assert {p.domain for p in rated} == {""}
    (tmp_path / "mos.csv").write_text("filename,mos,subset\n0.jpg,0.2,ss01\n1.jpg,0.9,\n")
    assert [p.domain for p in photos.rated_photos(tmp_path)] == ["ss01", ""]


def test_pristine_photos(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]))
        (tmp_path / "more" / f"{i}.jpg").write_bytes(bytes([i]))
    (tmp_path / "more" / "notes.txt").write_text("no photo")
    roles = ["pristine"] * 15 + ["large"] * 5 + ["camera"] * 5 + ["rejected"] * 5
    table = "".join(f"{i}.jpg,{role}\n" for i, role in enumerate(roles))
    (tmp_path / "photos.csv").write_text("file,role\n" + table)
    sources = photos.pristine_photos(tmp_path)
    assert [s.path.name for s in sources] == [f"{i}.jpg" for i in range(20)], "none straight from a camera"
    for source in sources[:15]:
        assert source.split == photos.split_of(photos.content_share(source.path), 0.34, 0.08)
    assert {s.split for s in sources[:15]} >= {"test", "train"}
    assert {s.split for s in sources[15:]} == {"train"}
    extra = photos.pristine_photos(tmp_path, tmp_path / "more")[20:]
    assert len(extra) == 30
    assert {s.split for s in extra} == {"train"}


def test_photos_csv_may_name_the_split(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]))
    (tmp_path / "photos.csv").write_text("file,role,split\n0.jpg,pristine,dev\n1.jpg,pristine,train\n2.jpg,pristine,\n")
    found = {s.path.name: s.split for s in photos.pristine_photos(tmp_path)}
    assert found == {
        "0.jpg": "dev",
        "1.jpg": "train",
        "2.jpg": photos.split_of(photos.content_share(tmp_path / "2.jpg"), 0.34, 0.08),
    }
    (tmp_path / "photos.csv").write_text("file,role,split\n0.jpg,pristine,develop\n")
    with pytest.raises(ValueError, match="split 'develop'; it is one of train, dev, test"):
        photos.pristine_photos(tmp_path)


# Clean photos out of packages


def packed(use: str, file: str, content: bytes, package: str = "backgrounds") -> Any:
    digest = hashlib.sha256(content).hexdigest()
    return gather.Packed(use, file, "deb", package, "1.0", f"usr/{file}", "CC0-1.0", digest)


def test_gathered_photos(tmp_path: Path) -> None:
    unpacked, out = tmp_path / "unpacked", tmp_path / "out"
    for package, file in (("backgrounds", "sea.jpg"), ("backgrounds", "hill.jpg"), ("preview", "house.jpg")):
        (unpacked / package / "usr").mkdir(parents=True, exist_ok=True)
        (unpacked / package / "usr" / file).write_bytes(file.encode())
    photos_ = [
        packed("train", "sea.jpg", b"sea.jpg"),
        packed("dev", "hill.jpg", b"hill.jpg"),
        packed("train", "house.jpg", b"house.jpg", "@tabler/preview"),
    ]
    assert gather.gather(photos_, unpacked, out) == []
    assert sorted(p.name for p in (out / "train").iterdir()) == ["house.jpg", "sea.jpg"]
    assert (out / "train" / "sea.jpg").read_bytes() == b"sea.jpg"
    assert [(s.path, s.split) for s in photos.pristine_photos(out / "dev")] == [(out / "dev" / "hill.jpg", "dev")]
    assert not (out / "dev" / "sea.jpg").exists(), "what is only measured on is never trained on"


def test_gathering_goes_on_where_a_photo_is_missing(tmp_path: Path) -> None:
    unpacked, out = tmp_path / "unpacked", tmp_path / "out"
    (unpacked / "backgrounds" / "usr").mkdir(parents=True)
    for name in ("sea.jpg", "hill.jpg"):
        (unpacked / "backgrounds" / "usr" / name).write_bytes(name.encode())
    photos_ = [packed("dev", n, c) for n, c in (("lake.jpg", b""), ("hill.jpg", b"new"), ("sea.jpg", b"sea.jpg"))]
    missing, other = gather.gather(photos_, unpacked, out)
    assert "usr/lake.jpg is missing; unpack the deb package backgrounds 1.0 there" in missing
    assert "usr/hill.jpg is another photo than that of the deb package backgrounds 1.0" in other
    assert [s.path.name for s in photos.pristine_photos(out / "dev")] == ["sea.jpg"]


def test_table_of_clean_photos() -> None:
    table = gather.packed_photos()
    assert len({p.file for p in table}) == len({p.sha256 for p in table}) == len(table)
    assert {p.use for p in table} == set(gather.USES)
    assert all(p.licence and len(p.sha256) == 64 for p in table)
    share_alike = {p.file for p in table if "GPL" in p.licence or "-SA" in p.licence}
    assert share_alike == {p.file for p in table if p.use == "dev"}, "nothing is made of those"


# What is known of a view

TOKENS = {(2, 2), (2, 3)}  # of 4 x 6 tokens of 100 px, those that the defect below fills


def known(kind: str, level: int, box: tuple[int, int, int, int], cost: float = 0.2) -> dict[str, Any]:
    """A sample of 4000 x 2500 with one defect."""
    defect = {"kind": kind, "level": level, "box": list(box), "cost": cost}
    return {"width": 4000, "height": 2500, "defects": [defect]}


def test_token_truth() -> None:
    samples = script("samples")
    box = samples.Box(1000, 500, 1600, 900)
    truth = samples.token_truth(4, 6, box, known("noise", 3, (1200, 700, 1395, 798)))
    kinds, levels, boxes = truth.kinds.reshape(4, 6), truth.levels.reshape(4, 6), truth.boxes.reshape(4, 6, 4)
    severities = truth.severities.reshape(4, 6)
    for y in range(4):
        for x in range(6):
            inside = (y, x) in TOKENS
            assert kinds[y, x] == (1 + KINDS.index("noise") if inside else 0)
            assert levels[y, x] == (2 if inside else samples.UNKNOWN)
            if inside:
                assert boxes[y, x] == pytest.approx([200 / 600, 200 / 400, 395 / 600, 298 / 400])
                # 0.4 + 0.6 sqrt(195 * 98 / 10,000,000 / 0.08) = 0.49274
                assert severities[y, x] == pytest.approx(0.2 / 0.49274, abs=1e-4)
            else:
                assert np.isnan(boxes[y, x]).all()
                assert np.isnan(severities[y, x])
    # A touched token is neither clean nor damaged, but its box is known; one that holds a small defect has it.
    touched = samples.token_truth(4, 6, box, known("noise", 3, (1200, 700, 1420, 800)))
    assert touched.kinds.reshape(4, 6)[2, 4] == touched.levels.reshape(4, 6)[2, 4] == samples.UNKNOWN
    assert not np.isnan(touched.boxes.reshape(4, 6, 4)[2, 4]).any()
    small = samples.token_truth(4, 6, box, known("noise", 3, (1210, 710, 1260, 760)))
    assert (small.kinds > 0).sum() == 1
    # What reaches beyond the view ends at its edge.
    beyond = samples.token_truth(4, 6, box, known("noise", 3, (800, 300, 1100, 600)))
    assert beyond.boxes[0] == pytest.approx([0, 0, 100 / 600, 100 / 400])
    # Another domain has other kinds.
    other = samples.token_truth(4, 6, box, known("scratch", 3, (1200, 700, 1395, 798)), ("dent", "scratch"))
    assert set(other.kinds) == {0, 2}


def test_a_severity_is_what_a_defect_costs_less_its_size() -> None:
    samples, scores = script("samples"), script("vista_score")
    for side in (40, 300, 2000):
        cost = scores.cost(50.0, 0.5, side * side / 10_000_000)
        found = defects.Defect("noise", 3, (0, 0, side, side), cost)
        assert samples.severity(found, 10_000_000) == pytest.approx(scores.cost(50.0, 0.5, 1.0))


def test_a_domain_names_what_it_can() -> None:
    for table, attributes, message in (
        ({}, ("a",), "must name a kind"),
        ({"dent": "form"}, ("colour",), "names 'form', which is not among"),
        ({"De nt": "form"}, ("form",), "small letters"),
        ({"clean": "form"}, ("form",), "must not be called 'clean'"),
    ):
        with pytest.raises(ValueError, match=message):
            defects.Domain(table, attributes)


# Conversations

WIDTH, HEIGHT = 1920, 1280
DAMAGE_BOX = [480, 320, 960, 640]
SECOND_BOX = [1280, 800, 1600, 1120]
DEFECTS = [
    {"kind": "noise", "level": 4, "box": DAMAGE_BOX, "cost": 0.5},
    {"kind": "color", "level": 2, "box": SECOND_BOX, "cost": 0.1},
]
# What perception suspects in the whole view: the first damage, roughly, then a clean place, then the second damage.
SUSPECTED = ([496, 288, 992, 672], [1440, 0, 1760, 320], [1264, 784, 1616, 1152])
# Of every view: its role, its box, its size in tokens, and the value that all its tokens have, to know it again.
VIEWS = [
    ("global", [0, 0, WIDTH, HEIGHT], (8, 12), 1.0),  # larger than an overview
    ("aim0", [400, 160, 1117, 877], (3, 3), 2.0),
    ("aim1", [1203, 0, 1920, 717], (3, 3), 6.0),
    ("truth1", [1120, 560, 1837, 1277], (3, 3), 3.0),
    ("near", [0, 0, 717, 512], (2, 3), 4.0),  # shows a third of the first damage
    ("random", [0, 640, 448, 1280], (2, 1), 5.0),  # shows nothing
    ("window", [160, 0, 1120, 640], (2, 3), 7.0),
]
ATTRIBUTES = [4.0, 3.5, 3.0, 2.5, 2.0]
# How strong the places of each view are, in log odds: surely broken, clean, and as likely the one as the other.
SURE, UNLIKELY, EVEN = 12.0, -12.0, 2.75
STRENGTHS = {"global": (SURE, -1.0, EVEN), "aim0": (SURE,) * 3, "truth1": (EVEN,) * 3}


def places_of(role: str) -> list[list[float]]:
    """As of regions.py."""
    strengths = STRENGTHS.get(role, (UNLIKELY,) * 3)
    return [[0.1, 0.1, 0.4, 0.5, strength, *[0.05] * 14, *[0.2] * 5, 0.5] for strength in strengths]


SUSPICIONS = [[x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT, "defocus", 2] for x1, y1, x2, y2 in SUSPECTED]
CLEAN_VIEWS = ("global", "aim1", "random")
SMALL = (6, 9)  # tokens of the whole of a small photo


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Samples that a store wrote: two defects, none, patched, whole, rated."""
    look, stores = script("look"), script("stores")
    folder = tmp_path_factory.mktemp("seen")
    writer = look.SeenStore(folder, "some-0").writer()

    def views(*roles: str) -> Iterator[tuple[dict[str, Any], NDArray[np.float16]]]:
        for role, box, shape, value in VIEWS:
            if role in roles:
                rows, cols = SMALL if role == "global" and "window" in roles else shape
                toll = 2.5 if role == "near" else 4.0
                told = {"score": 3.0, "toll": toll, "attributes": ATTRIBUTES, "places": places_of(role)}
                about = {"role": role, "box": box, "suspicions": SUSPICIONS, **told}
                yield about, np.full((rows, cols, look.seen_channels()), value, np.float16)

    plain = {"split": "train", "name": "x.jpg", "width": WIDTH, "height": HEIGHT, "score": 2.34}
    writer.add({**plain, "defects": DEFECTS}, views(*(v[0] for v in VIEWS[:-1])))
    writer.add({**plain, "defects": [], "score": 4.6}, views(*CLEAN_VIEWS))
    writer.add({**plain, "defects": DEFECTS[:1]}, views("global", "window"))
    attributes = dict.fromkeys(defects.PHOTOS.attributes, 4.6) | {"noise": 1.72}
    everywhere = {"kind": "noise", "level": 4, "box": [0, 0, WIDTH, HEIGHT], "cost": 0.7}
    writer.add({**plain, "defects": [everywhere], "attributes": attributes}, views("global", "window"))
    writer.add({"split": "train", "name": "y.jpg", "score": 3.96}, views("global", "window"))
    writer.close()
    items: list[Any] = stores.of_split(stores.items_of(folder, "some", look.seen_channels(), np.float16), "train")
    return items


KIND_OF_SAMPLE = {"local": 0, "clean": 1, "patched": 2, "whole": 3, "rated": 4}


def told(pool: list[Any], name: str, count: int = 40, context: bool = True) -> Iterator[tuple[dict[str, Any], Any]]:
    """Examples of a kind of sample, each with its own chance."""
    narration = script("narrator")
    item = pool[KIND_OF_SAMPLE[name]]
    speller = narration.Speller(tokenizer())
    for seed in range(count):
        narrator = narration.Narrator(speller, np.random.default_rng(seed), context)
        yield item.sample, narrator.tell("aimed" if name in ("local", "clean") else name, item)


def texts(example: Any) -> list[str]:
    return [tokenizer().id_to_token(token) for token in example.tokens]


def test_what_a_store_writes_it_reads(pool: list[Any]) -> None:
    assert len(pool) == 5
    for item in pool:
        for index, view in enumerate(item.sample["views"]):
            ((shape, value),) = ((shape, value) for role, _, shape, value in VIEWS if role == view["role"])
            seen = item.read(index)
            small = view["role"] == "global" and item.sample["views"][-1]["role"] == "window"
            assert seen.shape[:2] == (SMALL if small else shape)
            assert_array_equal(seen, np.float16(value))


@pytest.mark.parametrize("name", KIND_OF_SAMPLE)
def test_examples_are_consistent(pool: list[Any], name: str) -> None:
    narration = script("narrator")
    image = tokenizer().token_to_id(words.IMAGE)
    for sample, example in told(pool, name):
        positions = np.concatenate(example.positions, 1)
        assert positions.shape == (3, len(example.tokens))
        assert len(example.weights) == len(example.tokens)
        assert positions.max() + 1 == example.next_position
        assert None not in example.tokens, "a text that is no single token"
        said = texts(example)
        per_view = [shown.seen.shape[0] * shown.seen.shape[1] for shown in example.views]
        assert example.tokens.count(image) == sum(per_view)
        assert said.count(words.VISION_START) == len(example.views)
        weights = np.array(example.weights)
        assert not weights[np.array(example.tokens) == image].any(), "image tokens are never taught"
        assert weights.min() >= 0
        assert len(example.exact_scores) == 1
        toll, tolls = script("toll"), [shown.toll for shown in example.views]
        for place, score in example.exact_scores.items():
            if name in ("local", "clean"):
                assert score == toll.judged(tolls, example.views[0].score)
            else:  # what it is as a whole, for no toll is lower
                assert score == example.views[0].score
            assert said[place] == narration.score_token(sample["score"] if name == "rated" else score)
            assert said[place - 1] == prompt.ANSWER_OPEN
            assert weights[place] == narration.SCORE_WEIGHT


def test_a_large_rated_photo_has_the_score_that_its_view_comes_to(
    pool: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small one what the eyes read of it as a whole."""
    narration, toll, rated = script("narrator"), script("toll"), pool[KIND_OF_SAMPLE["rated"]]
    narrator = narration.Narrator(narration.Speller(tokenizer()), np.random.default_rng(0))
    shown = narration.shown_views(rated)[0]
    assert list(narrator.rated(rated, augment=False).exact_scores.values()) == [shown.score]
    large = replace(shown, seen=np.repeat(shown.seen, 5, 0))
    assert (shown.is_large, large.is_large) == (False, True)
    monkeypatch.setattr(narration, "shown_views", lambda item: [large])
    example = narrator.rated(rated, augment=False)
    ((place, score),) = example.exact_scores.items()
    assert score == toll.judged([shown.toll], shown.score) != shown.score
    assert texts(example)[place] == narration.score_token(score)


def test_tokens_are_left_out_at_random(pool: list[Any]) -> None:
    """In order, each with its own place in the view; the words after an image stand where they always do."""
    narration = script("narrator")
    image, slots = tokenizer().token_to_id(words.IMAGE), script("visual").slots_of()
    shown = narration.shown_views(pool[0])[0]
    count = shown.seen.shape[0] * shown.seen.shape[1]
    whole = narration.Example()
    narration.Speller(tokenizer()).request(whole, words.language().first, shown)
    places = np.concatenate(whole.positions, 1)
    assert_array_equal(whole.kept[0], np.arange(count))
    speller, sizes = narration.Speller(tokenizer(), np.random.default_rng(0)), set()
    for _ in range(60):
        example = narration.Example()
        speller.request(example, words.language().first, shown)
        (kept,) = example.kept
        sizes.add(len(kept))
        assert (np.diff(kept) > 0).all()
        # Of each slot as many as of any other: a number that no token holds cannot be read.
        of_slots = np.bincount(kept % slots, minlength=slots)
        assert 1 <= of_slots.min() <= of_slots.max() <= of_slots.min() + 1
        assert example.tokens.count(image) == len(kept)
        of_image = np.array(whole.tokens) == image
        expected = np.concatenate((places[:, of_image][:, kept], places[:, ~of_image]), 1)
        got = np.concatenate(example.positions, 1)
        of_image = np.array(example.tokens) == image
        assert_array_equal(np.concatenate((got[:, of_image], got[:, ~of_image]), 1), expected)
    assert slots <= min(sizes) < max(sizes) <= count
    for tokens in (1, slots - 1, slots, slots + 1, 7 * slots + 3):
        fewest = narration.some_of_each_slot(tokens, slots, np.random.default_rng(1), least=True)
        assert sorted(fewest % slots) == list(range(min(tokens, slots)))
        assert fewest.max() < tokens


def test_score_tokens_are_the_nearest() -> None:
    score_token = script("narrator").score_token
    assert [score_token(s) for s in (1.0, 2.34, 3.96, 5.0, 0.2, 7.0)] == ["1.0", "2.3", "4.0", "5.0", "1.0", "5.0"]


def test_probing_conversations_vary(pool: list[Any]) -> None:
    assert {len(example.views) for _, example in told(pool, "local")} == {1, 2, 3, 4}
    assert {len(example.views) for _, example in told(pool, "clean")} == {1, 2, 3, 4}


def calls_of(example: Any) -> Iterator[tuple[list[str], list[float], str]]:
    """Each call's texts and weights, and the role of the crop that it brought."""
    said, view = texts(example), 0
    for start, text in enumerate(said):
        if text == prompt.CALL_OPEN:
            view += 1
            end = said.index(prompt.TURN_END, start) + 1
            yield said[start:end], example.weights[start:end], example.views[view].role


def near(said: list[str], box: list[int]) -> bool:
    """Whether a call's coordinates say this box of the photo, in steps of 10 of 1000."""
    chosen = [int(text) for text in said if text not in prompt.CHUNKS and text.isdigit()]
    truth = [v * 1000 / side for v, side in zip(box, (WIDTH, HEIGHT) * 2, strict=True)]
    return max(abs(a - b) for a, b in zip(chosen, truth, strict=True)) <= 6


def test_calls_are_taught_where_there_is_a_reason(pool: list[Any]) -> None:
    narration, seen = script("narrator"), set()
    for name in ("local", "clean"):
        for _, example in told(pool, name, 150):
            found: set[str] = set()
            for turn, (said, weights, crop) in enumerate(calls_of(example)):
                chosen = [i for i, text in enumerate(said) if text not in prompt.CHUNKS]
                assert len(chosen) == 5
                assert weights[0] == narration.CHOICE_WEIGHT, "whether to call is always taught"
                if not any(weights[1:]):
                    seen.add(("any", crop))
                    found.add(crop)
                    continue
                assert sorted(weights[i] for i in chosen) == [
                    *([narration.NUMBER_WEIGHT] * 4),
                    narration.WORD_WEIGHT,
                ]
                # Where perception suspects something: the suspicion, by its own name, and what would be shown there.
                waits = {0: "aim0", 2: "truth1"} if name == "local" else {}
                assert near(said, list(SUSPECTED[turn]))
                crops = waits.get(turn)
                if crops in found:
                    crops = None
                assert said[-3] == "defocus"
                assert crop == crops or (crops is None and crop in ("aim1", "random"))
                seen.add(("suspicion", crop))
                found.add(crop)
    assert seen == {
        *(("suspicion", crop) for crop in ("aim0", "aim1", "random", "truth1")),
        *(("any", crop) for crop in ("aim0", "aim1", "near", "random", "truth1")),
    }
    for name in ("patched", "rated"):
        weights = [w for _, example in told(pool, name) for _, all_of, _ in calls_of(example) for w in all_of[1:]]
        assert weights, name
        assert not any(weights), name


def test_a_rated_photo_is_often_seen_in_its_mosaic(tmp_path: Path) -> None:
    """Of a photo, two parts of it and a mosaic, each view is seen, and the largest as often as the photo itself."""
    look, stores, narration = script("look"), script("stores"), script("narrator")
    writer = look.SeenStore(tmp_path, "rated-0").writer()
    views_ = [(512, 1.0), (400, 2.0), (450, 3.0), (2048, 4.0)]
    entries = [
        (
            {
                "role": role,
                "box": [0, 0, side, side],
                "score": 3.0,
                "toll": 4.0,
                "attributes": ATTRIBUTES,
                "places": places_of(role),
                "suspicions": SUSPICIONS,
            },
            np.full((2, 2, look.seen_channels()), value, np.float16),
        )
        for role, side, value in [*(("global", *one) for one in views_), ("window", 300, 5.0)]
    ]
    writer.add({"split": "train", "name": "y.jpg", "score": 3.96}, iter(entries))
    writer.close()
    (item,) = stores.items_of(tmp_path, "rated", look.seen_channels(), np.float16)
    seen = [
        narration.Narrator(narration.Speller(tokenizer()), np.random.default_rng(seed)).rated(item).views[0].box.x2
        for seed in range(400)
    ]
    assert {side: seen.count(side) / 400 > 0.03 for side, _ in views_} == dict.fromkeys((512, 400, 450, 2048), True)
    assert 0.4 < seen.count(2048) / 400 < 0.6
    plain = narration.Narrator(narration.Speller(tokenizer()), np.random.default_rng(0))
    assert {plain.rated(item, False).views[0].box.x2 for _ in range(20)} == {512}


def findings_of(example: Any) -> list[int]:
    """Where each finding begins, in the order of the crops."""
    return [i for i, text in enumerate(texts(example)) if text == prompt.THINK_OPEN]


def test_it_looks_on_until_something_was_found_and_no_more_is_likely(pool: list[Any]) -> None:
    """Whatever is true: to have stopped must not tell whether the photo is broken."""
    stopped = set()
    for name in ("local", "clean"):
        for _, example in told(pool, name, 300):
            said, starts = texts(example), findings_of(example)
            found = [said[start + 1] != prompt.THINK_CLEAN for start in starts]
            looks_on = [any(found[: turn + 1]) is False or turn == 1 for turn in range(len(found))]
            # The second place (log odds -1) is not worth a look after something was found, the third (2.75) is.
            assert all(looks_on[:-1])
            may_go_on = list(turns(example))[-1][1]
            if starts and may_go_on:
                assert not looks_on[-1]
                stopped.add((name, len(found)))
    assert {("local", 1), ("clean", 1)} <= stopped


def test_findings_are_what_perception_suspects_as_surely_as_it_does(pool: list[Any]) -> None:
    """Whatever is true: of one crop the same, whether it shows a damage, its edge or nothing."""
    narration = script("narrator")
    taught: dict[str, list[bool]] = {"aim0": [], "truth1": [], "near": [], "random": [], "aim1": []}
    misspoken = 0
    for name in ("local", "clean"):
        for _, example in told(pool, name, 200):
            said = texts(example)
            for start, shown in zip(findings_of(example), example.views[1:], strict=True):
                at, found = start + 1, said[start + 1] != prompt.THINK_CLEAN
                if example.weights[at] == 0:
                    assert found is (STRENGTHS.get(shown.role, (UNLIKELY,))[0] < EVEN), "the other way round"
                    misspoken += 1
                    continue
                taught[shown.role].append(found)
                chance = {"aim0": 1.0, "truth1": 0.5}.get(shown.role, 0.0)
                other = tokenizer().token_to_id(prompt.THINK_CLEAN if found else "defocus")
                assert example.doubts[at] == (other, pytest.approx(1 - chance if found else chance, abs=1e-6))
                assert example.weights[at] == narration.DOUBT_WEIGHT
                if found:
                    assert said[at : at + 3 : 2] == ["defocus", DEFECT_LEVELS[1]]
                    spoken = [int(said[at + 4 + 2 * i]) for i in range(4)]
                    assert_allclose(spoken, [1000 * c for c in shown.suspicions[0][:4]], atol=6)
    shares = {role: np.mean(found) for role, found in taught.items()}
    assert (shares["aim0"], shares["near"], shares["random"], shares["aim1"]) == (1, 0, 0, 0)
    assert 0.3 < shares["truth1"] < 0.7
    share = misspoken / (misspoken + sum(map(len, taught.values())))
    assert share == pytest.approx(narration.MISSPOKEN_SHARE, abs=0.06)


def listed_of(example: Any) -> list[int]:
    """Where each step of the list begins: one more defect, or its end."""
    said = texts(example)
    at, steps = said.index(prompt.DEFECTS_OPEN) + 1, []
    while True:
        steps.append(at)
        if said[at].startswith(prompt.DEFECTS_CLOSE):
            return steps
        at = said.index(prompt.DEFECT_CLOSE, at) + 1


def test_places_that_no_crop_has_shown_are_listed_as_surely_as_they_are_believed(pool: list[Any]) -> None:
    """The strongest first, until one is not."""
    seen = set()
    for _, example in told(pool, "local", 300):
        said, steps = texts(example), listed_of(example)
        roles = {shown.role for shown in example.views[1:]}
        first = [] if "aim0" in roles else [1.0]  # the first place is in it, the others in the two named next
        chances = first + ([] if "aim1" in roles else [0.0]) + ([] if "truth1" in roles else [0.5])
        for step, chance in zip(steps, chances, strict=False):
            ends = said[step].startswith(prompt.DEFECTS_CLOSE)
            assert example.doubts[step][1] == pytest.approx(chance if ends else 1 - chance, abs=0.001)
            other = tokenizer().id_to_token(example.doubts[step][0])
            begins = prompt.DEFECT_OPEN if step == steps[0] else prompt.COMMA
            assert (other, said[step]) == ((begins, said[step]) if ends else (prompt.DEFECTS_CLOSE, begins))
            seen.add((chance, ends))
        if len(steps) > len(chances):  # nothing is left to list
            assert steps[-1] not in example.doubts
    assert seen == {(1.0, False), (0.0, True), (0.5, True), (0.5, False)}


def test_a_place_is_as_likely_broken_as_it_is_strong() -> None:
    belief = script("belief")
    assert belief.believed(belief.BAR) == 0.5
    chances = [belief.believed(strength) for strength in (-4.0, 2.0, 2.5, 3.0, 4.0, 8.0)]
    assert chances == sorted(chances)
    assert chances[0] < 0.001
    assert chances[-1] > 0.999


@pytest.mark.parametrize("context", [True, False])
def test_without_the_context_rule_every_crop_is_broken(pool: list[Any], context: bool) -> None:
    """With it, some are not."""
    narration, samples = script("narrator"), script("samples")
    broken, looked_at_once = [], 0
    for name in KIND_OF_SAMPLE:
        for sample, example in told(pool, name, context=context):
            _, *crops = example.views
            found = samples.defects_of(sample)
            broken += [any(narration.share(d, crop) >= narration.FOUND_SHARE for d in found) for crop in crops]
            looked_at_once += name == "local" and not crops
            assert len(example.exact_scores) == 1
    assert all(broken) is not context
    assert len(broken) > 20
    assert looked_at_once < 30


def test_photos_damaged_all_over_are_taught_with_a_crop_and_without(pool: list[Any]) -> None:
    """Their attributes too, as they are read of the whole photo, whatever was looked at since."""
    crops = []
    for sample, example in told(pool, "whole"):
        said = texts(example)
        crops.append(len(example.views) - 1)
        (found,) = sample["defects"]
        assert listed_of(example)[1:], "known to be there, whatever is suspected"
        assert said[said.index(prompt.DEFECT_OPEN) + 1] == found["kind"]
        for name, value in zip(defects.PHOTOS.attributes, ATTRIBUTES, strict=True):
            at = said.index(prompt.attribute_chunk(name)) + 1
            assert said[at] == script("narrator").score_token(value)
            assert example.weights[at] == script("narrator").ATTRIBUTE_WEIGHT
        assert (prompt.CALL_OPEN in said) == bool(crops[-1])
    assert 0.15 < np.mean(crops) < 0.6
    assert set(crops) == {0, 1}


@pytest.mark.parametrize(
    ("strength", "toll", "noise"), [(SURE, 2.0, 2.0), (EVEN, 2.0, 2.75), (UNLIKELY, 2.0, 3.5), (SURE, 4.0, 3.5)]
)
def test_an_attribute_falls_by_a_place_that_is_believed_broken(
    pool: list[Any], strength: float, toll: float, noise: float
) -> None:
    """To its toll, as far as it is believed; the others are as they are read in the first view."""
    narration = script("narrator")
    first, crop = narration.shown_views(pool[0])[:2]
    first = replace(first, places=places_of("random"))
    places = [[*place[:4], strength, *place[5:]] for place in crop.places]
    suspicions = [(*s[:4], "noise", 2) for s in crop.suspicions]
    crop = replace(crop, places=places, suspicions=suspicions, toll=toll, attributes=(1.0,) * 5)
    narrator = narration.Narrator(narration.Speller(tokenizer()), np.random.default_rng(0))
    said = narrator.attributes(narration.Example(views=[first, crop]))
    read = dict(zip(defects.PHOTOS.attributes, ATTRIBUTES, strict=True))
    assert said == pytest.approx(read | {"noise": noise}, abs=1e-4)


def test_a_view_that_wavers_is_as_strong_as_any(pool: list[Any]) -> None:
    """And costs what such a place costs; the others come no nearer than they were, and the order stays. Whether its
    attributes waver says nothing of its places."""
    narration, bar, slope = script("narrator"), script("belief").BAR, -0.4
    seen = narration.shown_views(pool[0])[0]
    seen = replace(seen, places=places_of("near"))
    first, found, read = seen.strengths[0], list[float](), list[tuple[float, ...]]()
    both = 0
    for seed in range(400):
        narrator = narration.Narrator(narration.Speller(tokenizer()), np.random.default_rng(seed))
        view = narrator.wavered(seen, slope)
        if view.attributes != seen.attributes:
            read.append(view.attributes)
        if view.places == seen.places:
            assert view.toll == seen.toll
            continue
        both += view.attributes != seen.attributes
        found.append(view.strengths[0])
        assert view.toll - seen.toll == pytest.approx(slope * (found[-1] - first), abs=1e-4)
        assert view.strengths == sorted(view.strengths, reverse=True)
        gaps, before = (np.subtract(one.strengths[0], one.strengths) for one in (view, seen))
        assert (gaps <= before + 1e-4).all()
        assert_allclose(np.delete(view.places, 4, 1), np.delete(seen.places, 4, 1), atol=1e-6)
    share = narration.WAVERED_SHARE
    assert (len(found) / 400, len(read) / 400, both / 400) == pytest.approx((share, share, share**2), abs=0.07)
    assert min(found) < bar - 3
    assert max(found) > bar + 3
    low, high = np.min(read, 0), np.max(read, 0)
    assert low.shape == (len(defects.PHOTOS.attributes),)
    assert ((low >= 1) & (low < 1.5) & (high > 4) & (high <= defects.CLEAN_SCORE)).all()


@pytest.mark.parametrize(
    ("name", "first", "crops"), [("local", 1, 1), ("patched", 1, 1), ("whole", 0, 1), ("rated", 0, 0)]
)
def test_views_waver_of_which_a_strength_alone_tells(pool: list[Any], name: str, first: int, crops: int) -> None:
    """Not rated photos, nor the first view of photos damaged all over, where the truth is taught; none by default, and
    half of the conversations are of photos as they are."""
    narration, rng = script("narrator"), np.random.default_rng
    item = pool[KIND_OF_SAMPLE[name]]
    kind = "aimed" if name == "local" else name
    seen = {shown.toll for _, example in told(pool, name) for shown in example.views}
    wavered = []
    for seed in range(300):
        narrator = narration.Narrator(narration.Speller(tokenizer()), rng(seed), toll_slope=-0.4)
        views = narrator.tell(kind, item).views
        if len(views) > 1:
            wavered.append((views[0].toll not in seen, views[1].toll not in seen))
    share = narration.WAVERING_SHARE * narration.WAVERED_SHARE
    assert np.mean(wavered, 0) == pytest.approx((first * share, crops * share), abs=0.09)
    both = share * narration.WAVERED_SHARE if first and crops else 0
    assert np.mean(np.all(wavered, 1)) == pytest.approx(both, abs=0.09), "each view by itself"


def test_the_first_view_of_a_photo_damaged_all_over_keeps_its_places(pool: list[Any]) -> None:
    """Its attributes waver as others' do."""
    narration = script("narrator")
    views, read = narration.shown_views(pool[KIND_OF_SAMPLE["local"]]), set[tuple[float, ...]]()
    for seed in range(50):
        narrator = narration.Narrator(narration.Speller(tokenizer()), np.random.default_rng(seed), toll_slope=-0.4)
        first = narrator.wavering(views, all_over=True)[0]
        assert (first.places, first.toll) == (views[0].places, views[0].toll)
        read.add(first.attributes)
    assert len(read) > 5


def test_a_drill_repeats_what_is_proposed(pool: list[Any]) -> None:
    """And what the views come to, and its attributes. It decides nothing, and how likely each finding is, is taught: a
    drill that finds something in every crop would teach so of first crops, after which none knows yet that it is one.
    """
    narration, belief, clean = script("narrator"), script("belief"), tokenizer().token_to_id(prompt.THINK_CLEAN)
    read = {*words.COORDINATE_TOKENS, *words.SCORE_TOKENS, *KINDS, *DEFECT_LEVELS}
    scores = set()
    for seed in range(20):
        narrator = narration.Narrator(narration.Speller(tokenizer()), np.random.default_rng(seed))
        example = narrator.drill(pool[0])
        said = texts(example)
        assert len(example.views) == 1 + len(SUSPECTED)
        near_ones = sum(shown.role == "near" for shown in example.views)
        places = 0.75 * (2.5 if near_ones else 4.0) + 0.25 * (4.0 - 1.5 * near_ones / len(example.views))
        score = script("toll").judged([places], 3.0)
        assert list(example.exact_scores.values()) == pytest.approx([score])
        assert float(said[next(iter(example.exact_scores))]) == pytest.approx(score, abs=0.06)
        named = zip(defects.PHOTOS.attributes, ATTRIBUTES, strict=True)
        assert all(said[said.index(prompt.attribute_chunk(name)) + 1] == str(value) for name, value in named)
        scores.add(score)
        for turn, (call, weights, _) in enumerate(calls_of(example)):
            assert near(call, list(SUSPECTED[turn]))
            assert [w > 0 for w in weights] == [text in read for text in call]
        taught = [text for text, weight in zip(said, example.weights, strict=True) if weight > 0]
        assert taught == [text for text in said if text in read]
        for start, crop in zip(
            [i for i, t in enumerate(said) if t == prompt.THINK_OPEN], example.views[1:], strict=True
        ):
            assert said[start + 1] == crop.suspicions[0][4]
            chance = belief.believed(crop.strengths[0])
            assert example.doubts[start + 1] == (clean, pytest.approx(1 - chance))
            assert said[start + 3] == DEFECT_LEVELS[1]
            spoken = [int(said[start + 5 + 2 * i]) for i in range(4)]
            assert_allclose(spoken, [1000 * c for c in crop.suspicions[0][:4]], atol=6)
        assert len(example.doubts) == len(SUSPECTED)
    assert len(scores) > 1
    small = narration.Narrator(narration.Speller(tokenizer()), np.random.default_rng(0)).drill(pool[4])
    assert list(small.exact_scores.values()) == [3.0]  # of a small photo, what its view is rated at


def turns(example: Any) -> Iterator[tuple[bool, bool, list[int], list[float]]]:
    """Each turn of the model: after a crop?, may it call?, its token ids, its weights."""
    vocabulary = tokenizer()
    spoken = words.language()
    after = [
        (template.split(IMAGE_SLOT)[1], index)
        for index, template in enumerate((spoken.first, spoken.first_final, spoken.crop, spoken.crop_final))
    ]
    tails = [(vocabulary.encode(text).ids, index >= 2, index % 2 == 0) for text, index in after]
    tokens = example.tokens
    image = vocabulary.token_to_id(words.IMAGE)
    ends = [i + 1 for i, token in enumerate(tokens) if token == image and tokens[i + 1] != image]
    for end in ends:
        ((tail, crop, may_call),) = [t for t in tails if tokens[end : end + len(t[0])] == t[0]]
        start = end + len(tail)
        stop = next((i + 1 for i in range(start, len(tokens)) if texts_end(tokens[i])), len(tokens))
        yield crop, may_call, tokens[start:stop], example.weights[start:stop]


def texts_end(token: int) -> bool:
    return bool(token == tokenizer().token_to_id(prompt.TURN_END))


def choices(grammar: Grammar, crop: bool, may_call: bool, tokens: list[int]) -> list[bool]:
    """For each token whether the runtime would have had a choice there; fails where the grammar forbids it."""
    matcher, free, due = grammar.matcher(after_crop=crop, may_call=may_call), [], list[int]()
    for token in tokens:
        due = due or matcher.forced()
        free.append(not due)
        if due:
            assert due.pop(0) == token, f"{tokenizer().id_to_token(token)} where the grammar forces another"
        else:
            assert token in matcher.allowed(tokenizer().get_vocab_size()), tokenizer().id_to_token(token)
            matcher.take([token])
    return free


SPOKEN = [name for name in KIND_OF_SAMPLE if name != "rated"]


@pytest.mark.parametrize("name", [*SPOKEN, "rated"])
def test_the_runtime_could_have_had_every_conversation(pool: list[Any], name: str) -> None:
    grammar = Grammar(plain_contract(), tokenizer())
    for _, example in told(pool, name, 60):
        found = list(turns(example))
        assert len(found) == len(example.views)
        assert [crop for crop, _, _, _ in found] == [False] + [True] * (len(found) - 1)
        for crop, may_call, tokens, _ in found:
            choices(grammar, crop, may_call, tokens)


@pytest.mark.parametrize("name", ["local", "clean", "patched", "whole"])
def test_what_is_decided_is_taught_as_a_decision(pool: list[Any], name: str) -> None:
    grammar = Grammar(plain_contract(), tokenizer())
    weights_seen = set()
    for _, example in told(pool, name, 60):
        for crop, may_call, tokens, weights in turns(example):
            for token, free, weight in zip(tokens, choices(grammar, crop, may_call, tokens), weights, strict=True):
                weights_seen.add((free, weight))
                assert not free or weight == 0 or weight >= 1, f"{tokenizer().id_to_token(token)!r} weighs {weight}"
    assert {weight for free, weight in weights_seen if free} >= {1.0, 2.0, 4.0}
    assert (False, 0.05) in weights_seen
