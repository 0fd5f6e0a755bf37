"""An HTTP proxy between an S3 client and its server: forwards bytes as they are, counts, and makes faults by rule.

The client's endpoint is the proxy. Heads are forwarded unchanged, `Host` included, so signatures stay valid. Faults:

- `slow_down`: 503 with S3's XML, the server never asked
- `latency`: an answer that comes late
- `reset`: half of a body (of the answer for GET, of the request for PUT), then a TCP reset
- `truncate`: the same, then an orderly close, so that `Content-Length` says more than came
- `lost`: the server did it, but the answer never arrives

Left out: TLS, and bodies of answers without a length other than chunked ones.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

Fault = Literal["slow_down", "latency", "reset", "truncate", "lost"]
CHUNK = 1 << 16
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message>"
    b"<RequestId>proxy</RequestId><HostId>proxy</HostId></Error>"
)


@dataclass
class Request:
    """One request as it went through: bytes are those of the bodies, without heads."""

    method: str
    path: str
    """without the query, percent signs decoded: `/bucket/key`"""
    query: str
    range: str | None
    """the header, such as `bytes=0-99`"""
    sent: int = 0
    received: int = 0
    status: int | None = None
    """None where the client got no answer"""
    fault: Fault | None = None
    seconds: float = 0.0


@dataclass
class Rule:
    """A fault for the requests from number `first` to number `last` (both counted from 1) that match."""

    kind: Fault
    method: str | None
    pattern: re.Pattern[str]
    first: int
    last: int | None
    seconds: float
    matched: int = 0
    done: int = 0
    """how often it was made"""

    def wants(self, request: Request) -> bool:
        if self.method not in (None, request.method) or not self.pattern.search(request.path):
            return False
        self.matched += 1
        due = self.matched >= self.first and (self.last is None or self.matched <= self.last)
        self.done += due
        return due


@dataclass
class _Head:
    """A request's or answer's head, and what came after it in the same read."""

    raw: bytes
    first_line: str
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int | None:
        text = self.fields.get("content-length")
        return None if text is None else int(text)

    @property
    def chunked(self) -> bool:
        return "chunked" in self.fields.get("transfer-encoding", "").lower()


class _GoneError(Exception):
    """One side closed the connection, or a fault asks for it."""


class FaultProxy:
    """Forwards to a server on loopback. Use it as a context manager, or call `start` and `stop`.

    Args:
        port: the server's port on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._requests: list[Request] = []
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()

    @property
    def port(self) -> int:
        assert self._listener is not None, "not started"
        return int(self._listener.getsockname()[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> FaultProxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def stop(self) -> None:
        with self._lock:
            closing, self._open = list(self._open), set()
        if self._listener is not None:
            closing.append(self._listener)
        for one in closing:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def __enter__(self) -> FaultProxy:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def fault(
        self,
        kind: Fault,
        method: str | None = None,
        path: str = "",
        *,
        first: int = 1,
        last: int | None = None,
        seconds: float = 0.2,
    ) -> Rule:
        """Make a fault for matching requests, from the `first` to the `last` of them, without `last` for ever.

        Args:
            kind: which fault.
            method: GET, PUT, ...; any without it.
            path: a regular expression searched in `/bucket/key`.
            seconds: of `latency`.
        """
        rule = Rule(kind, method, re.compile(path), first, last, seconds)
        with self._lock:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Forget all rules."""
        with self._lock:
            self._rules.clear()

    def forget(self) -> None:
        """Forget the requests counted so far."""
        with self._lock:
            self._requests.clear()

    def requests(self, method: str | None = None, path: str = "") -> list[Request]:
        """What went through, in the order of arrival."""
        with self._lock:
            return [r for r in self._requests if method in (None, r.method) and re.search(path, r.path)]

    def count(self, method: str | None = None, path: str = "") -> int:
        return len(self.requests(method, path))

    def bytes_read(self, path: str = "") -> int:
        """Bytes of bodies that clients were given by GET."""
        return sum(r.received for r in self.requests("GET", path))

    def bytes_written(self, path: str = "") -> int:
        """Bytes of bodies that clients sent by PUT and POST."""
        return sum(r.sent for r in self.requests(None, path) if r.method in ("PUT", "POST"))

    def by_range(self, method: str | None = None, path: str = "") -> dict[tuple[str, str, str | None], list[int]]:
        """(method, path, range) -> [requests, bytes of bodies]."""
        table: dict[tuple[str, str, str | None], list[int]] = {}
        for r in self.requests(method, path):
            row = table.setdefault((r.method, r.path, r.range), [0, 0])
            row[0] += 1
            row[1] += r.received if r.method == "GET" else r.sent
        return table

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One client connection, and one to the server beside it, until either ends."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server: socket.socket | None = None
        ahead, back = bytearray(), bytearray()
        try:
            while True:
                head = _read_head(client, ahead)
                if server is None:
                    server = socket.create_connection(("127.0.0.1", self._server_port), timeout=120)
                    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._exchange(client, server, head, ahead, back)
        except (_GoneError, OSError):
            pass
        finally:
            for one in (client, server):
                if one is not None:
                    one.close()
            with self._lock:
                self._open.discard(client)

    def _exchange(
        self, client: socket.socket, server: socket.socket, head: _Head, ahead: bytearray, back: bytearray
    ) -> None:
        method, target, _ = head.first_line.split(" ", 2)
        parts = urlsplit(target)
        request = Request(method, unquote(parts.path), parts.query, head.fields.get("range"))
        with self._lock:
            self._requests.append(request)
            rules = [rule for rule in self._rules if rule.wants(request)]
        started = time.perf_counter()
        try:
            for rule in rules:
                if rule.kind == "latency":
                    request.fault = rule.kind
                    time.sleep(rule.seconds)
            broken = next((rule.kind for rule in rules if rule.kind != "latency"), None)
            if broken is not None:
                request.fault = broken
            if broken == "slow_down":
                _refuse(client, head, ahead, request)
                return
            self._forward(client, server, head, ahead, back, request)
        finally:
            request.seconds = time.perf_counter() - started

    def _forward(
        self,
        client: socket.socket,
        server: socket.socket,
        head: _Head,
        ahead: bytearray,
        back: bytearray,
        request: Request,
    ) -> None:
        half = request.fault if request.fault in ("reset", "truncate") else None
        server.sendall(head.raw)
        answer: _Head | None = None
        if head.fields.get("expect", "").lower() == "100-continue":
            answer = _read_head(server, back)
            client.sendall(answer.raw)
            if " 100 " in answer.first_line:
                answer = None
        if answer is None:
            stop_after = (head.length or 0) // 2 if half and request.method != "GET" else None

            def up(data: bytes) -> None:
                request.sent += len(data)
                server.sendall(data)

            if _pass_body(client, ahead, head, up, stop_after):
                _hang_up([server, client], half)
            answer = _read_head(server, back)
            if request.fault == "lost":
                raise _GoneError
            client.sendall(answer.raw)
        request.status = int(answer.first_line.split(" ")[1])
        if request.method == "HEAD" or request.status in (204, 304):
            return

        def down(data: bytes) -> None:
            request.received += len(data)
            client.sendall(data)

        stop_after = (answer.length or 0) // 2 if half else None
        if _pass_body(server, back, answer, down, stop_after):
            _hang_up([client], half)
        if "close" in answer.fields.get("connection", "").lower():
            raise _GoneError


def _read_head(source: socket.socket, buffer: bytearray) -> _Head:
    """The next head from a connection; what was read beyond it stays in the buffer."""
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        _more(source, buffer)
    raw = bytes(buffer[: end + 4])
    del buffer[: end + 4]
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return _Head(raw, first, {name.strip().lower(): value.strip() for name, _, value in pairs})


def _pass_body(
    source: socket.socket, buffer: bytearray, head: _Head, to: Callable[[bytes], None], stop_after: int | None
) -> bool:
    """Hand a body on piece by piece; True when it was cut after `stop_after` bytes."""
    if head.chunked:
        return _pass_chunks(source, buffer, to, stop_after)
    left = head.length or 0
    done = 0
    while left:
        if not buffer:
            _more(source, buffer)
        piece = bytes(buffer[: min(left, CHUNK)])
        if stop_after is not None and done + len(piece) > stop_after:
            to(piece[: stop_after - done])
            return True
        del buffer[: len(piece)]
        to(piece)
        left -= len(piece)
        done += len(piece)
    return False


def _pass_chunks(source: socket.socket, buffer: bytearray, to: Callable[[bytes], None], stop_after: int | None) -> bool:
    while True:
        while (end := buffer.find(b"\r\n")) < 0:
            _more(source, buffer)
        size = int(bytes(buffer[:end]).split(b";")[0], 16)
        whole = end + 2 + size + 2
        while len(buffer) < whole:
            _more(source, buffer)
        if stop_after is not None and size:
            to(bytes(buffer[: end + 2 + size // 2]))
            return True
        to(bytes(buffer[:whole]))
        del buffer[:whole]
        if size == 0:
            return False


def _refuse(client: socket.socket, head: _Head, ahead: bytearray, request: Request) -> None:
    """503 SlowDown, after the body was read; a body that waits to be asked for is not."""
    waits = head.fields.get("expect", "").lower() == "100-continue"
    if not waits:

        def drop(data: bytes) -> None:
            request.sent += len(data)

        _pass_body(client, ahead, head, drop, None)
    request.status = 503
    body = b"" if request.method == "HEAD" else SLOW_DOWN
    client.sendall(
        b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n"
        + (b"Connection: close\r\n" if waits else b"")
        + b"Content-Length: "
        + str(len(body)).encode()
        + b"\r\n\r\n"
        + body
    )
    if waits:
        raise _GoneError


def _hang_up(connections: list[socket.socket], how: str | None) -> None:
    """Close connections, by a TCP reset where that is the fault."""
    for one in connections:
        if how == "reset":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    raise _GoneError


def _more(source: socket.socket, buffer: bytearray) -> None:
    data = source.recv(CHUNK)
    if not data:
        raise _GoneError
    buffer += data
