"""Addresses: one text form for each end, and a helpful refusal for everything else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline import Error, InvalidAddress
from openline.address import SCHEMES, Address, canonical_ip, is_node_id, join

NODE = "a" * 51 + "q"


@pytest.mark.parametrize(
    ("text", "host", "port", "scheme"),
    [
        ("10.0.0.2:8770", "10.0.0.2", 8770, None),
        ("ws://10.0.0.2:8770", "10.0.0.2", 8770, "ws"),
        ("wss://agents.example:8770", "agents.example", 8770, "wss"),
        ("quic://agents.example:8770", "agents.example", 8770, "quic"),
        ("ws://agents.example", "agents.example", 80, "ws"),
        ("wss://agents.example", "agents.example", 443, "wss"),
        ("ws://[::1]", "::1", 80, "ws"),
        ("[::1]:8770", "::1", 8770, None),
        ("WSS://Agents.Example:1", "agents.example", 1, "wss"),
        ("[2001:DB8:0:0::1]:65535", "2001:db8::1", 65535, None),
        ("my_host-1.local.:1", "my_host-1.local.", 1, None),
    ],
)
def test_valid_forms(text: str, host: str, port: int, scheme: str | None) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, address.scheme) == (host, port, scheme)


def test_an_address_parses_to_itself() -> None:
    address = Address.parse("10.0.0.2:8770")
    assert Address.parse(address) is address


def test_node_id_and_path() -> None:
    address = Address.parse(f"ws://{NODE}@agents.example:8770/federation?x=1")
    assert address == Address("agents.example", 8770, "ws", NODE, "/federation?x=1")
    assert address.url == "ws://agents.example:8770/federation?x=1"
    assert str(address) == f"ws://{NODE}@agents.example:8770/federation?x=1"


def test_a_bare_node_id_is_reached_wherever_it_is() -> None:
    address = Address.parse(NODE)
    assert address == Address("", 0, None, NODE)
    assert (address.dialable, address.authenticated, str(address)) == (False, True, NODE)
    assert Address.parse("10.0.0.2:8770").dialable


def test_a_bare_address_is_dialed_as_ws() -> None:
    assert Address.parse("[::1]:8770").url == "ws://[::1]:8770/"


@pytest.mark.parametrize(
    ("text", "authenticated"),
    [
        ("h:1", False),
        ("ws://h:1", False),
        ("wss://h:1", True),
        ("quic://h:1", True),
        (f"{NODE}@h:1", True),
        (f"ws://{NODE}@h:1", True),
    ],
)
def test_which_addresses_ask_for_a_proven_identity(text: str, authenticated: bool) -> None:
    assert Address.parse(text).authenticated is authenticated


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.2", "10.0.0.2"),
        ("::ffff:10.0.0.2", "10.0.0.2"),
        ("::FFFF:0a00:0002", "10.0.0.2"),
        ("::ffff:10.0.0.2%eth0", "10.0.0.2"),
        ("FE80:0::1%en0", "fe80::1%en0"),
        ("fe80::1%En0", "fe80::1%En0"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("10.0.0.2%eth0", None),
        ("010.0.0.2", None),
        ("10.0.2", None),
        ("agents.example", None),
        ("", None),
    ],
)
def test_one_text_for_each_ip(text: str, canonical: str | None) -> None:
    assert canonical_ip(text) == canonical


def test_ipv4_mapped_compares_as_ipv4() -> None:
    assert Address.parse("[::ffff:10.0.0.2]:8770") == Address.parse("10.0.0.2:8770")


def test_a_scope_is_part_of_the_address() -> None:
    address = Address.parse("[fe80::1%en0]:8770")
    assert address.host == "fe80::1%en0"
    assert address.is_ip
    assert str(address) == "[fe80::1%en0]:8770"
    assert address != Address.parse("[fe80::1%en1]:8770")


@pytest.mark.parametrize(
    ("text", "host", "written"),
    [
        ("[fe80::1%en0]:1", "fe80::1%en0", "[fe80::1%en0]:1"),
        # As URIs have it (RFC 6874), and with the number of the interface.
        ("[fe80::1%25en0]:1", "fe80::1%en0", "[fe80::1%en0]:1"),
        ("[fe80::1%3]:1", "fe80::1%3", "[fe80::1%3]:1"),
        ("[fe80::1%253]:1", "fe80::1%3", "[fe80::1%3]:1"),
        ("[fe80::1%25]:1", "fe80::1%25", "[fe80::1%25]:1"),
        ("[fe80::1%2525]:1", "fe80::1%25", "[fe80::1%25]:1"),
        # An interface whose name begins like an escaped percent sign: only the escaped form says it.
        ("[fe80::1%2525en0]:1", "fe80::1%25en0", "[fe80::1%2525en0]:1"),
        ("[fe80::1%252525]:1", "fe80::1%2525", "[fe80::1%252525]:1"),
    ],
)
def test_a_scope_is_written_plainly_or_as_in_uris(text: str, host: str, written: str) -> None:
    address = Address.parse(text)
    assert (address.host, str(address)) == (host, written)
    assert Address.parse(f"wss://{text}/path").host == host


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("ws://[fe80::1%en0]:8770/path", "[fe80::1]:8770"),
        ("ws://[fe80::1%25en0]", "[fe80::1]:80"),
        ("[2001:db8::1]:8770", "[2001:db8::1]:8770"),
        ("agents.example:8770", "agents.example:8770"),
        (f"ws://{NODE}@10.0.0.2:8770", "10.0.0.2:8770"),
    ],
)
def test_other_hosts_are_not_told_the_scope(text: str, host: str) -> None:
    """It is a name of this host's interface: in a Host header servers take it for malformed."""
    assert Address.parse(text).authority == host


MALFORMED = [
    ("", "for example"),
    ("10.0.0.2", "port is missing"),
    ("10.0.0.2:", "port is missing"),
    ("[::1]", "port is missing"),
    ("quic://10.0.0.2", "port is missing"),
    ("10.0.0.2:0", "1 to 65535"),
    ("10.0.0.2:65536", "1 to 65535"),
    ("10.0.0.2:-1", "1 to 65535"),
    ("10.0.0.2:+1", "1 to 65535"),
    ("10.0.0.2: 1", "outside ASCII"),
    ("10.0.0.2:http", "1 to 65535"),
    ("10.0.0.2:٣", "outside ASCII"),
    ("10.0.0.2:²", "outside ASCII"),
    pytest.param("10.0.0.2:" + "1" * 5000, "1 to 65535", id="port of 5000 digits"),
    ("::1:8770", "brackets"),
    ("a:b:1", "brackets"),
    ("[::1:8770", r"\[address\]:port"),
    ("[::1]8770", r"\[address\]:port"),
    ("[]:8770", "not an IPv6 address"),
    ("[10.0.0.2]:8770", "not an IPv6 address"),
    ("[agents.example]:8770", "not an IPv6 address"),
    ("[::1/64]:8770", "path needs a scheme"),
    ("10.0.0.256:8770", "not a host name"),
    ("10.0.0.2%eth0:8770", "not a host name"),
    ("10.0.2:8770", "not a host name"),
    ("-a.example:8770", "not a host name"),
    ("a..example:8770", "not a host name"),
    ("bücher.example:8770", "outside ASCII"),
    (":8770", "not a host name"),
    (" 10.0.0.2:8770", "outside ASCII"),
    ("10.0.0.2 :8770", "outside ASCII"),
    ("h" * 254 + ":1", "not a host name"),
    ("http://10.0.0.2:8770", "scheme must be one of ws, wss, quic"),
    ("://10.0.0.2:8770", "scheme must be one of"),
    ("10.0.0.2:8770/path", "path needs a scheme"),
    ("10.0.0.2:8770/", "path needs a scheme"),
    ("ws://10.0.0.2:8770?x=1", "1 to 65535"),
    ("user@10.0.0.2:8770", "node id"),
    ("@10.0.0.2:8770", "node id"),
    (f"{NODE.upper()}@10.0.0.2:8770", "node id"),
    (f"{NODE}a@10.0.0.2:8770", "node id"),
    (f"{NODE}@{NODE}@10.0.0.2:8770", "node id"),
]


@pytest.mark.parametrize(("text", "says"), MALFORMED)
def test_malformed_addresses_say_what_is_wrong_and_show_a_valid_form(text: str, says: str) -> None:
    with pytest.raises(InvalidAddress, match=says) as caught:
        Address.parse(text)
    assert repr(text) in str(caught.value)
    assert re.search(r"for example|as in", str(caught.value))
    assert isinstance(caught.value, Error)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "text",
    [
        "[fe80::1%]:8770",
        "[fe80::1%25en%30]:8770",
        "[fe80::1%25%65n0]:8770",
        "[fe80::1%en 0]:8770",
        "[fe80::1%en0\r\nX-Evil: 1]:8770",
        "ws://agents.example:8770/a b",
        "ws://agents.example:8770/a\r\nX-Evil: 1",
        "ws://agents.example:8770/a\x00b",
    ],
)
def test_nothing_that_could_break_out_of_the_http_request_is_accepted(text: str) -> None:
    """Host and path are written into the upgrade request as they are."""
    with pytest.raises(InvalidAddress):
        Address.parse(text)


@given(st.text() | st.from_regex(r"(wss?|quic|x)?(://)?(.{0,60}@)?\[?.{0,20}\]?:?.{0,6}(/.*)?"))
def test_arbitrary_text_is_an_address_or_invalid(text: str) -> None:
    try:
        address = Address.parse(text)
    except InvalidAddress:
        return
    assert Address.parse(str(address)) == address


labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,10}[a-z0-9_])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=3).map(".".join).filter(lambda name: not name[-1].isdigit())
scope_names = st.from_regex(r"(25){0,2}[a-zA-Z0-9_.-]{1,8}", fullmatch=True)
scopes = st.just("") | scope_names.map("%{}".format)
ipv6 = st.tuples(st.ip_addresses(v=6).map(str), scopes).map("".join)
hosts = names | st.ip_addresses(v=4).map(str) | ipv6.map(lambda ip: canonical_ip(ip) or "")
# 52 characters hold 260 bits, and a key has 256: the last character has two forms.
node_ids = st.from_regex(r"[a-z2-7]{51}[aq]", fullmatch=True)
ports = st.integers(1, 65535)
schemed = st.builds(
    Address,
    hosts,
    ports,
    st.sampled_from(SCHEMES),
    st.none() | node_ids,
    st.from_regex(r"/[a-z0-9/?=&._~-]{0,12}", fullmatch=True),
)


bare = st.builds(Address, hosts, ports, st.none(), st.none() | node_ids)


@given(schemed | bare | node_ids.map(lambda node_id: Address("", 0, None, node_id)))
def test_text_form_round_trips(address: Address) -> None:
    assert Address.parse(str(address)) == address


@given(st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None), scope_names, ports)
def test_both_forms_of_a_scope_are_one_address(ip: object, scope: str, port: int) -> None:
    address = Address.parse(f"[{ip}%25{scope}]:{port}")
    assert address.host == f"{ip}%{scope}"
    assert Address.parse(str(address)) == address
    if not scope.startswith("25"):
        assert Address.parse(f"[{ip}%{scope}]:{port}") == address
    assert "%" not in address.authority
    assert Address.parse(address.authority) == Address(str(ip), port)


@given(st.ip_addresses(v=4), ports)
def test_ipv4_and_its_mapped_form_are_one_address(ip: object, port: int) -> None:
    assert Address.parse(f"[::ffff:{ip}]:{port}") == Address.parse(f"{ip}:{port}")


@given(st.ip_addresses() | ipv6, ports)
def test_join_writes_what_parse_reads(ip: object, port: int) -> None:
    host = canonical_ip(str(ip))
    assert host is not None
    address = Address.parse(join(host, port))
    assert (address.host, address.port, address.is_ip) == (host, port, True)


@given(st.ip_addresses())
def test_canonical_is_a_fixed_point(ip: object) -> None:
    once = canonical_ip(str(ip))
    assert once is not None
    assert canonical_ip(once) == once
    assert canonical_ip(str(ip).upper()) == once


@pytest.mark.parametrize(
    "text",
    ["", "a" * 51, "a" * 53, "A" * 52, "0" * 52, "a" * 51 + "\n", "a" * 51 + "=", "a" * 51 + "b", "2" * 52],
)
def test_what_is_no_node_id(text: str) -> None:
    assert not is_node_id(text)
