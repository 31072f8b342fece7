"""The Date field, made once a second."""

from math import inf
from time import gmtime, monotonic, time

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class HttpDate:
    """For any thread: two that make it at once make the same."""

    def __init__(self) -> None:
        self.until = -inf  # of the clock that does not jump
        self.current = b""  # the whole line, until then
        self._date = b""

    def date(self) -> bytes:
        """The value of the field (RFC 9110 §5.6.7)."""
        self.line(monotonic())
        return self._date

    def line(self, now: float) -> bytes:
        """The field as a whole line.  ``now``: of CLOCK_MONOTONIC."""
        if now >= self.until:
            exact = time()
            then = gmtime(int(exact))  # not strftime: names of days are English, whatever the locale
            date = (
                f"{_DAYS[then.tm_wday]}, {then.tm_mday:02} {_MONTHS[then.tm_mon - 1]} {then.tm_year} "
                f"{then.tm_hour:02}:{then.tm_min:02}:{then.tm_sec:02} GMT"
            ).encode()
            self._date, self.current = date, b"Date: %s\r\n" % date
            self.until = now + 1 - exact % 1  # the next full second
        return self.current


class NoDate(HttpDate):
    """For who has no clock (RFC 9110 §6.6.1): there is no such field."""

    def __init__(self) -> None:
        HttpDate.__init__(self)
        self.until = inf
