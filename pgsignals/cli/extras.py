"""Optional packages, which only some commands need."""

from __future__ import annotations

import importlib.util

from pgsignals.errors import Error


class MissingExtraError(Error, ImportError):
    """A command needs a package that is not installed."""


def require(module: str, what: str) -> None:
    """Check that *module* is installed.

    :param what: the command or option that needs it.
    :raises MissingExtraError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(
            f"{what} needs {module}, which is not installed: pip install 'pgsignals-reactor[cli]'"
        )
