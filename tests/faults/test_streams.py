"""What a lost packet holds up: its own stream over QUIC, everything behind it over WebSocket."""

import pytest

from openline.testing.lab.netns import TwoHosts

from .agents import WAYS, introduce, two
from .conftest import require_lab
from .processes import wait_until

BIG, SMALL = 0, range(1, 5)
# One long packet. Of several, QUIC fills up the last one with what other streams have to send.
LONG = 900
# Long enough for anything that can pass at all; what is behind a hole in TCP never does.
A_WHILE = 1.0


@pytest.mark.faults
@pytest.mark.parametrize("way", ["quic", "websocket"])
def test_a_lost_packet_holds_up_its_own_stream_only(lab: TwoHosts, way: str) -> None:
    """Every long packet from A to B is lost: those of one stream, while another one sends short ones."""
    require_lab("firewall")
    a, b = two(lab, backends=WAYS[way], max_idle_timeout=60.0)
    introduce(a, b, keep=False)
    a.send(b, 3, first=100, stream="big", size=LONG)  # the path has been found out
    b.received(3)
    lab.lose(100, over=600, direction="a-to-b")
    big = a.post("send", to=b.address, numbers=[BIG], stream="big", size=LONG)
    wait_until(lambda: lab.dropped("a-to-b").lost > 0)
    small = a.post("send", to=b.address, numbers=list(SMALL), stream="small", batch=True)
    if way == "quic":
        assert a.answer(small) == [[1, "outbound"]] * len(SMALL)
        assert b.received(3 + len(SMALL))[3:] == list(SMALL)
        lab.lossless()
    else:
        assert b.received(4, timeout=A_WHILE)[3:] == []
        lab.lossless()
        assert a.answer(small) == [[1, "outbound"]] * len(SMALL)
    assert a.answer(big) == [[1, "outbound"]]
    assert sorted(b.received(4 + len(SMALL))[3:]) == [BIG, *SMALL]
