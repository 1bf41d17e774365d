"""What nano learns from: damages with their truth, splits that do not leak, conversations as the runtime has them."""

import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, plain_contract, script, tokenizer

from qcheck import prompt
from qcheck.contract import IMAGE_SLOT
from qcheck.grammar import Grammar
from qcheck.verdict import DEFECT_LEVELS

degradations = script("degradations")
ndimage = library("scipy.ndimage")
photos = script("photos")
words = script("vocabulary")

KINDS = degradations.KINDS
Pixels = NDArray[np.uint8]


def textured(height: int = 256, width: int = 320, seed: int = 4) -> Pixels:
    """Something at every scale, in the middle of the range, in colour."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 118.0)
    for sigma in (0, 0.7, 1.5, 3, 6, 12, 24):
        grain = ndimage.gaussian_filter(rng.normal(0, 1, total.shape), (sigma, sigma, 0))
        total += 12 * grain / grain.std()
    return np.clip(total, 0, 255).astype(np.uint8)


# Degradations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [1, 3, 5])
def test_a_seed_fixes_everything(kind: str, level: int) -> None:
    pixels = textured()
    kept = pixels.copy()
    first, again, other = (degradations.BANK[kind](pixels, level, np.random.default_rng(s)) for s in (7, 7, 8))
    assert first.shape == pixels.shape
    assert first.dtype == np.uint8
    assert_array_equal(first, again)
    assert_array_equal(pixels, kept, "the input was written to")
    if kind != "pixelation":  # the one without chance
        assert not np.array_equal(first, other) or kind == "compression"  # whose quality has three values only


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_higher_level_changes_more(kind: str, seed: int) -> None:
    pixels = textured(seed=seed)
    change = [
        np.abs(degradations.BANK[kind](pixels, level, np.random.default_rng(seed)).astype(int) - pixels).mean()
        for level in range(1, 6)
    ]
    assert change[0] > 1, "not visible"
    assert all(a < b for a, b in pairwise(change)), change


@pytest.mark.parametrize("kind", KINDS)
def test_the_direction_is_what_the_name_says(kind: str) -> None:
    pixels = textured()
    broken = degradations.BANK[kind](pixels, 4, np.random.default_rng(1))
    grain = degradations.texture(broken.mean(2)) / degradations.texture(pixels.mean(2))
    light = broken.mean() - pixels.mean()
    expected = {
        "defocus": grain < 0.5,
        "motion_blur": grain < 0.8,
        "noise": grain > 1.1,
        "compression": grain < 1,
        "pixelation": grain < 0.8,
        "oversharpen": grain > 1.5,
        "overexposure": light > 30,
        "underexposure": light < -30,
        "color": np.ptp((broken.astype(float) - pixels).mean((0, 1))) > 50,
    }
    assert expected[kind], (grain, light)


@pytest.mark.parametrize("radius", degradations.DEFOCUS_RADIUS_PX)
def test_kernels_keep_the_light(radius: float) -> None:
    kernel = degradations.disk(radius)
    assert kernel.sum() == pytest.approx(1)
    assert_array_equal(kernel, kernel[::-1, ::-1])
    for length in degradations.MOTION_LENGTH_PX:
        assert degradations.line(length, 30.0).sum() == pytest.approx(1)
    grey = np.full((64, 64, 3), 90, np.uint8)
    blurred = degradations.defocus(grey, 3, np.random.default_rng(0)).astype(int)
    assert np.abs(blurred - 90).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_damage_stays_in_its_box_and_fills_it(kind: str) -> None:
    for seed in range(6):
        clean = textured(360, 500, seed)
        pixels = clean.copy()
        rng = np.random.default_rng(seed)
        found = degradations.damage(pixels, kind, 5, rng, size=(0.2, 0.5), avoid=[])
        assert found is not None
        assert (found.kind, found.level) == (kind, 5)
        x1, y1, x2, y2 = found.box
        assert 0 <= x1 < x2 <= 500
        assert 0 <= y1 < y2 <= 360
        assert 0.2 * 500 - 1 <= x2 - x1 <= 0.5 * 500
        assert 0.2 * 360 - 1 <= y2 - y1 <= 0.5 * 360
        changed = (pixels != clean).any(2)
        inside = changed[y1:y2, x1:x2].copy()
        changed[y1:y2, x1:x2] = False
        assert not changed.any(), "pixels outside the box were changed"
        rows, cols = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert np.ptp(rows) > 0.9 * (y2 - y1), "the box is larger than the damage"
        assert np.ptp(cols) > 0.9 * (x2 - x1)
        assert np.abs(pixels[y1:y2, x1:x2].astype(int) - clean[y1:y2, x1:x2]).mean() >= degradations.MIN_CHANGE


def test_damages_keep_off_each_other() -> None:
    for seed in range(20):
        pixels, rng = textured(360, 500, seed), np.random.default_rng(seed)
        first = degradations.damage(pixels, "noise", 4, rng, size=(0.2, 0.4), avoid=[])
        kept = pixels.copy()
        second = degradations.damage(pixels, "color", 4, rng, size=(0.2, 0.4), avoid=[first])
        x1, y1, x2, y2 = first.box
        assert second is not None
        assert_array_equal(pixels[y1:y2, x1:x2], kept[y1:y2, x1:x2])


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_would_be_seen_nothing_is_damaged(kind: str) -> None:
    flat = np.full((300, 300, 3), 128, np.uint8)
    kept = flat.copy()
    found = degradations.damage(flat, kind, 3, np.random.default_rng(0), size=(0.2, 0.5), avoid=[])
    assert (found is None) == (kind in degradations.NEED_TEXTURE)
    assert (found is None) == np.array_equal(flat, kept)


def test_a_photo_too_small_for_any_region() -> None:
    tiny = textured(40, 40)
    assert degradations.damage(tiny, "noise", 5, np.random.default_rng(0), size=(0.2, 0.5), avoid=[]) is None


def scored(*damages: tuple[int, int], kind: str = "noise") -> float:
    """Of a clean photo of 100 x 100 with damages of (level, side)."""
    made = [degradations.Damage(kind, level, (0, 0, side, side)) for level, side in damages]
    score: float = degradations.damaged_score(degradations.CLEAN_SCORE, made, 100, 100)
    return score


def test_scores_fall_with_level_and_area() -> None:
    assert scored() == degradations.CLEAN_SCORE == 4.6
    by_level = [scored((level, 20)) for level in range(1, 6)]
    assert all(a > b for a, b in pairwise(by_level)), by_level
    by_side = [scored((3, side)) for side in (5, 10, 20, 28)]
    assert all(a > b for a, b in pairwise(by_side)), by_side
    # As documented: 3.4 points at level 5 from 8% of the area up, and no more.
    assert scored((5, 29)) == scored((5, 100)) == pytest.approx(4.6 - 3.4)


def test_scores_stay_on_the_scale() -> None:
    for level in range(1, 6):
        for side in (1, 30, 100):
            for count in range(1, 12):
                assert 1.0 <= scored(*[(level, side)] * count) <= 4.6
    assert scored(*[(5, 100)] * 12) == 1.0


def test_the_worst_damage_counts_in_full_and_others_a_third() -> None:
    one, other = 4.6 - scored((5, 20)), 4.6 - scored((2, 20))
    expected = 4.6 - one - other / 3
    assert scored((5, 20), (2, 20)) == scored((2, 20), (5, 20)) == pytest.approx(expected)


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


def test_pristine_photos(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]))
        (tmp_path / "more" / f"{i}.jpg").write_bytes(bytes([i]))
    (tmp_path / "more" / "notes.txt").write_text("no photo")
    roles = ["pristine"] * 15 + ["large"] * 10 + ["rejected"] * 5
    table = "".join(f"{i}.jpg,{role}\n" for i, role in enumerate(roles))
    (tmp_path / "photos.csv").write_text("file,role\n" + table)
    sources = photos.pristine_photos(tmp_path)
    assert [s.path.name for s in sources] == [f"{i}.jpg" for i in range(25)]
    for source in sources[:15]:
        assert source.split == photos.split_of(photos.content_share(source.path), 0.34, 0.08)
    assert {s.split for s in sources[:15]} >= {"test", "train"}
    assert {s.split for s in sources[15:]} == {"train"}
    extra = photos.pristine_photos(tmp_path, tmp_path / "more")[25:]
    assert len(extra) == 30
    assert {s.split for s in extra} == {"train"}


# Conversations

WIDTH, HEIGHT = 1200, 800
DAMAGE_BOX = [300, 200, 600, 400]
SECOND_BOX = [800, 500, 1000, 700]
DEFECTS = [
    {"kind": "noise", "level": 4, "box": DAMAGE_BOX},
    {"kind": "color", "level": 2, "box": SECOND_BOX},
]
# Of every view: its role, its box, its size in cells, and the value that all its cells have, to know it again.
VIEWS = [
    ("global", [0, 0, WIDTH, HEIGHT], (8, 12), 1.0),
    ("truth0", [220, 100, 668, 548], (6, 6), 2.0),
    ("truth1", [700, 350, 1148, 798], (6, 6), 3.0),
    ("near", [0, 0, 448, 320], (4, 6), 4.0),  # shows a third of the first damage
    ("random", [0, 400, 280, 800], (4, 2), 5.0),  # shows nothing
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Any]:
    """Samples that a CellStore wrote, and what reads their cells: two damages, none, patched, whole, rated."""
    cells = script("cells")
    store = cells.CellStore(tmp_path_factory.mktemp("cells"), "some-0")
    writer = store.writer()

    def views(count: int) -> Iterator[tuple[dict[str, Any], NDArray[np.float16]]]:
        for role, box, (rows, cols), value in VIEWS[:1] + [VIEWS[i] for i in range(1, count)]:
            yield {"role": role, "box": box}, np.full((rows, cols, cells.CELL_CHANNELS), value, np.float16)

    plain = {"split": "train", "name": "x.jpg", "width": WIDTH, "height": HEIGHT, "score": 2.34}
    writer.add({**plain, "defects": DEFECTS}, views(5))
    others = [view for view in views(5) if view[0]["role"] in ("global", "random")]
    writer.add({**plain, "defects": [], "score": 4.6}, iter(others))
    writer.add({**plain, "defects": DEFECTS[:1]}, views(1))
    attributes = dict.fromkeys(degradations.ATTRIBUTES, 4.6) | {"noise": 1.72}
    writer.add(
        {
            **plain,
            "defects": [{"kind": "noise", "level": 4, "box": [0, 0, WIDTH, HEIGHT]}],
            "attributes": attributes,
        },
        views(1),
    )
    writer.add({"split": "train", "name": "y.jpg", "score": 3.96}, views(1))
    data = store.cells()

    def read(view: dict[str, Any]) -> NDArray[np.float16]:
        part = data[view["offset"] : view["offset"] + view["rows"] * view["cols"]]
        return part.reshape(view["rows"], view["cols"], -1)

    return store.samples(), read


KIND_OF_SAMPLE = {"local": 0, "clean": 1, "patched": 2, "whole": 3, "rated": 4}


def told(pool: tuple[list[dict[str, Any]], Any], name: str, count: int = 40) -> Iterator[tuple[dict[str, Any], Any]]:
    """Examples of a kind of sample, each with its own chance."""
    trajectories = script("trajectories")
    sample = pool[0][KIND_OF_SAMPLE[name]]
    speller = trajectories.Speller(tokenizer())
    for seed in range(count):
        narrator = trajectories.Narrator(speller, pool[1], np.random.default_rng(seed))
        yield sample, getattr(narrator, "local" if name == "clean" else name)(sample)


def texts(example: Any) -> list[str]:
    return [tokenizer().id_to_token(token) for token in example.tokens]


def test_what_a_store_writes_it_reads(pool: tuple[list[dict[str, Any]], Any]) -> None:
    samples, read = pool
    assert len(samples) == 5
    for sample in samples:
        for view in sample["views"]:
            (value,) = (v for role, _, _, v in VIEWS if role == view["role"])
            shape = next(s for role, _, s, _ in VIEWS if role == view["role"])
            cells = read(view)
            assert cells.shape[:2] == shape
            assert_array_equal(cells, np.float16(value))


@pytest.mark.parametrize("name", KIND_OF_SAMPLE)
def test_examples_are_consistent(pool: tuple[list[dict[str, Any]], Any], name: str) -> None:
    trajectories = script("trajectories")
    image = tokenizer().token_to_id(words.IMAGE)
    for sample, example in told(pool, name):
        positions = np.concatenate(example.positions, 1)
        assert positions.shape == (3, len(example.tokens))
        assert len(example.weights) == len(example.tokens)
        assert positions.max() + 1 == example.next_position
        assert None not in example.tokens, "a text that is no single token"
        said = texts(example)
        per_view = [cells.shape[0] // 2 * (cells.shape[1] // 2) for cells in example.views]
        assert example.tokens.count(image) == sum(per_view)
        assert said.count(words.VISION_START) == len(example.views)
        weights = np.array(example.weights)
        assert not weights[np.array(example.tokens) == image].any(), "image tokens are never taught"
        assert weights.min() >= 0
        assert len(example.exact_scores) == 1
        for place, score in example.exact_scores.items():
            assert score == sample["score"]
            assert said[place] == trajectories.score_token(score)
            assert said[place - 1] == prompt.ANSWER_OPEN
            assert weights[place] == trajectories.SCORE_WEIGHT


def test_score_tokens_are_the_nearest() -> None:
    score_token = script("trajectories").score_token
    assert [score_token(s) for s in (1.0, 2.34, 3.96, 5.0, 0.2, 7.0)] == ["1.0", "2.3", "4.0", "5.0", "1.0", "5.0"]


def test_probing_conversations_vary(pool: tuple[list[dict[str, Any]], Any]) -> None:
    lengths = [len(example.views) for _, example in told(pool, "local")]
    assert set(lengths) == {1, 2, 3, 4}
    assert {len(example.views) for _, example in told(pool, "clean")} == {1, 2}


def calls_of(example: Any) -> Iterator[tuple[list[str], list[float], float]]:
    """Each call's texts and weights, and the value of the crop that it brought."""
    said, view = texts(example), 0
    for start, text in enumerate(said):
        if text == prompt.CALL_OPEN:
            view += 1
            end = said.index(prompt.TURN_END, start) + 1
            yield said[start:end], example.weights[start:end], float(example.views[view].flat[0])


def test_only_calls_that_find_a_damage_are_taught(pool: tuple[list[dict[str, Any]], Any]) -> None:
    seen: dict[tuple[float, bool], int] = {}
    for _, example in told(pool, "local", 60):
        found: set[float] = set()
        for said, weights, crop in calls_of(example):
            finds = crop in (2.0, 3.0) and crop not in found
            seen[crop, finds] = seen.get((crop, finds), 0) + 1
            found.add(crop)
            choices = [i for i, text in enumerate(said) if text not in prompt.CHUNKS]
            assert len(choices) == 5
            assert weights[0] == 1.0
            if finds:
                assert [weights[i] for i in choices] == [1.0] * 5
                assert said[-3] == ("noise" if crop == 2.0 else "color")
                # Of 1200 x 800 pixels in steps of 10 of 1000; mirrored in half of the conversations.
                x1, y1, x2, y2 = DAMAGE_BOX if crop == 2.0 else SECOND_BOX
                both = [
                    [round(a / 12) * 10, round(y1 / 8) * 10, round(b / 12) * 10, round(y2 / 8) * 10]
                    for a, b in ((x1, x2), (WIDTH - x2, WIDTH - x1))
                ]
                aimed = [int(said[i]) for i in choices[:4]]
                assert any(max(abs(a - b) for a, b in zip(aimed, truth, strict=True)) <= 10 for truth in both), aimed
            else:
                assert not any(weights[1:]), "a bad aim was taught"
    assert {key for key, count in seen.items() if count} >= {(2.0, True), (3.0, True), (4.0, False), (5.0, False)}
    for name in ("clean", "patched", "rated"):
        weights = [w for _, example in told(pool, name) for _, all_of, _ in calls_of(example) for w in all_of[1:]]
        assert weights, name
        assert not any(weights), name


def test_findings_say_what_the_crop_shows(pool: tuple[list[dict[str, Any]], Any]) -> None:
    expected = {2.0: ("noise", DEFECT_LEVELS[3]), 3.0: ("color", DEFECT_LEVELS[1]), 5.0: (prompt.THINK_CLEAN,)}
    checked = set()
    for _, example in told(pool, "local", 60):
        said = texts(example)
        starts = [i for i, text in enumerate(said) if text == prompt.THINK_OPEN]
        for start, cells in zip(starts, example.views[1:], strict=True):
            crop = float(cells.flat[0])
            if crop not in expected:
                continue
            checked.add(crop)
            assert said[start + 1] == expected[crop][0]
            if crop == 5.0:
                assert said[start + 2] == prompt.THINK_CLOSE
                continue
            assert said[start + 3] == expected[crop][1]
            # The damage in the crop, in thousandths of it: [80, 100, 380, 300] and [100, 150, 300, 350] of 448 px.
            left, top, right, bottom = (180, 220, 850, 670) if crop == 2.0 else (220, 330, 670, 780)
            coords = [int(said[start + 5 + 2 * i]) for i in range(4)]
            assert coords in ([left, top, right, bottom], [1000 - right, top, 1000 - left, bottom])
    assert checked == set(expected)


def turns(example: Any) -> Iterator[tuple[bool, bool, list[int], list[float]]]:
    """Each turn of the model: after a crop?, may it call?, its token ids, its weights."""
    vocabulary = tokenizer()
    after = [
        (template.split(IMAGE_SLOT)[1], index)
        for index, template in enumerate((words.FIRST, words.FIRST_FINAL, words.CROP, words.CROP_FINAL))
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
def test_the_runtime_could_have_had_every_conversation(pool: tuple[list[dict[str, Any]], Any], name: str) -> None:
    grammar = Grammar(plain_contract(), tokenizer())
    for _, example in told(pool, name, 60):
        found = list(turns(example))
        assert len(found) == len(example.views)
        assert [crop for crop, _, _, _ in found] == [False] + [True] * (len(found) - 1)
        for crop, may_call, tokens, _ in found:
            choices(grammar, crop, may_call, tokens)


@pytest.mark.parametrize("name", ["local", "clean", "patched", "whole"])
def test_what_is_decided_is_taught_as_a_decision(pool: tuple[list[dict[str, Any]], Any], name: str) -> None:
    grammar = Grammar(plain_contract(), tokenizer())
    weights_seen = set()
    for _, example in told(pool, name, 60):
        for crop, may_call, tokens, weights in turns(example):
            for token, free, weight in zip(tokens, choices(grammar, crop, may_call, tokens), weights, strict=True):
                weights_seen.add((free, weight))
                assert not free or weight == 0 or weight >= 1, f"{tokenizer().id_to_token(token)!r} weighs {weight}"
    assert {weight for free, weight in weights_seen if free} >= {1.0, 4.0}
    assert (False, 0.05) in weights_seen
