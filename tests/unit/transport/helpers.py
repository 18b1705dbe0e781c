"""Peers on loopback: real transports, `websockets` programs, and raw sockets that say anything."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import openline
from openline.core.frames import HEADROOM, encode_batch

DEADLINE = 5.0
POLL = 0.005

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


async def eventually(condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Wait until ``condition()`` holds; fail with its name where it does not."""
    loop = asyncio.get_running_loop()
    until = loop.time() + deadline
    while not condition():
        assert loop.time() < until, f"not within {deadline} s: {condition.__qualname__}"
        await asyncio.sleep(POLL)


async def within(work: Awaitable[Any], deadline: float = DEADLINE) -> Any:
    async with asyncio.timeout(deadline):
        return await work


async def again(times: int, work: Callable[[int], Awaitable[Any]], pause: float | None = None) -> None:
    """``await work(0)``, ``work(1)`` and so on, until one raises."""
    for number in range(times):
        await work(number)
        if pause is not None:
            await asyncio.sleep(pause)


def task(payload: Any = None, **fields: Any) -> openline.Message:
    return openline.Message(payload=payload, **fields)


def tasks(count: int, **fields: Any) -> list[openline.Message]:
    return [task(number, **fields) for number in range(count)]


class Box(list[openline.Message]):
    """The messages that a handler of ``transport`` has got, in order."""

    def __init__(self, transport: openline.Transport, **scope: Any) -> None:
        super().__init__()
        self.peers: list[openline.Peer] = []
        transport.on_message(**scope)(self._add)

    def _add(self, peer: openline.Peer, message: openline.Message) -> None:
        self.peers.append(peer)
        self.append(message)

    @property
    def payloads(self) -> list[Any]:
        return [message.payload for message in self]


async def serve(transport: openline.Transport, host: str = "127.0.0.1") -> str:
    """Make ``transport`` listen; its address."""
    listener = await transport.listen(0, host=host)
    return f"[{host}]:{listener.port}" if ":" in host else f"{host}:{listener.port}"


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


class Peak:
    """How much the memory of this process has grown at its highest, inside ``with`` (Linux)."""

    def __enter__(self) -> Peak:
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *exc: object) -> None:
        self.grown = _status("VmHWM") - self._before


def _status(name: str) -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) * 1024


def can_measure_peak() -> bool:
    try:
        with Peak():
            return True
    except (OSError, StopIteration):
        return False


class Dials:
    """Replaces how sockets are dialed: remembers every dial, and fails or hangs where told to."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.times: list[float] = []
        self.error: OSError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, family: socket.AddressFamily, sockaddr: Any) -> socket.socket:
        loop = asyncio.get_running_loop()
        self.made.append(sockaddr)
        self.times.append(loop.time())
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, sockaddr)
        except BaseException:
            sock.close()
            raise
        return sock


# Raw WebSocket ----------------------------------------------------------------------------------

NODE = "a" * 52
OTHER_NODE = "b" * 52


def hello(*ports: int, node: str = NODE, name: str = "forged") -> dict[str, str]:
    """The header by which a peer says that it is an openline node."""
    listen = f"; listen={','.join(map(str, ports))}" if ports else ""
    return {"Openline-Hello": f"1; node={node}; nonce={'n' * 32}{listen}; name={name}"}


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True, size: int = -1
) -> bytes:
    """One frame, masked with zeros; ``size`` claims another length than the payload's."""
    size = len(payload) if size < 0 else size
    first = (0x80 if fin else 0) | (rsv << 4) | opcode
    bit = 0x80 if mask else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + (b"\0\0\0\0" if mask else b"") + payload


def plain(payload: Any = None, **fields: Any) -> bytes:
    """A message as a plain peer writes it."""
    return json.dumps({"id": "p", "type": "task", "payload": payload, **fields}).encode()


def batch(messages: Iterable[openline.Message]) -> bytes:
    """A binary frame's payload as an openline peer writes it."""
    return bytes(encode_batch(list(messages)))[HEADROOM:]


class Raw:
    """One end of a WebSocket over a bare socket, so that it can also break the rules."""

    def __init__(self, sock: socket.socket, *, client: bool) -> None:
        self.sock = sock
        self.request = ""
        # This end, as the other side sees it; also after it is gone.
        self.port = int(sock.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self._client = client
        self._buffer = b""
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def tcp(cls, port: int) -> Raw:
        """Connected, and nothing said yet."""
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock, client=True)

    @classmethod
    async def connect(cls, port: int, headers: dict[str, str] | None = None) -> Raw:
        raw = await cls.tcp(port)
        await raw.send(upgrade(headers))
        status = await raw.head()
        assert " 101 " in status, status
        return raw

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def frame(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        await self.send(frame(opcode, payload, **{"mask": self._client, **how}))

    async def say(self, payload: Any = None, **fields: Any) -> None:
        """One message, as a plain peer."""
        await self.frame(TEXT, plain(payload, **fields))

    async def head(self) -> str:
        """An HTTP head."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    async def _more(self) -> None:
        data = await within(self._loop.sock_recv(self.sock, 65536))
        if not data:
            raise EOFError
        self._buffer += data

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def read(self) -> tuple[int, bytes]:
        """The next frame's first byte and payload. ``EOFError`` where the other side has closed."""
        first, length = await self._exactly(2)
        size = length & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self._exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._exactly(8))
        key = await self._exactly(4) if length & 0x80 else b""
        data = await self._exactly(size)
        if key:
            data = bytes(byte ^ key[index % 4] for index, byte in enumerate(data))
        return first, data

    async def message(self) -> Any:
        """The next plain message, put together; answers pings on the way."""
        whole = b""
        while True:
            first, data = await self.read()
            if first & 0x0F == PING:
                await self.frame(PONG, data)
            elif first & 0x0F in (TEXT, CONTINUATION):
                whole += data
                if first & 0x80:
                    return json.loads(whole)

    async def gone(self) -> bytes:
        """Read until the other side has cut this connection; what it said before."""
        said = self._buffer
        with suppress(ConnectionError, EOFError):
            while True:
                self._buffer = b""
                await self._more()
                said += self._buffer
        return said

    def reset(self) -> None:
        """Cut at once with RST, without a turn of the loop."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


def upgrade(headers: dict[str, str] | None = None) -> bytes:
    """A client's request."""
    lines = ["GET / HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class RawServer:
    """Listens on loopback and does nothing by itself."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.sock = socket.create_server((host, port), backlog=128)
        self.sock.setblocking(False)
        self.port = int(self.sock.getsockname()[1])
        self.address = f"{host}:{self.port}"
        self._accepted: list[Raw] = []

    async def tcp(self) -> Raw:
        sock, _ = await within(asyncio.get_running_loop().sock_accept(self.sock))
        sock.setblocking(False)
        raw = Raw(sock, client=False)
        self._accepted.append(raw)
        return raw

    async def accept(self, headers: dict[str, str] | None = None) -> Raw:
        """The next connection, upgraded. ``raw.request`` holds what it asked."""
        raw = await self.tcp()
        raw.request = await raw.head()
        await raw.send(switching(raw.request, headers))
        return raw

    def close(self) -> None:
        """Stop listening; what was accepted stays."""
        self.sock.close()

    def close_all(self) -> None:
        self.close()
        for raw in self._accepted:
            raw.close()


def switching(request: str, headers: dict[str, str] | None = None) -> bytes:
    """The server's answer to an upgrade."""
    key = next(
        line.partition(":")[2].strip()
        for line in request.split("\r\n")
        if line.lower().startswith("sec-websocket-key:")
    )
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    lines.append(f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class PlainServer:
    """What a `websockets` server gets; it answers nothing by itself."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.connections: list[Any] = []
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def payloads(self) -> list[Any]:
        return [message["payload"] for message in self.got]

    async def __call__(self, connection: Any) -> None:
        self.connections.append(connection)
        async for text in connection:
            self.got.append(json.loads(text))
