"""The bench measures what it says: once through all of it, on this machine's own Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import tables
from bench.logins import CURL, SCRIPTS
from standins.instance import Instance
from support import SYSTEM_PYTHON, need_root

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_its_tables_have_a_figure_in_every_place(artifact: Path) -> None:
    need_root(*Instance.TOOLS, "curl")
    beside, under = tables.tables({"3.x": SYSTEM_PYTHON}, rounds=1, seconds=0.5, records=20)
    assert [row[0] for row in beside] == [
        tables.HEAD[0],
        tables.WAITS,
        tables.ARRIVES,
        tables.CPU,
        tables.MEMORY,
        tables.SMOKE_TEST,
        tables.BESIDE.format(20),
        tables.DRAINED,
    ]
    for what, tattle, *others in beside[1:]:
        unit = {tables.MEMORY: " MiB", tables.DRAINED: ""}.get(what, " ms")
        assert re.fullmatch(rf"\d+{unit}", tattle), what
        assert all(re.fullmatch(rf"(\d+{unit})?", one) for one in others), what
    assert under[0][1:] == ["Python 3.x"]
    assert all(re.fullmatch(r"\d+ ms|\d+\.\d\d", one) for _, one in under[1:])


@pytest.fixture
def curl(instance: Instance) -> Instance:
    need_root("curl")
    instance.write(CURL, SCRIPTS[CURL], 0o755)
    return instance


class TestTheScriptWithCurl:
    """A fair comparison: it says the same as tattle where nothing goes wrong."""

    def test_it_reports_what_tattle_reports(self, curl: Instance) -> None:
        user = 'a"b\\c'
        assert curl.hook(path=CURL, user=user).returncode == 0
        curl.hook(user=user)
        script, tattle = (dict(entry.raw) for entry in curl.eventbridge.wait_for(2))
        assert abs(script.pop("Time") - tattle.pop("Time")) < 10
        assert script == tattle

    def test_it_loses_the_event_where_something_does(self, curl: Instance) -> None:
        for fault in ("throttle", "access-denied", 503):
            curl.eventbridge.set(fault=fault, fault_times=1)
            assert curl.hook(path=CURL).returncode != 0
        assert curl.eventbridge.entries() == []
