"""The benches measure what they say: each contender does deliver, and the figures are figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import delivery, stages
from standins.eventbridge import ERRORS
from standins.instance import Instance
from support import need_root

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_every_contender_delivers_and_is_measured(artifact: Path) -> None:
    need_root(*Instance.TOOLS, "curl")
    rows = delivery.rows(rounds=1)
    assert [name for name, *_ in rows] == [one.name for one in delivery.contenders()]
    for (name, waits, arrives, memory), contender in zip(rows, delivery.contenders()):
        assert re.fullmatch(r"\d+ ms", waits), name
        assert re.fullmatch(r"\d+ ms" if contender.sends else "", arrives), name
        assert re.fullmatch(r"\d+ MiB", memory), name


def test_the_deliverers_steps_lead_to_an_event(artifact: Path) -> None:
    need_root(*Instance.TOOLS)
    rows = stages.rows(rounds=1)
    assert len(rows) == 7
    assert all(re.fullmatch(r"\d+\.\d ms", median) for _, median in rows)


def test_what_was_saved_can_be_put_back(artifact: Path) -> None:
    need_root(*Instance.TOOLS)
    rows = stages.savings(rounds=1)
    assert len(rows) == 3
    assert all(re.fullmatch(r"\d+ ms", median) for _, median in rows)


@pytest.fixture
def curl(instance: Instance) -> Instance:
    need_root("curl")
    text = delivery.SCRIPTS[delivery.CURL]
    instance.write(
        delivery.CURL,
        text.replace("set -eu\n", f"set -eu\nCURL_TATTLE_CACERT={delivery.CA}\n"),
        0o755,
    )
    return instance


class TestTheScriptWithCurl:
    """A fair comparison: it says the same as tattle where nothing goes wrong."""

    def test_it_tells_what_tattle_tells(self, curl: Instance) -> None:
        user = 'a"b\\c'
        assert curl.hook(path=delivery.CURL, user=user).returncode == 0
        curl.hook(user=user)
        script, tattle = (dict(entry.raw) for entry in curl.eventbridge.wait_for(2))
        assert abs(script.pop("Time") - tattle.pop("Time")) < 10
        assert script == tattle

    def test_and_loses_the_event_where_something_does(self, curl: Instance) -> None:
        for fault in ("throttle", "access-denied", 503):
            assert fault in ERRORS or fault == 503
            curl.eventbridge.set(fault=fault, fault_times=1)
            assert curl.hook(path=delivery.CURL).returncode != 0
        assert curl.eventbridge.entries() == []
