"""Nobody holds up the deliverer: it is stopped, killed and frozen, EventBridge is slow, refuses one
bus or answers nothing. Events arrive, and once.

A minute is three seconds here: the artifact's constants are changed. TATTLE_MOMENTS=all tries
twenty moments of a delivery instead of three, TATTLE_MINUTE=60 waits as long as tattle does.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import standins.server
from standins.instance import SPOOL, TATTLE, Instance
from standins.strace import Call, calls_in, strace
from support import eventually, need, need_root, repacked

pytestmark = [pytest.mark.root, pytest.mark.slow]

MINUTE = float(os.environ.get("TATTLE_MINUTE", "3"))
ALL_MOMENTS = os.environ.get("TATTLE_MOMENTS") == "all"
MOMENTS = 20 if ALL_MOMENTS else 3
HOWS = ("stop", "freeze", "kill") if ALL_MOMENTS else ("stop", "freeze")  # test_crash.py kills
INSTANCES = 3 if MINUTE < 60 else 20  # at the same time
LINE_SECONDS = 0.5  # between two lines on a flush's progress
CACHE = "/var/cache/tattle"
CGROUPS = Path("/sys/fs/cgroup/unified")
TRACE = "/tmp/trace"
SESSION = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}


def constants(minute: float) -> dict[str, object]:
    """tattle's constants, in seconds, where a minute has so many."""
    return {
        "DEAD_AFTER": f"{{DELIVERER: {minute}, STANDBY: {min(minute, 5.0)}}}",
        "RESEND_AFTER": minute,
        "GIVE_UP_AFTER": 15 * minute,
        "TIMEOUT_SECONDS": minute,
        "CALL_SECONDS": 1.5 * minute,
        "RECORD_WAKES_AFTER": minute / 12,
        "LINE_SECONDS": LINE_SECONDS,
        "START_SECONDS": minute / 6,
    }


def with_constants(artifact: Path, to: Path, values: Mapping[str, object]) -> Path:
    """Write the artifact with other values for constants of the deliverer's and of flush's."""
    found = set()

    def change(name: str, content: bytes) -> bytes:
        if "tattle/delivery/" not in name and not name.endswith("shell/flush.py"):
            return content
        text = content.decode()
        for constant, value in values.items():
            text, count = re.subn(rf"^{constant} = .*$", f"{constant} = {value}", text, flags=re.M)
            found.update([constant] * count)
        return text.encode()

    repacked(artifact, to, change)
    assert found == {*values}
    return to


@pytest.fixture(scope="module")
def quick(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose minutes are short."""
    return with_constants(artifact, tmp_path_factory.mktemp("quick") / "tattle", constants(MINUTE))


@pytest.fixture(scope="module")
def quick_instance(quick: Path) -> Iterator[Instance]:
    need_root(*Instance.TOOLS, "strace")
    with Instance(quick) as box:
        yield box


@pytest.fixture
def box(quick_instance: Instance) -> Instance:
    quick_instance.reset()
    unpack(quick_instance)
    return quick_instance


def unpack(box: Instance) -> None:
    """Have the build unpacked, and the instance as new."""
    if not list(box.path(CACHE).glob("*/site-packages")):
        assert box.hook().returncode == 0
        box.eventbridge.wait_for(1, timeout=15)
        box.reset()


def outside(box: Instance, pid: int) -> int:
    """A process's id on the machine."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            ids = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status.read_text(), re.M)
            same = os.readlink(status.with_name("ns") / "pid") == os.readlink(
                f"/proc/{box.pid}/ns/pid"
            )
        except OSError:
            continue  # it has ended
        if ids and same and int(ids[2]) == pid:
            return int(ids[1])
    raise AssertionError(f"{pid} has ended")


@contextmanager
def frozen(box: Instance, inside: int) -> Iterator[None]:
    """A process in a frozen cgroup."""
    pid = outside(box, inside)
    need((CGROUPS / "cgroup.procs").exists(), "needs cgroup v2")
    folder = CGROUPS / f"tattle-test-{os.getpid()}-{pid}"
    folder.mkdir()
    try:
        (folder / "cgroup.procs").write_text(str(pid))
        (folder / "cgroup.freeze").write_text("1")
        yield
    finally:
        (folder / "cgroup.freeze").write_text("0")
        for member in (folder / "cgroup.procs").read_text().split():
            os.kill(int(member), signal.SIGKILL)  # it may be the one that stays, by now
        eventually(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()


def deliver(box: Instance, *tracing: str) -> subprocess.Popen[str]:
    """Start a deliverer as the hook does, under strace."""
    command = ["/usr/bin/env", "-i", *strace(tracing, TRACE), TATTLE, "deliver", SPOOL]
    return box.popen(command, stderr=subprocess.DEVNULL)


def moments_of_a_delivery(box: Instance) -> list[Call]:
    """The system calls by which a deliverer delivers two events, to the last that is put away."""
    box.accept("traced-a", "traced-b")
    with deliver(box) as running:
        eventually(lambda: not box.records(), seconds=60)
        box.kill(*box.processes(TATTLE))
        running.wait()
    calls = calls_in(box.read(TRACE))
    last = max(n for n, call in enumerate(calls) if puts_away(call))
    return calls[: last + 1]


def puts_away(call: Call) -> bool:
    """Whether it moves a record that EventBridge has to the ledger."""
    return "rename" in call.name and '"open/' in call.line


def chosen(calls: Sequence[Call]) -> list[Call]:
    """Moments spread over the calls; if few: in Python's start, and before each is put away."""
    if ALL_MOMENTS:
        return [calls[len(calls) * n // MOMENTS] for n in range(MOMENTS)]
    return [calls[len(calls) // 5], *filter(puts_away, calls)][:MOMENTS]


def hold_up(box: Instance, moment: Call, how: str) -> None:
    """Stop, kill or freeze a deliverer at that moment; the next login gets its events delivered."""
    box.reset()
    box.accept("a", "b")
    named = f"{how} at {moment}"
    held_up = moment.inject(f"signal={'KILL' if how == 'kill' else 'STOP'}")
    with deliver(box, *held_up) as running, ExitStack() as ending:
        ending.callback(running.kill)  # nsenter, which stops with what it started
        ending.callback(lambda: box.run(["/bin/sh", "-c", "kill -KILL -1"]))
        happened = "killed by" if how == "kill" else "stopped by"
        trace = box.path(TRACE)
        eventually(lambda: trace.exists() and happened in trace.read_text(), seconds=30)
        had_lock = is_locked(box)
        pid = pid_of(box)
        if how == "freeze":
            ending.enter_context(frozen(box, pid))
            box.run(["kill", "-CONT", str(pid)], check=True)
            time.sleep(4)  # without a heartbeat, should it be only the next one
        assert box.hook(user="next").returncode == 0
        try:
            eventually(lambda: len(box.arrived()) == 3, seconds=MINUTE + 10)
        except AssertionError:
            raise AssertionError(f"{named}: {box.arrived()}, {box.log()}") from None
        counts = box.arrived()
        assert max(counts.values()) <= 2, named  # twice: held up before it was put away
        assert counts["next"] == 1, named
        eventually(lambda: not box.records())
        logged = box.log_with(f"no heartbeat from process {pid} ")
        assert logged or not had_lock or how == "kill", named


def pid_of(box: Instance) -> int:
    """The id of the deliverer that is traced; 0 if it has ended."""
    for process in box.processes(f"{TATTLE} deliver"):
        if process.command[-2] == "deliver" and "strace" not in process.command[0]:
            return process.pid
    return 0


def is_locked(box: Instance) -> bool:
    """Whether somebody has the deliverer's lock."""
    folder = os.open(box.path(SPOOL), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False


class TestTakingOver:
    """Whatever happens to a deliverer, the next login gets the events moving again."""

    @pytest.mark.timeout(1800)
    def test_at_any_moment_of_a_delivery(self, quick: Path) -> None:
        need_root(*Instance.TOOLS, "strace")
        with Instance(quick) as box:
            unpack(box)
            calls = moments_of_a_delivery(box)
        assert len(calls) > 500
        cases = [(moment, how) for how in HOWS for moment in chosen(calls)]

        def walk(own: list[tuple[Call, str]]) -> None:
            with Instance(quick) as box:
                unpack(box)
                for moment, how in own:
                    hold_up(box, moment, how)

        with ThreadPoolExecutor(INSTANCES) as pool:
            list(pool.map(walk, [cases[n::INSTANCES] for n in range(INSTANCES)]))

    def test_one_that_only_waits_for_an_answer_is_left_alone(self, box: Instance) -> None:
        """And what was sent is not sent again in a hurry."""
        box.eventbridge.set(delay=MINUTE - 0.5)
        with box.session() as session:
            for number in range(3):  # each of them would take over
                assert session.hook(user=f"u{number}").returncode == 0
                box.eventbridge.wait_for(number + 1, timeout=2 * MINUTE)
        eventually(lambda: not box.records(), seconds=2 * MINUTE)
        assert {*box.arrived().values()} == {1}
        assert box.log() == []

    def test_who_is_no_deliverer_is_left_alone_and_logged_once(self, box: Instance) -> None:
        box.accept("first")
        command = ["flock", "--no-fork", SPOOL, "sleep", "600"]
        with box.popen(command) as other, ExitStack() as ending:
            ending.callback(other.kill)
            ending.callback(lambda: box.kill(*box.processes("sleep 600")))
            eventually(lambda: is_locked(box))
            assert box.hook(user="second").returncode == 0
            line = box.syslog.wait_for("not this tattle", timeout=MINUTE + 5)
            assert f"holds the lock of {SPOOL}" in line.message
            time.sleep(MINUTE + 1)
            assert len(box.log()) == 1
        box.eventbridge.wait_for(2)


class TestNoAnswer:
    """What was sent may have arrived: it is not sent again in a hurry."""

    def test_five_copies_at_most_where_no_answer_ever_comes(
        self, artifact: Path, tmp_path: Path
    ) -> None:
        """In the quarter of an hour that a deliverer tries for; here it has eight seconds."""
        need_root(*Instance.TOOLS)
        less = {"RESEND_AFTER": 0.5, "GIVE_UP_AFTER": 7.5, "TIMEOUT_SECONDS": 1.0}
        less |= {"FIRST_PAUSE": 0.01, "LONGEST_PAUSE": 0.5}  # between calls that failed for sure
        quicker = with_constants(artifact, tmp_path / "quicker", {**constants(MINUTE), **less})

        def try_in_vain(fault: str) -> None:
            with Instance(quicker) as box:
                unpack(box)
                box.eventbridge.set(fault=fault)
                assert box.hook(user="cut").returncode == 0
                box.eventbridge.wait_for(2)
                assert box.hook(user="later").returncode == 0
                eventually(lambda: not box.processes("deliver"), seconds=60)
                counts = box.arrived()
                assert 2 <= counts["cut"] <= 5
                assert 1 <= counts["later"] <= 5
                assert box.log_with("the event may have arrived")
                box.eventbridge.set(fault=None)
                done = box.run([TATTLE, "flush"])
                assert done.stdout == "2 delivered, 0 remain\n"

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(try_in_vain, ["reset-after", "hang-after"]))

    def test_the_smoke_test_says_that_it_may_have_arrived_and_sends_it_once(
        self, box: Instance
    ) -> None:
        box.eventbridge.set(fault="reset-after")
        done = box.run([TATTLE], env=SESSION)
        assert done.returncode == os.EX_UNAVAILABLE
        assert "may have arrived" in done.stderr
        assert len(box.eventbridge.calls()) == 1

    def test_what_was_not_sent_is_sent_a_second_time(self, box: Instance) -> None:
        """Nobody answers the handshake, and so the request never leaves."""
        box.eventbridge.set(fault="hang")
        done = box.run([TATTLE], env=SESSION)
        assert done.returncode == os.EX_UNAVAILABLE
        assert "may have arrived" not in done.stderr
        assert box.eventbridge.connection_count() == 2


@pytest.mark.parametrize("trickling", ["eventbridge", "imds"])
def test_a_call_ends_however_slowly_its_answer_trickles(
    box: Instance, monkeypatch: pytest.MonkeyPatch, trickling: str
) -> None:
    monkeypatch.setattr(standins.server, "TRICKLE_SECONDS", MINUTE / 5)
    getattr(box, trickling).set(fault="trickle")
    assert box.hook(user="first").returncode == 0
    line = box.syslog.wait_for("no whole answer", timeout=2 * MINUTE + 10)
    assert line.message.startswith("events wait in the spool: ")
    getattr(box, trickling).set(fault=None)
    assert box.hook(user="second").returncode == 0
    box.eventbridge.wait_for(2, timeout=2 * MINUTE + 10)
    assert box.arrived() == {"first": 1, "second": 1}


class TestOneBus:
    CONFIG = "[tattle]\nevent-bus = central\n[service sudo]\nevent-bus = forbidden\n"

    @pytest.mark.parametrize(
        ("setting", "words"),
        [("denied_buses", "AccessDeniedException"), ("missing_buses", "does not exist")],
    )
    def test_its_refusal_holds_up_no_other(self, setting: str, words: str, box: Instance) -> None:
        """That it does not exist is one: PutEvents would take the event, and it would be gone."""
        box.write("/etc/tattle.conf", self.CONFIG)
        box.eventbridge.set(**{setting: ["forbidden"]})
        with box.session() as session:
            assert session.hook(service="sudo", user="root").returncode == 0
            box.syslog.wait_for(words)
            assert session.hook(user="ubuntu").returncode == 0
            box.eventbridge.wait_for(1, timeout=10)
        assert box.arrived() == {"ubuntu": 1}
        (line,) = box.log()
        assert "event bus forbidden" in line.message
        assert "event bus forbidden" in json.loads(box.read(f"{SPOOL}/.fault"))["message"]
        eventually(lambda: len(box.records()) == 1)  # killed before, it would leave a copy
        box.kill_deliverers()  # it would be quicker, now and then
        box.eventbridge.set(**{setting: ()})
        done = box.run([TATTLE, "flush"])
        assert (done.returncode, done.stdout) == (0, "1 delivered, 0 remain\n")
        assert not box.path(f"{SPOOL}/.fault").exists()

    def test_check_sends_to_each(self, box: Instance) -> None:
        box.write("/etc/tattle.conf", self.CONFIG)
        box.eventbridge.set(denied_buses=["forbidden"])
        done = box.run([TATTLE, "check", "--send", "--json"])
        found = json.loads(done.stdout)["findings"]
        sent = [finding for finding in found if finding["id"] == "send"]
        assert [finding["severity"] == "ok" for finding in sent] == [True, False]
        assert "event bus central" in sent[0]["message"]
        assert "event bus forbidden" in sent[1]["message"]
        assert "iam-policy" in sent[1]["advice"]


@pytest.fixture(scope="module")
def waiting_instance(
    artifact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    """One whose deliverer waits to retry for longer than any test."""
    need_root(*Instance.TOOLS)
    made = tmp_path_factory.mktemp("waiting") / "tattle"
    pauses = {"FIRST_PAUSE": 1e7, "LONGEST_PAUSE": 1e7, "RECORD_WAKES_AFTER": 2.0}
    pauses["LINE_SECONDS"] = 60.0
    with Instance(with_constants(artifact, made, {**constants(MINUTE), **pauses})) as box:
        yield box


@pytest.fixture
def paused(waiting_instance: Instance) -> Instance:
    """Three events wait, and so does the deliverer: the role was denied."""
    box = waiting_instance
    box.reset()
    unpack(box)
    box.eventbridge.set(fault="access-denied")
    with box.session() as session:
        for user in ("one", "two", "three"):
            assert session.hook(user=user).returncode == 0
    eventually(lambda: 3 in [call.entry_count for call in box.eventbridge.calls()])
    box.eventbridge.clear()
    return box


class TestFlush:
    def test_with_the_role_denied_it_says_why_within_seconds(self, paused: Instance) -> None:
        done = paused.run([TATTLE, "flush"], timeout=10)
        assert done.returncode == os.EX_TEMPFAIL
        assert done.stdout == "0 delivered, 3 remain\n"
        assert "AccessDeniedException" in done.stderr
        assert len((done.stdout + done.stderr).splitlines()) <= 3

    def test_it_wakes_a_deliverer_and_counts_what_that_delivers(self, paused: Instance) -> None:
        paused.eventbridge.set(fault=None)
        done = paused.run([TATTLE, "flush"], timeout=10)
        assert (done.returncode, done.stdout, done.stderr) == (0, "3 delivered, 0 remain\n", "")
        assert paused.arrived() == {"one": 1, "two": 1, "three": 1}

    def test_a_new_record_wakes_it_too(self, paused: Instance) -> None:
        paused.eventbridge.set(fault=None)
        time.sleep(MINUTE / 12)
        assert paused.hook(user="four").returncode == 0
        paused.eventbridge.wait_for(4)

    def test_one_that_is_stopped_holds_up_nothing(self, paused: Instance) -> None:
        paused.eventbridge.set(fault=None, delay=1)
        with paused.popen([TATTLE, "flush"], stdout=subprocess.DEVNULL) as flushing:
            eventually(lambda: paused.processes(f"{TATTLE} flush"))
            (process,) = paused.processes(f"{TATTLE} flush")
            paused.run(["kill", "-STOP", str(process.pid)])
            assert paused.hook(user="four").returncode == 0
            paused.eventbridge.wait_for(4, timeout=15)
            flushing.send_signal(signal.SIGCONT)  # nsenter, which stops and goes on with it
            assert flushing.wait(timeout=10) == 0

    def test_an_event_accepted_meanwhile_gets_its_deliverer(self, paused: Instance) -> None:
        paused.kill_deliverers()
        paused.eventbridge.set(delay=1)
        with paused.popen([TATTLE, "flush"], stdout=-1, stderr=-1) as flushing:
            paused.eventbridge.wait_for_calls(1)
            assert paused.hook(user="four").returncode == 0
            assert flushing.wait(timeout=10) == os.EX_TEMPFAIL
        paused.eventbridge.set(fault=None, delay=0)
        paused.eventbridge.wait_for(4)

    def test_a_deliverer_that_dies_meanwhile_is_replaced(self, paused: Instance) -> None:
        paused.eventbridge.set(fault="hang")
        connections = paused.eventbridge.connection_count()
        with paused.popen([TATTLE, "flush"], stdout=subprocess.PIPE) as flushing:
            eventually(lambda: paused.eventbridge.connection_count() > connections)
            paused.kill(*paused.processes(f"{TATTLE} deliver"))
            paused.eventbridge.set(fault=None)
            assert flushing.communicate(timeout=10)[0] == "3 delivered, 0 remain\n"

    @pytest.mark.parametrize("terminal", [True, False])
    def test_its_progress_is_a_line(self, box: Instance, terminal: bool) -> None:
        """Rewritten on a terminal; elsewhere there is another one now and then."""
        box.accept(*(f"u{number}" for number in range(40)))
        box.eventbridge.set(delay=0.4)
        began = time.monotonic()
        ours, theirs = os.openpty() if terminal else os.pipe()
        with box.popen([TATTLE, "flush"], stdout=subprocess.PIPE, stderr=theirs) as flushing:
            os.close(theirs)
            said = b""
            with suppress(OSError):  # a terminal's end
                while more := os.read(ours, 10_000):
                    said += more
            assert flushing.communicate()[0] == "40 delivered, 0 remain\n"
        os.close(ours)
        if terminal:
            assert b"\n" not in said
            assert b"\r20 delivered, 20 remain" in said
        else:
            assert re.fullmatch(r"(\d+ delivered, \d+ remain …\n)+", said.decode())
            assert said.count(b"\n") <= (time.monotonic() - began) / LINE_SECONDS


def test_a_hook_that_waits_keeps_no_lock(box: Instance) -> None:
    box.eventbridge.set(fault="hang")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.hook, user="first", arguments=["--wait=8"])
        eventually(box.eventbridge.connection_count)
        (deliverer,) = box.deliverers()
        box.run(["kill", "-KILL", str(deliverer.pid)])  # and the hook, its parent, still waits
        box.eventbridge.set(fault=None)
        assert box.hook(user="second").returncode == 0
        box.eventbridge.wait_for(2, timeout=5)
        assert waiting.result().returncode == 0


@pytest.mark.parametrize("arguments", [[], ["check"], ["flush"]])
def test_pam_service_exported_in_a_shell_is_named(box: Instance, arguments: list[str]) -> None:
    done = box.run([TATTLE, *arguments], env={"PAM_SERVICE": "sshd"})
    assert done.returncode == os.EX_USAGE
    assert "unset PAM_SERVICE" in done.stderr
    assert len(done.stderr.splitlines()) == 1
