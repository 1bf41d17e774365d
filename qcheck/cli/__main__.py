"""`python -m qcheck.cli`, for where the console script is not on the path."""

import sys

from qcheck.cli import main

sys.exit(main())
