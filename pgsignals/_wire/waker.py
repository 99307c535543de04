"""Interrupts a selector from another thread or from a signal handler."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A socket pair: :meth:`wake` makes :meth:`fileno` readable until :meth:`clear`.

    No lock anywhere, so that a signal handler may wake its own thread.
    """

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)

    def fileno(self) -> int:
        """The file number to watch for reading."""
        return self._reading.fileno()

    def wake(self) -> None:
        """Make it readable.  Never blocks; harmless after :meth:`close`."""
        # A full buffer wakes as well as one more byte would.
        with contextlib.suppress(OSError):
            self._writing.send(b"\0")

    def clear(self) -> None:
        """Clear all wakes so far."""
        with contextlib.suppress(OSError):
            while len(self._reading.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        """Close both sockets."""
        self._reading.close()
        self._writing.close()
