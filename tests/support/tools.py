"""Programs that not every machine has."""

from __future__ import annotations

import os
import shutil

import pytest


def tool(name: str) -> str:
    """Where the program *name* is; a test that needs it is skipped by that name where it is not."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found
