"""train.py: stages from their configs, killed runs that go on as if nothing had been, and what is wrong in one line."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script, tokenizer

torch = library("torch")
library("transformers")
train, sft, nano, visual = (script(name) for name in ("train", "sft", "nano", "visual"))
TRAINING = Path(train.__file__).parent


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learned nothing."""
    torch.manual_seed(2)
    path: Path = tmp_path_factory.mktemp("start") / "start.pt"
    model = nano.Nano(nano.config(tokenizer()))
    torch.save({"model": model.state_dict(), "domain": asdict(script("defects").PHOTOS)}, path)
    return path


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("rated")
    (folder / "images").mkdir()
    lines = ["filename,mos"]
    for index in range(24):
        rng = np.random.default_rng(index)
        pixels = np.clip(rng.normal(110, 3 * index + 1, (256, 256, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        lines.append(f"{index}.png,{index / 24}")
    (folder / "mos.csv").write_text("\n".join(lines) + "\n")
    return folder


def rank_config(folder: Path, start: Path, rated: Path, **more: Any) -> Path:
    keys = {"out": str(folder / "out"), "start": str(start), "rated": str(rated), "steps": 3, "every": 2}
    keys |= {"dev_photos": 3, "threads": 1} | more
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    lines += ["[policy]", "images = 2", "rollouts = 2", "rate = 1e-4"]
    (folder / "rank.toml").write_text("\n".join(lines) + "\n")
    return folder / "rank.toml"


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, start: Path, rated: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    assert train.main(["rank", "--config", str(rank_config(whole, start, rated))]) == 0
    # States are kept after every step here, and the process is killed after the first.
    body = f"import sys; sys.path.insert(0, {str(TRAINING)!r}); import runs; runs.STATE_EVERY_S = -1; import train; "
    body += f"train.main(['rank', '--config', {str(rank_config(cut, start, rated))!r}])"
    with subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline:
            state = cut / "out" / "last.pt"
            if state.exists() and torch.load(state, weights_only=False)["step"] >= 1:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert train.main(["rank", "--config", str(cut / "rank.toml")]) == 0
    one, other = (torch.load(folder / "out" / "last.pt", weights_only=False) for folder in (whole, cut))
    assert one["step"] == other["step"] == 3
    for name, value in one["inner"]["model"].items():
        assert torch.equal(value, other["inner"]["model"][name]), name
    assert metrics(whole / "out") == metrics(cut / "out")
    assert json.loads((whole / "out" / "config.json").read_text())["policy"]["images"] == 2
    assert (whole / "out" / "best.pt").exists()


def test_wrong_input_is_one_line(tmp_path: Path, start: Path, rated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(stage: str, path: Path) -> str:
        assert train.main([stage, "--config", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("train.py: ")
        return error

    assert "there is no key 'step'" in said("rank", rank_config(tmp_path, start, rated, step=3))
    assert "is missing" in said("rank", tmp_path / "none.toml")
    assert "mos.csv" in said("rank", rank_config(tmp_path, start, tmp_path / "no-photos"))
    (tmp_path / "images").mkdir()
    (tmp_path / "mos.csv").write_text("filename,mos\nmissing.jpg,0.5\n")
    assert "missing.jpg" in said("rank", rank_config(tmp_path, start, tmp_path))
    assert "nowhere.pt" in said("rank", rank_config(tmp_path, tmp_path / "nowhere.pt", rated))
    path = rank_config(tmp_path, start, rated, out=str(tmp_path / "other"))
    path.write_text(path.read_text().replace("rate = 1e-4", 'reward = "praise"'))
    assert "reward is 'praise'" in said("rank", path)
    (tmp_path / "p.toml").write_text("")
    assert "give [encoder]" in said("perceive", tmp_path / "p.toml")
    eyes, domain = visual.Perception().state_dict(), asdict(script("defects").PHOTOS)
    torch.save({"eyes": eyes, "domain": domain}, tmp_path / "eyes.pt")
    for stage, text, message in (
        ("perceive", f'[encoder]\nviews = "{tmp_path}"\nout = "e"', "holds no rated sample"),
        ("perceive", f'[eyes]\ncells = "{tmp_path}"\nout = "e2"', "holds no rated or no local samples"),
        ("sft", f'looked = "{tmp_path}"\neyes = "eyes.pt"\nout = "s"', "holds no rated sample"),
        ("sft", f'looked = "{tmp_path}"\neyes = "{start}"\nout = "s1"', "holds no eyes"),
        ("sft", f'looked = "{tmp_path}"\neyes = "x"\nout = "s2"\nbatch = {{odd = 3}}', "no kind of sample 'odd'"),
    ):
        (tmp_path / "q.toml").write_text(text)
        assert message in said(stage, tmp_path / "q.toml")


def test_a_run_of_another_config_is_not_overwritten(
    tmp_path: Path, start: Path, rated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    path = rank_config(tmp_path, start, rated, steps=1, every=1)
    assert train.main(["rank", "--config", str(path)]) == 2
    assert "another config" in capsys.readouterr().err
    assert train.main(["rank", "--config", str(path), "--restart"]) == 0


def test_refine_cuts_real_crops(tmp_path: Path, start: Path) -> None:
    """Stage 3 on a Vista-like set: boxes are known, and up to two crops are looked at."""
    (tmp_path / "images").mkdir()
    rows = []
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (256, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        regions = [{"box": [10, 10, 90, 120], "kind": "noise", "cost": 0.4}] if index % 2 else []
        row = {"image": f"images/{index}.png", "width": 320, "height": 256, "source": f"s{index}", "small": None}
        rows.append({**row, "split": "train" if index < 4 else "dev", "score": 4.6 - index / 3, "regions": regions})
    (tmp_path / "vista.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"""
        out = "out"
        start = "{start}"
        vista = "."
        small = false
        steps = 2
        every = 2
        threads = 1
        [policy]
        reward = "decoupled"
        max_probes = 2
        images = 2
        rollouts = 3
        uncertainty_weight = true
        perception_loss = true
        [policy.attributes]
        noise = 0.5
        """
    (tmp_path / "refine.toml").write_text(text)
    assert train.main(["refine", "--config", str(tmp_path / "refine.toml")]) == 0
    last = metrics(tmp_path / "out")[-1]
    assert {"reward", "doubt", "probes", "perception", "dev_localisation", "dev_srcc_synthetic"} <= set(last)
    assert 0 <= last["probes"] <= 2


@pytest.fixture
def eyes(tmp_path: Path, rated: Path) -> Path:
    """Of two folds: what one says of every photo, and another what."""
    folder = tmp_path / "eyes"
    folder.mkdir()
    for fold, score in (("0", 2.0), ("1", 4.0)):
        perception = visual.Perception()
        with torch.no_grad():
            centre = script("nano_spec").SCORE_CENTRE
            # Attributes as good, for a score falls towards the worst of them.
            for reader in (perception.quality, perception.attributes):
                for part in (reader.networks, reader.ridge):
                    for parameter in part.parameters():
                        parameter.zero_()
                reader.ridge.bias.fill_((score - centre) / reader.ridge_share)
        torch.save(
            {"eyes": perception.state_dict(), "domain": asdict(script("defects").PHOTOS)},
            folder / f"eyes-without-{fold}.pt",
        )
    names = sorted(path.name for path in (rated / "images").iterdir())
    (folder / "folds.json").write_text(json.dumps({name: str(index % 2) for index, name in enumerate(names)}))
    return folder


def test_training_photos_are_judged_by_eyes_that_never_saw_them(
    tmp_path: Path, start: Path, rated: Path, eyes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is developed on by the model's own, which are what is kept."""
    grpo, looked, asked = script("grpo"), list[tuple[str, float]](), list[Any]()
    groups, judge = grpo.Policy.groups, grpo.Prober.judge

    def watched(policy: Any, tasks: Any, *more: Any) -> Any:
        found = groups(policy, tasks, *more)
        for task, group in zip(tasks, found, strict=True):
            looked.extend((task.source, view.score) for rollout in group for view in rollout.example.views)
        return found

    def judged(prober: Any, *more: Any) -> Any:
        asked.append(prober.engine.eyes.eyes)
        return judge(prober, *more)

    monkeypatch.setattr(grpo.Policy, "groups", watched)
    monkeypatch.setattr(grpo.Prober, "judge", judged)
    assert train.main(["rank", "--config", str(rank_config(tmp_path, start, rated, eyes=str(eyes)))]) == 0
    fold_of = json.loads((eyes / "folds.json").read_text())
    assert len({fold_of[name] for name, _ in looked}) == 2, "photos of one fold only were drawn"
    for name, score in looked:
        assert score == pytest.approx({"0": 2.0, "1": 4.0}[fold_of[name]], abs=1e-4)
    assert asked
    assert set(asked) == {None}
    kept, began = (torch.load(path, weights_only=True)["model"] for path in (tmp_path / "out" / "best.pt", start))
    for name, value in began.items():
        if "visual.perception" in name:
            assert torch.equal(kept[name], value), name


def test_a_photo_of_no_fold_is_named(
    tmp_path: Path, start: Path, rated: Path, eyes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(rank_config(tmp_path, start, rated, eyes=str(eyes)))
    (eyes / "folds.json").write_text(json.dumps({"another.png": "0"}))
    assert train.main(["rank", "--config", config, "--restart"]) == 2
    assert "is in no fold of the eyes" in capsys.readouterr().err
    (eyes / "folds.json").unlink()
    assert train.main(["rank", "--config", config, "--restart"]) == 2
    assert "holds no folds.json" in capsys.readouterr().err


def test_the_shipped_configs_are_read() -> None:
    found = sorted((TRAINING / "configs").glob("*.toml"))
    assert {path.stem.split("-")[0] for path in found} == {*train.STAGES, "large"}
    for path in found:
        assert train.names_a_checkpoint(path) == path.stem.startswith("large")
        if not path.stem.startswith("large"):
            kind, _ = train.STAGES[path.stem.split("-")[0]]
            assert isinstance(script("config").read(path, kind), kind)
