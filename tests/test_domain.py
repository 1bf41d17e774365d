"""Another domain by config alone: scratches and dents on surfaces, from stage 0 to a model that speaks of them."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

from qcheck.engine import Sampler
from qcheck.photo import Photo
from qcheck.probe import Limits

torch = library("torch")
library("transformers")
train, sft, encode, look, cells, glance, overviews = (
    script(name) for name in ("train", "sft", "encode", "look", "cells", "glance", "overviews")
)
narrator, rollouts, stores, visual = (script(name) for name in ("narrator", "rollouts", "stores", "visual"))

DOMAIN = """
[domain]
attributes = ["surface", "form"]
request = "Inspect this part."
may_zoom = "Look closer or judge."
must_answer = "Judge now."
[domain.attribute_of]
scratch = "surface"
dent = "form"
"""


def view(rng: np.random.Generator, kind: str | None) -> tuple[Any, list[dict[str, Any]]]:
    """Cells of 4 x 6 tokens; a scratch raises some channels in a rectangle, a dent others."""
    shown = rng.normal(size=(8, 12, cells.CELL_CHANNELS)).astype(np.float16)
    if kind is None:
        return shown, []
    x, y = int(rng.integers(0, 4)), int(rng.integers(0, 3))
    channels = slice(0, 60) if kind == "scratch" else slice(60, 120)
    shown[2 * y : 2 * y + 4, 2 * x : 2 * x + 6, channels] += 1.2
    box = [100 * x, 100 * y, 100 * x + 300, 100 * y + 200]
    return shown, [{"kind": kind, "level": 1 + 2 * (kind == "dent"), "box": box, "cost": 0.3}]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What render.py and encode.py would have made of pictures of parts."""
    folder: Path = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    same = {overviews.GLANCE: overviews.written(np.zeros(glance.CHANNELS))}
    for kind, count in (("rated", 12), ("patched", 12), ("whole", 8), ("local", 50), ("aimed", 12)):
        writers = [encode.CellStore(folder, f"{kind}-{fold}").writer() for fold in range(2)]
        for index in range(count):
            shown, defects = view(rng, (None, "scratch", "dent")[index % 3])
            about = {"role": "global", "box": [0, 0, 600, 400], **same}
            sample = {"split": "dev" if index % 5 == 4 else "train", "name": f"{index}", "width": 600, "height": 400}
            sample |= {"score": 4.6 - len(defects), "defects": defects, "attributes": {"surface": 4.0, "form": 4.0}}
            crops = [({"role": f"aim{i}", "box": [0, 0, 300, 400], **same}, shown[:, :6]) for i in range(3)]
            seen = [(about, shown), *(crops if kind in ("local", "aimed") else ())]
            writers[index // 3 % 2].add(sample, iter(seen))
        for writer in writers:
            writer.close()
    return folder


def run(folder: Path, stage: str, text: str) -> None:
    (folder / f"{stage}.toml").write_text(text)
    assert train.main([stage, "--config", str(folder / f"{stage}.toml")]) == 0


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, cached: Path) -> Path:
    folder: Path = tmp_path_factory.mktemp("domain")
    # The ImageNet weights are not needed to see that a domain is learned.
    torch.save({"encoder": cells.CellEncoder().state_dict()}, folder / "encoder.pt")
    steps = "damage_steps = 80\nquality_epochs = 1\nregions_steps = 150\nrate = 3e-3\nthreads = 1\n"
    eyes = f'[eyes]\ncells = "{cached}"\nout = "eyes"\n{steps}'
    looked = f'[looked]\ncells = "{cached}"\neyes = "eyes"\nout = "looked"\nthreads = 1\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script("perceive"), "TOKEN_BATCH", 256)
        patch.setattr(script("candidates"), "BATCH", 256)
        run(folder, "perceive", eyes + looked + DOMAIN)
    keys = 'looked = "looked"\neyes = "eyes/eyes.pt"\nencoder = "encoder.pt"\nout = "sft"\nthreads = 1\n'
    batch = "steps = 3\ndrill_steps = 1\nevery = 3\nbatch = {rated = 2, patched = 2, whole = 2, local = 2, aimed = 2}\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glance.Glance, "pretrained", classmethod(lambda cls: cls()))
        run(folder, "sft", keys + batch)
    return folder


def test_the_eyes_tell_scratches_from_dents(taught: Path) -> None:
    eyes, domain = look.eyes_of(taught / "eyes" / "eyes.pt")
    assert domain.kinds == ("scratch", "dent")
    assert domain.attributes == ("surface", "form")
    rng, right = np.random.default_rng(9), []
    for kind in ("scratch", "dent") * 6:
        shown, _ = view(rng, kind)
        with torch.inference_mode():
            seen = torch.zeros(1, script("visual").WHOLE_CHANNELS)
            (evidence,) = visual.perceived(eyes, [torch.from_numpy(shown.astype(np.float32))], seen)
        right.append(look.suspicions(evidence, domain.kinds)["suspicions"][0][4] == kind)
    assert np.mean(right) > 0.8
    assert json.loads((taught / "eyes" / "metrics.json").read_text())["global_token_auc"] > 0.8


def test_eyes_that_begin_at_a_bundles_learn_what_they_are_told_to(
    taught: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, _ = look.eyes_of(taught / "eyes" / "eyes.pt")
    perceive = script("perceive")
    monkeypatch.setattr(perceive, "Shipped", lambda path: path)
    monkeypatch.setattr(perceive, "eyes_of_bundle", lambda shipped, domain: copy.deepcopy(begun))
    text = f'[eyes]\ncells = "{cached}"\nout = "eyes"\nstart = "bundle"\ndamage_steps = 0\nquality_epochs = 1\n'
    text += "attribute_epochs = 0\nthreads = 1\n"
    (tmp_path / "folds.toml").write_text(text + DOMAIN)
    assert train.main(["perceive", "--config", str(tmp_path / "folds.toml")]) == 2
    assert "say folds = false" in capsys.readouterr().err
    run(tmp_path, "perceive", text + "folds = false\n" + DOMAIN)
    after, _ = look.eyes_of(tmp_path / "eyes" / "eyes.pt")
    other = {name for name, value in begun.state_dict().items() if not torch.equal(after.state_dict()[name], value)}
    assert other
    assert all(name.startswith("quality.") for name in other)


def test_the_model_speaks_of_nothing_else(taught: Path) -> None:
    model, tokenizer, domain = sft.start_of(taught / "sft" / "step3.pt")
    assert tokenizer.token_to_id("noise") is None
    speller = narrator.Speller(tokenizer, domain=domain)
    engine = rollouts.RecordingEngine(model.eval(), tokenizer, domain)
    assert "Inspect this part. Look closer or judge." in engine.contract.language.first
    photo = Photo.from_pixels(np.random.default_rng(1).integers(0, 256, (256, 320, 3), dtype=np.uint8))
    draws = [Sampler(2.0, seed) for seed in range(6)]
    found = rollouts.sampled(engine, speller, photo, Limits(2), draws)
    kinds = {d.kind for r in found for d in r.verdict.defects} | {p.label for r in found for p in r.verdict.probes}
    assert kinds == {"scratch", "dent"}
    assert all(set(r.attributes) == {"surface", "form"} for r in found)
