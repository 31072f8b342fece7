"""Requests by their ids: the first end of each counts, for this supervisor and for the next."""

from quiesce.supervisor.ledger import KEPT, Ledger


def test_the_first_end_counts() -> None:
    ledger = Ledger()
    ledger.begin("a", "upgrade")
    assert ledger.end("a", 0, "r2 serves", data={"release": "r2"})
    assert not ledger.end("a", 1, "something else")
    known = ledger.find("a")
    assert known is not None and (known.code, known.text, known.data) == (0, "r2 serves", {"release": "r2"})


def test_the_next_supervisor_knows_them() -> None:
    first, second = Ledger(), Ledger()
    first.begin("a", "upgrade")
    first.begin("b", "scale")
    first.end("b", 0, "done")
    second.recall(first.to_state())
    waiting, ended = second.find("a"), second.find("b")
    assert waiting is not None and waiting.code is None
    assert ended is not None and ended.code == 0


def test_it_does_not_grow() -> None:
    ledger = Ledger()
    for number in range(KEPT + 10):
        ledger.begin(str(number), "upgrade")
        ledger.end(str(number), 1, "x" * 100_000, "y" * 100_000)
    assert len(ledger.to_state()) == KEPT
    assert ledger.find("0") is None and ledger.find(str(KEPT + 9)) is not None
    assert all(len(record.text) + len(record.detail) < 10_000 for record in ledger.to_state())


def test_a_request_that_nobody_began_has_no_end() -> None:
    assert not Ledger().end("x", 0, "")
