"""A TCP proxy in front of a server, to simulate network faults."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Literal, Self, TypeAlias, TypeVar

from pgsignals._wire.opening import endpoint, redirected

T = TypeVar("T")
#: The direction in which bytes travel.
Direction: TypeAlias = Literal["to_server", "to_client"]
#: Both of them.
DIRECTIONS: tuple[Direction, ...] = ("to_server", "to_client")

# Below the ephemeral ports, where connecting to a closed port can connect to itself.
_PORTS = range(15_000, 30_000)

# Bytes that a frozen direction accepts before its sender blocks, like a network's buffers.
_CAPACITY = 1 << 20

_CONNECT_TIMEOUT = 5.0  # seconds; meanwhile nothing is forwarded


class _Flow:
    """One direction of one connection."""

    def __init__(self, direction: Direction, source: socket.socket, target: socket.socket) -> None:
        self.direction = direction
        self.source = source
        self.target = target
        self.chunks: deque[tuple[float, bytes]] = deque()  # each with the time it is due
        self.at_end = False
        self.told_end = False

    @property
    def held(self) -> int:
        return sum(len(chunk) for _, chunk in self.chunks)

    def read(self, delay: float) -> None:
        data = self.source.recv(65536)
        if data:
            self.chunks.append((time.monotonic() + delay, data))
        else:
            self.at_end = True

    def change(self, function: Callable[[bytes], bytes]) -> None:
        """Replace the bytes held, as one chunk."""
        data = function(b"".join(chunk for _, chunk in self.chunks))
        self.chunks = deque([(0.0, data)] if data else [])

    def send(self, most: int | None) -> int:
        """Send at most *most* bytes of the first chunk, and return how many were sent."""
        due, chunk = self.chunks[0]
        sent = self.target.send(chunk[:most])
        if sent == len(chunk):
            self.chunks.popleft()
        else:
            self.chunks[0] = (due, chunk[sent:])
        return sent


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
        self._server = endpoint(dsn)
        self._links: list[tuple[_Flow, _Flow]] = []
        self._frozen: set[Direction] = set()
        self._delay: dict[Direction, float] = dict.fromkeys(DIRECTIONS, 0.0)
        self._allowance: dict[Direction, int | None] = dict.fromkeys(DIRECTIONS)
        self._forwarded: dict[Direction, int] = dict.fromkeys(DIRECTIONS, 0)
        self._resets = False
        self._closing = False
        self._orders: deque[Callable[[], None]] = deque()
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._listener: socket.socket | None = None
        self.port = 0
        self._accept()
        self.dsn = redirected(dsn, self.port)
        self._thread = threading.Thread(target=self._run, name="test-proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and stop listening; calling it again does nothing."""
        if self._closing:
            return
        self.refuse()
        self.cut()
        self._closing = True
        self._mouth.send(b"\0")
        self._thread.join(10)
        self._ear.close()
        self._mouth.close()

    # -- faults --------------------------------------------------------------------------------

    def refuse(self) -> None:
        """Refuse new connections; existing ones continue."""
        self._call(self._refuse)

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        self._call(self._accept)

    def freeze(self, direction: Direction | None = None) -> None:
        """Forward nothing, not even the end of a connection, in one direction or in both.  New
        connections are accepted, and frozen, too."""
        self._call(lambda: self._frozen.update(_chosen(direction)))

    def thaw(self, direction: Direction | None = None) -> None:
        """Forward the bytes held, as one chunk, and continue."""

        def thaw() -> None:
            self._frozen.difference_update(_chosen(direction))
            for flow in self._flows(direction):
                flow.change(lambda data: data)

        self._call(thaw)

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Delay everything from now on by *seconds*."""
        self._call(lambda: self._delay.update(dict.fromkeys(_chosen(direction), seconds)))

    def rewrite(self, direction: Direction, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes held in a frozen direction.

        :raises ValueError: *direction* is not frozen, so the bytes would pass meanwhile.
        """

        def rewrite() -> None:
            if direction not in self._frozen:
                raise ValueError(f"freeze {direction!r} first")
            for flow in self._flows(direction):
                flow.change(change)

        self._call(rewrite)

    def cut_after(self, count: int, direction: Direction, *, reset: bool = False) -> None:
        """End the connection that forwards byte number *count* from now on, after that byte."""

        def cut_after() -> None:
            self._allowance[direction] = count
            self._resets = reset

        self._call(cut_after)

    def cut(self) -> None:
        """End all connections, as a proxy does when it exits."""
        self._call(lambda: self._end(self._links, reset=False))

    def reset(self) -> None:
        """Reset all connections with RST to both sides, as a firewall does."""
        self._call(lambda: self._end(self._links, reset=True))

    # -- what can be seen ----------------------------------------------------------------------

    @property
    def links(self) -> int:
        """The number of connections."""
        return self._call(lambda: len(self._links))

    def held(self, direction: Direction) -> int:
        """The number of bytes waiting to be forwarded in *direction*."""
        return self._call(lambda: sum(flow.held for flow in self._flows(direction)))

    def forwarded(self, direction: Direction) -> int:
        """The number of bytes forwarded in *direction* so far."""
        return self._call(lambda: self._forwarded[direction])

    # -- the thread ----------------------------------------------------------------------------

    def _call(self, function: Callable[[], T]) -> T:
        """Run *function* on the proxy's thread, between two polls, and return its result."""
        outcome: Future[T] = Future()

        def order() -> None:
            try:
                outcome.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is the caller's
                outcome.set_exception(error)

        self._orders.append(order)
        self._mouth.send(b"\0")
        return outcome.result(10)

    def _run(self) -> None:
        while not self._closing:
            poll, milliseconds = self._arrange()
            poll.poll(milliseconds)
            with contextlib.suppress(BlockingIOError):
                self._ear.recv(4096)
            while self._orders:
                self._orders.popleft()()
            self._take_connections()
            for link in tuple(self._links):
                self._forward(link)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        while self._listener is None:
            port = self.port or random.choice(_PORTS)
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
                listener.listen()
            except OSError:
                listener.close()
                if self.port:
                    raise
            else:
                listener.setblocking(False)
                self._listener, self.port = listener, port

    def _arrange(self) -> tuple[select.poll, float | None]:
        """Return a poll object for everything to wait for, and the timeout in milliseconds."""
        now = time.monotonic()
        events: dict[int, int] = {self._ear.fileno(): select.POLLIN}
        until = []
        if self._listener is not None:
            events[self._listener.fileno()] = select.POLLIN
        for flow in self._flows():
            source, target = flow.source.fileno(), flow.target.fileno()
            if not flow.at_end and flow.held < _CAPACITY:
                events[source] = events.get(source, 0) | select.POLLIN
            if flow.chunks and flow.direction not in self._frozen:
                if (due := flow.chunks[0][0]) <= now:
                    events[target] = events.get(target, 0) | select.POLLOUT
                else:
                    until.append(due - now)
        poll = select.poll()
        for number, mask in events.items():
            poll.register(number, mask)
        return poll, 1000 * min(until) + 1 if until else None

    def _take_connections(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = self._connect()
                except OSError:
                    client.close()
                    continue
                for end in (client, server):
                    end.setblocking(False)
                    if end.family != socket.AF_UNIX:
                        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                flows = _Flow("to_server", client, server), _Flow("to_client", server, client)
                self._links.append(flows)

    def _connect(self) -> socket.socket:
        host, port = self._server
        if not host.startswith("/"):
            return socket.create_connection((host, port), _CONNECT_TIMEOUT)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{host}/.s.PGSQL.{port}")
        except OSError:
            server.close()
            raise
        return server

    def _forward(self, link: tuple[_Flow, _Flow]) -> None:
        for flow in link:
            try:
                while not flow.at_end and flow.held < _CAPACITY:
                    flow.read(self._delay[flow.direction])
            except BlockingIOError:
                pass
            except OSError:
                flow.at_end = True  # what was read before the reset is still forwarded
            if flow.direction in self._frozen:
                continue
            try:
                while flow.chunks and flow.chunks[0][0] <= time.monotonic():
                    allowance = self._allowance[flow.direction]
                    sent = flow.send(allowance)
                    self._forwarded[flow.direction] += sent
                    if allowance is not None:
                        self._allowance[flow.direction] = allowance - sent
                        if allowance == sent:
                            self._allowance[flow.direction] = None
                            self._end([link], reset=self._resets)
                            return
            except BlockingIOError:
                pass
            except OSError:
                self._end([link], reset=False)
                return
            if flow.at_end and not flow.chunks and not flow.told_end:
                flow.told_end = True
                with contextlib.suppress(OSError):
                    flow.target.shutdown(socket.SHUT_WR)
        if all(flow.told_end for flow in link):
            self._end([link], reset=False)

    def _end(self, links: Iterable[tuple[_Flow, _Flow]], *, reset: bool) -> None:
        for link in tuple(links):
            self._links.remove(link)
            for flow in link:
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    flow.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                flow.source.close()

    def _flows(self, direction: Direction | None = None) -> list[_Flow]:
        chosen = _chosen(direction)
        return [flow for link in self._links for flow in link if flow.direction in chosen]


def _chosen(direction: Direction | None) -> tuple[Direction, ...]:
    return DIRECTIONS if direction is None else (direction,)
