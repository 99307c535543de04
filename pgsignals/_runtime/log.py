"""The engine's log: what a filter or a handler of the program raises ends here.

Otherwise a filter with a bug would end the thread that reads every database.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Adapter = logging.LoggerAdapter[logging.Logger]
else:
    Adapter = logging.LoggerAdapter


class Log(Adapter):
    """Logs as the logger *name* does, and raises nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """See :meth:`logging.Logger.log`."""
        stacklevel = kwargs.pop("stacklevel", 1) + 1  # who logs is one frame above this one
        try:
            self.logger.log(level, msg, *args, stacklevel=stacklevel, **kwargs)
        except Exception:  # noqa: BLE001 - as logging does with what its handlers raise
            if logging.raiseExceptions and sys.stderr is not None:
                with contextlib.suppress(OSError):
                    traceback.print_exc(file=sys.stderr)
