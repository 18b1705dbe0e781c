"""Who takes part. Each contender is one small file; this table says which one, and how it is called."""

import msgspec


class Entry(msgspec.Struct, frozen=True):
    label: str
    module: str
    kind: str = ""


TABLE = {
    "openline": Entry("openline, `request()`", "openline", "OpenlineRequest"),
    "openline-handler": Entry("openline, handler echo", "openline", "OpenlineHandler"),
    "agentic-flow": Entry("agentic-flow 2.1.3, handler echo", "agentic_flow"),
    "websockets": Entry("websockets", "websockets", "Websockets"),
    "zmq": Entry("zmq.asyncio", "zmq", "Zmq"),
    "grpc": Entry("grpc.aio", "grpc", "Grpc"),
    "nats": Entry("NATS", "nats", "Nats"),
    "tcp-json": Entry("uvloop TCP with JSON", "tcp", "TcpJson"),
    "tcp": Entry("raw uvloop TCP", "tcp", "Tcp"),
}
