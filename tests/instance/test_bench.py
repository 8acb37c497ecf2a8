"""The bench measures what it says: once through all of it, on this machine's own Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from standins.instance import Instance
from support import SYSTEM_PYTHON, need_root
from tools.bench import tables
from tools.bench.logins import CURL, SCRIPTS

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_its_tables_have_a_figure_in_every_place(artifact: Path, tmp_path: Path) -> None:
    need_root(*Instance.TOOLS, "curl", "findmnt")
    older = tmp_path / "older"
    older.write_bytes(artifact.read_bytes())
    beside, hook, backlog, under = tables.tables(
        {"3.x": SYSTEM_PYTHON}, older, rounds=1, seconds=0.5, records=20
    )
    assert beside[0] == [*tables.HEAD, "older"]
    rows = [tables.WAITS, tables.ARRIVES, tables.THERE, tables.CPU, tables.SINGLE, tables.MEMORY]
    assert [row[0] for row in beside[1:]] == rows
    for what, tattle, *others, other in beside[1:]:
        unit = " MiB" if what == tables.MEMORY else " ms"
        assert re.fullmatch(rf"\d+{unit}", tattle), what
        assert re.fullmatch(rf"\d+{unit}", other), what
        assert all(re.fullmatch(rf"(\d+{unit})?", one) for one in others), what
    assert [re.sub(r"\d+ ms", "", figure) for _, figure in backlog[1:]] == ["", backlog[2][1]]
    assert float(backlog[2][1]) > 0
    assert len(hook) == 5
    for table in (hook, under):
        assert all(re.fullmatch(r"\d+ ms|\d+\.\d\d", one) for row in table[1:] for one in row[1:])


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
