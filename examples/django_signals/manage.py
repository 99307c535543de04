"""Django's command line for this project."""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line


def main(argv: list[str] | None = None) -> int:
    """Run a command of *argv*, which begins with the program's name."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    execute_from_command_line(argv or sys.argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
