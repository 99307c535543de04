"""What the second process of the demo runs: the seller."""

from __future__ import annotations

import os
import sys

from pgsignals.demo import sell

sell(os.environ["DATABASE_URL"], sys.argv[1], float(sys.argv[2]))
