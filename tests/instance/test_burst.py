"""Many events at once, processes killed, a reboot: each event arrives, one deliverer at a time."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from standins.instance import REMOTE_HOST, Hook, Instance
from standins.strace import calls_in
from support import changed, eventually, need_root

pytestmark = pytest.mark.root

BURST = 300
MOST_CALLS = 60
CALLS_AHEAD, CALL_INTERVAL = 3, 0.2  # seconds; of calls that are not full
LINGER = 5.0  # seconds that a deliverer stays
RACES = 40
INSTANCES = 2  # at the same time
TRACE = "/tmp/trace"
MOST_IDLE_CALLS = 60  # system calls, in five seconds: three a heartbeat, and one look at the end


def warm_cache(box: Instance) -> None:
    box.hook(user="somebody")
    box.eventbridge.wait_for(1)
    eventually(lambda: not box.spool())
    box.kill_deliverers()


def test_three_hundred_events_at_once_arrive_once_each(instance: Instance) -> None:
    warm_cache(instance)
    instance.eventbridge.clear()
    users = [f"u{number:03d}" for number in range(BURST)]
    with instance.session() as session:
        results = session.run(*(Hook(user=user) for user in users))
        instance.eventbridge.wait_for(BURST, timeout=60)
    assert {result.returncode for result in results} == {0}
    eventually(lambda: not instance.spool())
    assert instance.arrived() == dict.fromkeys(users, 1)
    calls = instance.eventbridge.calls()
    assert len(calls) <= MOST_CALLS
    seconds = calls[-1].arrived - calls[0].arrived
    most = 1 + CALLS_AHEAD + seconds / CALL_INTERVAL + 3  # the first one arrives late: TLS
    assert sum(call.entry_count < 10 for call in calls) <= most
    assert instance.eventbridge.most_in_progress() == 1
    assert instance.log() == []


class TestKilled:
    @pytest.mark.parametrize("closes", [False, True], ids=["all", "the user's only"])
    def test_sshds_processes(self, instance: Instance, closes: bool) -> None:
        """Without its monitor sshd closes no session that PAM could tell of: the ledger does."""
        instance.eventbridge.set(fault="refuse")
        login = instance.ssh_command(
            "ssh", "alice@127.0.0.1", "sleep 60", user="alice", source=REMOTE_HOST
        )
        with instance.popen(login) as ssh:
            command = ["sleep", "60"]
            eventually(lambda: command in [one.command for one in instance.processes()])
            eventually(instance.spool)
            (own,) = instance.processes(": alice@notty")
            (monitor,) = (one for one in instance.processes() if one.pid == own.parent)
            instance.kill(*([] if closes else [monitor]), own)
            ssh.wait(10)
        eventually(lambda: len(instance.spool()) == 1 + closes)
        instance.eventbridge.set(fault=None)
        instance.eventbridge.wait_for(2, timeout=20)
        sessions = [detail["session"] for detail in instance.eventbridge.details()]
        assert sessions == ["opened", "closed"]

    def test_everything_by_a_reboot(self, instance: Instance) -> None:
        """The spool is kept; the cache and every process are gone."""
        instance.eventbridge.set(fault="hang")
        began = time.time()
        assert instance.ssh("alice", "true").returncode == 0
        eventually(lambda: len(instance.spool()) == 2)
        ended = time.time()
        instance.reboot()
        assert instance.deliverers() == []
        assert not instance.path("/var/cache/tattle").exists()
        instance.eventbridge.set(fault=None)
        time.sleep(1.1)
        assert instance.ssh("ubuntu", "true").returncode == 0
        entries = instance.eventbridge.wait_for(4)
        assert [tuple(entry.detail.values()) for entry in entries] == [
            ("alice", REMOTE_HOST, "opened"),
            ("alice", REMOTE_HOST, "closed"),
            ("ubuntu", REMOTE_HOST, "opened"),
            ("ubuntu", REMOTE_HOST, "closed"),
        ]
        for entry in entries[:2]:
            assert int(began) <= entry.raw["Time"] <= ended


class TestWaiting:
    """A deliverer that has no events. (test_outage.py has one whose events can't go yet.)"""

    def test_it_stays_for_the_next_event(self, instance: Instance) -> None:
        with instance.session() as session:
            assert session.hook(user="first").returncode == 0
            instance.eventbridge.wait_for(1)
            (deliverer,) = instance.deliverers()
            asked = len(instance.imds.requests())
            for number in range(2, 5):
                time.sleep(0.5)
                assert session.hook(user=f"u{number}").returncode == 0
                instance.eventbridge.wait_for(number)
                assert [one.pid for one in instance.deliverers()] == [deliverer.pid]
        assert len(instance.imds.requests()) == asked
        assert instance.eventbridge.connection_count() == 1

    def test_it_wakes_up_for_its_heartbeat_alone_and_then_leaves(self, instance: Instance) -> None:
        need_root("strace")
        assert instance.hook().returncode == 0
        (entry,) = instance.eventbridge.wait_for(1)
        eventually(lambda: not instance.records())
        (deliverer,) = instance.deliverers()
        time.sleep(0.2)
        instance.run(["strace", "-o", TRACE, "-p", f"{deliverer.pid}"], check=True)
        assert LINGER - 0.1 < time.monotonic() - entry.arrived < LINGER + 2
        calls = Counter(call.name for call in calls_in(instance.read(TRACE)))
        assert 1 < calls["rt_sigtimedwait"] <= LINGER + 2, calls
        assert sum(calls.values()) < MOST_IDLE_CALLS, calls
        eventually(lambda: not instance.processes())


class TestStranded:
    """An event is not left to a deliverer that leaves it to the next."""

    @pytest.mark.slow
    def test_one_that_comes_about_when_the_deliverer_leaves(
        self, artifact: Path, tmp_path: Path
    ) -> None:
        """Many times, at many moments; with a deliverer that stays for a fifth of a second."""
        need_root(*Instance.TOOLS)
        linger = 0.2
        impatient = tmp_path / "tattle"
        changed(artifact, impatient, r"^LINGER_SECONDS = .*$", f"LINGER_SECONDS = {linger}")

        def race(offsets: list[float]) -> int:
            """How many of the late events were delivered by a new process."""
            fresh = 0
            with Instance(impatient) as box, box.session() as session:
                session.hook(user="first")
                count = 1
                for offset in offsets:
                    last = box.eventbridge.wait_for(count)[-1]
                    connections = box.eventbridge.connection_count()
                    time.sleep(max(0, last.arrived + linger + offset - time.monotonic()))
                    hooks = [Hook(user=f"{offset:.3f}-{half}") for half in "ab"]
                    assert [result.returncode for result in session.run(*hooks)] == [0, 0]
                    count += 2
                    box.eventbridge.wait_for(count, timeout=8)
                    fresh += box.eventbridge.connection_count() > connections
                eventually(lambda: not box.spool())
                assert {*box.arrived().values()} == {1}
                assert box.eventbridge.most_in_progress() == 1
            return fresh

        offsets = [-0.12 + 0.15 * number / RACES for number in range(RACES)]
        with ThreadPoolExecutor(INSTANCES) as pool:
            fresh = sum(pool.map(race, [offsets[n::INSTANCES] for n in range(INSTANCES)]))
        assert 3 < fresh < RACES - 3, "not about when the deliverer leaves"
