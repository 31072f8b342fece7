"""pytest fixtures of the systemd stories: a box for each image, and in it an instance for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdbox.service import IMAGES, Host, Instance, booted, prepared


@pytest.fixture(scope="module", params=IMAGES)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with booted(request.param) as host:
        yield host


@pytest.fixture
def instance(host: Host, request: pytest.FixtureRequest) -> Iterator[Instance]:
    with prepared(host, request.function.__name__.removeprefix("test_")[:30]) as instance:
        yield instance
