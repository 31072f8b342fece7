"""Listening addresses: every spelling of one address has one canonical text."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.shared.addresses import FD, TCP4, TCP6, UNIX, parse_address
from quiesce.shared.errors import ConfigError

PORTS = st.integers(0, 65535)
NAMES = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="@/"), min_size=1, max_size=40
)


@pytest.mark.parametrize(
    ("text", "kind", "canonical", "url"),
    [
        ("127.0.0.1:8000", TCP4, "127.0.0.1:8000", "http://127.0.0.1:8000/"),
        (":8000", TCP4, "0.0.0.0:8000", "http://127.0.0.1:8000/"),
        ("*:8000", TCP4, "0.0.0.0:8000", "http://127.0.0.1:8000/"),
        ("localhost:08000", TCP4, "127.0.0.1:8000", "http://127.0.0.1:8000/"),
        ("[::]:80", TCP6, "[::]:80", "http://[::1]:80/"),
        ("[0:0:0:0:0:0:0:1]:80", TCP6, "[::1]:80", "http://[::1]:80/"),
        ("[2001:DB8::1]:80", TCP6, "[2001:db8::1]:80", "http://[2001:db8::1]:80/"),
        ("[fe80::1%eth0]:80", TCP6, "[fe80::1%eth0]:80", "http://[fe80::1%25eth0]:80/"),
        ("unix:/run/x.sock", UNIX, "unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:///run/x.sock", UNIX, "unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:x.sock", UNIX, "unix:x.sock", "unix:x.sock"),
        ("unix:@shop", UNIX, "unix:@shop", "unix:@shop"),
        ("fd://http", FD, "fd://http", "fd://http"),
        ("fd:http", FD, "fd://http", "fd://http"),
    ],
)
def test_every_form(text: str, kind: str, canonical: str, url: str) -> None:
    address = parse_address(text)
    assert (address.kind, address.text, str(address), address.url()) == (kind, canonical, canonical, url)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), PORTS)
def test_what_is_read_from_an_ip_address_reads_back_as_itself(ip: ipaddress.IPv4Address, port: int) -> None:
    text = f"{ip}:{port}" if ip.version == 4 else f"[{ip.exploded}]:{port}"
    address = parse_address(text)
    assert address.kind == (TCP4 if ip.version == 4 else TCP6)
    assert address.sockaddr() == (str(ip), port)
    assert parse_address(address.text) == address


@given(NAMES)
def test_unix_paths_read_back_as_themselves(name: str) -> None:
    for text in (f"unix:/run/{name}", f"unix:@{name}"):
        address = parse_address(text)
        assert address.text == text and parse_address(address.text) == address
        assert address.abstract == (text[5] == "@")


@given(st.text(max_size=30) | st.from_regex(r"(unix:|fd:|fd://|\[|:)?[0-9a-z:.@\[\]]*", fullmatch=True))
def test_any_text_is_an_address_that_reads_back_or_a_sentence(text: str) -> None:
    try:
        address = parse_address(text)
    except ConfigError as exc:
        assert str(exc).startswith('cannot listen on "')
    else:
        assert parse_address(address.text) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write one of"),
        (" :80", "write one of"),
        ("8000", 'for port 8000 of every interface write ":8000"'),
        ("example.com", "write one of 127.0.0.1:8000"),
        ("example.com:80", "host names are not looked up"),
        ("1.2.3:80", '"1.2.3" is no IPv4 address'),
        ("127.0.0.1:http", '"http" is no port'),
        ("127.0.0.1:65536", '"65536" is no port'),
        ("127.0.0.1:-1", '"-1" is no port'),
        ("127.0.0.1:٣", "is no port"),
        ("::1:80", "put an IPv6 address in brackets"),
        ("[::1:80", "is written"),
        ("[1.2.3.4]:80", "is no IPv6 address"),
        ("unix:", "a path or @name must follow"),
        ("unix:@", "a path or @name must follow"),
        ("unix:/run/", "that is a directory"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("unix:/a\0b", "control characters"),
        ("fd://", "FileDescriptorName="),
        ("fd://a:b", "FileDescriptorName="),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert says in str(caught.value)


def test_the_kernel_takes_what_sockaddr_gives() -> None:
    for text, family in (("127.0.0.1:0", socket.AF_INET), ("unix:@quiesce-test-addresses", socket.AF_UNIX)):
        with socket.socket(family) as sock:
            sock.bind(parse_address(text).sockaddr())
    assert parse_address("127.0.0.1:0").with_port(81).text == "127.0.0.1:81"
    with pytest.raises(ValueError, match="bound by systemd"):
        parse_address("fd://http").sockaddr()
