"""What other threads ask of the reader, and how they wait for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from pgsignals._runtime.shared import Shared


class Mailbox:
    """Takes no lock of the asking thread's, which may be anywhere: see
    :mod:`pgsignals._engine.life`.

    :param wake: ends the reader's wait.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        # Any thread appends, the reader's takes out.
        self._commands: deque[Callable[[], None]] = deque()
        # Any thread.
        self._requests: Shared[int] = Shared(0)
        self._changed = threading.Condition()  # guards nothing but the wait itself

    def post(self, command: Callable[[], None]) -> None:
        """Have *command* called on the reader's thread."""
        self._commands.append(command)
        self._wake()

    def take(self) -> Callable[[], None] | None:
        """The oldest command, None for none."""
        try:
            return self._commands.popleft()
        except IndexError:
            return None

    def __bool__(self) -> bool:
        """Whether commands are left."""
        return bool(self._commands)

    def request(self) -> None:
        """What is to be listened to has changed."""
        self._requests.replace(lambda count: count + 1)
        self._wake()

    @property
    def requests(self) -> int:
        """The latest request."""
        return self._requests.value

    def wait_for(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until *condition* is true, and return whether it is.

        :param seconds: None for no limit.
        """
        if condition():
            return True
        with self._changed:
            return self._changed.wait_for(condition, seconds)

    def wake_waiters(self) -> None:
        """Have the threads in :meth:`wait_for` check again."""
        with self._changed:
            self._changed.notify_all()
