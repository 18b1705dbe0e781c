"""Who takes part. Each contender is one small file; this table says which one, and how it is called."""

import msgspec


class Entry(msgspec.Struct, frozen=True):
    who: str
    # How it does the round trip, or how many messages are sent at once; the other works know one way only.
    how: str
    module: str
    kind: str = ""
    # The package that it needs, where it can do without.
    package: str = ""
    # Runs on a host of its own (`openline.testing.lab.netns`): it would ask the local network for mappings.
    alone: bool = False

    @property
    def label(self) -> str:
        return f"{self.who}, {self.how}" if self.how else self.who


ACKED = "openline, acked"
OVER_QUIC = "openline over QUIC, acked"
OVER_TLS = "openline over TLS, acked"
YARDSTICK = "yardstick, acked"
GATHER = "`gather` of `send()`s"
NOT_ACKED = "openline, plain peer, not acked"


TABLE = {
    "openline": Entry(ACKED, "`request()`", "openline", "OpenlineRequest"),
    "openline-handler": Entry(ACKED, "handler echo", "openline", "OpenlineHandler"),
    "openline-send": Entry(ACKED, "`send()` until its ack", "openline", "OpenlineSend"),
    "openline-quic": Entry(OVER_QUIC, "`request()`", "openline_quic", "OverQuic"),
    "openline-quic-handler": Entry(OVER_QUIC, "handler echo", "openline_quic", "HandlerOverQuic"),
    "openline-quic-send": Entry(OVER_QUIC, "`send()` until its ack", "openline_quic", "SendOverQuic"),
    "openline-tls": Entry(OVER_TLS, "`request()`", "openline_tls", "OverTls"),
    "openline-tls-handler": Entry(OVER_TLS, "handler echo", "openline_tls", "HandlerOverTls"),
    "openline-tls-send": Entry(OVER_TLS, "`send()` until its ack", "openline_tls", "SendOverTls"),
    "openline-plain": Entry(NOT_ACKED, "`request()`", "openline_plain", "OpenlinePlain"),
    "openline-gather": Entry(ACKED, GATHER, "openline", "OpenlineGather"),
    "openline-stream": Entry(ACKED, "parts of one answer", "openline_stream", "OpenlineStream"),
    "openline-quic-gather": Entry(OVER_QUIC, GATHER, "openline_quic", "GatherOverQuic"),
    "openline-tls-gather": Entry(OVER_TLS, GATHER, "openline_tls", "GatherOverTls"),
    "plain-client": Entry("openline, asked by a websockets client", "", "openline_plain", "PlainClient"),
    "yardstick": Entry(YARDSTICK, "`request()`", "yardstick", "Yardstick"),
    "yardstick-send": Entry(YARDSTICK, "`send()` until its ack", "yardstick", "YardstickSend"),
    "agentic-flow": Entry("agentic-flow 2.1.3", "handler echo", "agentic_flow"),
    "websockets": Entry("websockets", "", "websockets", "Websockets"),
    "zmq": Entry("zmq.asyncio", "", "zmq", "Zmq"),
    "grpc": Entry("grpc.aio", "", "grpc", "Grpc"),
    "nats": Entry("NATS", "", "nats", "Nats"),
    "zenoh": Entry("zenoh, peer to peer", "query", "zenoh", "Zenoh", package="zenoh"),
    "zenoh-block": Entry(
        "zenoh, peer to peer, congestion control BLOCK", "", "zenoh", "ZenohBlock", package="zenoh"
    ),
    "tcp-json": Entry("uvloop TCP with JSON", "", "tcp", "TcpJson"),
    "tcp": Entry("raw uvloop TCP", "", "tcp", "Tcp"),
    "qh3": Entry("bare qh3", "", "qh3", "Qh3", package="qh3"),
    "qh3-joined": Entry("bare qh3, many messages in one write", "", "qh3", "Qh3Joined", package="qh3"),
    "aioquic": Entry("aioquic", "", "aioquic", "Aioquic", package="aioquic"),
    "iroh": Entry("iroh, Python binding", "", "iroh", "Iroh", package="iroh", alone=True),
}
