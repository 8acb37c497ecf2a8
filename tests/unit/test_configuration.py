"""/etc/tattle.conf is refused for what EventBridge would refuse, and the line named."""

from __future__ import annotations

import os

import pytest

from tattle.delivery.config import Config, parse
from tattle.errors import TattleError

ARN = "arn:aws:events:us-east-1:012345678901:event-bus/"


@pytest.mark.parametrize(
    ("key", "longest"),
    [("source", 256), ("detail-type", 128), ("event-bus", 1600), ("resource", 2048)],
)
def test_a_text_is_as_long_as_eventbridge_takes(key: str, longest: int) -> None:
    fits = parse(f"[tattle]\n{key} = {'x' * longest}\n")
    assert getattr(fits, key.replace("-", "_")) == "x" * longest
    with pytest.raises(TattleError, match=rf"line 2: \[tattle\] {key}: .*{longest}") as caught:
        parse(f"[tattle]\n{key} = {'x' * (longest + 1)}\n")
    assert caught.value.status == os.EX_CONFIG
    assert "+2" in caught.value.advice


@pytest.mark.parametrize("bus", ["a b", "arn:aws:events:us-east-1:1:event-bus/x", ARN, "ä"])
def test_an_event_bus_that_is_none(bus: str) -> None:
    with pytest.raises(TattleError, match="event-bus"):
        parse(f"[service sudo]\nevent-bus = {bus}\n")


def test_the_buses_are_each_named_once() -> None:
    services = "[service su]\nevent-bus = one\n[service sudo]\nevent-bus = two\n"
    assert parse(services).buses() == ["", "one", "two"]
    assert parse(f"[tattle]\nevent-bus = two\n{services}").buses() == ["two", "one"]
    assert Config().buses() == [""]
