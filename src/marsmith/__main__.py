"""``python -m marsmith`` is the ``marsmith`` command."""

import sys

from marsmith.cli import main

sys.exit(main())
