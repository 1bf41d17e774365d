"""nano's contract with the runtime: what each graph takes, what its views are, and how it is spoken to."""

from typing import Final

import vocabulary as words
from cells import IMAGENET_MEAN, IMAGENET_STD
from defects import Domain
from nano import Nano
from nano_spec import CROP, CROP_VIEW, GLOBAL_VIEW, OVERVIEW

from qcheck.contract import FORMAT, Contract, DecoderSpec, FileEntry, PixelSpec

# A score's tokens are taught to be as wide as people's scores are (a deviation of .4), and a judge who says another
# score each time is of no use: the likeliest are drawn from that come to so much. On 236 development photos five runs
# of 0.9.2 then differ by .13, and by all the more the larger the error (SRCC .26).
ROLLOUT_TOP_P: Final = 0.45
MAX_TOKENS: Final = 16384  # 64 probes of 196 image tokens and their turns
LICENCE: Final = "Apache-2.0; vision weights derived from torchvision's MobileNetV2 (BSD-3-Clause)"


def contract_of(
    model: Nano,
    domain: Domain,
    version: str,
    precision: str,
    files: dict[str, FileEntry],
    max_tokens: int = MAX_TOKENS,
) -> Contract:
    """`files`: by part, see qcheck/contract.py; none for a model that is only in memory."""
    text = model.config.text_config
    return Contract(
        format=FORMAT,
        name="nano",
        version=version,
        licence=LICENCE,
        precision=precision,
        kinds=domain.kinds,
        attributes=domain.attributes,
        coordinates="relative_1000",
        pixels=PixelSpec("planar", IMAGENET_MEAN, IMAGENET_STD, survey=True, overview=OVERVIEW),
        global_view=GLOBAL_VIEW,
        crop_view=CROP_VIEW,
        crop=CROP,
        decoder=DecoderSpec(
            text.num_hidden_layers,
            text.num_key_value_heads,
            text.hidden_size // text.num_attention_heads,
            text.hidden_size,
            max_tokens,
        ),
        rollout_top_p=ROLLOUT_TOP_P,
        language=words.language(domain),
        files=files,
    )
