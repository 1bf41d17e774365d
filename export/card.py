"""What a bundle says of the checkpoint that it was made of: its licence, and a card."""

import re
from pathlib import Path
from typing import Final

from qcheck.contract import Contract

UNSTATED: Final = "not stated by the checkpoint"
LICENCE_FILES: Final = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
README: Final = "README.md"
_HEAD: Final = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_STATED: Final = re.compile(r"^license(?:_name)?:[ \t]*['\"]?([^'\"\n]+)", re.MULTILINE)


def licence_of(checkpoint: Path) -> str:
    """In one line: what the head of the checkpoint's README says, or that it has a file."""
    head = _HEAD.match(_text(checkpoint / README).replace("\r\n", "\n"))
    stated = [name.strip() for name in _STATED.findall(head[1])] if head else []
    named = [name for name in stated if name and name != "other"]
    if named:
        return ", ".join(dict.fromkeys(named))
    return "as in the card" if _licence_text(checkpoint) else UNSTATED


def card_of(contract: Contract, checkpoint: Path, form: str, how: str) -> str:
    """Markdown. `how`: more about the precision. Nothing in it was measured, and it says so."""
    language, views = contract.language, (contract.global_view, contract.crop_view)
    whole, crop = (f"{view.max_pixels / 1e6:.2f} MP" for view in views)
    lines = [
        f"# {contract.name}",
        "",
        f"Made by qcheck's export of the checkpoint `{checkpoint.name}`, at {contract.precision}{how}, form `{form}`.",
        "",
        f"- licence of the checkpoint: {contract.licence}",
        f"- dialect: {language.dialect}, thinking at most {language.think_tokens} tokens a turn",
        f"- looks at: the whole photo at {whole} at most" + (f", crops at {crop} at most" if language.zooms else ""),
        f"- reports: a score{_also(contract)}",
        "",
        "Nobody has measured how well this bundle judges photos.",
    ]
    text = _licence_text(checkpoint)
    if text:
        lines += ["", "## Licence of the checkpoint", "", text.rstrip()]
    return "\n".join(lines) + "\n"


def _also(contract: Contract) -> str:
    parts = [f"; {label}: {', '.join(names)}" for label, names in _named(contract) if names]
    return "".join(parts) or " alone: no defects, no attributes"


def _named(contract: Contract) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return ("defects", contract.kinds), ("attributes", contract.attributes)


def _licence_text(checkpoint: Path) -> str:
    return next((text for name in LICENCE_FILES if (text := _text(checkpoint / name))), "")


def _text(path: Path) -> str:
    """Empty where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
