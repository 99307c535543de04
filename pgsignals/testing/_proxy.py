"""A TCP proxy in front of a server, to simulate network faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from pgsignals._wire.opening import endpoint, redirected
from pgsignals.testing._forwarding import DIRECTIONS, Direction, Forwarder, chosen

__all__ = ["DIRECTIONS", "Direction", "Proxy"]


class Proxy:
    """Forwards connections to its *port* on 127.0.0.1 to a server, with faults on request.

    A context manager that works from its creation.  Methods take effect before they return:
    nothing passes after :meth:`freeze`.

    :param dsn: the server, which need not be running: a host, or the directory of a Unix socket,
        and a port if it is not the default.  Other parameters are ignored.
    :raises ConnectError: *dsn* cannot be parsed.
    :raises ValueError: it names no host, or several.

    :ivar port: the port that it listens on.
    :ivar dsn: *dsn*, changed to lead through the proxy.
    """

    def __init__(self, dsn: str) -> None:
        self._forwarder = Forwarder(endpoint(dsn))
        self.port = self._forwarder.port
        self.dsn = redirected(dsn, self.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and stop listening; calling it again does nothing."""
        self._forwarder.close()

    # -- faults --------------------------------------------------------------------------------

    def refuse(self) -> None:
        """Refuse new connections; existing ones continue."""
        self._forwarder.call(self._forwarder.refuse)

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        self._forwarder.call(self._forwarder.accept)

    def freeze(self, direction: Direction | None = None) -> None:
        """Forward nothing, not even the end of a connection, in one direction or in both.  New
        connections are accepted, and frozen, too."""
        self._forwarder.call(lambda: self._forwarder.frozen.update(chosen(direction)))

    def thaw(self, direction: Direction | None = None) -> None:
        """Forward the bytes held, as one chunk, and continue."""

        def thaw() -> None:
            self._forwarder.frozen.difference_update(chosen(direction))
            for flow in self._forwarder.flows(direction):
                flow.change(lambda data: data)

        self._forwarder.call(thaw)

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Delay everything from now on by *seconds*."""
        self._forwarder.call(
            lambda: self._forwarder.delay.update(dict.fromkeys(chosen(direction), seconds))
        )

    def rewrite(self, direction: Direction, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes held in a frozen direction.

        :raises ValueError: *direction* is not frozen, so the bytes would pass meanwhile.
        """

        def rewrite() -> None:
            if direction not in self._forwarder.frozen:
                raise ValueError(f"freeze {direction!r} first")
            for flow in self._forwarder.flows(direction):
                flow.change(change)

        self._forwarder.call(rewrite)

    def cut_after(self, count: int, direction: Direction, *, reset: bool = False) -> None:
        """End the connection that forwards byte number *count* from now on, after that byte."""

        def cut_after() -> None:
            self._forwarder.allowance[direction] = count
            self._forwarder.resets = reset

        self._forwarder.call(cut_after)

    def cut(self) -> None:
        """End all connections, as a proxy does when it exits."""
        self._forwarder.call(lambda: self._forwarder.end(self._forwarder.links, reset=False))

    def reset(self) -> None:
        """Reset all connections with RST to both sides, as a firewall does."""
        self._forwarder.call(lambda: self._forwarder.end(self._forwarder.links, reset=True))

    # -- what can be seen ----------------------------------------------------------------------

    @property
    def links(self) -> int:
        """The number of connections."""
        return self._forwarder.call(lambda: len(self._forwarder.links))

    def held(self, direction: Direction) -> int:
        """The number of bytes waiting to be forwarded in *direction*."""
        return self._forwarder.call(
            lambda: sum(flow.held for flow in self._forwarder.flows(direction))
        )

    def forwarded(self, direction: Direction) -> int:
        """The number of bytes forwarded in *direction* so far."""
        return self._forwarder.call(lambda: self._forwarder.forwarded[direction])
