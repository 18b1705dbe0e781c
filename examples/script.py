"""A worker and a script that asks it, without ``async``.

``python examples/script.py`` runs both in one process. On two machines it is ``python examples/script.py work
8770`` there, and ``python examples/script.py ask HOST:8770`` here. Ctrl-C ends either.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import openline
import openline.sync


def work(transport: openline.sync.Transport, port: int = 0, host: str | None = None) -> int:
    """Answer what comes from now on; the port."""

    @transport.on_message
    def count(peer: openline.sync.Peer, message: openline.Message) -> None:
        # In a thread of its own: it may block, and ask others meanwhile.
        peer.reply(message, {"words": len(message.payload["text"].split())})

    return transport.listen(port, host).port


def ask(transport: openline.sync.Transport, address: str) -> None:
    texts = ["answer on the line", "that is already open", "whoever opened it"]

    def words(number: int) -> int:
        # Each on a stream of its own, so that the worker takes them side by side.
        question = openline.Message(payload={"text": texts[number]}, stream_id=number)
        return int(transport.request(address, question, timeout=5.0).payload["words"])

    with ThreadPoolExecutor() as pool:  # any thread may ask
        for text, count in zip(texts, pool.map(words, range(len(texts))), strict=True):
            print(f"{count} words: {text}")


def main(role: str = "both", at: str = "") -> None:
    with openline.sync.load_transport(openline.Config(name=role)) as transport:
        if role == "work":
            print(f"listening on port {work(transport, int(at))}")
            for peer, message in transport.messages(stream_id="log"):
                print(f"{peer.name or peer.address}: {message.payload}")
        elif role == "ask":
            ask(transport, at)
        else:
            with openline.sync.load_transport(openline.Config(name="worker")) as worker:
                ask(transport, f"127.0.0.1:{work(worker, host='127.0.0.1')}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
