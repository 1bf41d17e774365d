"""Stages 1 to 3 on a Qwen2.5-VL checkpoint, by TRL's trainers: what they lack is ours (the ranking reward, which
compares images of a batch; Q-Hawkeye's parts, hawkeye.py; the photo that can be zoomed into). Run by train.py; for
several GPUs or nodes

    accelerate launch --config_file deepspeed_zero3.yaml training/train.py refine --config refine-7b.toml

(the file as `accelerate config` writes it). LoRA through peft; `lora_rank = 0` trains everything.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpo
import numpy as np
import rewards
import torch
from datasets import Dataset
from defects import PHOTOS, Domain
from peft import LoraConfig
from runs import RunError
from tasks import Task, tasks_of
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, SFTConfig, SFTTrainer
from trl.chat_template_utils import qwen3_vl_chat_template, qwen3_vl_training_chat_template

from large.answers import Answer, parse, score_of
from large.conversations import conversation, first_messages, lines_of
from large.environment import PhotoEnvironment
from large.hawkeye import HawkeyeTrainer
from large.patches import Patches
from large.views import global_view, shown
from qcheck.photo import Photo
from qcheck.tiles import photo_box

LORA_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Config:
    """`checkpoint`: a folder in Hugging Face's layout; `conversations`: of trajectories.py, for sft; `rated`, `vista`:
    what is judged in rank and refine. `global_pixels`, `crop_pixels`: budgets of views. Rates are VisualQuality-R1's
    (1e-6, GRPO) and a usual one for LoRA in SFT."""

    checkpoint: Path
    out: Path
    conversations: Path | None = None
    rated: Path | None = None
    vista: Path | None = None
    small: bool = True
    policy: grpo.Settings = field(default_factory=lambda: grpo.Settings(rate=1e-6))
    domain: Domain = PHOTOS
    steps: int = 500
    sft_rate: float = 1e-5
    batch: int = 2
    accumulate: int = 4
    lora_rank: int = 64
    global_pixels: int = 1024 * 28 * 28
    crop_pixels: int = 512 * 28 * 28
    max_new_tokens: int = 1024
    precision: str = "bf16"
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision is {self.precision!r}; it must be bf16 or fp32")


def load(config: Config) -> tuple[Any, Any]:
    """The model and its processor. Raises RunError for a folder that holds none."""
    if not (config.checkpoint / "config.json").is_file():
        raise RunError(f"{config.checkpoint}: holds no config.json; name a checkpoint's folder")
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(
        config.checkpoint, dtype=dtype, use_safetensors=True, local_files_only=True
    )
    return model, AutoProcessor.from_pretrained(config.checkpoint, local_files_only=True)


def prepared(processor: Any) -> Any:
    """With Qwen's tool protocol, which Qwen2.5-VL's own template does not know, and views left at their size."""
    processor.chat_template = qwen3_vl_chat_template
    processor.tokenizer.chat_template = qwen3_vl_chat_template
    return processor


def adapter(config: Config) -> LoraConfig | None:
    if not config.lora_rank:
        return None
    return LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=list(LORA_TARGETS))


def common(config: Config, rate: float) -> dict[str, Any]:
    return {
        "output_dir": str(config.out),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch,
        "gradient_accumulation_steps": config.accumulate,
        "learning_rate": rate,
        "bf16": config.precision == "bf16",
        "save_steps": config.save_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "seed": config.seed,
        "report_to": [],
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
    }


def run(trainer: Any, config: Config) -> None:
    """Goes on from the last checkpoint where there is one, and leaves the adapter or the weights in OUT."""
    (config.out / "run.json").write_text(json.dumps(dataclasses.asdict(config), default=str, indent=1))
    trainer.train(resume_from_checkpoint=any(config.out.glob("checkpoint-*")) or None)
    trainer.save_model(str(config.out / "final"))


def sft(config: Config, model: Any, processor: Any) -> SFTTrainer:
    """Stage 2: only what the assistant says is taught."""
    if config.conversations is None:
        raise RunError("conversations is missing: name a trajectories.jsonl")
    lines = lines_of(config.conversations, "train")
    if not lines:
        raise RunError(f"{config.conversations}: holds no conversation of the train split")

    def made(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        told = [
            conversation(json.loads(line), config.domain, config.global_pixels, config.crop_pixels)
            for line in batch["line"]
        ]
        return {"messages": told}

    data = Dataset.from_dict({"line": [json.dumps(line) for line in lines]}).with_transform(made)
    arguments = SFTConfig(
        **common(config, config.sft_rate),
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return SFTTrainer(
        model,
        args=arguments,
        train_dataset=data,
        processing_class=prepared(processor),
        peft_config=adapter(config),
        data_collator=Collator(processor),
    )


class Collator:
    """Conversations as a batch in which only what the assistant says is taught. TRL's own takes no pictures in what a
    tool answers."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.processor.apply_chat_template(
            [row["messages"] for row in rows],
            chat_template=qwen3_vl_training_chat_template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            return_assistant_tokens_mask=True,
        )
        taught = torch.as_tensor(batch.pop("assistant_masks")).bool()
        return {**batch, "labels": torch.where(taught, batch["input_ids"], -100)}


class Judge:
    """Rewards of a batch of completions, for TRL: it compares the images of the batch."""

    __name__ = "quality"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, completions: Sequence[Any], path: Sequence[str], task: Sequence[str], **_: Any) -> list[float]:
        settings, groups = self.config.policy, groups_of(path, self.config.policy.rollouts)
        answers = [parse(said(completion)) for completion in completions]
        tasks = [_task(task[group[0]]) for group in groups]
        scores = torch.tensor([[score_of(answers[i]) for i in group] for group in groups])
        attributes = {
            name: torch.tensor([[_attribute(answers[i], name) for i in group] for group in groups])
            for name in settings.attributes
        }
        located = [
            self._located([answers[i] for i in group], one) if settings.reward != "ranking" else [0.0] * len(group)
            for group, one in zip(groups, tasks, strict=True)
        ]
        total = grpo.combined(tasks, scores, attributes, torch.tensor(located), settings)
        return [float(value) for value in total.flatten()]  # groups lie side by side

    def _located(self, answers: Sequence[Answer | None], task: Task) -> list[float]:
        """How well the boxes of each answer to a photo meet the true ones."""
        if not task.boxes:
            return [0.0] * len(answers)
        view = global_view(Photo.open(str(task.path)), self.config.global_pixels)
        found = []
        for answer in answers:
            said_boxes = answer.boxes if answer is not None else ()
            boxes = [box for corners in said_boxes if (box := photo_box(corners, view, "view_pixels"))]
            found.append(rewards.localisation([box.as_list() for box in boxes], task.boxes))
        return found


def _task(text: str) -> Task:
    known = json.loads(text)
    return Task(**{**known, "path": Path(known["path"])})


def groups_of(path: Sequence[str], rollouts: int) -> list[list[int]]:
    """Indices of the completions of each image. TRL lays an image's completions side by side. Raises RunError where a
    process has fewer than two images: they could not be compared."""
    groups = [list(range(start, start + rollouts)) for start in range(0, len(path), rollouts)]
    if len(path) % rollouts or any(len({path[i] for i in group}) != 1 for group in groups):
        raise RunError("a process's batch must hold whole groups: make batch a multiple of policy.rollouts")
    if len(groups) < 2:
        raise RunError("a process's batch must hold two images to compare: make batch twice policy.rollouts or more")
    return groups


def said(completion: Any) -> str:
    """The text of the last thing the assistant said."""
    if isinstance(completion, str):
        return completion
    content = next((m["content"] for m in reversed(completion) if m["role"] == "assistant"), "")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def _attribute(answer: Answer | None, name: str) -> float:
    return np.nan if answer is None else answer.attributes.get(name, np.nan)


def reinforce(config: Config, model: Any, processor: Any, zoom: bool) -> HawkeyeTrainer:
    """Stage 1 (no zoom) and stage 3. Raises RunError for what is not served."""
    settings = config.policy
    found = tasks_of(config.rated, config.vista, config.small, "train", config.domain)
    if len(found) < 2:
        raise RunError("rated or vista must name at least two training photos")
    rows = [{"path": str(t.path), "task": json.dumps(dataclasses.asdict(t), default=str)} for t in found]

    def made(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        prompts = []
        for path in batch["path"]:
            photo = Photo.open(path)
            picture = shown(photo, global_view(photo, config.global_pixels))
            prompts.append(first_messages(picture, config.domain, bool(settings.attributes)))
        return {"prompt": prompts, "path": batch["path"], "task": batch["task"]}

    data = Dataset.from_list(rows).with_transform(made)
    arguments = GRPOConfig(
        **common(config, settings.rate),
        num_generations=settings.rollouts,
        temperature=settings.temperature,
        beta=settings.kl_weight,
        epsilon=settings.clip,
        max_completion_length=config.max_new_tokens,
        remove_unused_columns=False,
        loss_type="grpo",
        **({"max_tool_calling_iterations": settings.max_probes + 1} if zoom else {}),
    )
    judge = Judge(config)
    environment: dict[str, Callable[[], PhotoEnvironment]] = {}
    if zoom:
        bound = {"global_pixels": config.global_pixels, "crop_pixels": config.crop_pixels}
        environment["environment_factory"] = type(
            "PhotoEnvironment", (PhotoEnvironment,), {**bound, "max_probes": settings.max_probes}
        )
    trainer = HawkeyeTrainer(
        model,
        reward_funcs=[judge],
        args=arguments,
        train_dataset=data,
        processing_class=prepared(processor),
        peft_config=adapter(config),
        **environment,
    )
    trainer.settings, trainer.patches = settings, Patches(processor.image_processor)
    return trainer


def train(stage: str, config: Config) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    model, processor = load(config)
    if stage == "sft":
        run(sft(config, model, processor), config)
    else:
        run(reinforce(config, model, processor, zoom=stage == "refine"), config)
