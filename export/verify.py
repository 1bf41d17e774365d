"""Whether a bundle says what the checkpoint says that it was made of.

    python export/verify.py BUNDLE CHECKPOINT --photos FOLDER

Photos are judged by transformers in float32 and by the bundle, both by the runtime's own loop, prompts, grammar and
tiles; then the bundle is made to say what transformers said, and every logit is compared. On the first photo crops are
asked for as long as any is left, so that there are several turns and views whatever the model is like.

Prints a table and, last, one line of JSON. Exit codes: 0 within the tolerance; 1 not; 2 bad input, and one line says
why; 130 interrupted. README.md has the tolerances.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from checkpoint import Checkpoint
from comparison import TOLERANCES, Comparison
from errors import ExportError
from reference import Reference, check_memory, size_of
from talk import TalkingEngine
from trials import MOST_PHOTOS, made, of_folder

from qcheck.bundle import Bundle
from qcheck.errors import QcheckError, UsageError
from qcheck.photo import Photo
from qcheck.verdict import ModelInfo

PASSED: Final = 0
OVER_TOLERANCE: Final = 1
FAILED: Final = 2
INTERRUPTED: Final = 130
PROBES: Final = 3
THINK_TOKENS: Final = 48  # enough to see trajectories part, and a conversation stays short of a minute of decoding


def verify(
    bundle: Bundle,
    checkpoint: Checkpoint,
    photos: Iterable[Photo],
    *,
    probes: int = PROBES,
    think_tokens: int = THINK_TOKENS,
    threads: int | None = None,
) -> Comparison:
    """Compares them on photos, of which there must be one. `think_tokens`: thoughts are cut there, of both. Raises
    ExportError, BundleError, EngineError or PhotoError."""
    contract = bundle.contract
    if contract.precision not in TOLERANCES:
        raise ExportError(f"{bundle.directory} is of {contract.precision}, of which nobody knows how close it must be")
    _check_kin(bundle, checkpoint)
    language = replace(contract.language, think_tokens=min(think_tokens, contract.language.think_tokens))
    contract = replace(contract, language=language)
    if threads is not None:
        torch.set_num_threads(threads)
    exported = TalkingEngine.open(replace(bundle, contract=contract), threads=threads)
    assert isinstance(exported, TalkingEngine)
    model = Reference.open(checkpoint, contract.decoder.max_tokens)
    origin = TalkingEngine(
        contract, ModelInfo(contract.name, "checkpoint", "0" * 64), model, exported.tokenizer, model.embeddings
    )
    sizes = sum(entry.bytes for entry in contract.files.values()), size_of(checkpoint.directory)
    found = Comparison(contract.precision, TOLERANCES[contract.precision], *sizes)
    for number, photo in enumerate(photos):
        insist = number == 0
        expected = origin.talk(photo, probes, insist=insist)
        dictated = exported.talk(photo, probes, insist=insist, script=expected.turns)
        found.add(expected, dictated, exported.talk(photo, probes, insist=insist))
        for talk in (expected, dictated):  # of a large model they are hundreds of megabytes
            for turn in talk.turns:
                turn.logits.clear()
    return found


def _check_kin(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Raises ExportError if the bundle has not the shape of the checkpoint."""
    text, spec = checkpoint.architecture.text, bundle.contract.decoder
    ours = (spec.layers, spec.kv_heads, spec.head_dim, spec.hidden)
    if ours != (text.layers, text.kv_heads, text.head_dim, text.hidden):
        raise ExportError(f"{bundle.directory} was not made of {checkpoint.directory}: their decoders differ in shape")


def memory_of(bundle_bytes: float, checkpoint: Checkpoint, precision: str) -> float:
    """Bytes that a loaded bundle takes, about: what is stored in halves is multiplied in float32."""
    kept = precision in ("int8", "int4")
    return bundle_bytes if kept else max(bundle_bytes, 4.0 * checkpoint.architecture.weights)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("bundle", type=Path, metavar="BUNDLE", help="a directory that export.py made")
    found.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the directory that it was made of")
    found.add_argument("--photos", type=Path, metavar="FOLDER", help="to judge; default: a few made-up pictures")
    found.add_argument(
        "--most-photos", type=int, default=MOST_PHOTOS, metavar="N", help="of the folder; default %(default)s"
    )
    found.add_argument("--max-probes", type=int, default=PROBES, metavar="N", help="crops a photo; default %(default)s")
    found.add_argument(
        "--think-tokens", type=int, default=THINK_TOKENS, metavar="N",
        help="thoughts are cut there; default %(default)s",
    )  # fmt: skip
    found.add_argument("--threads", type=int, metavar="N", help="of both; default: what they take by themselves")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        for name in ("most_photos", "think_tokens", "threads"):
            if (value := getattr(given, name)) is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        bundle, checkpoint = Bundle.open(given.bundle), Checkpoint.open(given.checkpoint)
        pictures = made() if given.photos is None else of_folder(given.photos, given.most_photos)
        size = sum(entry.bytes for entry in bundle.contract.files.values())
        beside = memory_of(size, checkpoint, bundle.contract.precision)
        check_memory(checkpoint, beside, "verify it on a machine that has more")
        found = verify(
            bundle,
            checkpoint,
            pictures,
            probes=given.max_probes,
            think_tokens=given.think_tokens,
            threads=given.threads,
        )
    except QcheckError as error:
        print(f"verify: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    print(found.table())
    print(found.json_line())
    return PASSED if found.passed else OVER_TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
