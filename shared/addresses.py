"""The written form of a listening address, and what it means.  Pure.

``127.0.0.1:8000`` · ``[::]:80`` · ``:8000`` (every IPv4 interface) · ``unix:/path`` ·
``unix:@abstract`` · ``fd://NAME`` (a socket that systemd passes).

The canonical text is the key by which a listener is compared with another one, so two
spellings of one address must give one text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quiesce.shared.errors import ConfigError

TCP4, TCP6, UNIX, FD = "tcp4", "tcp6", "unix", "fd"

MAX_UNIX_PATH_BYTES = 107  # sun_path is 108 with the final NUL: unix(7)
_FORMS = "127.0.0.1:8000, [::]:80, :8000, unix:/path, unix:@name or fd://NAME"
_FD_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")


@dataclass(frozen=True, slots=True)
class Address:
    """One address to listen on.  Fields that a kind does not have are empty."""

    kind: str  # TCP4, TCP6, UNIX or FD
    host: str = ""  # tcp: an IP address in its shortest form, an IPv6 scope included
    port: int = 0  # tcp: 0 lets the kernel choose
    path: str = ""  # unix: the path as given, or "@name" for an abstract one
    name: str = ""  # fd: the FileDescriptorName

    @property
    def abstract(self) -> bool:
        """A unix address in the abstract namespace: it has no file, mode or owner."""
        return self.path.startswith("@")

    @property
    def text(self) -> str:
        """The canonical form, which ``parse_address`` reads back as this very address."""
        if self.kind == TCP4:
            return f"{self.host}:{self.port}"
        if self.kind == TCP6:
            return f"[{self.host}]:{self.port}"
        return f"unix:{self.path}" if self.kind == UNIX else f"fd://{self.name}"

    def __str__(self) -> str:
        return self.text

    def url(self) -> str:
        """What a person on this host types into a browser or curl; ``unix:…`` has no URL and stays."""
        if self.kind == TCP4:
            host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
            return f"http://{host}:{self.port}/"
        if self.kind == TCP6:
            host = "::1" if self.host == "::" else self.host
            return f"http://[{host.replace('%', '%25')}]:{self.port}/"  # RFC 6874
        return self.text

    def sockaddr(self) -> tuple[str, int] | bytes:
        """What ``bind()`` and ``connect()`` take: (host, port), or the bytes of a unix address."""
        if self.kind in (TCP4, TCP6):
            return (self.host, self.port)
        if self.kind == UNIX:
            raw = self.path.encode("utf-8", "surrogateescape")
            return b"\0" + raw[1:] if self.abstract else raw
        raise ValueError(f"{self.text} is bound by systemd, not by us")

    def with_port(self, port: int) -> Address:
        """The same address with the port that the kernel chose."""
        return Address(self.kind, self.host, port)


def parse_address(text: str) -> Address:
    """Read an address as people write it.

    Raises:
        ConfigError: It is none; the message quotes it and says what is wanted.
    """
    if not isinstance(text, str) or not text or text != text.strip():
        raise _wrong(text, f"write one of {_FORMS}")
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
        raise _wrong(text, "it holds control characters")
    if text.startswith("unix:"):
        return _unix(text)
    if text.startswith("fd:"):
        return _fd(text)
    return _tcp(text)


def _wrong(text: object, why: str) -> ConfigError:
    return ConfigError(f'cannot listen on "{text}": {why}')


def _unix(text: str) -> Address:
    path = text[len("unix:") :]
    if path.startswith("//"):  # unix:///run/x.sock, the way a URL is written
        path = path[2:]
    if path in ("", "@"):
        raise _wrong(text, "a path or @name must follow unix:, as in unix:/run/shop.sock")
    if not path.startswith("@") and path.endswith("/"):
        raise _wrong(text, "that is a directory; name a file in it")
    if len(path.encode("utf-8", "surrogateescape")) > MAX_UNIX_PATH_BYTES:
        raise _wrong(
            text, f"a unix socket's path has at most {MAX_UNIX_PATH_BYTES} bytes; choose a shorter one"
        )
    return Address(UNIX, path=path)


def _fd(text: str) -> Address:
    name = text[len("fd:") :].removeprefix("//")
    if not _FD_NAME.fullmatch(name):
        raise _wrong(text, "fd:// wants the FileDescriptorName= of a systemd socket, as in fd://http")
    return Address(FD, name=name)


def _tcp(text: str) -> Address:
    host, colon, digits = text.rpartition(":")
    if not colon:
        hint = (
            f'for port {text} of every interface write ":{text}"'
            if text.isdecimal()
            else f"write one of {_FORMS}"
        )
        raise _wrong(text, hint)
    port = _port(text, digits)
    if host.startswith("["):
        if not host.endswith("]"):
            raise _wrong(text, "an IPv6 address is written [::1]:8000")
        return Address(TCP6, _ip(text, host[1:-1], 6), port)
    if host in ("", "*"):
        return Address(TCP4, "0.0.0.0", port)
    if host == "localhost":
        return Address(TCP4, "127.0.0.1", port)
    if ":" in host:
        raise _wrong(text, "put an IPv6 address in brackets, as in [::1]:8000")
    return Address(TCP4, _ip(text, host, 4), port)


def _port(text: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 5 or int(digits) > 65535:
        raise _wrong(text, f'"{digits}" is no port; a port is a number from 0 to 65535')
    return int(digits)


def _ip(text: str, host: str, version: int) -> str:
    import ipaddress  # not at the top: a worker reads addresses without parsing any

    try:
        if version == 4:
            return str(ipaddress.IPv4Address(host))
        return str(ipaddress.IPv6Address(host))
    except ValueError as exc:
        if version == 4 and not host.replace(".", "").isdecimal():
            raise _wrong(text, "host names are not looked up; write an IP address, as in 0.0.0.0:80") from exc
        raise _wrong(text, f'"{host}" is no IPv{version} address') from exc
