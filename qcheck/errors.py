"""What can go wrong, in the words a user reads. Every message is one line and names the fix where there is one."""

from typing import Final, Literal

PhotoErrorKind = Literal["not_found", "unreadable", "not_an_image", "truncated", "too_large", "unsupported", "internal"]

PHOTO_ERROR_KINDS: Final[tuple[PhotoErrorKind, ...]] = (
    "not_found",
    "unreadable",
    "not_an_image",
    "truncated",
    "too_large",
    "unsupported",
    "internal",
)


def printable(text: str) -> str:
    """One line that a terminal shows as it is: control characters and bytes that are not text become escapes."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte of a file name that is not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


class QcheckError(Exception):
    """Base of every error that qcheck raises on purpose. `str(error)` is one line for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class UsageError(QcheckError):
    """The request itself is wrong: an impossible option value, or nothing to judge."""


class BundleError(QcheckError):
    """A model bundle is missing, damaged, or speaks a contract that this version does not."""


class DeviceError(QcheckError):
    """A device that was asked for is not there, or cannot run this model."""


class EngineError(QcheckError):
    """The inference runtime cannot serve this request, for instance a photo that needs more cache than there is."""


class PhotoError(QcheckError):
    """One photo cannot be judged. The others still are; this one becomes an error record."""

    def __init__(self, kind: PhotoErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: PhotoErrorKind = kind
