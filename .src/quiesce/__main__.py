"""``python -m quiesce`` is the ``quiesce`` command."""

import sys

from quiesce.supervisor.cli import main

sys.exit(main())
