"""Sockets on the lab's hosts, and what becomes of what they send."""

import errno
import select
import socket
import sys
from collections.abc import Callable

from openline.testing.lab.netns import HostName, TwoHosts

from .processes import Child, plain

PORT = 8770
UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM
Line = tuple[Child, Child]
Open = Callable[..., socket.socket]

# A socket belongs to the host it was made on, whoever holds it: made there, handed over to the test.
HAND_OVER = """
import socket, sys
pipe, family, kind = map(int, sys.argv[1:])
made = socket.socket(family, kind)
socket.send_fds(socket.socket(fileno=pipe), [b"."], [made.fileno()])
"""


def is6(address: str) -> bool:
    return ":" in address


def socket_on(lab: TwoHosts, host: HostName, kind: int, ipv6: bool) -> socket.socket:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        numbers = [str(int(number)) for number in (theirs.fileno(), family, kind)]
        argv = [sys.executable, "-I", "-S", "-c", HAND_OVER, *numbers]
        lab.run(host, argv, pass_fds=[theirs.fileno()], check=True)
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=descriptor)


def fate(call: Callable[..., object], *arguments: object) -> str:
    """What becomes of a call on a socket."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def hears_nothing(end: socket.socket) -> bool:
    return not select.select([end], [], [], 0.1)[0]


def converse(caller: socket.socket, server: socket.socket) -> tuple[str, int]:
    """A datagram from the one to the other and one back; where the first seemed to come from."""
    caller.send(b"question")
    data, source = server.recvfrom(99)
    assert data == b"question"
    server.sendto(b"answer", source)
    assert caller.recv(99) == b"answer"
    return source[:2]


def connect(lab: TwoHosts, address: str) -> Line:
    listener = plain(lab, "B", "listen", str(PORT))
    assert listener.hear() == "listening"
    dialer = plain(lab, "A", "dial", address, str(PORT), "5")
    assert (dialer.hear(), listener.hear()) == ("connected", "connected")
    return dialer, listener
