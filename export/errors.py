"""What can go wrong in an export, in the words a user reads."""

from qcheck.errors import QcheckError


class ExportError(QcheckError):
    """A checkpoint cannot become a bundle. One line that names the fix where there is one."""


class NotVerified(ExportError):
    """A bundle does not say what its checkpoint says."""
