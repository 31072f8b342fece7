"""Requests and what becomes of them: whole, byte by byte, with a tail.

A request that two servers read in two ways is how one user's bytes become another user's request, so every doubtful
one is refused, and refused the same way however it arrives.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quiesce import Request, Response
from quiesce.worker.apps.asgi import AsgiApp
from quiesce.worker.apps.base import App
from quiesce.worker.apps.native import NativeApp
from quiesce.worker.apps.wsgi import WsgiApp
from quiesce.worker.core import http1
from quiesce.worker.core.http1 import HeadParser
from quiesce.worker.core.limits import Limits
from quiesce.worker.daemon import Daemon
from quiesce.worker.loops.asyncio_loop import AsyncioLoop
from quiesce.worker.net.exchange import Exchange
from wire.serving import Served, bench, read_to_end

LIMITS = Limits(header_bytes=600, line_bytes=200, header_count=8, body_bytes=40, body_memory=8)

HOST = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

GOOD = {
    "plain": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no space after the colon": b"GET / HTTP/1.1\r\nHost:a\r\n\r\n",
    "white space round a value": b"GET / HTTP/1.1\r\nHost: \t a \t\r\n\r\n",
    "empty value": b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n",
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "latin-1 in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\r\n\r\n",
    "tab in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\tb\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form": b"GET http://b/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
    "two empty lines first": b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "1.0 without host": b"GET / HTTP/1.0\r\n\r\n",
    "1.0 keep-alive": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "1.2 is 1.x": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "connection: close": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "an offer to upgrade": b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "content-length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "content-length 0": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    "leading zeros": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\n\r\nhello",
    "get with a body": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "body beyond memory": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n" + b"x" * 30,
    "chunked": CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "chunked in capitals": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
    "chunk extension": CHUNKED + b'3;a="b"\r\nabc\r\n0;x\r\n\r\n',
    "trailers": CHUNKED + b"3\r\nabc\r\n0\r\nX: y\r\nZ:\r\n\r\n",
    "leading zeros of a chunk": CHUNKED + b"0003\r\nabc\r\n000\r\n\r\n",
    "host with a port": b"GET / HTTP/1.1\r\nHost: a.b-c:8080\r\n\r\n",
    "host with an empty port": b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
    "host in brackets": b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n",
    "host of a future kind": b"GET / HTTP/1.1\r\nHost: [v1.fe80::a]\r\n\r\n",
    "host with an escape": b"GET / HTTP/1.1\r\nHost: a%20b\r\n\r\n",
    "host with an underscore": b"GET / HTTP/1.1\r\nHost: a_b~!$&'()*+,;=\r\n\r\n",
    "host in another case": b"GET / HTTP/1.1\r\nhOST: a\r\n\r\n",
    "absolute form without a path": b"GET http://b HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form with a query only": b"GET http://b?x HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form in capitals": b"GET HTTPS://B:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form of an address": b"GET http://[::1]:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form in 1.0 without host": b"GET http://b/ HTTP/1.0\r\n\r\n",
    "escape that is none": b"GET /%zz% HTTP/1.1\r\nHost: a\r\n\r\n",
    "a hundred empty lines first": b"\r\n" * 100 + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "line as long as allowed": b"GET /" + b"x" * 186 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "head as large as allowed": HOST + b"X: " + b"x" * (593 - len(HOST)) + b"\r\n\r\n",
    "as many fields as allowed": HOST + b"A: b\r\n" * 7 + b"\r\n",
    "method as long as allowed": b"A" * 64 + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "method of odd letters": b"!#$%&'*+-.^_`|~ / HTTP/1.1\r\nHost: a\r\n\r\n",
    "field name of odd letters": HOST + b"!#$%&'*+-.^_`|~: x\r\n\r\n",
    "head": b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    "delete with a body": b"DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    "1.0 with a body": b"POST / HTTP/1.0\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nab",
    "1.0 expects": b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nab",
    "1.0 closes": b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
    "connection: keep-alive": HOST + b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n",
    "connection: Close": HOST + b"Connection: Close\r\n\r\n",
    "close in a list": HOST + b"Connection: x, , CLOSE\t,y\r\n\r\n",
    "close in a second field": HOST + b"Connection: keep-alive\r\nConnection: close\r\n\r\n",
    "something like close": HOST + b"Connection: closed, not-close\r\n\r\n",
    "an offer of a websocket": HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "an offer of a websocket in 1.0": b"GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "an offer of a websocket to post": POST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "an offer to upgrade, with a body": POST
    + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nab",
    "expects nothing": HOST + b"Expect: ,\r\n\r\n",
    "expects without a body": HOST + b"Expect: 100-Continue\r\n\r\n",
    "many leading zeros": POST + b"Content-Length: " + b"0" * 400 + b"5\r\n\r\nhello",
    "white space round a length": POST + b"Content-Length: \t 5 \t\r\n\r\nhello",
    "te and trailer": CHUNKED[:-2] + b"TE: trailers\r\nTrailer: X\r\n\r\n0\r\nX: y\r\n\r\n",
    "chunk extensions with white space": CHUNKED + b'3 ; a\t= "b;\\"c" ;d\r\nabc\r\n0\r\n\r\n',
    "chunks of one byte": CHUNKED + b"".join(b"1\r\n%c\r\n" % c for c in b"0123456789") + b"0\r\n\r\n",
    "line ends in a chunk": CHUNKED + b"6\r\n\r\n0\r\n\r\r\n0\r\n\r\n",
    "trailers that would say another message": CHUNKED
    + b"3\r\nabc\r\n0\r\nContent-Length: 50\r\nTransfer-Encoding: gzip\r\nHost: evil\r\n\r\n",
}

# Those that are their connection's last.
LAST = {
    "an offer of a websocket in 1.0",
    "1.0 without host", "connection: close", "absolute form in 1.0 without host", "1.0 expects", "1.0 closes",
    "connection: Close", "close in a list", "close in a second field",
}  # fmt: skip

BAD = {
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "two hosts in 1.0": (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    "host with a space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "host with a user": (400, b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    "length and chunked": (400, POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunked and length": (400, POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
    "length twice, same": (400, POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "length twice, different": (400, POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
    "length list": (400, POST + b"Content-Length: 3, 3\r\n\r\nabc"),
    "length with plus": (400, POST + b"Content-Length: +3\r\n\r\nabc"),
    "length with minus": (400, POST + b"Content-Length: -3\r\n\r\nabc"),
    "length in hex": (400, POST + b"Content-Length: 0x3\r\n\r\nabc"),
    "length with letters": (400, POST + b"Content-Length: 3abc\r\n\r\nabc"),
    "empty length": (400, POST + b"Content-Length:\r\n\r\n"),
    "length with a space inside": (400, POST + b"Content-Length: 3 3\r\n\r\nabc"),
    "length in other digits": (400, POST + b"Content-Length: \xb2\r\n\r\nabc"),
    "length beyond 64 bits": (413, POST + b"Content-Length: 99999999999999999999999\r\n\r\n"),
    "body too large": (413, POST + b"Content-Length: 41\r\n\r\n"),
    "gzip": (400, POST + b"Transfer-Encoding: gzip\r\n\r\n"),
    "gzip, chunked": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked, chunked": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunked, identity": (400, POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    "identity": (400, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "xchunked": (400, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "quoted chunked": (400, POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "vertical tab before chunked": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "chunked in 1.0": (400, b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "connect": (501, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "http/2.0": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "http/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\n"),
    "http/0.9 with a version": (505, b"GET / HTTP/0.9\r\n\r\n"),
    "no version": (400, b"GET /\r\nHost: a\r\n\r\n"),
    "lower-case version": (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "two digits": (400, b"GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
    "not http": (400, b"GET / HTCPCP/1.0\r\nHost: a\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space behind the version": (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "space in front": (400, b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "tab as a delimiter": (400, b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n"),
    "method is no token": (400, b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "long method": (501, b"A" * 65 + b" / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "raw utf-8 in the target": (400, "GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode()),
    "delete in the target": (400, b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n"),
    "relative target": (400, b"GET x HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk for get": (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "another scheme": (400, b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "user in the target": (400, b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "no authority": (400, b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bare lf in the line": (400, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    "bare lf in the head": (400, b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
    "bare lfs only": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare cr in a value": (400, HOST + b"X: a\rb\r\n\r\n"),
    "bare cr in the line": (400, b"GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n"),
    "nul in a value": (400, HOST + b"X: a\0b\r\n\r\n"),
    "control character in a value": (400, HOST + b"X: a\x01b\r\n\r\n"),
    "delete in a value": (400, HOST + b"X: a\x7fb\r\n\r\n"),
    "folded": (400, HOST + b"X: a\r\n b\r\n\r\n"),
    "folded by a tab": (400, HOST + b"X: a\r\n\tb\r\n\r\n"),
    "white space before the first field": (400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    "space before the colon": (400, HOST + b"X : a\r\n\r\n"),
    "space before length's colon": (400, POST + b"Content-Length : 3\r\n\r\nabc"),
    "space in a name": (400, HOST + b"X Y: a\r\n\r\n"),
    "empty name": (400, HOST + b": a\r\n\r\n"),
    "no colon": (400, HOST + b"X\r\n\r\n"),
    "latin-1 in a name": (400, HOST + b"X\xe9: a\r\n\r\n"),
    "brackets in a name": (400, HOST + b"X(): a\r\n\r\n"),
    "tls on a plain port": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "long line": (414, b"GET /" + b"x" * 250 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "endless line": (414, b"GET /" + b"x" * 700),
    "large header": (431, HOST + b"X: " + b"x" * 700 + b"\r\n\r\n"),
    "endless header": (431, HOST + b"X: " + b"x" * 700),
    "many fields": (431, HOST + b"A: b\r\n" * 8 + b"\r\n"),
    "expects something else": (417, HOST + b"Expect: 200-ok\r\n\r\n"),
    "chunk size is no number": (400, CHUNKED + b"x\r\n\r\n"),
    "chunk size in 0x": (400, CHUNKED + b"0x1\r\na\r\n0\r\n\r\n"),
    "negative chunk": (400, CHUNKED + b"-1\r\n\r\n"),
    "chunk size with a plus": (400, CHUNKED + b"+1\r\na\r\n0\r\n\r\n"),
    "chunk size with an underscore": (400, CHUNKED + b"1_0\r\na\r\n0\r\n\r\n"),
    "space behind a chunk size": (400, CHUNKED + b"1 \r\na\r\n0\r\n\r\n"),
    "empty chunk size": (400, CHUNKED + b"\r\n0\r\n\r\n"),
    "chunk size beyond everything": (400, CHUNKED + b"f" * 17 + b"\r\n"),
    "chunk too large": (413, CHUNKED + b"29\r\n"),
    "chunks too large together": (413, CHUNKED + b"20\r\n" + b"x" * 32 + b"\r\n10\r\n"),
    "chunk longer than its size": (400, CHUNKED + b"1\r\nab\r\n0\r\n\r\n"),
    "chunk ended by lf": (400, CHUNKED + b"1\r\na\n0\r\n\r\n"),
    "chunk size ended by lf": (400, CHUNKED + b"1\na\r\n0\r\n\r\n"),
    "long extension": (400, CHUNKED + b"1;" + b"x" * 300),
    "open quote in an extension": (400, CHUNKED + b'1;a="\r\na\r\n0\r\n\r\n'),
    "nul in an extension": (400, CHUNKED + b"1;\0\r\na\r\n0\r\n\r\n"),
    "trailer without colon": (400, CHUNKED + b"0\r\nX\r\n\r\n"),
    "trailer with a space": (400, CHUNKED + b"0\r\nX : y\r\n\r\n"),
    "large trailers": (431, CHUNKED + b"0\r\nX: " + b"y" * 700),
    "the first fault decides, in a trailer": (431, CHUNKED + b"0\r\nX: " + b"y" * 700 + b"\0\r\n\r\n"),
    "the first fault decides, in a chunk size": (400, CHUNKED + b"1;" + b"x" * 300 + b"\0"),
    "many trailers": (431, CHUNKED + b"0\r\n" + b"X: y\r\n" * 110),
    "folded trailer": (400, CHUNKED + b"0\r\nX: y\r\n z\r\n\r\n"),
    "trailer without a name": (400, CHUNKED + b"0\r\n: y\r\n\r\n"),
    "nul in a trailer": (400, CHUNKED + b"0\r\nX: \0\r\n\r\n"),
    "bare lf in a trailer": (400, CHUNKED + b"0\r\nX: y\nZ: z\r\n\r\n"),
    "bare cr in a trailer": (400, CHUNKED + b"0\r\nX: y\rZ: z\r\n\r\n"),
    "trailers ended by lf": (400, CHUNKED + b"0\r\n\n"),
    "host with two ports": (400, b"GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n"),
    "host with letters for a port": (400, b"GET / HTTP/1.1\r\nHost: a:http\r\n\r\n"),
    "host with a port beyond all": (400, b"GET / HTTP/1.1\r\nHost: a:123456\r\n\r\n"),
    "host with half a bracket": (400, b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
    "host with the other half": (400, b"GET / HTTP/1.1\r\nHost: ::1]\r\n\r\n"),
    "host with brackets round a name": (400, b"GET / HTTP/1.1\r\nHost: [a]\r\n\r\n"),
    "address without brackets": (400, b"GET / HTTP/1.1\r\nHost: ::1\r\n\r\n"),
    "host behind brackets": (400, b"GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n"),
    "host with half an escape": (400, b"GET / HTTP/1.1\r\nHost: a%2\r\n\r\n"),
    "host that is a uri": (400, b"GET / HTTP/1.1\r\nHost: http://a\r\n\r\n"),
    "host with a tab": (400, b"GET / HTTP/1.1\r\nHost: a\tb\r\n\r\n"),
    "host in latin-1": (400, b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n"),
    "host with a query": (400, b"GET / HTTP/1.1\r\nHost: a?b\r\n\r\n"),
    "host with a quote": (400, b'GET / HTTP/1.1\r\nHost: "a"\r\n\r\n'),
    "malformed host in 1.0": (400, b"GET / HTTP/1.0\r\nHost: u@a\r\n\r\n"),
    "malformed host beside a length": (400, POST[:-3] + b"a@b\r\nContent-Length: 0\r\n\r\n"),
    "no host, absolute form": (400, b"GET http://a/ HTTP/1.1\r\n\r\n"),
    "two hosts, absolute form": (400, b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "host in two cases": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHOST: b\r\n\r\n"),
    "a fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a fragment in absolute form": (400, b"GET http://a#b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "authority form": (400, b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk and more": (400, b"OPTIONS *x HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bad port in the target": (400, b"GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "only a port in the target": (400, b"GET http://:80/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "uri without slashes": (400, b"GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "tab in the target": (400, b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "no method": (400, b" / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "line of nothing but a path": (400, b"/\r\n\r\n"),
    "http/0.9": (400, b"GET /\r\n"),
    "no dot": (400, b"GET / HTTP/11\r\nHost: a\r\n\r\n"),
    "a letter behind the version": (400, b"GET / HTTP/1.1a\r\nHost: a\r\n\r\n"),
    "other digits in the version": (400, b"GET / HTTP/1.\xb2\r\nHost: a\r\n\r\n"),
    "version in mixed case": (400, b"GET / Http/1.1\r\nHost: a\r\n\r\n"),
    "http/3": (505, b"GET / HTTP/3.0\r\nHost: a\r\n\r\n"),
    "the first fault decides": (505, b"GET / HTTP/2.0\r\nHost: \0\r\n\r\n"),
    "the first fault decides, in the line": (400, b"CONNECT a\0 HTTP/1.1\r\n\r\n"),
    "the first fault decides, in the head": (400, HOST + b"X: \0" + b"x" * 700 + b"\r\n\r\n"),
    "the first fault decides, and it is size": (431, HOST + b"X: " + b"x" * 700 + b"\0\r\n\r\n"),
    "line one longer than allowed": (414, b"GET /" + b"x" * 187 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "head one larger than allowed": (431, HOST + b"X: " + b"x" * (594 - len(HOST)) + b"\r\n\r\n"),
    "one field more than allowed": (431, HOST + b"A: b\r\n" * 8 + b"\r\n"),
    "bare lf first": (400, b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bare lf among empty lines": (400, b"\r\n\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bare cr first": (400, b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two crs": (400, b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"),
    "nul first": (400, b"\0GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "nul in a name": (400, HOST + b"X\0: a\r\n\r\n"),
    "tab before the colon": (400, HOST + b"X\t: a\r\n\r\n"),
    "space before host's colon": (400, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    "space before chunked's colon": (400, POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    "folded length": (400, POST + b"Content-Length:\r\n 3\r\n\r\nabc"),
    "folded last": (400, HOST + b"X: a\r\n \r\n\r\n"),
    "slash in a name": (400, HOST + b"X/Y: a\r\n\r\n"),
    "escape in a value": (400, HOST + b"X: \x1b[0m\r\n\r\n"),
    "vertical tab in a value": (400, HOST + b"X: a\x0bb\r\n\r\n"),
    "form feed behind a length": (400, POST + b"Content-Length: 3\x0c\r\n\r\nabc"),
    "length with a trailing comma": (400, POST + b"Content-Length: 3,\r\n\r\nabc"),
    "length with a leading comma": (400, POST + b"Content-Length: ,3\r\n\r\nabc"),
    "length and an empty one": (400, POST + b"Content-Length: 3\r\nContent-Length:\r\n\r\nabc"),
    "length in two cases": (400, POST + b"Content-Length: 3\r\ncontent-length: 0\r\n\r\nabc"),
    "length with a point": (400, POST + b"Content-Length: 3.0\r\n\r\nabc"),
    "length with an exponent": (400, POST + b"Content-Length: 1e1\r\n\r\nabc"),
    "length with an underscore": (400, POST + b"Content-Length: 1_0\r\n\r\nabc"),
    "length in quotes": (400, POST + b'Content-Length: "3"\r\n\r\nabc'),
    "length of 64 bits": (413, POST + b"Content-Length: 18446744073709551619\r\n\r\nabc"),
    "length of 63 bits": (413, POST + b"Content-Length: 9223372036854775808\r\n\r\nabc"),
    "no transfer-encoding": (400, POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n"),
    "chunked behind a comma": (400, POST + b"Transfer-Encoding: , chunked\r\n\r\n0\r\n\r\n"),
    "chunked with a parameter": (400, POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"),
    "chunked, gzip": (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "chunked, then gzip": (
        400, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    ),
    "gzip, then chunked": (
        501, POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "gzip, br, chunked": (
        501, POST + b"Transfer-Encoding: gzip;a=b ,br\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
    ),
    "chunked in front of a comma": (400, POST + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n"),
    "gzip with a length": (400, POST + b"Transfer-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"),
    "chunked and length in 1.0": (
        400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    ),
    "connect in absolute form": (501, b"CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "expects one thing and another": (417, HOST + b"Expect: 100-continue, x\r\n\r\n"),
    "expects with a parameter": (417, HOST + b"Expect: 100-continue;a=b\r\n\r\n"),
    "no size before an extension": (400, CHUNKED + b";a\r\n\r\n0\r\n\r\n"),
    "extension without a name": (400, CHUNKED + b"1;\r\na\r\n0\r\n\r\n"),
    "extension without a value": (400, CHUNKED + b"1;a=\r\na\r\n0\r\n\r\n"),
    "extension that is no token": (400, CHUNKED + b"1;a b\r\na\r\n0\r\n\r\n"),
    "text behind a quoted extension": (400, CHUNKED + b'1;a="b"c\r\na\r\n0\r\n\r\n'),
    "escaped quote at an extension's end": (400, CHUNKED + b'1;a="\\"\r\na\r\n0\r\n\r\n'),
    "bare cr in an extension": (400, CHUNKED + b"1;a\rb\r\na\r\n0\r\n\r\n"),
    "chunk size of 64 bits": (400, CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
    "chunk size in other digits": (400, CHUNKED + b"\xb3\r\nabc\r\n0\r\n\r\n"),
    "space before a chunk size": (400, CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n"),
    "chunk ended by cr": (400, CHUNKED + b"1\r\na\r0\r\n\r\n"),
    "chunk without an end": (400, CHUNKED + b"1\r\na0\r\n\r\n"),
}  # fmt: skip

_seen: list[tuple[str, bytes, bytes]] = []


def _answer(body: bytes) -> Response:
    return Response(b"<" + body + b">")


def handler(request: Request) -> Response:
    _seen.append((request.method, request.target, request.body))
    return _answer(request.body)


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    body = environ["wsgi.input"].read()
    _seen.append((environ["REQUEST_METHOD"], environ["REQUEST_URI"].encode("latin-1"), body))
    start_response("200 OK", [])
    return [b"<", body, b">"]


class Streaming:
    """Called at the head; answers when it has read the body to its end."""

    interface, streams_body, blocking = "asgi", True, False

    def handle(self, exchange: Exchange) -> None:
        parts: list[bytes] = []

        def on_body(data: bytes, more: bool) -> None:
            parts.append(data)
            if not more:
                body = b"".join(parts)
                _seen.append((exchange.request.method, exchange.request.target, body))
                exchange.respond(_answer(body))

        exchange.read_body(on_body)


async def asgi(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    if scope["type"] != "http":
        raise RuntimeError
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    _seen.append((scope["method"], scope["raw_path"], body))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"<" + body + b">"})


APP = NativeApp(handler)
APPS: dict[str, App] = {"native": APP, "wsgi": WsgiApp(wsgi), "streaming": Streaming()}
TAIL = b"GET /tail HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def _run(pieces: list[bytes], app: App = APP) -> bytes:
    _seen.clear()
    with bench(app, LIMITS) as one:
        for piece in pieces:
            one.send(piece)
        return one.read()


def _splits(data: bytes) -> dict[str, list[bytes]]:
    return {
        "whole": [data],
        "byte by byte": [data[i : i + 1] for i in range(len(data))],
        "with a tail": [data + TAIL],
        "tail in its own piece": [data, TAIL],
        "behind another": [b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n" + data],
    }


def _served(name: str, split: str, reply: bytes) -> None:
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b" 100 Continue" not in reply
    last = name in LAST
    targets = [target for _, target, _ in _seen]
    if split == "behind another":
        assert targets.pop(0) == b"/first"
    if "tail" in split and not last:
        assert targets[1:] == [b"/tail"]
        assert reply.endswith(b"<>EOF")
    else:
        assert len(targets) == 1
        assert reply.endswith(b"EOF") == last


def _refused(status: int, split: str, reply: bytes) -> None:
    if split == "behind another":
        first, head, reply = reply.partition(b"<>")
        assert first.startswith(b"HTTP/1.1 200 ") and head and len(_seen) == 1
        _seen.clear()
    assert reply.startswith(b"HTTP/1.1 %d " % status), reply
    assert b"\r\nConnection: close\r\n" in reply
    assert b"\r\nContent-Type: text/plain" in reply
    assert reply.endswith(b"EOF")
    assert reply.count(b"\r\nDate: ") == 1, "what followed was taken for a request"
    assert _seen == []


# A test for each input, and not for each way in which it arrives: those would take three times as long.
@pytest.mark.parametrize("name", GOOD)
def test_served_however_it_arrives(name: str) -> None:
    for split, pieces in _splits(GOOD[name]).items():
        for app in APPS.values():
            _served(name, split, _run(pieces, app))


@pytest.mark.parametrize("name", BAD)
def test_refused_however_it_arrives(name: str) -> None:
    status, data = BAD[name]
    for split, pieces in _splits(data).items():
        for app in APPS.values():
            _refused(status, split, _run(pieces, app))


def test_no_leniency_of_llhttp_changes_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 6 of worker/README.md: some version of it may read what ours refuses."""
    renew = HeadParser._renew

    def renew_lenient(self: HeadParser) -> None:
        renew(self)
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_chunked_length=True,
            lenient_keep_alive=True,
            lenient_transfer_encoding=True,
            lenient_version=True,
            lenient_data_after_close=True,
            lenient_optional_lf_after_cr=True,
            lenient_optional_cr_before_lf=True,
        )

    monkeypatch.setattr(HeadParser, "_renew", renew_lenient)
    for name, (status, data) in BAD.items():
        assert _run([data + TAIL]).startswith(b"HTTP/1.1 %d " % status), name
        assert _seen == [], name
    for name, data in GOOD.items():
        assert _run([data]).startswith(b"HTTP/1.1 200 "), name


@pytest.fixture
def asgi_served() -> Iterator[Served]:
    loop = AsyncioLoop()
    served = Served(AsgiApp(asgi, loop), loop=loop, limits=LIMITS)
    yield served
    served.close()


@pytest.mark.parametrize("split", ["whole", "with a tail"])
def test_served_over_asgi(asgi_served: Served, split: str) -> None:
    for name, data in GOOD.items():
        if name == "an offer of a websocket":
            continue  # which ASGI hears of, and refuses
        with asgi_served.connect() as sock:
            _seen.clear()
            sock.sendall(b"".join(_splits(data)[split]))
            if split == "whole":
                sock.shutdown(socket.SHUT_WR)
            reply = read_to_end(sock) + b"EOF"
        assert reply.startswith(b"HTTP/1.1 200 OK\r\n"), name
        assert len(_seen) == (2 if split == "with a tail" and name not in LAST else 1), name


def test_refused_over_asgi(asgi_served: Served) -> None:
    for name, (status, data) in BAD.items():
        with asgi_served.connect() as sock:
            _seen.clear()
            sock.sendall(data + TAIL)
            reply = read_to_end(sock)
        assert reply.startswith(b"HTTP/1.1 %d " % status), name
        assert _seen == [] and reply.count(b"\r\nDate: ") == 1, name


def test_over_asgi_byte_by_byte() -> None:
    loop = AsyncioLoop()
    daemon = Daemon(AsgiApp(asgi, loop), loop, limits=LIMITS)

    def turn() -> None:
        loop.aio.call_soon(loop.aio.stop)
        loop.aio.run_forever()  # one pass: the stop is its last callback

    def reply_to(data: bytes) -> bytes:
        _seen.clear()
        client, server = socket.socketpair()
        with client:
            daemon.add_connection(server, peer=None, local=None)
            for octet in data:
                with contextlib.suppress(BrokenPipeError):
                    client.send(bytes((octet,)))
                turn()
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
            while daemon.open:
                turn()
            return read_to_end(client)

    for name, data in GOOD.items():
        if name != "an offer of a websocket":
            assert reply_to(data).startswith(b"HTTP/1.1 200 OK\r\n"), name
            assert len(_seen) == 1, name
    for name, (status, data) in BAD.items():
        reply = reply_to(data + TAIL)
        assert reply.startswith(b"HTTP/1.1 %d " % status), name
        assert _seen == [] and reply.count(b"\r\nDate: ") == 1, name
    daemon.close()
    loop.close()


BODIES = {
    "chunked": b"abc0123456789",
    "content-length": b"hello",
    "trailers": b"abc",
    "chunk extensions with white space": b"abc",
    "chunks of one byte": b"0123456789",
    "line ends in a chunk": b"\r\n0\r\n\r",
    "body beyond memory": b"x" * 30,
    "many leading zeros": b"hello",
    "delete with a body": b"ab",
    "get with a body": b"hello",
    "an offer to upgrade, with a body": b"ab",
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_arrive_whole(name: str) -> None:
    for split, pieces in _splits(GOOD[name]).items():
        for app in APPS.values():
            _run(pieces, app)
            assert _seen[split == "behind another"][2] == BODIES[name]


def test_trailers_are_not_merged() -> None:
    """Not into the fields of the request, whatever they say (RFC 9110 §6.5.1)."""
    heard: list[list[tuple[bytes, bytes]]] = []

    def listen(request: Request) -> Response:
        heard.append(list(request.headers))
        return Response(b"")

    _run([GOOD["trailers that would say another message"]], NativeApp(listen))
    assert heard == [[(b"host", b"a"), (b"transfer-encoding", b"chunked")]]


@pytest.mark.parametrize("name", [name for name in GOOD if b" http://b" in GOOD[name]])
def test_the_target_s_host_wins(name: str) -> None:
    """RFC 9112 §3.2.2: whatever Host says."""
    heard: list[tuple[str, bytes, list[bytes]]] = []

    def listen(request: Request) -> Response:
        hosts = [value for key, value in request.headers if key == b"host"]
        heard.append((request.path, request.query, hosts))
        return Response(b"")

    _run([GOOD[name]], NativeApp(listen))
    paths = {"absolute form": ("/x", b"y"), "absolute form with a query only": ("/", b"x")}
    assert heard == [(*paths.get(name, ("/", b"")), [b"b"])]


def test_fields_arrive_as_sent() -> None:
    """Order, repeated names, the case of values; no white space round them (RFC 9112 §5.1, RFC 9110 §5.3)."""
    heard: list[tuple[bytes, bytes]] = []

    def listen(request: Request) -> Response:
        heard.extend(request.headers)
        return Response(b"")

    _run(
        [HOST + b"X-A: One\r\nB:\t two  three \t\r\nx-a: ONE\r\nC:\r\nD: \xe9:,;\r\n\r\n"], NativeApp(listen)
    )
    assert heard == [
        (b"host", b"a"), (b"x-a", b"One"), (b"b", b"two  three"), (b"x-a", b"ONE"), (b"c", b""), (b"d", b"\xe9:,;"),
    ]  # fmt: skip


def test_empty_input_gets_no_answer() -> None:
    assert _run([b"\r\n"]) == b""
    assert _run([b""]) == b""
    assert _run([b"\r\n" * 40_000]) == b""


def test_empty_lines_are_skipped_at_once() -> None:
    """One by one, 64 KiB of them would be copied 32,768 times."""
    cuts = []

    class Counting(bytes):
        def __getitem__(self, key: Any) -> Any:
            cuts.append(key)
            return Counting(bytes.__getitem__(self, key))

    with bench(APP) as one:
        connection: Any = next(iter(one.daemon.roster.all))
        assert connection._skip_empty_lines(Counting(b"\r\n" * 1000 + b"GET")) == b"GET"
    assert len(cuts) < 10


def test_a_head_that_comes_byte_by_byte_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else 32 KiB of it cost ten times what they cost to read."""
    looked_at = 0
    check = http1._check_bytes

    def counting(part: bytes) -> None:
        nonlocal looked_at
        looked_at += len(part)
        check(part)

    monkeypatch.setattr(http1, "_check_bytes", counting)
    with bench(APP) as one:
        one.send(HOST + b"X: ")
        for _ in range(5000):
            one.send(b"y")
        assert looked_at < 6000
        one.send(b"y\r")
        one.send(b"\nZ: a\nb")
        assert one.read().startswith(b"HTTP/1.1 400 ")


def test_what_was_looked_at_is_forgotten_with_its_request() -> None:
    with bench(APP) as one:
        one.send(HOST + b"X: " + b"y" * 100)
        one.send(b"\r\n\r\n")
        one.send(HOST + b"X: \0")
        assert b"HTTP/1.1 400 " in one.read()


def test_long_names_and_hosts_are_not_remembered() -> None:
    parser = HeadParser(Limits())
    for i in range(50):
        parser.parse(
            b"GET / HTTP/1.1\r\nHost: %s\r\nX%d-%s: a\r\n\r\n" % (b"a" * 5000 + b"%d" % i, i, b"y" * 5000)
        )
    assert sum(map(len, parser._names)) + sum(map(len, parser._hosts)) < 1000
    for i in range(3000):
        parser.parse(b"GET / HTTP/1.1\r\nHost: a%d\r\nX%d: a\r\n\r\n" % (i, i))
    assert len(parser._names) <= 1001 and len(parser._hosts) <= 1001
