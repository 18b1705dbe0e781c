"""Who takes part. Each contender is one small file; this table says which one, and how it is called."""

import msgspec


class Entry(msgspec.Struct, frozen=True):
    who: str
    # How it does the round trip; the other works know one way only.
    how: str
    module: str
    kind: str = ""

    @property
    def label(self) -> str:
        return f"{self.who}, {self.how}" if self.how else self.who


ACKED = "openline, acked"
NOT_ACKED = "openline, plain peer, not acked"


TABLE = {
    "openline": Entry(ACKED, "`request()`", "openline", "OpenlineRequest"),
    "openline-handler": Entry(ACKED, "handler echo", "openline", "OpenlineHandler"),
    "openline-send": Entry(ACKED, "`send()` until its ack", "openline", "OpenlineSend"),
    "openline-plain": Entry(NOT_ACKED, "`request()`", "openline_plain", "OpenlinePlain"),
    "agentic-flow": Entry("agentic-flow 2.1.3", "handler echo", "agentic_flow"),
    "websockets": Entry("websockets", "", "websockets", "Websockets"),
    "zmq": Entry("zmq.asyncio", "", "zmq", "Zmq"),
    "grpc": Entry("grpc.aio", "", "grpc", "Grpc"),
    "nats": Entry("NATS", "", "nats", "Nats"),
    "tcp-json": Entry("uvloop TCP with JSON", "", "tcp", "TcpJson"),
    "tcp": Entry("raw uvloop TCP", "", "tcp", "Tcp"),
}
