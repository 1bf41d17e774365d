"""Q-Hawkeye on TRL's GRPO trainer: advantages by doubt, and the implicit perception loss."""

from typing import Any

import advantages
import grpo
import losses
import numpy as np
import torch
from torch import Tensor
from trl import GRPOTrainer
from worse import Worse

from large.answers import parse, score_of
from large.patches import Patches


class HawkeyeTrainer(GRPOTrainer):
    """GRPO whose advantages count less where an image's rollouts disagree (`uncertainty_weight`), and which rewards
    that an answer rests on what is seen (`perception_loss`). `settings`: what is asked of it; `patches`: of its model's
    processor."""

    settings: grpo.Settings
    patches: Patches

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        if self.settings.uncertainty_weight:
            texts = self.processing_class.batch_decode(output["completion_ids"], skip_special_tokens=True)
            scores = torch.tensor([score_of(parse(text)) for text in texts]).reshape(-1, self.settings.rollouts)
            doubt = advantages.uncertainty(scores)
            known = output["advantages"].reshape(-1, self.settings.rollouts)
            output["advantages"] = advantages.certain(known, doubt.to(known)).flatten()
        return output

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        # What the policy loss is made of: its perception twin is asked the same. Else it would be kept for nothing.
        if self.settings.perception_loss and torch.is_grad_enabled():
            self._asked = (found[0], args, kwargs)
        return found

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        gamma = losses.perception_weight(self.state.global_step, self.args.max_steps)
        if not (self.settings.perception_loss and gamma and inputs.get("pixel_values") is not None):
            return loss
        seen, args, kwargs = self._asked
        with torch.no_grad():
            other, _, _ = super()._get_per_token_logps_and_entropies(
                *args, **{**kwargs, "pixel_values": self._degraded(inputs), "compute_entropy": False}
            )
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        apart = losses.perception(seen, other, mask)
        self._metrics["train"]["perception"].append(float(apart.detach()))
        # As TRL weighs its own loss in a step of several batches.
        return loss - gamma * apart / self.current_gradient_accumulation_steps

    def _degraded(self, inputs: Any) -> Tensor:
        """The pictures of a batch, worse. All views of a conversation suffer alike, each at its own scale: what was cut
        from the photo is no longer known here."""
        rng = np.random.default_rng(
            [self.args.seed, self.state.global_step, self._step, self.accelerator.process_index]
        )
        pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"].tolist()
        parts = iter(zip(pixels.split([t * h * w for t, h, w in grids]), grids, strict=True))
        out = []
        for count in inputs["num_images"]:
            worse = Worse.drawn(rng)
            for _ in range(count):
                patches, (_, rows, cols) = next(parts)
                out.append(self.patches.of(worse.of(self.patches.picture(patches, rows, cols))))
        return torch.cat(out).to(pixels)
