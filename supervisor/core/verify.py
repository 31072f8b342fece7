"""Is the new release good enough to stay?  Pure.

A service that fails already must be able to receive its fix: the new release is only held
to the worse of the configured limit and what its predecessor did.
"""

from typing import NamedTuple

MIN_REQUESTS = 50  # fewer prove nothing


class Sample(NamedTuple):
    """Responses counted over some time."""

    responses: int = 0
    errors: int = 0  # 5xx

    @property
    def share(self) -> float:
        return self.errors / self.responses if self.responses else 0.0

    def since(self, earlier: "Sample") -> "Sample":
        """What came after ``earlier``.  Counters are hints: never negative."""
        return Sample(max(0, self.responses - earlier.responses), max(0, self.errors - earlier.errors))


def too_many_errors(new: Sample, old: Sample, max_error_rate: float) -> str:
    """The reason to roll back, or "".

    Args:
        new: What the new workers answered since they accept.
        old: What the old ones answered in their last minute.
        max_error_rate: 0 to 1.
    """
    if new.responses < MIN_REQUESTS or new.share <= max_error_rate or new.share <= old.share:
        return ""
    return (
        f"{new.errors} of {new.responses} responses were 5xx ({_percent(new.share)}; max_error_rate is "
        f"{_percent(max_error_rate)}, the old release had {_percent(old.share)})"
    )


def _percent(share: float) -> str:
    """Exact enough that what was compared looks as different as it is."""
    return f"{100 * share:.3g}%"
