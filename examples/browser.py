"""A node that browser pages talk to, over WebSocket and JSON: to it they are plain peers.

    python examples/browser.py 8770

prints the address of a page to open (``examples/browser.html`` beside this file, served from the next port).
The page shows what the node sends by itself, each second, and asks it.

*Any* page that is open in a browser on this machine may connect to a port on it, whichever site it is from:
browsers ask nobody before they open a WebSocket. So a page has to show a token first, which only the address
that is printed has; what others send is not looked at, and they hear nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import http.server
import secrets
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import openline

PAGE = Path(__file__).with_name("browser.html")


class Pages:
    """The pages that have shown the token; ``answer`` makes a reply of a question's payload."""

    def __init__(self, transport: openline.Transport, token: str, answer: Callable[[Any], Any]) -> None:
        self.open: set[openline.Peer] = set()
        self._token = token
        self._answer = answer
        transport.on_message(self._receive)

    async def _receive(self, peer: openline.Peer, message: openline.Message) -> None:
        if message.type == "hello":
            shown = message.payload.get("token") if isinstance(message.payload, dict) else None
            if hmac.compare_digest(str(shown).encode(), self._token.encode()):
                self.open.add(peer)
        elif peer in self.open:
            # On the line that the page has opened: nothing can be dialed there.
            await peer.reply(message, self._answer(message.payload))

    async def tell(self, payload: Any) -> None:
        """Send something to every page that is there; who has left is forgotten."""
        for peer in list(self.open):
            try:
                await peer.send(openline.Message(type="status", payload=payload))
            except openline.Error:
                self.open.discard(peer)

    async def tell_the_time(self, every: float = 1.0) -> None:
        while True:
            await self.tell({"clock": f"{datetime.now():%H:%M:%S}", "pages": len(self.open)})
            await asyncio.sleep(every)


class Site(http.server.BaseHTTPRequestHandler):
    """The one page, at any path."""

    def do_GET(self) -> None:
        page = PAGE.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing of it is for the terminal."""


def answer(payload: Any) -> Any:
    text = payload.get("text", "") if isinstance(payload, dict) else ""
    return {"text": f"You have asked {text!r}, which has {len(text)} characters."}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("port", type=int, nargs="?", default=8770)
    port = parser.parse_args().port
    async with openline.load_transport(openline.Config(name="node", backends=("websocket",))) as t:
        listener = await t.listen(port, host="127.0.0.1")
        token = secrets.token_urlsafe(16)
        pages = Pages(t, token, answer)
        site = http.server.ThreadingHTTPServer(("127.0.0.1", port and port + 1), Site)
        threading.Thread(target=site.serve_forever, daemon=True).start()
        node = f"ws://127.0.0.1:{listener.port}"
        print(f"http://127.0.0.1:{site.server_address[1]}/#{node},{token}", flush=True)
        await pages.tell_the_time()


if __name__ == "__main__":
    asyncio.run(main())
