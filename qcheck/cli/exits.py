"""What the exit codes mean."""

from typing import Final

PASSED: Final = 0
GATED: Final = 1  # some photo is below --fail-under or has a --fail-on defect
FAILED: Final = 2  # usage, model or input error; wins over GATED
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
READER_GONE: Final = 141  # 128 + SIGPIPE: whoever read stdout stopped reading
