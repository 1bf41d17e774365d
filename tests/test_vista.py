"""The Vista maker: the same bytes for a seed, whole or resumable, and scores that follow the damage."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import script

vista = script("vista")
scores = script("vista_score")
wavelets = script("wavelets")
importance = script("importance")
negatives = script("negatives")
injecting = script("inject")
bank = script("degradations")

EXAMPLES = Path(__file__).parent.parent / "examples"
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def photo() -> Pixels:
    """1.2 MP of something real."""
    with Image.open(EXAMPLES / "coffee.jpg") as image:
        return np.asarray(image.convert("RGB").resize((1280, 960), Image.Resampling.LANCZOS))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photo: Pixels) -> Path:
    folder: Path = tmp_path_factory.mktemp("photos")
    for index, pixels in enumerate((photo, photo[:, ::-1], photo[::-1])):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory, photo: Pixels) -> Path:
    folder: Path = tmp_path_factory.mktemp("rated")
    (folder / "images").mkdir()
    lines = ["filename,mos,subset"]
    for index in range(6):
        Image.fromarray(photo[index * 100 : index * 100 + 128, :160]).save(folder / "images" / f"{index}.png")
        lines.append(f"{index}.png,{index / 5},01")
    (folder / "mos.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    code = vista.main([str(a) for a in arguments])
    return code, capsys.readouterr().err


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "vista.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


# The maker


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photos: Path, rated: Path) -> Path:
    out: Path = tmp_path_factory.mktemp("made") / "set"
    assert vista.main(["build", str(photos), str(out), "--count", "16", "--seed", "5", "--rated", str(rated)]) == 0
    return out


def test_rows_say_what_the_images_are(made: Path) -> None:
    rows = rows_of(made)
    assert len(rows) == 16
    assert any(row["regions"] for row in rows)
    assert any(row["regions"] == [] for row in rows)
    for row in rows:
        with Image.open(made / row["image"]) as image:
            assert image.size == (row["width"], row["height"])
        assert 1 <= row["score"] <= 5
        assert row["score_version"] == "vista-1"
        assert row["split"] in {"train", "dev", "test"}
        assert (row["regions"] is None) == (row["scene"] in vista.RATED_SHARES)
        for region in row["regions"] or ():
            x1, y1, x2, y2 = region["box"]
            assert 0 <= x1 < x2 <= row["width"]
            assert 0 <= y1 < y2 <= row["height"]
            assert region["kind"] == bank.BANK[region["name"]].kind
            assert region["likeness"] < scores.LOSSLESS
        if row["regions"] is not None:
            assert (row["score"] < 4.6) == bool(row["regions"])
        if row["small"]:
            with Image.open(made / row["small"]["image"]) as image:
                assert image.size == (row["small"]["width"], row["small"]["height"])
                assert max(image.size) == 512
    assert "| scene | images |" in (made / "CARD.md").read_text()
    assert not list(made.rglob("*.part"))


def test_the_same_seed_gives_the_same_bytes_also_after_a_stop(
    made: Path, photos: Path, rated: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    arguments = ["build", str(photos), str(again), "--count", "16", "--seed", "5", "--rated", str(rated)]
    assert vista.main([*arguments, "--workers", "1"]) == 0
    assert contents(again) == contents(made)
    # As if it had been killed before the list was written, in the middle of image 3, and before image 7.
    for lost in ("vista.jsonl", "rows/000003.json", "rows/000007.json", "images/000007.jpg"):
        (again / lost).unlink()
    (again / "images" / "000003.jpg").write_bytes(b"half")
    (again / "images" / "000007.jpg.part").write_bytes(b"half")
    assert vista.main(arguments) == 0
    assert contents(again) == contents(made)


def test_a_set_of_one_split(
    photos: Path, rated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "train"
    options = ("--count", "6", "--rated", rated, "--split", "train")
    assert run(capsys, "build", photos, out, *options)[0] == 0
    assert {row["split"] for row in rows_of(out)} == {"train"}
    pixels, _ = vista.remaker(out, photos, rows_of(out))(next(i for i, r in enumerate(rows_of(out)) if r["regions"]))
    assert pixels.ndim == 3
    monkeypatch.setitem(vista.clean_split.__globals__, "PRISTINE_DEV_SHARE", 0.0)
    code, said = run(capsys, "build", photos, tmp_path / "dev", "--count", "6", "--split", "dev")
    assert code == 2
    assert "no photo of the split 'dev'" in said


def test_another_seed_does_not_touch_a_set(
    made: Path, photos: Path, rated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(made)
    code, said = run(capsys, "build", photos, made, "--count", "16", "--seed", "6", "--rated", rated)
    assert code == 2
    assert "choose another folder" in said
    assert contents(made) == before


def test_agreement_is_reported(made: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vista.main(["agree", str(photos), str(made), "--count", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 5
    assert -1 <= found["psnr"] <= 1
    assert -1 <= found["ssimulacra2_1mp"] <= 1


# Bad input


def test_wrong_input_is_one_line(photos: Path, rated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    small = tmp_path / "small"
    small.mkdir()
    Image.new("RGB", (40, 30)).save(small / "a.png")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"no photo")
    listed = tmp_path / "listed"
    listed.mkdir()
    (listed / "photos.csv").write_text("file,role\ngone.jpg,pristine\n")
    for folder, message in (
        (tmp_path / "none", "is no folder"),
        (empty, "holds no photos"),
        (small, "a.png: has 0.00 MP"),
        (broken, "a.jpg: cannot be read as a photo"),
        (listed, "gone.jpg: is named in photos.csv and missing"),
    ):
        code, said = run(capsys, "build", folder, tmp_path / "out")
        assert code == 2
        assert message in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    for wrong, message in (
        ("filename,mos\n0.png,0.5\n0.png,0.6\n", "0.png twice"),
        ("filename,mos\n0.png,nan\n", "mos of 0.png"),
        ("filename,mos\n0.png,1.5\n", "mos of 0.png"),
        ("filename,mos\nno.png,0.5\n", "no.png: is named in mos.csv and missing"),
        ("name,score\n0.png,0.5\n", "columns filename and mos"),
        ("filename,mos\n0.png,good\n", "columns filename and mos"),
    ):
        other = tmp_path / "rated"
        (other / "images").mkdir(parents=True, exist_ok=True)
        (other / "images" / "0.png").write_bytes((rated / "images" / "0.png").read_bytes())
        (other / "mos.csv").write_text(wrong)
        code, said = run(capsys, "build", photos, tmp_path / "out", "--rated", other)
        assert code == 2
        assert message in said
        assert said.count("\n") == 1
    (tmp_path / "file").write_text("in the way")
    code, said = run(capsys, "build", photos, tmp_path / "file" / "out")
    assert (code, said.count("\n")) == (2, 1)
    assert "not a directory" in said
    code, said = run(capsys, "build", photos, tmp_path / "out", "--count", "0")
    assert (code, said.count("\n")) == (2, 1)
    code, said = run(capsys, "build", photos, tmp_path / "out", "--importance", "importance:nothing")
    assert code == 2
    assert "MODULE:FUNCTION" in said


def test_a_full_disk_leaves_nothing_that_looks_finished(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "full"
    for folder in ("images", "small", "rows"):
        (out / folder).mkdir(parents=True)
    vista._begin(vista.Job(out, 0, tuple(vista.clean_photos(photos)), (), "importance:image_signature"))

    (out / "images" / "000000.jpg.part").symlink_to("/dev/full")  # a disk without room
    assert "the disk is full" in vista._make(0)
    assert not list(out.rglob("*.jpg"))
    assert not list(out.rglob("*.json"))


@pytest.mark.parametrize(
    ("body", "message"),
    [("raise RuntimeError('no map today')", "no map today"), ("return pixels / 255", "gave no map")],
)
def test_a_failing_importance_map_is_one_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    name = f"annotator{len(body)}"
    (tmp_path / f"{name}.py").write_text(f"def look(pixels):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    vista._begin(vista.Job(tmp_path, 0, tuple(vista.clean_photos(photos)), (), f"{name}:look"))
    said = [vista._make(n) for n in range(4)]
    assert any(message in (one or "") and f"--importance {name}:look" in (one or "") for one in said)


def test_a_set_of_other_rated_photos_is_another(
    made: Path, photos: Path, rated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "rated"
    shutil.copytree(rated, other)
    table = (other / "mos.csv").read_text().splitlines()
    (other / "mos.csv").write_text("\n".join([table[0], *table[:0:-1]]) + "\n")  # in another order
    code, said = run(capsys, "build", photos, made, "--count", "16", "--seed", "5", "--rated", other)
    assert code == 2
    assert "made another way" in said


def test_a_photo_that_breaks_half_way_is_named(tmp_path: Path, photo: Pixels) -> None:
    folder = tmp_path / "cut"
    folder.mkdir()
    Image.fromarray(photo).save(folder / "a.jpg")
    data = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(data[: len(data) // 2])
    vista._begin(vista.Job(tmp_path, 0, tuple(vista.clean_photos(folder)), (), "importance:image_signature"))
    said = vista._make(0)
    assert "a.jpg" in said
    assert "take it out of the folder" in said


# Structure and texture, importance, negatives


def test_texture_moves_without_the_structure(photo: Pixels) -> None:
    part = photo[200:456, 300:620]
    mixed = wavelets.with_texture_of(part, bank.BANK["brighten"](part, 5, 0))
    assert abs(float(mixed.mean()) - float(part.mean())) < 0.5  # its light stayed
    blurred = wavelets.with_texture_of(part, bank.BANK["lens_blur"](part, 5, 0))
    assert wavelets.texture_energy(np.clip(blurred, 0, 255).astype(np.uint8)).mean() < (
        0.6 * wavelets.texture_energy(part).mean()
    )
    np.testing.assert_allclose(wavelets.with_texture_of(part, part), part, atol=1e-3)


def test_texture_energy_grows_with_texture() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (128, 128, 1))
    found = [
        wavelets.texture_energy(np.clip(128 + s * noise, 0, 255).astype(np.uint8).repeat(3, 2)).mean()
        for s in (1, 4, 16)
    ]
    assert found[0] < found[1] < found[2]
    assert wavelets.texture_energy(np.full((1, 1, 3), 9, np.uint8)).shape == (1, 1)


def test_what_stands_out_matters() -> None:
    plain = np.full((300, 400, 3), 120, np.uint8)
    plain[60:100, 300:350] = (230, 40, 30)
    map_ = importance.image_signature(plain)
    there = importance.mean_inside(map_, (300, 60, 350, 100), 400, 300)
    assert there > 0.9
    assert there > importance.mean_inside(map_, (20, 220, 70, 260), 400, 300) + 0.3
    assert map_.min() >= 0
    assert map_.max() <= 1


@pytest.mark.parametrize("name", sorted(negatives.NEGATIVES))
def test_negatives_keep_the_subject(name: str, photo: Pixels) -> None:
    made = negatives.NEGATIVES[name](photo, importance.image_signature, np.random.default_rng(2))
    again = negatives.NEGATIVES[name](photo, importance.image_signature, np.random.default_rng(2))
    np.testing.assert_array_equal(made, again)
    assert made.shape == photo.shape
    map_ = importance.image_signature(photo)
    row, column = np.unravel_index(int(map_.argmax()), map_.shape)
    y, x = (int((i + 0.5) * side / n) for i, side, n in zip((row, column), photo.shape, map_.shape, strict=False))
    near = np.abs(made[y - 20 : y + 20, x - 20 : x + 20].astype(int) - photo[y - 20 : y + 20, x - 20 : x + 20]).mean()
    if name in {"bokeh", "panned"}:
        assert near == 0
        assert wavelets.texture_energy(made).mean() < 0.9 * wavelets.texture_energy(photo).mean()
    if name == "low_key":
        assert made.mean() < 0.8 * photo.mean()


def test_a_region_changes_and_nothing_else(photo: Pixels) -> None:
    rng = np.random.default_rng(3)
    map_ = importance.image_signature(photo)
    pixels, regions = photo.copy(), []
    for name in ("jpeg", "lens_blur", "white_noise"):
        region = injecting.inject(pixels, name, 5, map_, regions, rng)
        assert region is not None
        regions.append(region)
    outside = np.ones(photo.shape[:2], bool)
    for region in regions:
        x1, y1, x2, y2 = region.box
        assert not np.array_equal(pixels[y1:y2, x1:x2], photo[y1:y2, x1:x2])
        outside[y1:y2, x1:x2] = False
    np.testing.assert_array_equal(pixels[outside], photo[outside])
    assert injecting.inject(np.full((400, 400, 3), 90, np.uint8), "lens_blur", 5, map_, [], rng) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_region_fills_its_box(seed: int, photo: Pixels) -> None:
    """What a model is taught to draw around a defect is not much larger than the defect."""
    pixels, map_ = photo.copy(), importance.image_signature(photo)
    region = injecting.inject(pixels, "white_noise", 5, map_, [], np.random.default_rng(seed), sides=(0.2, 0.5))
    assert region is not None
    x1, y1, x2, y2 = region.box
    assert 0.2 * photo.shape[1] - 1 <= x2 - x1 <= 0.5 * photo.shape[1] + 1
    assert 0.2 * photo.shape[0] - 1 <= y2 - y1 <= 0.5 * photo.shape[0] + 1
    changed = (pixels != photo).any(2)[y1:y2, x1:x2]
    assert np.ptp(np.flatnonzero(changed.any(1))) > 0.9 * (y2 - y1)
    assert np.ptp(np.flatnonzero(changed.any(0))) > 0.9 * (x2 - x1)


def test_a_region_fades_at_its_rim() -> None:
    for seed in range(20):
        mask = injecting.soft_mask(90, 130, np.random.default_rng(seed))
        assert mask.shape == (90, 130)
        assert mask.min() >= 0
        assert mask[45, 65] == mask.max() == 1
        # Half strength where the box ends, and nothing in its corners.
        for edge in (mask[0, 64:66], mask[-1, 64:66], mask[44:46, 0], mask[44:46, -1]):
            assert 0.4 < edge.max() <= 0.5 + 1e-3
        assert mask[0, 0] == 0
        assert 0.6 < mask.mean() < 1


def test_regions_keep_off_each_other(photo: Pixels) -> None:
    map_, gap = importance.image_signature(photo), injecting.CONTEXT_PX
    for seed in range(3):
        pixels, rng, regions = photo.copy(), np.random.default_rng(seed), list[Any]()
        for name in ("white_noise", "darken", "brighten"):
            region = injecting.inject(pixels, name, 5, map_, regions, rng, sides=(0.2, 0.3))
            regions += [region] if region else []
        assert len(regions) > 1
        for one, other in itertools.combinations([r.box for r in regions], 2):
            apart = (other[0] - one[2], one[0] - other[2], other[1] - one[3], one[1] - other[3])
            assert max(apart) >= gap, (one, other)


# The score


def test_the_score_grows_worse_with_each_of_its_parts() -> None:
    def falls(values: list[float]) -> bool:
        return all(a > b for a, b in itertools.pairwise(values))

    assert falls([scores.score(4.6, [scores.cost(alike, 0.5, 0.02)]) for alike in (89, 70, 40, 10, -9)])
    assert falls([scores.score(4.6, [scores.cost(40, matters, 0.02)]) for matters in (0, 0.3, 0.6, 1)])
    assert falls([scores.score(4.6, [scores.cost(40, 0.5, share)]) for share in (0.001, 0.01, 0.03, 0.08)])
    assert falls([scores.score(4.6, [scores.cost(40, 0.5, 0.02)] * count) for count in (0, 1, 2, 3)])
    assert scores.score(4.6, []) == 4.6
    assert scores.score(4.6, [scores.cost(-500, 1, 1)]) == pytest.approx(1)
    assert scores.cost(95, 1, 1) == 0


def test_the_frozen_formula_gives_these_numbers() -> None:
    """By hand: severity .5, importance .6, share .02 of .08."""
    assert scores.cost(40, 0.6, 0.02) == pytest.approx(0.5**0.7 * (0.45 + 0.33) * (0.4 + 0.6 * 0.5))
    assert scores.score(4.6, [0.5, 0.2]) == pytest.approx(1 + 3.6 * 0.5 * 0.8)
    assert scores.VERSION == "vista-1"
