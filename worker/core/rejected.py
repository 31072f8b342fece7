"""A request that the daemon answers itself, because it cannot or must not reach the application."""

REASONS: dict[int, str] = {
    100: "Continue", 101: "Switching Protocols", 102: "Processing", 103: "Early Hints",
    200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content",
    205: "Reset Content", 206: "Partial Content", 207: "Multi-Status", 208: "Already Reported", 226: "IM Used",
    300: "Multiple Choices", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
    305: "Use Proxy", 307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required",
    408: "Request Timeout", 409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed",
    413: "Content Too Large", 414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable",
    417: "Expectation Failed", 418: "I'm a Teapot", 421: "Misdirected Request", 422: "Unprocessable Content",
    423: "Locked", 424: "Failed Dependency", 425: "Too Early", 426: "Upgrade Required",
    428: "Precondition Required", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    451: "Unavailable For Legal Reasons",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout", 505: "HTTP Version Not Supported", 506: "Variant Also Negotiates",
    507: "Insufficient Storage", 508: "Loop Detected", 510: "Not Extended",
    511: "Network Authentication Required",
}  # fmt: skip
"""IANA's HTTP status code registry.  Not http.HTTPStatus: importing http costs a worker its enum table."""


class Rejected(Exception):
    """Why a request is refused: a status and one line for whoever reads the answer.

    Not a QuiesceError: it is an answer on its way to a client, and never an error of ours.
    """

    def __init__(self, status: int, reason: str, *, retry_after_s: int = 0, location: bytes = b"") -> None:
        """``location``: where to ask instead; nothing but visible ASCII."""
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.location = location


def reply(rejected: Rejected, date: bytes, *, head_only: bool = False) -> bytes:
    """The whole answer, which always closes: after a request that we did not understand we cannot say
    where the next one begins.  ``date`` is the value of the Date field; empty: there is none.
    """
    text = f"{rejected.status} {REASONS[rejected.status]}: {rejected.reason}\n".encode("latin-1", "replace")
    more = b"Retry-After: %d\r\n" % rejected.retry_after_s if rejected.retry_after_s else b""
    if rejected.location:
        # Not to be kept: a cache in front may have read another target out of what we did not take.
        more += b"Location: %s\r\nCache-Control: no-store\r\n" % rejected.location
    dated = b"Date: %s\r\n" % date if date else b""
    head = (
        b"HTTP/1.1 %d %s\r\n%s%sContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n"
    ) % (rejected.status, REASONS[rejected.status].encode(), dated, more, len(text))
    return head if head_only else head + text
