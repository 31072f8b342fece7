"""Who sheds how much: it comes to an end, and on the way nobody gives away what it should have kept."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quiesce.supervisor.core.balance import LEAST_EXCESS, LEAST_SHARE, MOST, Load, sheds

OPEN = st.lists(st.integers(0, 5000), min_size=1, max_size=8)
LOADS = OPEN.flatmap(
    lambda opens: st.tuples(*(st.integers(0, count) for count in opens)).map(
        lambda idles: [Load(n, o, i) for n, (o, i) in enumerate(zip(opens, idles, strict=True))]
    )
)


def is_even(opens: list[int]) -> bool:
    mean = sum(opens) / len(opens)
    return max(opens) - mean <= max(LEAST_EXCESS, LEAST_SHARE * mean)


@given(LOADS)
def test_nobody_gives_more_than_half_its_excess_than_it_can_or_than_a_packet(loads: list[Load]) -> None:
    mean = sum(load.open for load in loads) / len(loads)
    for number, count in sheds(loads).items():
        load = loads[number]
        assert 0 < count <= min(MOST, load.idle) and count <= (load.open - mean) / 2


@given(OPEN)
def test_nothing_moves_where_it_is_even(opens: list[int]) -> None:
    gives = sheds([Load(number, count, count) for number, count in enumerate(opens)])
    assert bool(gives) is not is_even(opens)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_one_worker_has_nobody_to_give_to(count: int, idle: int) -> None:
    assert sheds([Load(1, count, idle)]) == {} and sheds([]) == {}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2000), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_it_comes_to_rest_whoever_takes_them(opens: list[int], random) -> None:  # type: ignore[no-untyped-def]
    """Each packet goes to any sibling, by the kernel's choice; nobody's load swings up and down for ever."""
    seconds = 0
    total = sum(opens)
    while gives := sheds([Load(number, count, count) for number, count in enumerate(opens)]):
        seconds += 1
        assert seconds < 1000, f"it never comes to rest: {opens}"
        for giver, count in gives.items():
            opens[giver] -= count
            share = -(-count // (len(opens) - 1))  # a packet is no more than a fair share for one reader
            while count:
                taker = random.choice([n for n in range(len(opens)) if n != giver])
                opens[taker] += min(share, count)
                count -= min(share, count)
        assert sum(opens) == total
    assert is_even(opens)


def test_four_hundred_on_one_of_four_are_spread_within_ten_seconds() -> None:
    """Issue 5: no worker holds more than 1.5 times its share."""
    opens = [400, 0, 0, 0]
    for _ in range(10):
        for giver, count in sheds([Load(n, c, c) for n, c in enumerate(opens)]).items():
            opens[giver] -= count
            for turn in range(count):
                opens[1 + turn % 3] += 1
    assert max(opens) <= 150
    while gives := sheds([Load(n, c, c) for n, c in enumerate(opens)]):
        opens[0] -= gives[0]
        for turn in range(gives[0]):
            opens[1 + turn % 3] += 1
    assert is_even(opens)
