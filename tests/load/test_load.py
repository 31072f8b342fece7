"""The load client against a server that does right, and against one for each way of doing wrong."""

from __future__ import annotations

import socket
import time

import pytest

from load import (
    Failure,
    Fresh,
    LoadClient,
    LoadError,
    Report,
    Trouble,
    busy,
    download,
    everything,
    fresh,
    idle,
    late,
    pipelined,
    post,
    upload,
)
from load.fake import Exchange, FakeServer, Misdeed
from load.wire import parse_target

pytestmark = pytest.mark.slow

SMALL = {
    "fresh": fresh(2),
    "busy": busy(2),
    "pipelined": pipelined(1, depth=6),
    "post": post(1),
    "upload": upload(2, seconds=0.05, size=50_000),
    "download": download(2, seconds=0.05, size=300_000),
    "late": late(1, 0.05),
    "idle": idle(1, 0.05),
}


def run(misdeed: Misdeed | None, *names: str, answers: int = 12, timeout_s: float = 5.0) -> Report:
    """Let the server serve until ``answers`` good ones or three failures."""
    with FakeServer(misdeed) as server:
        client = LoadClient(
            server.target,
            *(SMALL[name] for name in names),
            max_answers=answers,
            max_failures=3,
            max_seconds=30.0,
            timeout_s=timeout_s,
            wait_started=False,
        )
        with client as load:
            return load.wait_report()


def misdeed(what: str) -> Misdeed:
    """A server that fails every second request in one way."""
    count = 0

    def act(exchange: Exchange) -> bool:
        nonlocal count
        count += 1
        if count % 2:
            return False
        body = exchange.body_of(b"hello")
        sock = exchange.sock
        match what:
            case "reset":
                exchange.reset()
            case "reset in body":
                sock.sendall(exchange.head_of(body) + body[:-3])
                exchange.reset()
            case "silence":
                pass
            case "short":
                sock.sendall(exchange.head_of(body) + body[:-3])
            case "short chunked":
                sock.sendall(exchange.head_of(body, framing="Transfer-Encoding: chunked") + b"40\r\nv1")
            case "short head":
                sock.sendall(exchange.head_of(body)[:20])
            case "wrong byte":
                sock.sendall(exchange.head_of(body) + body[:-1] + b"!")
            case "other's answer":
                exchange.nonce = "9999999"
                body = exchange.body_of(b"hello")
                sock.sendall(exchange.head_of(body) + body)
            case "500":
                sock.sendall(exchange.head_of(body, "500 Internal Server Error") + body)
            case "noise":
                sock.sendall(b"hello?\r\n\r\n")
            case "answers twice":
                sock.sendall((exchange.head_of(body) + body) * 2)
                return False
        return True

    return act


def test_a_good_server_gives_no_failures() -> None:
    report = run(None, *SMALL, answers=300)
    assert report.failures() == {}, report.explain()
    assert report.total >= 300
    assert set(report.answers) >= {"fresh", "busy", "pipelined", "post"}
    assert report.releases == {"v1": report.total}
    assert report.fresh and all(f.began < f.answered and f.release == "v1" for f in report.fresh)
    assert 0 < report.longest_gap_s < 5


@pytest.mark.parametrize("name", ["upload", "download", "late", "idle"])
def test_each_slow_kind_alone(name: str) -> None:
    report = run(None, name, answers=6)
    assert report.failures() == {}, report.explain()
    assert report.answers[name] >= 6


@pytest.mark.parametrize(
    ("what", "trouble", "kind"),
    [
        ("reset", Trouble.RESET, "fresh"),
        ("reset", Trouble.KEPT_RESET, "busy"),
        ("reset in body", Trouble.RESET, "busy"),
        ("silence", Trouble.NO_ANSWER, "fresh"),
        ("silence", Trouble.KEPT_RESET, "busy"),
        ("short", Trouble.SHORT_BODY, "fresh"),
        ("short chunked", Trouble.SHORT_BODY, "busy"),
        ("short head", Trouble.SHORT_BODY, "fresh"),
        ("wrong byte", Trouble.WRONG_BODY, "busy"),
        ("other's answer", Trouble.WRONG_BODY, "pipelined"),
        ("500", Trouble.STATUS, "fresh"),
        ("500", Trouble.STATUS, "post"),
        ("noise", Trouble.BAD_ANSWER, "fresh"),
        ("reset", Trouble.RESET, "late"),
    ],
)
def test_each_misdeed_is_seen_and_named(what: str, trouble: Trouble, kind: str) -> None:
    report = run(misdeed(what), kind)
    # A reset may overtake what was sent before it: what broke is then named by what was left of it.
    assert trouble in report.failures(), report.explain()
    assert all(failure.began <= failure.at for failure in report.failed)


def test_an_answer_too_many_is_seen() -> None:
    report = run(misdeed("answers twice"), "busy")
    assert set(report.failures()) & {Trouble.WRONG_BODY, Trouble.BAD_ANSWER}, report.explain()


def test_a_refused_connect_is_seen() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound but not listening: the kernel refuses
        target = f"127.0.0.1:{bound.getsockname()[1]}"
        client = LoadClient(target, fresh(2), max_seconds=0.3, wait_started=False)
        with client as load:
            report = load.wait_report()
    assert set(report.failures()) == {Trouble.REFUSED}
    assert report.total == 0


def test_a_missing_unix_socket_is_a_refusal(tmp_path) -> None:  # type: ignore[no-untyped-def]
    client = LoadClient(f"unix:{tmp_path}/no.sock", fresh(1), max_seconds=0.3, wait_started=False)
    with client as load:
        report = load.wait_report()
    assert set(report.failures()) == {Trouble.REFUSED}


def test_silence_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        client = LoadClient(target, fresh(1), max_seconds=0.2, timeout_s=0.4, wait_started=False)
        with client as load:
            report = load.wait_report()
    assert set(report.failures()) == {Trouble.TIMEOUT}


def test_a_server_that_closes_idle_connections_is_another_class() -> None:
    def close_after_answer(exchange: Exchange) -> bool:
        body = exchange.body_of(b"hello")
        exchange.sock.sendall(exchange.head_of(body) + body)  # no Connection: close, and yet it closes
        return True

    report = run(close_after_answer, "idle", answers=5)
    assert report.failures() == {}, report.explain()
    assert report.idle_closed >= 4


@pytest.mark.parametrize(("kind", "where"), [("busy", "longest_gap_s"), ("fresh", "longest_fresh_s")])
def test_a_stall_is_seen(kind: str, where: str) -> None:
    count = 0

    def stall(exchange: Exchange) -> bool:
        nonlocal count
        count += 1
        if count == 20:
            time.sleep(0.4)  # the misdeed itself
        return False

    report = run(stall, kind, answers=60)
    assert 0.3 < getattr(report, where) < 2
    assert report.failures() == {}


@pytest.mark.parametrize(
    ("forget", "copies", "trouble"), [(True, 1, Trouble.TOKEN_LOST), (False, 2, Trouble.TOKEN_TWICE)]
)
def test_a_token_lost_or_counted_twice_is_seen(forget: bool, copies: int, trouble: Trouble) -> None:
    with FakeServer(forget=forget, copies=copies) as server:
        with LoadClient(server.target, SMALL["post"], max_answers=10, wait_started=False) as load:
            report = load.wait_report()
        assert len(report.tokens) >= 10
        assert report.judge_tokens(server.written) == {trouble: len(report.tokens)}
        assert report.judge_tokens([*report.tokens, "strange"]) == {Trouble.TOKEN_STRANGE: 1}
        assert report.judge_tokens(report.tokens) == {}


def test_messages_both_ways() -> None:
    with FakeServer() as server, LoadClient(server.target, fresh(1), busy(1)) as load:
        before = server.seen
        load.wait_answers(50)
        assert server.seen >= before + 40
        report = load.stop()
        assert report.total >= 50 and report.failures() == {}


def test_what_never_comes_is_said_with_what_was_seen() -> None:
    with (
        FakeServer(misdeed("500")) as server,
        pytest.raises(LoadError, match="status"),
        LoadClient(server.target, fresh(1)) as load,
    ):
        load.wait_answers(10_000_000, timeout_s=0.3)


def test_stale_answers_and_deaths_are_judged_by_time() -> None:
    report = Report(
        fresh=[Fresh(1.0, 1.1, "v1"), Fresh(2.0, 2.1, "v2"), Fresh(3.0, 3.1, "v1")],
        failed=[Failure("reset", "busy", 4.0, 4.2, "v2", ""), Failure("reset", "busy", 9.0, 9.2, "v2", "")],
    )
    assert report.stale_answers(2.0, 3.0, "v2") == []
    assert report.stale_answers(2.0, 4.0, "v2") == [Fresh(3.0, 3.1, "v1")]
    assert [f.began for f in report.failures_outside([4.1])] == [9.0]
    assert Report.from_json(report.to_json()) == report


def test_targets() -> None:
    assert parse_target("127.0.0.1:80") == (socket.AF_INET, ("127.0.0.1", 80))
    assert parse_target("[::1]:80") == (socket.AF_INET6, ("::1", 80))
    assert parse_target("unix:/a/b") == (socket.AF_UNIX, "/a/b")
    assert {traffic.kind for traffic in everything()} == set(SMALL)
