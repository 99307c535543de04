"""``python -m pgsignals`` runs the command ``pgsignals``."""

from __future__ import annotations

import sys

from pgsignals.cli import main

if __name__ == "__main__":
    sys.exit(main())
