"""qcheck: how good is a photo, and where is it broken?

    from qcheck import Checker, Photo

The names below load on first use, so that `import qcheck` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcheck.checker import Checker, Limits
    from qcheck.errors import QcheckError
    from qcheck.photo import Photo
    from qcheck.verdict import Failure, Verdict

    __version__: str

__all__ = ["Checker", "Failure", "Limits", "Photo", "QcheckError", "Verdict", "__version__"]

_HOMES = {
    "Checker": "qcheck.checker",
    "Failure": "qcheck.verdict",
    "Limits": "qcheck.checker",
    "Photo": "qcheck.photo",
    "QcheckError": "qcheck.errors",
    "Verdict": "qcheck.verdict",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("qcheck-iqa")
    if name not in _HOMES:
        raise AttributeError(f"module 'qcheck' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
