"""A crash at every system call, and every error a disk can answer with.

strace kills, or fails, the Nth call of a name that a process makes. A killed process has not made
that call. TATTLE_CRASH_WALK=all walks every call there is instead of a sample, for minutes (and
needs pytest's --timeout=0).
"""

from __future__ import annotations

import os
import re
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from standins import disk
from standins.disk import Disk
from standins.instance import SPOOL, STRACE_LOG, SYSTEM_PYTHON, TATTLE, Hook, Instance
from standins.strace import Call, calls_in, joined, strace
from support import changed, eventually, need, need_root
from tattle.login.pam import is_whole, parse

pytestmark = [pytest.mark.root, pytest.mark.slow]

WALK_ALL = os.environ.get("TATTLE_CRASH_WALK") == "all"
# So many calls are walked, spread over those that change or say something, and over the others.
CHANGING_SAMPLE, OTHER_SAMPLE = 16, 6
FIRST_USE_SAMPLE = 20
# An unpacking makes 1,400 calls that change the disk, almost all of them the same few for each of
# its files, and a try takes three seconds: to walk all would take an hour, and is never done.
UNPACKING_SAMPLE, ALL_UNPACKING = 5, 200
INSTANCES = 2  # at the same time
HOOKS = 6  # at the same time
CACHE = "/var/cache/tattle"
TRACE = "/tmp/trace"
# Fails unless each compiled module that is named is whole.
LOADS = """
import sys
from importlib.machinery import SourcelessFileLoader
for path in sys.argv[1:]:
    SourcelessFileLoader("module", path).get_code("module")
"""
CUTS, LOGINS_A_CUT, LOGIN_PAUSE = 5, 6, 0.2
SYNCED_SECONDS = 2.5  # one, and what a busy machine takes to start a process
KILLED = -9

# Calls that change the disk, take or leave a lock, or talk to somebody, on any architecture.
CHANGING = re.compile(
    r"flock|p?write\w*|send\w+|recv\w+|connect|socket|bind|f(data)?sync|unlink\w*|rename\w*|link\w*"
    r"|mkdir\w*|rmdir|f?chmod\w*|utimensat|ftruncate|exit_group"
)
PUT_AWAY = re.compile(r'rename.*"\d{20}-\d+".*"open/')  # into the ledger
OF_A_DISK = re.compile(r"write|fsync|rename\w*|link\w*|open\w*|mkdir\w*|unlink\w*")
DISK_ERRORS = ("ENOSPC", "EIO")


def sample(calls: Sequence[Call], most: int) -> list[Call]:
    """That many calls at most, spread evenly."""
    step = -(-len(calls) // most) or 1
    return list(calls[::step])


def walk(
    artifact: Path, calls: Sequence[Call], part: Callable[[Instance, list[Call]], None]
) -> None:
    """Walk the calls in several instances at the same time."""

    def in_own_instance(own: list[Call]) -> None:
        with Instance(artifact) as box:
            part(box, own)

    with ThreadPoolExecutor(INSTANCES) as pool:
        for _ in pool.map(in_own_instance, [list(calls[n::INSTANCES]) for n in range(INSTANCES)]):
            pass  # an exception is raised here


def waiting(box: Instance) -> dict[str, str]:
    """The records in the spool: user → name."""
    found = {}
    for name in box.records():
        record = (box.path(SPOOL) / name).read_bytes()
        user = re.search(rb"PAM_USER=([^\0]*)\0", record)
        assert user, record
        assert record.endswith(b"\0")
        found[user[1].decode()] = name
    return found


def wait_for_silence(box: Instance) -> None:
    """Until EventBridge has read what a killed deliverer had sent."""
    deadline = time.monotonic() + 10
    while box.eventbridge._connections:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def deliver(box: Instance, tracer: Sequence[str] = ()) -> int:
    """Run a deliverer to its end, as the hook starts it: with an empty environment. The status."""
    command = ["/usr/bin/env", "-i", *tracer, TATTLE, "deliver", SPOOL]
    return box.run(command, timeout=120).returncode


def restart(box: Instance) -> None:
    """It must find everything in order."""
    assert deliver(box) == 0
    assert waiting(box) == {}


@pytest.fixture(scope="module")
def quick(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose deliverer does not stay for the next event."""
    made = tmp_path_factory.mktemp("quick") / "tattle"
    changed(artifact, made, r"^LINGER_SECONDS = .*$", "LINGER_SECONDS = 0.05")
    return made


@pytest.fixture(scope="module")
def shared(quick: Path) -> Iterator[Instance]:
    need_root(*Instance.TOOLS, "strace")
    with Instance(quick) as box:
        yield box


@pytest.fixture
def box(shared: Instance) -> Instance:
    """With the build unpacked."""
    shared.reset()
    shared.accept("unpacks")
    restart(shared)
    shared.reset()
    return shared


class TestTheHook:
    def calls(self, box: Instance) -> list[Call]:
        with box.locked(), box.session() as session:
            assert session.hook(user="traced", wrapper=strace([], TRACE)).returncode == 0
        return calls_in(box.read(TRACE))

    def test_killed_at_any_call_it_loses_nothing_that_it_accepted(self, box: Instance) -> None:
        calls = self.calls(box)
        assert len(calls) > 100
        results = {}
        with box.locked(), box.session() as session:
            for start in range(0, len(calls), HOOKS):
                some = calls[start : start + HOOKS]
                hooks = [Hook(user=str(call), wrapper=strace(call.kill())) for call in some]
                for call, result in zip(some, session.run(*hooks)):
                    results[call] = result.returncode
        assert {*results.values()} <= {0, KILLED}
        assert Counter(results.values())[KILLED] > 0.9 * len(calls)
        restart(box)
        counts = box.arrived()
        assert {*counts.values()} == {1}
        accepted = {str(call) for call, status in results.items() if status == 0} | {"traced"}
        assert accepted <= {*counts}
        # Killed between the rename and the exit, it is in the spool whole; before, not at all.
        renamed = next(n for n, call in enumerate(calls) if call.name.startswith("rename"))
        before = {str(call) for call in calls[: renamed + 1] if results[call] == KILLED}
        assert not before & {*counts}
        after = {str(call) for call in calls[renamed + 1 :]}
        assert after <= {*counts}
        assert "rejected" not in box.spool(), "nothing by half"

    def test_a_record_has_its_name_once_it_is_whole_and_no_login_waits_for_a_disk(
        self, box: Instance
    ) -> None:
        lines = [call.line for call in self.calls(box)]
        opened = next(n for n, line in enumerate(lines) if "O_CREAT" in line)
        made = re.fullmatch(r'openat\((\d+), "(\S+)".* = (\d+)', lines[opened])
        assert made, lines[opened]
        folder, temporary, file = made.groups()
        expected = [
            rf"write\({file}, ",
            rf'renameat2?\({folder}, "{re.escape(temporary)}", {folder}, "\d{{20}}-\d+"',
            r"exit_group\(0\)",
        ]
        changes = [
            line for line in lines[opened + 1 :] if re.match("write|.*sync|rename|exit", line)
        ]
        assert len(changes) == len(expected), changes
        for line, pattern in zip(changes, expected):
            assert re.match(pattern, line)

    def test_killed_on_first_use_it_leaves_nothing_that_stops_the_next(self, box: Instance) -> None:
        shutil.rmtree(box.path(SPOOL), ignore_errors=True)
        with box.session() as session:
            hook = session.hook(user="traced", wrapper=strace([], TRACE))
            assert hook.returncode == 0
            calls = calls_in(box.read(TRACE))
            first = next(n for n, call in enumerate(calls) if call.name.startswith("mkdir"))
            box.eventbridge.wait_for(1)
            chosen = calls[first:] if WALK_ALL else sample(calls[first:], FIRST_USE_SAMPLE)
            for number, call in enumerate(chosen, 2):
                box.kill_deliverers()
                shutil.rmtree(box.path(SPOOL))
                session.hook(user="killed", wrapper=strace(call.kill()))
                assert session.hook(user=f"after-{call}").returncode == 0
                box.eventbridge.wait_for(number)

    @pytest.mark.parametrize("failing", [[], ["-e", "inject=fsync:error=EIO"]], ids=str)
    def test_where_nobody_else_can_it_has_the_record_on_disk_itself(
        self, box: Instance, failing: list[str]
    ) -> None:
        options = ["-e", "inject=clone,clone3,fork,vfork:error=EAGAIN", *failing]
        assert box.hook(user="one", wrapper=strace(options, TRACE)).returncode == 0
        assert box.syslog.wait_for("can't start a deliverer")
        synced = [call for call in calls_in(box.read(TRACE)) if call.name == "fsync"]
        assert len(synced) == (1 if failing else 3), "the record, the spool, and the one above"
        assert len(box.log_with("can't be sure that an event is on disk")) == bool(failing)
        restart(box)
        assert box.arrived() == {"one": 1}

    @pytest.mark.parametrize("error", DISK_ERRORS)
    def test_an_error_at_any_call_loses_nothing_silently(self, box: Instance, error: str) -> None:
        """Exit status 0, and the event arrives, or another one, and a line in the log: tattle's, or
        pam_exec's where Python can't start, or open what would write the line. The deliverer is not
        hit."""
        calls = self.calls(box)
        ours = next(n for n, call in enumerate(calls) if "/proc/self/environ" in call.line)
        cases = []
        for number, call in enumerate(calls):
            if OF_A_DISK.fullmatch(call.name):
                for ever in (False, True):
                    user = f"{call}{'-on' * ever}"
                    options = call.inject(f"error={error}", from_then_on=ever)
                    hook = Hook(user=user, wrapper=strace(options))
                    mute = number < ours or (ever and call.name == "openat")
                    cases.append((user, mute, hook))
        expected: set[str] = set()
        silent: dict[int | None, str] = {}
        with box.session() as session:
            for start in range(0, len(cases), HOOKS):
                some = cases[start : start + HOOKS]
                for case, result in zip(some, session.run(*(hook for _, _, hook in some))):
                    user, mute, _ = case
                    assert result.returncode >= 0, user
                    if result.returncode == 0:
                        expected.add(user)
                    elif not mute:
                        silent[result.pid] = user
        assert len(expected) > 10
        box.eventbridge.wait_for(len(expected) + 1, timeout=60)  # and `traced`
        restart(box)
        for line in box.log():
            silent.pop(line.pid, None)
        assert silent == {}
        assert box.arrived().keys() - {"traced"} == expected
        assert {*box.arrived().values()} == {1}


def walk_deliveries(box: Instance, calls: Sequence[Call]) -> None:
    """Kill a deliverer at each of those calls, with two events in the spool, and check after each:
    nothing is lost, and what arrived twice was killed between the answer and the removal."""
    twice: set[str] = set()
    users: list[str] = []
    killed = 0
    for number, call in enumerate(calls):
        if not waiting(box):
            fresh = [f"{number}-{call}-{half}" for half in "ab"]
            box.accept(*fresh)
            users += fresh
        status = deliver(box, strace(call.kill()))
        assert status in (0, KILLED)  # a run may make fewer calls than the one before
        killed += status == KILLED
        wait_for_silence(box)
        left, counts = waiting(box), box.arrived()
        lost = [user for user in users if user not in left and not counts[user]]
        assert not lost, f"{call}: {lost} lost"
        both = {user for user in left if counts[user]}
        assert not both & twice, f"{call}: {both & twice} a third time"
        if both:
            restart(box)
            twice |= both
            assert {box.arrived()[user] for user in both} == {2}, call
    restart(box)
    counts = box.arrived()
    assert {*users} == {*counts}
    assert {user for user in counts if counts[user] > 1} == twice
    assert max(counts.values()) <= 2
    assert killed > 0.8 * len(calls)


class TestTheDeliverer:
    def calls(self, box: Instance) -> list[Call]:
        """Those of a deliverer that finds a ledger, and has no look at the sessions, as those have
        that come within the minute."""
        box.accept("first")
        assert deliver(box, []) == 0
        box.accept("traced-a", "traced-b")
        assert deliver(box, strace([], TRACE)) == 0
        box.eventbridge.clear()
        return calls_in(box.read(TRACE))

    def test_killed_at_any_call_it_loses_nothing_and_repeats_only_what_it_must(
        self, box: Instance, quick: Path
    ) -> None:
        calls = self.calls(box)
        connected = next(n for n, call in enumerate(calls) if "htons(443)" in call.line)
        talking = {*calls[connected:]}
        changing = [call for call in calls if call in talking or CHANGING.fullmatch(call.name)]
        chosen = calls
        if not WALK_ALL:
            others = [call for call in calls if call not in changing]
            away = [call for call in changing if PUT_AWAY.match(call.line)]
            chosen = [*sample(changing, CHANGING_SAMPLE), *sample(others, OTHER_SAMPLE), *away]

        def part(box: Instance, own: list[Call]) -> None:
            box.accept("unpacks")
            restart(box)
            box.eventbridge.clear()
            walk_deliveries(box, own)

        walk(quick, chosen, part)

    def test_what_was_sent_is_put_away_on_disk_before_the_next_call(self, box: Instance) -> None:
        """Else a power cut would bring back what was sent long ago; or lose what the ledger has:
        so its new name comes first."""
        lines = [call.line for call in self.calls(box)]
        moved = [n for n, line in enumerate(lines) if PUT_AWAY.match(line)]
        assert len(moved) == 2
        following = [line for line in lines[moved[-1] + 1 :] if not line.startswith("close")]
        assert re.match(r'openat\(\d+, "open"', following[0])
        assert following[1].startswith("fsync(")
        assert re.match(r'openat\(\d+, "\."', following[2])
        assert following[3].startswith("fsync(")

    def test_the_only_repetition_is_between_the_answer_and_that(self, box: Instance) -> None:
        """The test above would not notice that it never sees one."""
        calls = self.calls(box)
        away = next(call for call in calls if PUT_AWAY.match(call.line))
        box.accept("both", "again")
        assert deliver(box, strace(away.kill())) == KILLED
        wait_for_silence(box)
        assert sorted(waiting(box)) == ["again", "both"]
        assert box.arrived()["both"] == box.arrived()["again"] == 1
        restart(box)
        assert box.arrived()["both"] == box.arrived()["again"] == 2

    @pytest.mark.parametrize(
        "calls", [["dup2:when=2"], ["openat", "-P", "/dev/null"]], ids=" ".join
    )
    @pytest.mark.parametrize("what", ["signal=KILL", "error=ENOMEM"])
    def test_where_it_does_not_get_to_its_first_line_the_next_hook_delivers(
        self, box: Instance, calls: Sequence[str], what: str
    ) -> None:
        """Between the spawning and the exec it makes these calls, which the hook does not make."""
        name, colon, when = calls[0].partition(":")
        options = ["-f", "-e", f"trace={name}", "-e", f"inject={name}:{what}{colon}{when}"]
        result = box.hook(user="first", wrapper=strace([*options, *calls[1:]]))
        assert result.returncode == 0
        if "error" in what:
            box.syslog.wait_for("can't start a deliverer")
        eventually(lambda: not box.deliverers())
        assert [*waiting(box)] == ["first"]
        assert box.hook(user="second").returncode == 0
        box.eventbridge.wait_for(2)
        assert box.arrived() == {"first": 1, "second": 1}


class TestThePowerCut:
    """Nothing that was accepted more than a second before is lost: ext4 on a disk that then has
    what was written to it, and no more."""

    @pytest.fixture
    def power(self, box: Instance, tmp_path: Path) -> Iterator[Disk]:
        need(not disk.missing(), f"needs {disk.missing()}")
        with Disk(box, "/var/spool", tmp_path / "disk") as made:
            yield made

    def users(self, folder: Path) -> set[str]:
        """Whose records are there, and whole."""
        records = [path.read_bytes() for path in folder.glob("tattle/[0-9]*-*")]
        whole = [parse(record).pam["PAM_USER"] for record in records if is_whole(record)]
        return {*whole}

    def longest_loss(self, box: Instance, power: Disk) -> float:
        """Have the power cut while logins go on: how long before one was accepted that is lost."""
        accepted: dict[str, float] = {}
        lost = [0.0]
        copies = []
        with box.session() as session:
            for number in range(CUTS * LOGINS_A_CUT):
                user = f"u{number}"
                assert session.hook(user=user).returncode == 0
                accepted[user] = time.monotonic()
                time.sleep(LOGIN_PAUSE)
                if number % LOGINS_A_CUT == LOGINS_A_CUT - 1:
                    copies.append((time.monotonic(), {*accepted}, power.copy_at_power_cut()))
        assert not box.eventbridge.entries()
        for cut, users, copy in copies:
            with power.mounted_copy(copy) as folder:
                lost += [cut - accepted[user] for user in users - self.users(folder)]
        return max(lost)

    @pytest.mark.parametrize("fault", ["throttle", "hang"])
    def test_what_waits_is_on_disk_within_a_second(
        self, fault: str, box: Instance, power: Disk
    ) -> None:
        """The deliverer, once started, sees to that; the standby while that hangs at a call."""
        box.eventbridge.set(fault=fault)
        assert self.longest_loss(box, power) < SYNCED_SECONDS

    def test_where_no_deliverer_can_be_started_it_is_on_disk_at_once(
        self, box: Instance, power: Disk
    ) -> None:
        options = ["-e", "inject=clone,clone3,fork,vfork:error=EAGAIN"]
        assert box.hook(user="one", wrapper=strace(options)).returncode == 0
        with power.mounted_copy(power.copy_at_power_cut()) as folder:
            assert self.users(folder) == {"one"}

    def test_a_record_without_its_bytes_is_rejected(self, box: Instance, power: Disk) -> None:
        box.accept("one")
        fd = os.open(box.path(SPOOL), os.O_RDONLY)
        os.fsync(fd)  # the name
        os.close(fd)
        power.lose_power()
        (record,) = box.records()
        assert (box.path(SPOOL) / record).stat().st_size == 0
        assert deliver(box) == 0
        assert box.log_with("an incomplete record")
        assert box.eventbridge.entries() == []
        assert box.spool() == ["rejected"]


class TestUnpacking:
    def packed(self, artifact: Path) -> dict[str, bytes]:
        """What a whole cache holds."""
        with zipfile.ZipFile(artifact) as file:
            names = [name for name in file.namelist() if name.startswith("site-packages/")]
            return {name: file.read(name) for name in names}

    def test_killed_at_any_call_it_is_done_again(self, box: Instance, quick: Path) -> None:
        """A cache is never used by half."""
        packed = self.packed(quick)
        self.empty_cache(box)
        box.accept("traced")
        assert deliver(box, strace([], TRACE)) == 0
        calls = calls_in(box.read(TRACE))
        mine = [n for n, call in enumerate(calls) if CACHE in call.line]
        calls = calls[mine[0] : mine[-1] + 1]
        special = re.compile(rf'flock|rename\("{CACHE}/[^/]*"')
        changing = [
            call for call in calls if CHANGING.fullmatch(call.name) or "O_CREAT" in call.line
        ]
        chosen = [call for call in changing if special.search(call.line)]
        assert 2 < len(chosen) < 12, "other calls than expected"
        others = [call for call in changing if call not in chosen]
        chosen += sample(others, ALL_UNPACKING if WALK_ALL else UNPACKING_SAMPLE)

        def part(box: Instance, own: list[Call]) -> None:
            for number, call in enumerate(own, 1):
                self.empty_cache(box)
                box.accept(str(call))
                assert deliver(box, strace(call.kill())) in (0, KILLED)
                wait_for_silence(box)
                assert str(call) in waiting(box) or box.arrived()[str(call)]
                restart(box)
                assert box.arrived()[str(call)] in (1, 2)
                assert len(box.arrived()) == number
                self.check_cache(box, packed)
                assert not box.log_with("damaged"), call  # or half a build was there to be used

        walk(quick, chosen, part)

    def test_all_of_it_is_on_disk_before_it_counts(self, box: Instance, quick: Path) -> None:
        """Also what Python compiles: it would write that later, as it goes, and not care whether it
        reaches the disk. A torn one would be in the way of every delivery to come."""
        self.empty_cache(box)
        box.accept("traced")
        assert deliver(box, strace(["-y"], TRACE)) == 0
        calls = calls_in(box.read(TRACE))
        renaming = re.compile(rf'rename\("{CACHE}/[^/]*"')
        (named,) = [n for n, call in enumerate(calls) if renaming.match(call.line)]
        synced = {
            re.sub(rf".*<{CACHE}/\.?([^>]*)>.*", r"\1", call.line)
            for call in calls[:named]
            if call.name == "fsync" and f"<{CACHE}/." in call.line
        }
        build = self.check_cache(box, self.packed(quick))
        there = {str(path.relative_to(build.parent)) for path in [build, *build.rglob("*")]}
        assert synced == there
        assert [*build.rglob("*.py")] == []
        assert "fsync" in {call.name for call in calls[named : named + 10]}

    def test_what_delivers_is_compiled(self, box: Instance) -> None:
        """In the archive nothing is, and Python compiles a module there twice."""
        box.accept("unpacks")
        restart(box)
        assert box.hook(user="traced", strace=["-e", "trace=openat"]).returncode == 0
        box.eventbridge.wait_for(2)
        trace = joined(box.read(STRACE_LOG))  # the deliverer has threads
        for module in ("deliver", "config", "fields", "eventbridge", "imds"):
            compiled = rf"site-packages/tattle/\w+/{module}\.pyc"
            assert re.search(rf'"{CACHE}/[\w-]+/{compiled}", .* = \d', trace), module

    def test_two_at_once_unpack_once(self, box: Instance, quick: Path) -> None:
        self.empty_cache(box)
        box.accept("one")
        dry = {"PAM_TYPE": "open_session", "PAM_USER": "somebody"}
        processes = [box.popen([TATTLE, "--dry-run"], env=dry, stdout=-1) for _ in range(3)]
        restart(box)
        for process in processes:
            process.communicate(timeout=60)
        assert [process.returncode for process in processes] == [0] * 3
        self.check_cache(box, self.packed(quick))

    def test_with_no_room_at_all_the_event_waits(self, box: Instance) -> None:
        self.empty_cache(box)
        shutil.rmtree(box.path("/run/tattle"), ignore_errors=True)
        for folder in ("/var/cache", "/run"):
            options = ["-o", "size=1m,mode=755", "t", folder]
            box.run(["mount", "-t", "tmpfs", *options], check=True)
        assert box.hook(user="one").returncode == 0
        assert "No space left" in box.syslog.wait_for("can't unpack").message
        box.kill_deliverers()
        for folder in ("/run", "/var/cache"):
            box.run(["umount", folder], check=True)
        restart(box)
        assert box.arrived() == {"one": 1}

    def empty_cache(self, box: Instance) -> None:
        shutil.rmtree(box.path(CACHE), ignore_errors=True)

    def check_cache(self, box: Instance, packed: dict[str, bytes]) -> Path:
        """The one build in the cache is whole, and nobody else's; its folder."""
        (build,) = box.path(CACHE).iterdir()
        modules = [name for name in packed if name.endswith(".py")]
        for name, content in packed.items():
            assert name in modules or (build / name).read_bytes() == content, name
        compiled = [f"{CACHE}/{build.name}/{name}c" for name in modules]
        done = box.run([SYSTEM_PYTHON, "-BISc", LOADS, *compiled])
        assert done.returncode == 0, done.stderr
        assert box.path(CACHE).stat().st_mode & 0o777 == 0o700
        return build
