"""nano's vision side: batches change nothing, evidence keeps its promises, and the eyes can learn."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

torch = library("torch")
visual = script("visual")
cells = script("cells")
glance, overviews = script("glance"), script("overviews")
look = script("look")
perceive = script("perceive")
candidates = script("candidates")
regions = script("regions")
samples = script("samples")
stores = script("stores")
summaries = script("summaries")
defects = script("defects")
CellStore = script("encode").CellStore

KINDS = defects.PHOTOS.kinds
SLOTS = visual.slots_of()


@pytest.fixture(scope="module")
def eyes() -> Any:
    torch.manual_seed(5)
    return visual.Perception().eval()


def views(*sizes: tuple[int, int]) -> list[Any]:
    torch.manual_seed(6)
    return [torch.randn(rows, cols, cells.CELL_CHANNELS) for rows, cols in sizes]


def wholes(count: int) -> list[Any]:
    """Summaries of as many photos."""
    torch.manual_seed(7)
    return [torch.randn(visual.WHOLE_CHANNELS) for _ in range(count)]


@torch.inference_mode()
def test_views_of_all_sizes_together_equal_each_alone(eyes: Any) -> None:
    many = views((8, 12), (4, 4), (8, 12), (2, 2), (12, 8), (4, 4))
    known = wholes(len(many))
    for view, seen, evidence in zip(many, known, visual.perceived(eyes, many, known), strict=True):
        said = eyes.attributes(seen[None, : visual.SEEN_CHANNELS])
        alone = eyes(view[None], eyes.judged(seen[None], said), eyes.attributes(visual.summary(view[None])))
        assert evidence.kinds.shape == (view.shape[0] // 2, view.shape[1] // 2, 1 + len(KINDS))
        assert evidence.severity.shape == (*evidence.kinds.shape[:2], 1)
        for part, other in zip(evidence, alone, strict=True):
            assert_allclose(part, other[0], atol=1e-5)


@torch.inference_mode()
def test_one_look_at_a_token_does_not_depend_on_its_place(eyes: Any) -> None:
    """What knew the place or the neighbours of a token learned photos by heart."""
    (view,) = views((8, 12))
    known = torch.full((1, 1), 3.0), torch.full((1, len(defects.PHOTOS.attributes)), 3.0)
    odds = eyes(view[None], *known).log_odds()[0]
    turned = eyes(view.flip(0)[None], *known).log_odds()[0]
    assert_allclose(turned, odds.flip(0), atol=1e-4)
    assert np.ptp(odds.numpy()) > 1e-3


@torch.inference_mode()
def test_a_description_has_its_shape(eyes: Any) -> None:
    for rows, cols in ((4, 6), (1, 1), (1, 7)):
        (evidence,) = visual.perceived(eyes, views((2 * rows, 2 * cols)), wholes(1))
        reading, view = visual.described(evidence)
        assert reading.shape == (rows * cols, visual.reading_size(len(KINDS)))
        assert view.shape == (visual.view_reading_size(len(KINDS)),)
        assert visual.Projector(64)(reading, view).shape == (rows * cols, 64)


def test_a_level_is_that_of_the_likely_kind() -> None:
    damage, cells = visual.Damage().eval(), torch.randn(1, 4, 6, visual.CELL_CHANNELS)
    for kind in range(len(KINDS)):
        for network in (damage.relative, damage.local):
            torch.nn.init.zeros_(network[-1].weight)
            kinds, levels, severity = damage.apart(torch.zeros(damage.outputs))
            kinds[1 + kind] = 20.0
            levels[torch.arange(len(levels)), torch.arange(len(levels)) % visual.LEVELS] = 20.0
            severity[:] = -1.0
            network[-1].bias.data = torch.cat((kinds, levels.flatten(), severity))
        kinds, levels, severity = damage(cells)
        assert (kinds.argmax(-1) == 1 + kind).all()
        assert (levels.argmax(-1) == kind % visual.LEVELS).all()
        assert torch.allclose(levels.exp().sum(-1), torch.ones(1, 2, 3), atol=1e-3)
        assert severity.shape == (1, 2, 3, 1)
        assert_allclose(severity.detach(), 1 / (1 + np.e), atol=1e-5)  # whatever the kind


def test_whole_sources_of_channels_are_left_out_in_training_alone() -> None:
    dropout, tokens = visual.SourceDropout(visual.SOURCES, 0.3), torch.ones(400, visual.CELL_CHANNELS + 1)
    assert torch.equal(dropout.eval()(tokens), tokens)
    torch.manual_seed(0)
    left = dropout.train()(tokens)
    assert torch.equal(left[:, -1], tokens[:, -1])
    sources = left[:, :-1].split(visual.SOURCES, 1)
    assert len(sources) == len(visual.SOURCES)
    for source in sources:
        assert (source == source[:, :1]).all()
        assert 0.2 < (source[:, 0] == 0).float().mean() < 0.4
    assert left.mean() == pytest.approx(1, abs=0.05)
    # Of each token others.
    assert len({tuple((one[:, 0] == 0).tolist()) for one in sources}) == len(sources)


@torch.inference_mode()
def test_a_token_is_judged_against_others_alone() -> None:
    """What is usual in one photo is damage in another."""
    damage, cells = visual.Damage().eval(), torch.randn(1, 8, 12, visual.CELL_CHANNELS)
    shift = torch.randn(visual.CELL_CHANNELS)
    for one, other in zip(damage(cells), damage(cells + shift), strict=True):
        assert_allclose(one, other, atol=1e-4)
    one, other = damage(cells)[0], damage(cells * torch.linspace(0.5, 2, 12)[:, None])[0]
    assert (one - other).abs().max() > 1e-3


def test_what_lies_around_a_token() -> None:
    tokens = torch.arange(9.0 * 10).reshape(1, 9, 10, 1)
    around = visual.surroundings(tokens)[0, :, :, 0]
    assert around[4, 5] == tokens[0, 1:8, 2:9].mean(), "7 x 7 tokens"
    assert around[0, 0] == pytest.approx(float(tokens[0, :4, :4].mean())), "no more than the view has"
    assert torch.equal(visual.surroundings(torch.full((1, 1, 2, 3), 7.0)), torch.full((1, 1, 2, 3), 7.0))


@torch.inference_mode()
def test_damage_is_what_its_networks_say_on_average() -> None:
    damage, cells = visual.Damage().eval(), torch.randn(1, 4, 6, visual.CELL_CHANNELS)
    opinions = damage.opinions(cells)
    assert len(opinions) == visual.OPINIONS
    kinds, _, severity = damage(cells)
    assert_allclose(kinds, sum(opinions)[..., : 1 + len(KINDS)] / len(opinions), atol=1e-5)
    assert_allclose(severity, torch.sigmoid(sum(opinions)[..., -1:] / len(opinions)), atol=1e-5)


ATTRIBUTES = [4.0, 3.5, 3.0, 2.5, 2.0]


PLACES = (
    ((0.2, 0.25, 0.6, 0.75), 4.0, "noise", 3, 0.6),
    ((0.8, 0.75, 0.9, 1.0), -1.0, "color", 1, 0.2),
    ((0.0, 0.1, 0.3, 0.3), -2.0, "noise", 0, 0.4),
)


def evidence_of(odds: Any) -> Any:
    """Evidence whose tokens have these log odds of being damaged, all by noise at level 4 and severity 0.6, with
    PLACES."""
    rows, cols = odds.shape
    kinds = torch.full((rows, cols, 1 + len(KINDS)), -100.0)
    kinds[..., 0] = 0
    kinds[..., 1 + KINDS.index("noise")] = torch.as_tensor(odds, dtype=torch.float32)
    levels = torch.zeros(rows, cols, visual.LEVELS)
    levels[..., 3] = 50
    severity, score, toll = torch.full((rows, cols, 1), 0.6), torch.tensor([3.0]), torch.tensor([2.0])
    places = []
    for box, strength, kind, level, cost in PLACES:
        chances, levelled = torch.zeros(1 + len(KINDS)), torch.zeros(visual.LEVELS)
        chances[1 + KINDS.index(kind)], levelled[level] = 1, 1
        places.append(torch.cat((torch.tensor([*box, strength]), chances, levelled, torch.tensor([cost]))))
    return visual.Evidence(kinds, levels, severity, score, toll, torch.tensor(ATTRIBUTES), torch.stack(places))


def test_places_are_read_back() -> None:
    found = evidence_of(np.zeros((2, 3))).proposals
    assert_allclose(found.boxes, [place[0] for place in PLACES])
    assert_allclose(found.strengths, [place[1] for place in PLACES])
    assert [KINDS[kind] for kind in found.kinds[:, 1:].argmax(1).tolist()] == [place[2] for place in PLACES]
    assert_allclose(found.level, [place[3] / 4 for place in PLACES])
    assert_allclose(found.severities[:, 0], [place[4] for place in PLACES])


def test_a_reading_can_be_read_back() -> None:
    odds = np.full((4, 10), -3.0)
    odds[1:3, 2:6] = 4.0
    _, view = visual.described(evidence_of(odds))
    bumps = view[: SLOTS * visual.NUMBER_BINS].reshape(SLOTS, visual.NUMBER_BINS)
    read = (bumps * centres()).sum(1) / bumps.sum(1)
    strength = 1 / (1 + np.exp(-(4 - visual.BAR) / visual.STRENGTH_UNIT))
    assert_allclose(read[: visual.PROPOSAL_NUMBERS], [0.2, 0.25, 0.6, 0.75, strength, 0.75, 0.6], atol=0.03)
    assert_allclose(read[-7:-5], [0.5, 0.25], atol=0.01)  # score 3.0, toll 2.0 of 1..5
    assert_allclose(1 + 4 * read[-5:], ATTRIBUTES, atol=0.05)


def centres() -> Any:
    return torch.arange(visual.NUMBER_BINS) / (visual.NUMBER_BINS - 1)


def test_numbers_of_the_view_are_dealt_out_over_the_tokens() -> None:
    """Each slot is there with every number of token counts above its own, and holds its number."""
    odds = np.full((4, 10), -3.0)
    odds[1:3, 2:6], odds[3, 8] = 4.0, 5.0
    evidence = evidence_of(odds)
    reading, _ = visual.described(evidence)
    own = visual.reading_size(len(KINDS)) - SLOTS - visual.NUMBER_BINS
    slots, numbers = reading[:, own : own + SLOTS], reading[:, own + SLOTS :]
    assert (slots.sum(1) == 1).all()
    assert slots.argmax(1).tolist() == [i % SLOTS for i in range(40)]
    read = (numbers * centres()).sum(1) / numbers.sum(1)
    found = evidence.proposals
    places = [
        [*box, float(torch.sigmoid((strength - visual.BAR) / visual.STRENGTH_UNIT)), level, severity]
        for box, strength, level, (severity,) in zip(
            found.boxes.tolist(), found.strengths, found.level.tolist(), found.severities.tolist(), strict=True
        )
    ]
    truth = np.array([*np.concatenate(places), 0.5, 0.25, *(np.array(ATTRIBUTES) - 1) / 4])
    inside = np.flatnonzero((truth > 0.1) & (truth < 0.9))  # where the bumps are whole
    assert set(range(SLOTS - 7, SLOTS)) <= set(inside)
    for place, slot in enumerate(slots.argmax(1).tolist()):
        if slot in inside:
            assert float(read[place]) == pytest.approx(float(truth[slot]), abs=0.01)


def stored(folder: Path, name: str, samples_of: list[tuple[dict[str, Any], list[tuple[dict[str, Any], Any]]]]) -> None:
    """All are glanced at alike, but those that say otherwise."""
    writer, alike = CellStore(folder, name).writer(), {overviews.GLANCE: overviews.written(np.zeros(glance.CHANNELS))}
    for index, (sample, seen) in enumerate(samples_of):
        writer.add({"name": f"{name}-{index}.jpg", **sample}, ((alike | about, view) for about, view in seen))
    writer.close()


def cells_in(folder: Path, kind: str) -> list[Any]:
    items: list[Any] = stores.items_of(folder, kind, cells.CELL_CHANNELS, np.float16)
    return items


def random_view(rows: int, cols: int, seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, cols, cells.CELL_CHANNELS)).astype(np.float16)


@torch.inference_mode()
def test_what_was_looked_at_is_kept(eyes: Any, tmp_path: Path) -> None:
    views_seen = [random_view(8, 12, seed) for seed in range(2)]
    glanced = overviews.written(np.random.default_rng(3).normal(size=glance.CHANNELS))
    about = {"role": "global", "box": [0, 0, 768, 512], overviews.GLANCE: glanced}
    stored(tmp_path, "rated-0", [({"split": "train", "score": 3.5}, [(about, view)]) for view in views_seen])
    items = cells_in(tmp_path, "rated")
    assert [item.sample["fold"] for item in items] == ["0", "0"]
    store = look.SeenStore(tmp_path, "seen-0")
    look.look(eyes, items, store, np.random.default_rng(1), True)
    seen = stores.items_of(tmp_path, "seen", look.seen_channels(), np.float16)
    assert [item.sample["score"] for item in seen] == [3.5, 3.5]
    for view, item, of in zip(views_seen, seen, items, strict=True):
        whole, window = item.sample["views"]
        shown = torch.from_numpy(view.astype(np.float32))
        (evidence,) = visual.perceived(eyes, [shown], [overviews.whole_of(of, 0)])
        assert overviews.GLANCE not in whole
        assert (window["score"], window["attributes"]) == (whole["score"], whole["attributes"])
        numbers = (whole["score"], whole["toll"], whole["attributes"], whole["places"])
        kept = look.unpacked(torch.from_numpy(item.read(0).astype(np.float32)), *numbers)
        for part, other in zip(kept, evidence, strict=True):
            assert_allclose(part, other, atol=5e-3)
        assert [s[:4] for s in whole["suspicions"]] == evidence.proposals.boxes.tolist()
        assert {s[4] for s in whole["suspicions"]} <= set(KINDS)
        assert [s[5] for s in whole["suspicions"]] == [
            1 + round(4 * level) for level in evidence.proposals.level.tolist()
        ]
        x1, y1, x2, y2 = window["box"]
        assert (window["cols"], window["rows"]) == ((x2 - x1) // 128, (y2 - y1) // 128)


def test_training_photos_are_read_by_eyes_that_never_saw_them(tmp_path: Path) -> None:
    torch.manual_seed(1)
    saved = {}
    for fold in ("0", "1", None):
        saved[fold] = visual.Perception()
        checkpoint = {"eyes": saved[fold].state_dict(), "domain": dataclasses.asdict(defects.PHOTOS)}
        torch.save(checkpoint, samples.eyes_file(tmp_path, fold))
    for fold in ("0", "1", None):
        eyes, domain = look.eyes_of(samples.eyes_file(tmp_path, fold))
        assert domain == defects.PHOTOS
        assert not eyes.training
        assert torch.equal(eyes.damage.relative[2].weight, saved[fold].damage.relative[2].weight)
        assert torch.equal(eyes.quality.ridge.weight, saved[fold].quality.ridge.weight)


def damaged_view(rng: np.random.Generator) -> tuple[Any, Any]:
    """A view of 4 x 6 tokens with a made-up damage, one part of the channels raised in a rectangle, and its box."""
    view = rng.normal(size=(8, 12, cells.CELL_CHANNELS)).astype(np.float16)
    x, y = int(rng.integers(0, 4)), int(rng.integers(0, 3))
    view[2 * y : 2 * y + 4, 2 * x : 2 * x + 6, :40] += 1.0
    return view, [100 * x, 100 * y, 100 * x + 300, 100 * y + 200]


def test_eyes_learn_what_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds the made-up damage is found in views not seen before, and called by its name."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    made = [damaged_view(rng) for _ in range(60)]
    about = {"role": "global", "box": [0, 0, 600, 400]}
    # A quarter of the photo: its size counts in full, so that its cost is its severity.
    defect, photo = {"kind": "noise", "level": 3, "cost": 0.4}, {"split": "train", "width": 600, "height": 400}
    entries = [({**photo, "score": 2.0, "defects": [{**defect, "box": box}]}, [(about, view)]) for view, box in made]
    stored(tmp_path, "local-0", entries)
    items = cells_in(tmp_path, "local")
    tokens = perceive.Tokens({kind: items if kind == "local" else [] for kind in perceive.LESSONS}, rng)
    assert len(tokens.tokens) == len(tokens.kinds) == 60 * 24
    eyes = visual.Perception()
    monkeypatch.setattr(perceive, "TOKEN_BATCH", 512)
    perceive.learn_damage(eyes.damage, tokens, 150, 3e-3)
    monkeypatch.setattr(candidates, "BATCH", 256)
    candidates.learn_regions(eyes.regions, candidates.rectangles_of(eyes.eval(), items), 150, 3e-3, rng)
    overlaps = []
    for _ in range(20):
        view, box = damaged_view(rng)
        with torch.inference_mode():
            found = visual.perceived(eyes.eval(), [torch.from_numpy(view.astype(np.float32))], wholes(1))[0].proposals
        assert KINDS[int(found.kinds[0, 1:].argmax())] == "noise"
        assert int(found.levels[0].argmax()) == 2
        assert float(found.severities[0]) == pytest.approx(0.4, abs=0.1)
        assert float(found.strengths[0]) > 2
        truth = torch.tensor([box[0] / 600, box[1] / 400, box[2] / 600, box[3] / 400])
        overlaps.append(float(regions.overlap_of(found.boxes[0], truth)))
    assert np.mean(overlaps) > 0.9


def test_of_a_twin_the_same_tokens_are_taken(tmp_path: Path) -> None:
    """Those that are broken in the sample before it: what tells the two apart is the damage."""
    rng = np.random.default_rng(0)
    photo = {"split": "train", "width": 600, "height": 400, "score": 2.0}
    about = {"role": "global", "box": [0, 0, 600, 400]}
    broken, box = damaged_view(rng)
    twin = rng.normal(size=broken.shape).astype(np.float16)
    defect = {"kind": "noise", "level": 3, "cost": 0.4, "box": box}
    entries = [({**photo, "defects": [defect]}, [(about, broken)])]
    entries += [({**photo, "defects": [], "twin": True}, [(about, twin)])]
    stored(tmp_path, "local-0", entries)
    items = cells_in(tmp_path, "local")
    tokens = perceive.Tokens({kind: items if kind == "local" else [] for kind in perceive.LESSONS}, rng)
    of_twin = tokens.tokens[tokens.views == 1]
    assert (tokens.kinds[tokens.views == 1] == 0).all()
    x, y = box[0] // 100, box[1] // 100
    place = twin.reshape(4, 2, 6, 2, -1).astype(np.float32).mean((1, 3))[y : y + 2, x : x + 3]
    expected = place.reshape(6, -1).astype(np.float16)
    assert sorted(of_twin[:, 0].tolist()) == sorted(expected[:, 0].tolist())


def test_eyes_can_be_kept_from_a_degradation(tmp_path: Path) -> None:
    entries = []
    for seed in range(12):
        view, box = damaged_view(np.random.default_rng(seed))
        defect = {"kind": "compression", "level": 3, "cost": 0.4, "box": box, "name": "jpeg" if seed % 2 else "webp"}
        split = "train" if seed % 3 else "dev"
        known = {"split": split, "width": 600, "height": 400, "score": 2.0 + seed / 6, "defects": [defect]}
        entries.append((known, [({"role": "global", "box": [0, 0, 600, 400]}, view)]))
    for kind in ("local", "rated"):
        stored(tmp_path, f"{kind}-0", entries)

    def taught(*names: str) -> Any:
        out = tmp_path / "-".join(("eyes", *names))
        perceive.teach(
            perceive.Config(tmp_path, out, damage_steps=1, quality_epochs=0, folds=False, without=names, threads=1)
        )
        return torch.load(samples.eyes_file(out, None), weights_only=True)

    assert taught("jpeg")["without"] == ["jpeg"]
    assert taught()["without"] == []
    assert [perceive.shows(item, ["jpeg"]) for item in cells_in(tmp_path, "local")] == [False, True] * 6
    with pytest.raises(script("runs").RunError, match="no local samples"):
        taught("jpeg", "webp")
    with pytest.raises(script("runs").RunError, match="there is no degradation 'rust'"):
        taught("rust")


def test_with_a_broken_sample_its_twin_is_left_out(tmp_path: Path) -> None:
    view, box = damaged_view(np.random.default_rng(0))
    defect = {"kind": "compression", "level": 3, "cost": 0.4, "box": box}
    known = {"split": "train", "width": 600, "height": 400, "score": 2.0}
    views_ = [({"role": "global", "box": [0, 0, 600, 400]}, view)]
    entries: list[Any] = []
    for name in ("jpeg", "webp"):
        entries.append(({**known, "name": name, "defects": [{**defect, "name": name}]}, views_))
        entries.append(({**known, "name": name, "defects": [], "twin": True}, views_))
    entries.append(({**known, "name": "clean", "defects": []}, views_))
    stored(tmp_path, "local-0", entries)
    left = [item.sample["name"] for item in perceive.without_any(cells_in(tmp_path, "local"), ["jpeg"])]
    assert left == ["webp", "webp", "clean"]


def test_only_scenes_that_are_bad_all_over_teach_the_score_and_their_twins(tmp_path: Path) -> None:
    view, box = damaged_view(np.random.default_rng(0))
    defect = {"kind": "noise", "level": 3, "cost": 0.4}
    known = {"split": "train", "width": 600, "height": 400}
    about = [({"role": "global", "box": [0, 0, 600, 400]}, view), ({"role": "random", "box": [0, 0, 600, 400]}, view)]
    entries: list[Any] = []
    for score, place in ((1.0, [0, 0, 600, 400]), (2.0, box)):
        entries.append(({**known, "score": score, "defects": [{**defect, "box": place}]}, about))
        entries.append(({**known, "score": score + 0.5, "defects": [], "twin": True}, about))
    entries.append(({**known, "score": 4.0, "defects": []}, about))
    stored(tmp_path, "local-0", entries)
    items = {kind: cells_in(tmp_path, "local") if kind == "local" else [] for kind in perceive.SCORED}
    assert summaries.Summaries.of_scores(items).all.scores.tolist() == [[1.0], [1.5]]
    assert [item.sample["score"] for item in perceive.placed_of(items["local"])] == [2.0, 2.5, 4.0]


def test_eyes_of_folds_learn_a_context_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of readings of photos new to them; to be taught again changes nothing."""
    monkeypatch.setattr(perceive, "TOKEN_BATCH", 64)
    for fold in ("0", "1"):
        entries: list[Any] = []
        for seed in range(6):
            view, box = damaged_view(np.random.default_rng([seed, int(fold)]))
            known = {"split": "train" if seed else "dev", "width": 600, "height": 400, "score": 2.0 + seed / 6}
            shown = [({"role": "global", "box": [0, 0, 600, 400]}, view)]
            defect = {"kind": "noise", "level": 3, "cost": 0.4, "box": box}
            entries.append(({**known, "defects": [defect]}, shown))
            if seed:
                entries.append(({**known, "defects": [], "twin": True}, shown))
        for kind in ("local", "rated"):
            stored(tmp_path, f"{kind}-{fold}", entries)
    read: list[Any] = []
    fields_of = perceive.fields_of

    def noted(eyes: Any, items: list[Any], names: Any) -> Any:
        read.append((eyes.damage.relative[2].weight[0, 0].item(), {item.sample["fold"] for item in items}))
        return fields_of(eyes, items, names)

    monkeypatch.setattr(perceive, "fields_of", noted)
    config = perceive.Config(
        tmp_path,
        tmp_path / "eyes",
        damage_steps=2,
        quality_epochs=0,
        context_steps=2,
        regions_steps=2,
        threads=1,
    )
    perceive.teach(config)
    kept = {fold: torch.load(samples.eyes_file(config.out, fold), weights_only=True) for fold in ("0", "1", None)}
    for fold, checkpoint in kept.items():
        assert checkpoint["context"] == 2
        assert (checkpoint["regions"], checkpoint["toll"]) == (2, 2)
        for taught in ("context.leave.weight", "regions.judge.7.weight"):
            assert checkpoint["eyes"][taught].abs().max() > 0
        assert checkpoint["eyes"]["toll.level"].item() != script("nano_spec").SCORE_CENTRE
        first = checkpoint["eyes"]["damage.relative.2.weight"][0, 0].item()
        assert [folds for weight, folds in read if weight == first and folds] == ([{fold}] if fold else [])
    before = {path.name: path.read_bytes() for path in config.out.glob("*.pt")}
    perceive.teach(config)
    assert {path.name: path.read_bytes() for path in config.out.glob("*.pt")} == before
    fold_of = json.loads((config.out / "folds.json").read_text())
    assert (fold_of["local-0-1.jpg"], fold_of["rated-1-1.jpg"]) == ("0", "1")
    assert "local-0-0.jpg" not in fold_of, "of dev"


def perceived_alone(eyes: Any, *seen: Any) -> list[Any]:
    """Views that show all of a small photo, each judged by itself."""
    rest = torch.zeros(glance.CHANNELS + 1)
    wholes_of = [torch.cat((visual.summary(view[None])[0], rest)) for view in seen]
    found: list[Any] = visual.perceived(eyes, seen, wholes_of)
    return found


@torch.inference_mode()
def test_a_photo_may_score_more_the_larger_it_is(eyes: Any) -> None:
    """By so much with each doubling of its pixels, up to so many of them, and never beyond the scale."""
    eyes.quality.ridge.bias.fill_(0.2)
    (whole,) = wholes(1)
    spotless = torch.full((1, len(defects.PHOTOS.attributes)), 5.0)
    scores = []
    for count in (1.0, 256.0, 512.0, 16 * 256.0, 900 * 256.0):  # cells of 32 px: of 512 x 512 are 256
        whole[-1] = visual.doublings(torch.tensor(count))
        scores.append(float(eyes.judged(whole[None], spotless)))
    own = float(eyes.quality(whole[None, :-1]))
    assert scores == pytest.approx([own, own, own + 0.3, own + 1.2, own + 1.2], abs=1e-4)
    eyes.quality.ridge.bias.fill_(9.0)
    assert float(eyes.judged(whole[None], spotless)) == 5


@torch.inference_mode()
@pytest.mark.parametrize(("worst", "score"), [(1.0, 2.2), (2.5, 2.8), (3.0, 3.0), (4.9, 3.0)])
def test_a_photo_falls_towards_its_worst_attribute(worst: float, score: float) -> None:
    """And keeps what its size lends it. What is better than the rest of a photo lifts nothing."""
    eyes = visual.Perception().eval()
    eyes.quality.ridge.bias.fill_((3.0 - script("nano_spec").SCORE_CENTRE) / visual.RIDGE_SHARE)
    whole, attributes = torch.zeros(1, visual.WHOLE_CHANNELS), torch.full((1, 5), 4.9)
    attributes[0, 3] = worst
    assert float(eyes.judged(whole, attributes)) == pytest.approx(score, abs=1e-5)
    whole[0, -1] = 2.0
    assert float(eyes.judged(whole, attributes)) == pytest.approx(score + 2 * visual.LENIENCE, abs=1e-5)


def test_blind_eyes_do_not_see_the_survey(tmp_path: Path) -> None:
    entries = []
    for seed in range(40):
        view, box = damaged_view(np.random.default_rng(seed))
        defect = {"kind": "noise", "level": 3, "cost": 0.4, "box": box}
        split = "train" if seed % 4 else "dev"
        known = {"split": split, "width": 600, "height": 400, "score": 2.0 + seed / 20, "defects": [defect]}
        entries.append((known, [({"role": "global", "box": [0, 0, 600, 400]}, view)]))
    for kind in ("local", "rated"):
        stored(tmp_path, f"{kind}-0", entries)
    for survey in (True, False):
        out = tmp_path / f"eyes-{survey}"
        perceive.teach(
            perceive.Config(tmp_path, out, damage_steps=3, quality_epochs=1, folds=False, survey=survey, threads=1)
        )
        taught, _ = look.eyes_of(samples.eyes_file(out, None))
        view = torch.from_numpy(entries[0][1][0][1].astype(np.float32))
        other = view.clone()
        other[..., cells.VIEW_CHANNELS :] += torch.randn(cells.SURVEY_CHANNELS)
        with torch.inference_mode():
            one, two = perceived_alone(taught, view, other)
        same = all(torch.allclose(a, b, atol=1e-3) for a, b in zip(one, two, strict=True))
        assert same is not survey


@pytest.mark.parametrize(("part", "glanced"), [("ridge", False), ("networks", False), ("both", False), ("ridge", True)])
def test_eyes_learn_a_score(part: str, glanced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of views whose score is the strength of some channels; each half of the judgement does it alone. The ridge also
    of the glance."""
    torch.manual_seed(0)
    entries = []
    for seed in range(120):
        view, score = random_view(8, 8, seed), float(np.random.default_rng(seed).uniform(1, 5))
        seen = np.random.default_rng(seed + 1000).normal(size=glance.CHANNELS)
        strong = seen if glanced else view
        strong[..., :200] += (score - 3) / 2
        about = {"role": "global", "box": [0, 0, 512, 512], overviews.GLANCE: overviews.written(seen)}
        entries.append(({"split": "train", "score": score}, [(about, view)]))
    stored(tmp_path, "rated-0", entries)
    items = cells_in(tmp_path, "rated")
    train = {kind: items[:100] if kind == "rated" else [] for kind in perceive.SCORED}
    lessons = summaries.Summaries.of_scores(train).without("1")
    assert lessons.summaries.shape == (100, visual.SUMMARY_CHANNELS)
    monkeypatch.setattr(summaries, "BATCH", 25)
    quality = visual.Quality()
    summaries.learn_quality(quality, lessons, 1e-3, 15)
    quality.ridge_share = {"ridge": 1.0, "networks": 0.0, "both": 0.5}[part]
    guess = [said for (said,) in perceive.said_of(quality, items[100:], summaries.scored)]
    found = summaries.agreement(guess, items[100:])
    assert found["dev_srcc"] > 0.9
    assert found["dev_srcc_within"] == found["dev_srcc"]
    items[-1].sample["domain"] = "a domain of one photo, where nothing can be ranked"
    without_it = summaries.agreement(guess[:-1], items[100:-1])["dev_srcc"]
    assert summaries.agreement(guess, items[100:])["dev_srcc_within"] == pytest.approx(without_it)


def test_eyes_learn_attributes(tmp_path: Path) -> None:
    """Each of its own channels, of photos broken all over; where none are known there is nothing to learn."""
    torch.manual_seed(0)
    names, entries = defects.PHOTOS.attributes, []
    for seed in range(160):
        view, truth = random_view(8, 8, seed), np.random.default_rng(seed).uniform(1, 5, len(names))
        for index, value in enumerate(truth):
            view[..., 60 * index : 60 * index + 60] += (value - 3) / 2
        sample = {"split": "train", "score": 3.0, "attributes": dict(zip(names, truth.tolist(), strict=True))}
        entries.append((sample, [({"role": "global", "box": [0, 0, 512, 512]}, view)]))
    stored(tmp_path, "whole-0", entries)
    items = cells_in(tmp_path, "whole")
    known = summaries.Summaries.of_attributes({"whole": items[:120]}, names)
    attributes = visual.Quality(visual.SEEN_CHANNELS, len(names), (64, 32))
    summaries.learn_quality(attributes, known.without(None), 1e-3, 60)
    told = perceive.told_apart(attributes, items[120:], names)
    assert set(told) == {f"dev_{name}_srcc" for name in names}
    assert min(told.values()) > 0.8
    assert summaries.Summaries.of_attributes({"whole": []}, names) is None
    assert perceive.told_apart(attributes, [], names) == {}


def test_a_fold_is_left_out_of_the_scores(tmp_path: Path) -> None:
    for fold, count in (("0", 3), ("1", 2)):
        entry = [({"role": "global", "box": [0, 0, 128, 128]}, random_view(2, 2, 1))]
        stored(tmp_path, f"rated-{fold}", [({"split": "train", "score": 1.0 + int(fold)}, entry)] * count)
    items = cells_in(tmp_path, "rated")
    known = summaries.Summaries.of_scores({kind: items if kind == "rated" else [] for kind in perceive.SCORED})
    assert known.without("0")[1].tolist() == [[2.0], [2.0]]
    assert known.without("1")[1].tolist() == [[1.0], [1.0], [1.0]]
    assert len(known.without(None)[1]) == 5


def test_the_ridge_is_the_textbook_one() -> None:
    rng = np.random.default_rng(3)
    x, y, w = rng.normal(size=(50, 4)), rng.normal(size=(50, 2)), rng.uniform(0.5, 2, 50)
    from sklearn.linear_model import Ridge

    x, y = x - np.average(x, 0, w), y - np.average(y, 0, w)
    known = Ridge(alpha=summaries.RIDGE_PENALTY * w.sum()).fit(x, y, sample_weight=w)
    weight = summaries.ridge(*(torch.from_numpy(part).float() for part in (x, y, w)))
    assert_allclose(weight.T, known.coef_, atol=1e-6)


def test_scores_are_comparable_within_a_table_or_a_kind(tmp_path: Path) -> None:
    for kind, samples_ in (("rated", [{"domain": "a"}, {"domain": "b"}, {}]), ("whole", [{}, {}])):
        entry = [({"role": "global", "box": [0, 0, 128, 128]}, random_view(2, 2, 1))]
        stored(tmp_path, f"{kind}-0", [({"split": "train", "score": 1.0, **one}, entry) for one in samples_])
    items = {kind: cells_in(tmp_path, kind) if kind != "local" else [] for kind in summaries.SCORED}
    first, second, alone, *made = summaries.Summaries.of_scores(items).all.domains.tolist()
    assert len({first, second, alone, made[0]}) == 4
    assert made[0] == made[1]


@pytest.fixture(scope="module")
def of_domains() -> tuple[Any, Any]:
    """What the ridge and what the networks make of two domains: in each the score falls with channel 0; the worse one
    has less of it, and more of channel 1, which says nothing else. Of photos with more of channel 0, with more of
    channel 1, and of neither."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    worse = np.repeat((0, 1), 200)
    x = np.zeros((len(worse), visual.SUMMARY_CHANNELS), np.float32)
    x[:, :2] = rng.normal(0, 1, (len(worse), 2))
    x[:, 1] += 4.0 * worse
    scores = 4.0 - 2.0 * worse - x[:, 0]
    x[:, 0] -= 2.0 * worse
    lessons = summaries.Lessons(
        *(torch.from_numpy(part).float() for part in (x, scores[:, None], np.ones(len(worse)))), torch.from_numpy(worse)
    )
    quality = visual.Quality(widths=(64, 32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summaries, "BATCH", 100)
        summaries.learn_quality(quality, lessons, 1e-2, 100)
    shown = lessons.summaries.mean(0).repeat(3, 1)
    shown[0, 0] += 2.0
    shown[1, 1] += 2.0
    with torch.inference_mode():
        x = quality.normalised(shown)[:, None]
        votes = torch.stack(quality.votes(x)).mean(0)
        return quality.ridge_share * quality.ridge(x)[:, 0, 0], (1 - quality.ridge_share) * votes[:, 0, 0]


def test_what_tells_domains_apart_is_not_learned_as_quality(of_domains: tuple[Any, Any]) -> None:
    """Of the whole domain more of channel 0 means better, within each it means worse; channel 1 means nothing."""
    (more, other, same), _ = of_domains
    assert more < same - 0.1
    assert abs(float(other - same)) < 0.02


def test_networks_learn_some_of_what_domains_differ_by(of_domains: tuple[Any, Any]) -> None:
    _, (_, other, same) = of_domains
    assert other < same - 0.2
