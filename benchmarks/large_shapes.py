"""What it costs to export and to run a model of Qwen2.5-VL's real size: memory, time, room on the disk.

    python benchmarks/large_shapes.py --shape 3b --precision int4 [--layers N] [--folder SCRATCH] [--threads 2]

A checkpoint of the exact shape of Qwen2.5-VL-3B or -7B with random weights (bfloat16, a shard a layer) is written,
exported by export.py in a process of its own, and judges one photo by the installed command. What it says means
nothing; how long it takes and what it holds does. `--layers`: of the decoder, fewer than there are. The folder needs 2
bytes a weight for the checkpoint and half a byte (int4) to four for the bundle; 7b at int4 20 GB. Peaks are what the
system says of the process (resident pages, mapped files among them). Prints a table and, last, one JSON line.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))

from architecture import CONFIG_FILE, MODEL_TYPE, Architecture
from speech import TOKENIZER_FILE
from templates import MARKERS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from qcheck.dialects import chat

EXPORT: Final = Path(__file__).resolve().parent.parent / "export" / "export.py"
# config.json of the published Qwen2.5-VL-3B- and 7B-Instruct, as far as it decides shapes.
VISION: Final = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
SPREAD: Final = 0.02  # standard deviation of a weight
PHOTO_PX: Final = (4000, 3000)
VIEW_PIXELS: Final = ("--global-pixels", "401408", "--crop-pixels", "200704", "--think-tokens", "32")


def config_of(shape: str, layers: int | None) -> dict[str, Any]:
    text = {**SHAPES[shape], "num_hidden_layers": layers or SHAPES[shape]["num_hidden_layers"]}
    rope = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    return {
        "model_type": MODEL_TYPE,
        **text,
        **rope,
        "vision_config": {**VISION, "out_hidden_size": text["hidden_size"]},
    }


def tokenizer() -> Any:
    """Of bytes and the words of the prompt: random weights need no other."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        [chat.SYSTEM] * 4, trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_tokens([AddedToken(text, special=True, normalized=False) for text in MARKERS])
    return made


def write_checkpoint(folder: Path, config: dict[str, Any]) -> int:
    """A shard for each layer and block; the number of weights."""
    folder.mkdir(parents=True)
    architecture = Architecture.of(config)
    shapes = {f"model.{name}": shape for name, shape in architecture.text.tensors().items()}
    shapes |= {f"visual.{name}": shape for name, shape in architecture.vision.tensors().items()}
    if not architecture.tied:
        shapes["lm_head.weight"] = (architecture.text.vocabulary, architecture.text.hidden)
    shards: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        shards.setdefault("-".join(parts[:3]) if parts[1] in ("layers", "blocks") else parts[0], []).append(name)
    torch.manual_seed(0)
    for shard, names in shards.items():
        tensors = {name: torch.empty(shapes[name], dtype=torch.bfloat16).normal_(std=SPREAD) for name in names}
        save_file(
            {n: t.fill_(1) if t.ndim == 1 and "norm" in n else t for n, t in tensors.items()},
            folder / f"{shard}.safetensors",
        )
    index = {name: f"{shard}.safetensors" for shard, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    tokenizer().save(str(folder / TOKENIZER_FILE))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nRandom weights.\n")
    return architecture.weights


# Starts a command from a small process: what the system says a child held at most counts its parent, until it begins.
LAUNCHER: Final = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], check=False).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def run(command: list[str], what: str) -> tuple[str, float, float]:
    """What a process printed, its seconds, and the GB that it held at most. Raises RuntimeError where it fails."""
    started, launched = time.monotonic(), [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(launched, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir(), check=False)
    if done.returncode:
        raise RuntimeError(f"{what} ended with {done.returncode}")
    *out, peak_kib = done.stdout.splitlines()
    return "\n".join(out), time.monotonic() - started, int(peak_kib) * 1024 / 1e9


def size_gb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="3b")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--folder", type=Path, help="with room for both; default: where temporary files lie")
    parser.add_argument("--max-probes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="large-", dir=args.folder))
    try:
        config = config_of(args.shape, args.layers)
        weights = write_checkpoint(scratch / "checkpoint", config)
        rows: dict[str, Any] = {"shape": args.shape, "precision": args.precision, "weights": weights}
        rows |= {"layers": config["num_hidden_layers"], "checkpoint_gb": size_gb(scratch / "checkpoint")}
        export = [
            sys.executable,
            str(EXPORT),
            str(scratch / "checkpoint"),
            str(scratch / "bundle"),
        ]
        _, rows["export_s"], rows["export_peak_gb"] = run(
            [*export, "--precision", args.precision, "--no-verify", *VIEW_PIXELS], "the export"
        )
        rows["bundle_gb"] = size_gb(scratch / "bundle")
        pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(PHOTO_PX, Image.Resampling.BICUBIC).save(scratch / "photo.jpg")
        judge = [str(Path(sys.executable).with_name("qcheck")), str(scratch / "photo.jpg"), "--json"]
        options = [
            "--model",
            str(scratch / "bundle"),
            "--max-probes",
            str(args.max_probes),
            "--threads",
            str(args.threads),
        ]
        out, rows["command_s"], rows["command_peak_gb"] = run([*judge, *options], "the command")
        (record,) = json.loads(out)
        rows |= {"probes": record["budget"]["used"], **{f"{n}_ms": t for n, t in record["timing_ms"].items()}}
    except (RuntimeError, OSError) as error:
        print(f"large_shapes.py: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for name, value in rows.items():
        print(f"{name:16} {value:,.2f}" if isinstance(value, float) else f"{name:16} {value}")
    print(json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in rows.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
