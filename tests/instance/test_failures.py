"""Whatever goes wrong in a shell: one line that says what, an exit status of sysexits, within ten
seconds. What IMDS and EventBridge may do: unit/test_aws_faults.py."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Tattle
from failures import FAILURES, Failure, pattern
from findings import check, faults
from standins import ROLE_CREDENTIALS
from standins.eventbridge import EventBridge
from standins.imds import Imds
from standins.instance import EVENTBRIDGE_HOST, SPOOL, SYSTEM_PYTHON, TATTLE, Instance
from support import eventually, need, need_root

PROMISED_SECONDS = 10
LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}


def refused(done: subprocess.CompletedProcess[str], status: int, words: str) -> None:
    """One line on stderr that says it, and that status."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"tattle: [^\n]+\n", done.stderr), done.stderr
    assert re.search(words, done.stderr), done.stderr


def test_a_slow_service_is_waited_for(tattle: Tattle, imds: Imds, eventbridge: EventBridge) -> None:
    imds.set(delay=0.3)
    eventbridge.set(delay=1.0)
    done = tattle(env=LOGIN)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(eventbridge.entries()) == 1


def test_a_slow_imds_and_then_an_eventbridge_that_hangs_take_no_longer(
    tattle: Tattle, imds: Imds, eventbridge: EventBridge
) -> None:
    imds.set(delay=0.5)
    eventbridge.set(fault="hang")
    began = time.monotonic()
    words = "EventBridge did not answer, the event may have arrived|no answer .* from EventBridge"
    refused(tattle(env=LOGIN), 69, words)
    assert time.monotonic() - began < PROMISED_SECONDS


def test_a_wrong_argument_is_usage_and_asks_nobody(
    tattle: Tattle, imds: Imds, eventbridge: EventBridge
) -> None:
    for arguments in (["--nonsense"], ["nonsense"], ["flush", "--nonsense"]):
        refused(tattle(*arguments, env=LOGIN), 64, "nonsense.*--help")
    assert imds.connection_count() == eventbridge.connection_count() == 0


@pytest.mark.root
class TestTheTable:
    """What a person meets says the same words everywhere."""

    @pytest.fixture(autouse=True)
    def _provoked(self, failure: Failure, instance: Instance) -> Iterator[None]:
        instance.configure_pam(user_readenv=False)
        failure.provoke(instance)
        yield
        failure.undo(instance)

    @pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.message)
    def test_the_smoke_test_says_it(self, failure: Failure, instance: Instance) -> None:
        began = time.monotonic()
        done = instance.run([TATTLE], env={**LOGIN, **failure.env})
        assert time.monotonic() - began < PROMISED_SECONDS
        line = f"tattle: {pattern(failure.message)} → {advice(failure)}\n"
        assert re.fullmatch(line, done.stderr), done.stderr
        assert done.stderr.removesuffix("\n").isprintable()
        assert (done.returncode, done.stdout) == (failure.status, "")
        for secret in ROLE_CREDENTIALS[1:]:
            assert secret not in done.stderr

    @pytest.mark.parametrize(
        "failure", [one for one in FAILURES if one.findings], ids=lambda failure: failure.message
    )
    def test_under_pam_the_log_says_it_and_check_by_its_probe_and_as_long_as_events_wait(
        self, failure: Failure, instance: Instance
    ) -> None:
        instance.hook()
        line = instance.syslog.wait_for("events wait in the spool")
        message = pattern(failure.message)
        assert re.fullmatch(f"events wait in the spool: {message}", line.message), line
        eventually((instance.path(SPOOL) / ".fault").exists)
        found = faults(check(instance, "--send"))
        assert {*found} == {"delivery", *failure.findings}
        assert re.fullmatch(rf"{message} \(\d+ s ago\)", found["delivery"].message), found
        assert re.fullmatch(message, found[failure.findings[0]].message), found
        for name in ("delivery", failure.findings[0]):
            assert re.fullmatch(advice(failure), found[name].advice), found


def advice(failure: Failure) -> str:
    """The pattern of its advice, as root reads it."""
    return pattern(failure.advice.replace("sudo ", ""))


class TestTheNetwork:
    pytestmark = pytest.mark.root

    def test_the_host_name_does_not_resolve(self, instance: Instance) -> None:
        instance.write("/etc/hosts", "127.0.0.1 localhost\n")
        done = instance.run([TATTLE], env=LOGIN)
        refused(done, 69, r"EventBridge can't be reached: .*events\.us-east-1\.amazonaws\.com")

    def test_a_name_server_is_silent(self, instance: Instance) -> None:
        instance.write("/etc/hosts", "127.0.0.1 localhost\n")
        instance.write("/etc/resolv.conf", "nameserver 127.0.0.53\nnameserver 127.0.0.54\n")
        for address in ("127.0.0.53", "127.0.0.54"):
            instance.popen([SYSTEM_PYTHON, "-ISc", SILENT, address])
        began = time.monotonic()
        done = instance.run([TATTLE], env=LOGIN)
        assert time.monotonic() - began < PROMISED_SECONDS
        refused(done, 69, r"EventBridge .*events\.us-east-1\.amazonaws\.com")

    def test_packets_to_all_of_eventbridges_addresses_are_dropped(self, instance: Instance) -> None:
        addresses = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
        hosts = "".join(f"{address} {EVENTBRIDGE_HOST}\n" for address in addresses)
        instance.write("/etc/hosts", f"127.0.0.1 localhost\n{hosts}")
        pipe = subprocess.PIPE
        dropping = instance.popen([SYSTEM_PYTHON, "-ISc", DROPPING, *addresses], stdout=pipe)
        with dropping:
            assert dropping.stdout
            assert dropping.stdout.readline() == "ready\n"
            began = time.monotonic()
            done = instance.run([TATTLE], env=LOGIN)
            seconds = time.monotonic() - began
            dropping.kill()
        assert seconds < PROMISED_SECONDS
        refused(done, 69, "EventBridge")


class TestAnyUser:
    pytestmark = pytest.mark.root

    @pytest.mark.parametrize("user", ["65534", "54321"])
    def test_a_user_without_a_home_is_told_so(
        self, user: str, artifact: Path, clean_env: dict[str, str]
    ) -> None:
        need_root("setpriv")
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        readable = subprocess.run([*become, "test", "-r", str(artifact)]).returncode == 0
        need(readable, "needs a checkout that everybody may read")
        done = subprocess.run(
            [*become, str(artifact)], env={**clean_env, **LOGIN}, capture_output=True, text=True
        )
        refused(done, 69, "home|unpack")


SILENT = """import socket, sys, time
asked = socket.socket(type=socket.SOCK_DGRAM)
asked.bind((sys.argv[1], 53))
time.sleep(60)
"""

DROPPING = """\
import socket, sys, time
kept = []
for address in sys.argv[1:]:
    listener = socket.socket()
    listener.bind((address, 443))
    listener.listen(0)
    kept.append(listener)
    for _ in range(4):  # with its queue full, it drops what more comes
        kept.append(socket.socket())
        kept[-1].setblocking(False)
        kept[-1].connect_ex((address, 443))
print("ready", flush=True)
time.sleep(60)
"""
