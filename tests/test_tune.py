"""Teaching the convolutions: tiles that are true to what is known of them, and lessons that are learned."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script
from small_networks import random_encoder, shallow

torch = library("torch")
library("sklearn")
cells = script("cells")
runs = script("runs")
samples = script("samples")
stores = script("stores")
tune = script("tune")
KINDS = script("defects").PHOTOS.kinds

BROKEN_LIGHT, TILE_PX, TOKEN_PX = 230, 128, 64
DEFECT = {"kind": "noise", "level": 4, "cost": 0.5}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles, and networks of one block a stage."""
    monkeypatch.setattr(tune, "TILE_PX", TILE_PX)
    monkeypatch.setattr(tune, "RATED_TILE_PX", TILE_PX)
    monkeypatch.setattr(tune, "RATED_BATCH", 6)
    monkeypatch.setattr(tune, "BATCH", {"patched": 2, "whole": 1, "local": 2})
    monkeypatch.setattr(tune, "FROZEN_BLOCKS", 2)
    shallow(monkeypatch)


def picture(rows: int, cols: int, rng: np.random.Generator, grain: float = 9.0) -> NDArray[np.uint8]:
    """Of `rows` x `cols` tokens."""
    shape = (TOKEN_PX * rows, TOKEN_PX * cols, 3)
    return np.clip(rng.normal(90, grain, shape), 0, 255).astype(np.uint8)


@pytest.fixture
def views(tmp_path: Path) -> Path:
    """Rated pictures are the worse, the grainier they are; where one is broken, it is bright."""
    rng, folder = np.random.default_rng(0), tmp_path / "views"
    folder.mkdir()
    for kind in ("rated", *tune.BATCH):
        writer = stores.ViewStore(folder, f"{kind}-0").writer()
        for index in range(24):
            split = "dev" if index % 4 == 3 else "train"
            grain = float(rng.uniform(2, 50))
            rows, cols = (3, 4) if kind != "whole" else (2, 3)
            pixels = picture(rows, cols, rng, grain if kind == "rated" else 9.0)
            box, defects = [0, 0, pixels.shape[1], pixels.shape[0]], []
            if kind != "rated" and index % 3:
                x, y = int(rng.integers(0, cols)), int(rng.integers(0, rows))
                place = [x * TOKEN_PX, y * TOKEN_PX, (x + 1) * TOKEN_PX, (y + 1) * TOKEN_PX]
                pixels[place[1] : place[3], place[0] : place[2]] = BROKEN_LIGHT
                defects = [{**DEFECT, "box": place}]
            sample = {"split": split, "score": 5 - grain / 12.5, "defects": defects, "width": box[2], "height": box[3]}
            writer.add(sample, iter([({"role": "global", "box": box}, pixels)]))
        writer.close()
    return folder


def items_in(views: Path, split: str) -> dict[str, list[Any]]:
    return {kind: stores.of_split(stores.items_of(views, kind, 3, np.uint8), split) for kind in ("rated", *tune.BATCH)}


def test_a_tile_is_as_broken_as_it_is_said_to_be(views: Path) -> None:
    """Also where it is mirrored; broken places are drawn more often than they would be by chance."""
    tiles = tune.Tiles(items_in(views, "train"), np.random.default_rng(1))
    broken, mirrored = [], set()
    for _ in range(40):
        pixels, kinds, levels = tiles.damaged()
        assert pixels.shape == (5, TILE_PX, TILE_PX, 3)
        light = pixels.reshape(5, 2, TOKEN_PX, 2, TOKEN_PX, 3).mean((2, 4, 5)).reshape(5, -1)
        assert_array_equal(kinds, np.where(light > 200, 1 + KINDS.index("noise"), 0))
        assert_array_equal(levels, np.where(light > 200, DEFECT["level"] - 1, samples.UNKNOWN))
        broken.append((kinds > 0).any(1).mean())
        mirrored |= {tuple(row) for row in (kinds > 0).tolist()}
    assert np.mean(broken) > 0.5
    assert len(mirrored) == 5, "clean, or broken in any of its four places"


def test_a_broken_tile_comes_with_its_twin(views: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same place without the defect, mirrored as the tile is; a twin alone is never drawn."""
    monkeypatch.setattr(tune, "BATCH", {"local": 2})
    rng, writer = np.random.default_rng(0), stores.ViewStore(views, "local-0").writer()
    box = [0, 0, 4 * TOKEN_PX, 3 * TOKEN_PX]
    for index in range(6):
        pixels = picture(3, 4, rng)
        record = {"split": "train", "score": 4.0, "defects": [], "width": box[2], "height": box[3]}
        if index % 2:
            broken, place = pixels.copy(), [TOKEN_PX, 0, 3 * TOKEN_PX, 2 * TOKEN_PX]
            broken[: place[3], place[0] : place[2]] = BROKEN_LIGHT
            known = {**record, "defects": [{**DEFECT, "box": place}]}
            writer.add(known, iter([({"role": "global", "box": box}, broken)]))
            writer.add({**record, "twin": True}, iter([({"role": "global", "box": box}, pixels)]))
        else:
            writer.add(record, iter([({"role": "global", "box": box}, pixels)]))
    writer.close()
    tiles = tune.Tiles(items_in(views, "train"), np.random.default_rng(1))
    pairs = 0
    for _ in range(30):
        (one, other), kinds, _ = tiles.damaged()
        assert not (kinds[1] > 0).any() or not (kinds[0] > 0).any(), "two defects: the second is no twin"
        if (kinds[0] > 0).any():
            changed = (one != other).reshape(2, TOKEN_PX, 2, TOKEN_PX, 3).any((1, 3, 4)).reshape(-1)
            assert_array_equal(changed, kinds[0] > 0)
            pairs += 1
    assert pairs > 10


def test_rated_tiles_are_parts_of_rated_photos(views: Path) -> None:
    """Mirrored or not."""
    items = items_in(views, "train")
    pixels = tune.Tiles(items, np.random.default_rng(1)).rated(20)
    assert pixels.shape == (20, TILE_PX, TILE_PX, 3)
    photos = [item.read(0) for item in items["rated"]]
    windows = np.stack([np.lib.stride_tricks.sliding_window_view(photo, (1, 8, 3))[:, :, 0, 0] for photo in photos])
    ways = []
    for tile in pixels:
        for way, turned in enumerate((tile, tile[:, ::-1])):
            for photo, y, x in np.argwhere((windows == turned[0, :8]).all((3, 4))):
                assert_array_equal(photos[photo][y : y + TILE_PX, x : x + TILE_PX], turned)
                ways.append(way)
    assert len(ways) == 20
    assert set(ways) == {0, 1}


def test_rated_photos_are_ranked_before_the_first_step(views: Path) -> None:
    """As the untaught network, of which all is told then, ranks them."""
    items = items_in(views, "train")
    encoder, heads = tune.CellEncoder.pretrained(), tune.Heads().eval()
    tune.begin(encoder, heads, tune.Untaught(), tune.Tiles(items, np.random.default_rng(1)), items["rated"])
    pixels = [item.read(0) for item in items["rated"]]
    with torch.inference_mode():
        guess = torch.cat([heads.score(one) for one in tune.cells_of(encoder, pixels)])
    truth = [item.sample["score"] for item in items["rated"]]
    assert np.corrcoef(guess, truth)[0, 1] > 0.8


def test_lessons_are_learned(views: Path) -> None:
    """By the convolutions and by what they are taught through."""
    torch.manual_seed(0)
    items = items_in(views, "train")
    tiles = tune.Tiles(items, np.random.default_rng(1))
    encoder, heads, untaught = tune.CellEncoder.pretrained(), tune.Heads(), tune.Untaught()
    tune.begin(encoder, heads, untaught, tiles, items["rated"])
    encoder.train()
    before = [p.detach().clone() for p in encoder.parameters()]
    weights = [{"params": encoder.parameters(), "lr": 1e-4}, {"params": heads.parameters(), "lr": 1e-3}]
    optimizer, losses = torch.optim.AdamW(weights), []
    for _ in range(16):
        loss, parts = tune.lesson(encoder, heads, untaught, tiles)
        assert float(loss.detach()) == pytest.approx(
            tune.HINT_WEIGHT * (parts["own"] + parts["other"])
            + tune.KIND_WEIGHT * parts["kind"]
            + tune.LEVEL_WEIGHT * parts["level"],
            rel=1e-4,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((parts["kind"], parts["level"], float(loss.detach())))
    first, last = np.mean(losses[:4], 0), np.mean(losses[-4:], 0)
    assert (last < 0.8 * first).all(), (first, last)
    assert all(bool((p != q).any()) for p, q in zip(encoder.parameters(), before, strict=True))


def config(views: Path, out: Path) -> Any:
    return tune.Config(views, out, steps=4, every=2, threads=1)


def test_a_stopped_lesson_goes_on_as_if_nothing_had_been(
    views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune.tune(config(views, tmp_path / "out"))
    whole = kept(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")  # a run's folder is part of its config
    monkeypatch.setattr(runs, "STATE_EVERY_S", -1.0)
    lesson, given = tune.lesson, []

    def stops(*arguments: Any) -> Any:
        given.append(1)
        if len(given) == 4:
            raise KeyboardInterrupt
        return lesson(*arguments)

    monkeypatch.setattr(tune, "lesson", stops)
    with pytest.raises(KeyboardInterrupt):
        tune.tune(config(views, tmp_path / "out"))
    monkeypatch.setattr(tune, "lesson", lesson)
    tune.tune(config(views, tmp_path / "out"))
    cut = kept(tmp_path / "out")
    assert set(cut) == set(whole)
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "out")]
    assert lines[0] == lines[1]
    figures = [json.loads(line) for line in lines[0].splitlines()]
    assert [row["step"] for row in figures] == [0, 2, 4]
    assert {"dev_srcc", "dev_plcc", "dev_token_auc", "own", "other", "kind"} <= set(figures[-1])


def kept(out: Path) -> dict[str, Any]:
    saved = torch.load(out / "encoder.pt", weights_only=True)
    return {f"{part}.{name}": value for part, values in saved.items() for name, value in values.items()}


def test_frozen_blocks_stay_and_others_learn(views: Path, tmp_path: Path) -> None:
    tune.tune(config(views, tmp_path / "out"))
    fresh, taught = random_encoder(), cells.CellEncoder.tuned(tmp_path / "out" / "encoder.pt")
    for index, (block, other) in enumerate(zip(fresh.features, taught.features, strict=True)):
        same = all(torch.equal(p, q) for p, q in zip(block.parameters(), other.parameters(), strict=True))
        assert same == (index < 2), index


def test_views_that_lack_a_kind_are_said(views: Path, tmp_path: Path) -> None:
    (views / "whole-0.jsonl").write_text("")
    with pytest.raises(runs.RunError, match="holds no whole sample to learn from"):
        tune.tune(config(views, tmp_path / "out"))
