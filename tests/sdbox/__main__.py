"""``python -m sdbox`` is the command of README.md."""

import sys

from sdbox.cli import main

sys.exit(main())
