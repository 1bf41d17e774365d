"""The stages on a Qwen2.5-VL model, a tiny one with random weights: conversations, rewards, and TRL's trainers."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import library, script

from qcheck.photo import Photo
from qcheck.tiles import Box

torch = library("torch")
transformers = library("transformers")
pytest.importorskip("trl", reason="needs trl; pip install -e '.[large]'")
script("defects")  # puts training/ on the path
from large import answers, conversations, environment, hawkeye, patches, stages, views  # noqa: E402

grpo, tasks, defects = script("grpo"), script("tasks"), script("defects")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
PIXELS = 16 * 28 * 28


def processor() -> Any:
    """Qwen2.5-VL's, with a tokenizer of bytes, and without videos, for which it would need torchvision."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    class Pictures(transformers.Qwen2_5_VLProcessor):  # type: ignore[misc, name-defined]
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(text, special=True, normalized=False) for text in (*SPECIAL, "<|image_pad|>", "<|video_pad|>")
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a"], trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    pictures = transformers.Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28)
    return Pictures(image_processor=pictures, tokenizer=fast)


def model(made: Any) -> Any:
    torch.manual_seed(0)
    ids = {name: made.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(made.tokenizer),
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": made.tokenizer.eos_token_id,
        "pad_token_id": made.tokenizer.pad_token_id,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 1,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=made.tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=made.tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rated photos, and a conversation about one of them."""
    folder: Path = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    lines, told = ["filename,mos"], []
    for index in range(60):  # so that some of them are for training, whatever their bytes
        pixels = np.random.default_rng(index).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        path = folder / "images" / f"{index}.png"
        Image.fromarray(pixels).save(path)
        lines.append(f"{index}.png,{index / 60}")
        finding = {"kind": "noise", "level": "obvious", "box": [20, 30, 80, 70]}
        told.append(
            {
                "image": str(path),
                "split": "train",
                "probes": [
                    {"box": [10, 20, 90, 80], "label": "noise", "findings": [finding]},
                    {"box": [0, 0, 30, 30], "label": "defocus", "findings": []},
                ],
                "answer": {"score": 2.34, "findings": [finding]},
            }
        )
    (folder / "mos.csv").write_text("\n".join(lines) + "\n")
    (folder / "trajectories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    return folder


def config(out: Path, **more: Any) -> Any:
    keys = {"checkpoint": out, "out": out, "precision": "fp32", "lora_rank": 4, "accumulate": 1, "steps": 1}
    keys |= {"global_pixels": PIXELS, "crop_pixels": PIXELS, "max_new_tokens": 12, "save_every": 100}
    return stages.Config(**(keys | more))


def test_answers_are_read_and_never_guessed() -> None:
    text = answers.spell(2.345, [{"kind": "noise", "bbox_2d": [1, 2, 3, 4]}], {"noise": 3.0})
    assert answers.parse(f"<think>x</think>{text}") == answers.Answer(2.35, ((1, 2, 3, 4),), {"noise": 3.0})
    assert answers.parse("<answer>3.2</answer>") == answers.Answer(3.2, (), {})
    assert answers.parse('<answer>{"score": 1}</answer> <answer>{"score": 4}</answer>') == answers.Answer(4, (), {})
    odd = '<answer>{"score": 3, "defects": [{"bbox_2d": [1, 2]}, 7], "attributes": {"noise": "much"}}</answer>'
    assert answers.parse(odd) == answers.Answer(3, (), {})
    for broken in ("3.2", "<answer></answer>", "<answer>good</answer>", '<answer>{"score": 7}</answer>', "<answer>[3]"):
        assert answers.parse(broken) is None
    assert answers.parse('<answer>{"score": NaN}</answer>') is None
    assert answers.parse("<answer>true</answer>") is None


def test_a_view_is_what_the_processor_leaves_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1300, 3), dtype=np.uint8)
    photo = Photo.from_pixels(pixels)
    view = views.global_view(photo, 64 * 28 * 28)
    picture = views.shown(photo, view)
    assert picture.size == view.size
    assert (picture.width % 28, picture.height % 28) == (0, 0)
    grid = processor().image_processor(images=[picture], return_tensors="pt")["image_grid_thw"][0].tolist()
    assert grid == [1, picture.height // 14, picture.width // 14]
    # A call in pixels of that view comes back as the same place of the photo, with its surroundings.
    corners = views.in_view(Box(200, 300, 700, 600), view)
    crop = views.zoomed(photo, view, corners, 512 * 28 * 28).box
    assert crop.x1 <= 200 <= 700 <= crop.x2
    assert crop.y1 <= 300 <= 600 <= crop.y2
    assert crop.area < 2.2 * 500 * 300
    for wrong in ([1, 2], "here", [1, 2, "x", 4], [9000, 9000, 9100, 9100]):
        with pytest.raises(ValueError, match="bbox_2d"):
            views.zoomed(photo, view, wrong, PIXELS)


def test_a_conversation_shows_what_it_asks_for(photos: Path) -> None:
    line = conversations.lines_of(photos / "trajectories.jsonl", "train")[0]
    messages = conversations.conversation(line, defects.PHOTOS, PIXELS, PIXELS)
    roles = [m["role"] for m in messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert len(list(conversations.pictures(messages))) == 3
    call = messages[2]["tool_calls"][0]["function"]
    assert call["arguments"]["label"] == "noise"
    assert messages[4]["content"] == "<think>obvious noise.</think>"
    assert messages[6]["content"].startswith("<think>All is well here.</think><answer>")
    answer = answers.parse(messages[6]["content"])
    assert answer is not None
    assert answer.score == 2.34
    assert len(answer.boxes) == 1
    with pytest.raises(conversations.RunError, match="is missing"):
        conversations.lines_of(photos / "none.jsonl", "train")


def completion(score: float, boxes: tuple[Any, ...] = ()) -> list[dict[str, str]]:
    found = [{"kind": "noise", "bbox_2d": list(box)} for box in boxes]
    return [{"role": "assistant", "content": answers.spell(score, found, {})}]


def test_the_judge_is_the_same_as_nanos(photos: Path, tmp_path: Path) -> None:
    """Its rewards are those of grpo.rewards_of for the same scores and boxes."""
    settings = grpo.Settings(reward="both", images=2, rollouts=2, a=1.0, b=0.2, c=0.1)
    path = [photos / "images" / f"{i}.png" for i in range(2)]
    known = [
        tasks.Task(path[0], 4.0, "authentic", {}, ((20, 30, 80, 70),), "a"),
        tasks.Task(path[1], 2.0, "authentic", {}, None, "b"),
    ]
    photo = Photo.open(str(path[0]))
    view = views.global_view(photo, PIXELS)
    right = views.in_view(Box(20, 30, 80, 70), view)
    told = [completion(3.9, (right,)), completion(3.0), completion(2.5), [{"role": "assistant", "content": "?"}]]
    rows = [json.dumps({**dataclasses.asdict(task), "path": str(task.path)}) for task in known for _ in range(2)]
    judge = stages.Judge(config(tmp_path, policy=settings))
    found = judge(told, [str(p) for p in path for _ in range(2)], rows)

    def rollout(score: float, boxes: tuple[Box, ...] = ()) -> Any:
        verdict = SimpleNamespace(defects=[SimpleNamespace(box=box) for box in boxes])
        return SimpleNamespace(score=score, attributes={}, verdict=verdict)

    seen = views.photo_box(right, view, "view_pixels")
    groups = [[rollout(3.9, (seen,)), rollout(3.0)], [rollout(2.5), rollout(float("nan"))]]
    expected = grpo.rewards_of(known, groups, settings)
    assert found == pytest.approx(expected.flatten().tolist(), abs=1e-6)
    assert found[0] == max(found)
    assert found[3] == 0
    with pytest.raises(stages.RunError, match="two images to compare"):
        judge(told[:2], [str(path[0])] * 2, rows[:2])


def test_the_environment_cuts_what_is_asked_for(photos: Path) -> None:
    class Here(environment.PhotoEnvironment):  # type: ignore[misc]
        global_pixels, crop_pixels, max_probes = PIXELS, PIXELS, 1

    here = Here()
    here.reset(path=str(photos / "images" / "0.png"), task="{}")
    ((part),) = here.image_zoom_in_tool([0, 0, 40, 40], "noise")
    assert part["type"] == "image"
    assert isinstance(part["image"], Image.Image)
    with pytest.raises(ValueError, match="answer now"):
        here.image_zoom_in_tool([0, 0, 40, 40])
    here.reset(path=str(photos / "images" / "1.png"))
    with pytest.raises(ValueError, match="bbox_2d"):
        here.image_zoom_in_tool([0, 0])


def moved(trainer: Any) -> bool:
    """Whether a step changes what is taught."""
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert before
    assert all("lora" in name for name in before)
    trainer.train()
    return any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)


def test_sft_learns_from_conversations(photos: Path, tmp_path: Path) -> None:
    made = processor()
    trainer = stages.sft(
        config(tmp_path, conversations=photos / "trajectories.jsonl", sft_rate=1e-2), model(made), made
    )
    assert moved(trainer)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    taught = made.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0])
    assert "<answer>" in taught
    assert "image_zoom_in_tool" in taught
    assert "Rate this photo" not in taught
    assert "<|image_pad|>" not in taught


def scripted(made: Any, trained: Any, script_of: Any) -> None:
    """A random model says nothing that can be read, so that its words are given: `script_of` the texts so far."""

    def generate(input_ids: Any, **_: Any) -> Any:
        texts = made.tokenizer.batch_decode(input_ids)
        said = [made.tokenizer(script_of(text) + "<|im_end|>")["input_ids"] for text in texts]
        most = max(map(len, said))
        padded = [ids + [made.tokenizer.pad_token_id] * (most - len(ids)) for ids in said]
        return torch.cat((input_ids, torch.tensor(padded)), 1)

    trained.generate = generate


def ranking(photos: Path, out: Path, **switches: bool) -> Any:
    """A trainer of stage 1 whose model gives every photo another score."""
    scores = iter([4.0, 2.0, 3.0, 1.0] * 20)
    settings = grpo.Settings(images=2, rollouts=2, rate=1e-2, **switches)
    made = processor()
    taught = model(made)
    scripted(made, taught, lambda _: answers.spell(next(scores), [], {}))
    keys = {"rated": photos, "batch": 4, "policy": settings, "max_new_tokens": 200}
    return stages.reinforce(config(out, **keys), taught, made, zoom=False)


def test_ranking_takes_a_step(photos: Path, tmp_path: Path) -> None:
    trainer = ranking(photos, tmp_path, uncertainty_weight=True)
    assert moved(trainer)
    assert trainer.state.log_history[0]["rewards/quality/std"] > 0


def test_patches_become_the_pictures_they_were_made_of() -> None:
    images = processor().image_processor
    shapes = ((56, 84), (140, 56), (28, 28))
    pictures = [
        np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype=np.uint8) for i, shape in enumerate(shapes)
    ]
    made = images(images=[Image.fromarray(p) for p in pictures], min_pixels=28 * 28, return_tensors="pt")
    layout = patches.Patches(images)
    grids = made["image_grid_thw"].tolist()
    for picture, part, (_, rows, cols) in zip(
        pictures, made["pixel_values"].split([t * h * w for t, h, w in grids]), grids, strict=True
    ):
        again = layout.picture(part, rows, cols)
        np.testing.assert_array_equal(again, picture)
        torch.testing.assert_close(layout.of(again), part, atol=1e-5, rtol=0)


def test_an_answer_shall_rest_on_what_is_seen(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is less by what the words lose when the photo is degraded."""
    taught_by: list[tuple[float, float]] = []
    plain = hawkeye.HawkeyeTrainer._compute_loss

    def compared(trainer: Any, taught: Any, inputs: Any) -> Any:
        weighed = []
        for gamma in (0.0, 0.5):
            monkeypatch.setattr(hawkeye.losses, "perception_weight", lambda *_, gamma=gamma: gamma)
            weighed.append(plain(trainer, taught, inputs))
        monkeypatch.undo()
        monkeypatch.setattr(hawkeye.HawkeyeTrainer, "_compute_loss", compared)
        worse = trainer._degraded(inputs)
        assert worse.shape == inputs["pixel_values"].shape
        assert not torch.allclose(worse, inputs["pixel_values"], atol=0.1)
        taught_by.append((weighed[0].item(), weighed[1].item()))
        assert weighed[1].grad_fn is not None
        return weighed[1]

    monkeypatch.setattr(hawkeye.HawkeyeTrainer, "_compute_loss", compared)
    trainer = ranking(photos, tmp_path, perception_loss=True)
    assert moved(trainer)
    ((without, with_it),) = taught_by
    apart = trainer.state.log_history[0]["perception"]
    assert apart > 0
    assert without - with_it == pytest.approx(0.5 * apart, rel=1e-3)


def test_refinement_zooms_into_the_photo(photos: Path, tmp_path: Path) -> None:
    """Half of the rollouts call the tool, get a real crop, and answer after it."""
    turns: list[str] = []

    def words(text: str) -> str:
        turns.append(text)
        if "<tool_response>" not in text and len(turns) % 2:
            call = {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [10, 10, 60, 60], "label": "noise"}}
            return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        return answers.spell(1.0 + len(turns) % 4, [], {})

    settings = grpo.Settings(reward="decoupled", images=2, rollouts=2, max_probes=1, rate=1e-2)
    made = processor()
    taught = model(made)
    scripted(made, taught, words)
    keys = {"rated": photos, "batch": 4, "policy": settings, "max_new_tokens": 400}
    trainer = stages.reinforce(config(tmp_path, **keys), taught, made, zoom=True)
    assert moved(trainer)
    after = [text for text in turns if "<tool_response>" in text]
    assert after, "nobody zoomed"
    for text in after:
        assert "<|image_pad|>" in text[text.index("<tool_response>") :], "no crop came back"
    assert trainer.state.log_history[0]["tools/call_frequency"] > 0
    assert trainer.state.log_history[0]["tools/failure_frequency"] == 0


def test_a_config_with_a_checkpoint_is_one_of_a_large_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = script("train")
    for path in sorted((Path(train.__file__).parent / "configs").glob("large-*.toml")):
        kind, _ = train.large(path.stem.split("-")[1])
        assert isinstance(script("config").read(path, kind), stages.Config)
    (tmp_path / "a.toml").write_text(f'checkpoint = "{tmp_path}"\nout = "out"')
    for stage, message in (("sft", "holds no config.json"), ("perceive", "perceive is for nano")):
        assert train.main([stage, "--config", str(tmp_path / "a.toml")]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_what_is_not_served_is_said(photos: Path, tmp_path: Path) -> None:
    made = processor()
    with pytest.raises(stages.RunError, match="rated or vista"):
        stages.reinforce(config(tmp_path), None, made, False)
    with pytest.raises(stages.RunError, match=r"holds no config\.json"):
        stages.load(config(tmp_path))
