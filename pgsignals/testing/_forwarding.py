"""The thread of a proxy, which forwards bytes and applies the faults."""

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
from typing import Literal, TypeAlias, TypeVar

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


class Flow:
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


class Forwarder:
    """Forwards connections from *port* to a server, on a thread.

    Everything but :meth:`call` and :meth:`close` runs on that thread, or before it starts.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.links: list[tuple[Flow, Flow]] = []
        self.frozen: set[Direction] = set()
        self.delay: dict[Direction, float] = dict.fromkeys(DIRECTIONS, 0.0)
        self.allowance: dict[Direction, int | None] = dict.fromkeys(DIRECTIONS)
        """Bytes after which the connection that forwards them is ended."""
        self.forwarded: dict[Direction, int] = dict.fromkeys(DIRECTIONS, 0)
        self.resets = False
        """Whether that connection is reset, too."""
        self._closing = False
        self._orders: deque[Callable[[], None]] = deque()
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._listener: socket.socket | None = None
        self.port = 0
        self.accept()
        self._thread = threading.Thread(target=self._run, name="test-proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections and stop listening; calling it again does nothing."""
        if self._closing:
            return
        self.call(self.refuse)
        self.call(lambda: self.end(self.links, reset=False))
        self._closing = True
        self._mouth.send(b"\0")
        self._thread.join(10)
        self._ear.close()
        self._mouth.close()

    def call(self, function: Callable[[], T]) -> T:
        """Run *function* on the proxy's thread, between two polls, and return its result."""
        outcome: Future[T] = Future()

        def order() -> None:
            try:
                outcome.set_result(function())
            except Exception as error:  # noqa: BLE001 - raised in the caller
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
            for link in tuple(self.links):
                self._forward(link)

    def refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
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
        for flow in self.flows():
            source, target = flow.source.fileno(), flow.target.fileno()
            if not flow.at_end and flow.held < _CAPACITY:
                events[source] = events.get(source, 0) | select.POLLIN
            if flow.chunks and flow.direction not in self.frozen:
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
                flows = Flow("to_server", client, server), Flow("to_client", server, client)
                self.links.append(flows)

    def _connect(self) -> socket.socket:
        host, port = self.server
        if not host.startswith("/"):
            return socket.create_connection((host, port), _CONNECT_TIMEOUT)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{host}/.s.PGSQL.{port}")
        except OSError:
            server.close()
            raise
        return server

    def _forward(self, link: tuple[Flow, Flow]) -> None:
        for flow in link:
            try:
                while not flow.at_end and flow.held < _CAPACITY:
                    flow.read(self.delay[flow.direction])
            except BlockingIOError:
                pass
            except OSError:
                flow.at_end = True  # what was read before the reset is still forwarded
            if flow.direction in self.frozen:
                continue
            try:
                while flow.chunks and flow.chunks[0][0] <= time.monotonic():
                    allowance = self.allowance[flow.direction]
                    sent = flow.send(allowance)
                    self.forwarded[flow.direction] += sent
                    if allowance is not None:
                        self.allowance[flow.direction] = allowance - sent
                        if allowance == sent:
                            self.allowance[flow.direction] = None
                            self.end([link], reset=self.resets)
                            return
            except BlockingIOError:
                pass
            except OSError:
                self.end([link], reset=False)
                return
            if flow.at_end and not flow.chunks and not flow.told_end:
                flow.told_end = True
                with contextlib.suppress(OSError):
                    flow.target.shutdown(socket.SHUT_WR)
        if all(flow.told_end for flow in link):
            self.end([link], reset=False)

    def end(self, links: Iterable[tuple[Flow, Flow]], *, reset: bool) -> None:
        for link in tuple(links):
            self.links.remove(link)
            for flow in link:
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    flow.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                flow.source.close()

    def flows(self, direction: Direction | None = None) -> list[Flow]:
        wanted = chosen(direction)
        return [flow for link in self.links for flow in link if flow.direction in wanted]


def chosen(direction: Direction | None) -> tuple[Direction, ...]:
    """The directions that *direction* means; None means both."""
    return DIRECTIONS if direction is None else (direction,)
