"""The Date field, made once a second."""

from time import gmtime, time

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class HttpDate:
    """For any thread: two that make it at once make the same."""

    def __init__(self) -> None:
        self._second = 0
        self._date = b""
        self._line = b""

    def date(self) -> bytes:
        """The value of the field (RFC 9110 §5.6.7)."""
        self.line()
        return self._date

    def line(self) -> bytes:
        """The field as a whole line."""
        second = int(time())
        if second != self._second:
            now = gmtime(second)  # not strftime: names of days are English, whatever the locale
            date = (
                f"{_DAYS[now.tm_wday]}, {now.tm_mday:02} {_MONTHS[now.tm_mon - 1]} {now.tm_year} "
                f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT"
            ).encode()
            self._date, self._line, self._second = date, b"Date: %s\r\n" % date, second
        return self._line
