"""A plain TCP end, without openline: `listen PORT` or `dial ADDRESS PORT`.

What arrives on the socket goes to standard output and the other way round. Says "listening",
"connected", then "lost <errno name>" if the socket breaks.
"""

import errno
import os
import socket
import sys
import threading


def say(text: str) -> None:
    print(text, flush=True)


def lost(error: OSError) -> None:
    say(f"lost {errno.errorcode.get(error.errno or 0, type(error).__name__)}")
    os._exit(0)


def open_line(argv: list[str]) -> socket.socket:
    if argv[0] == "dial":
        return socket.create_connection((argv[1], int(argv[2])), timeout=float(argv[3]))
    listener = socket.create_server(("", int(argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
    say("listening")
    return listener.accept()[0]


def receive(line: socket.socket) -> None:
    try:
        while data := line.recv(4096):
            sys.stdout.write(data.decode())
            sys.stdout.flush()
    except OSError as error:
        lost(error)


def main() -> None:
    try:
        line = open_line(sys.argv[1:])
        line.settimeout(None)
        say("connected")
        threading.Thread(target=receive, args=(line,), daemon=True).start()
        for text in sys.stdin:
            line.sendall(text.encode())
    except OSError as error:
        lost(error)


main()
