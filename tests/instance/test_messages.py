"""Whatever goes wrong in a shell: one line that says what, an exit status of sysexits, within ten
seconds. What IMDS and EventBridge may do: unit/test_aws_messages.py."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import readme_blocks as readme
from check_json import check, faults
from conftest import Tattle
from messages import FAILURES, Failure, pattern
from standins import ROLE_CREDENTIALS
from standins.eventbridge import EventBridge
from standins.imds import Imds
from standins.instance import EVENTBRIDGE_HOST, SPOOL, TATTLE, Instance
from standins.server import bind
from support import changed, eventually, need, need_root
from tattle.shell.cli import SMOKE_TEST_SECONDS

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
        instance.configure_pam(user_readenv=False, lines=readme.text("the-pam-lines"))
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
        assert re.fullmatch(rf"{message} \(for \d+ s\)", found["delivery"].message), found
        assert re.fullmatch(message, found[failure.findings[0]].message), found
        for name in ("delivery", failure.findings[0]):
            assert re.fullmatch(advice(failure), found[name].advice), found


def advice(failure: Failure) -> str:
    """The pattern of its advice, as root reads it."""
    return pattern(failure.advice.replace("sudo ", ""))


@pytest.mark.root
class TestTheNetwork:
    """What no time-out of a connection bounds ends when the smoke test gives up."""

    @pytest.fixture
    def quick(self, instance: Instance, artifact: Path, tmp_path: Path) -> Instance:
        """The instance, where it does so sooner."""
        assert SMOKE_TEST_SECONDS < PROMISED_SECONDS
        seconds = r"^SMOKE_TEST_SECONDS = .*"
        changed(artifact, tmp_path / "tattle", seconds, "SMOKE_TEST_SECONDS = 3.0")
        instance.install(tmp_path / "tattle")
        return instance

    def test_name_servers_are_silent(self, quick: Instance) -> None:
        addresses = ("127.0.0.53", "127.0.0.54")
        quick.write("/etc/hosts", "127.0.0.1 localhost\n")
        quick.write("/etc/resolv.conf", "".join(f"nameserver {one}\n" for one in addresses))
        with ExitStack() as silent:
            for address in addresses:
                silent.enter_context(bind(address, 53, quick.network, socket.SOCK_DGRAM))
            done = quick.run([TATTLE], env=LOGIN)
        words = rf"no answer within 3 s from EventBridge at https://{EVENTBRIDGE_HOST}"
        refused(done, 69, words)

    def test_packets_to_all_of_eventbridges_addresses_are_dropped(self, quick: Instance) -> None:
        addresses = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
        hosts = "".join(f"{address} {EVENTBRIDGE_HOST}\n" for address in addresses)
        quick.write("/etc/hosts", f"127.0.0.1 localhost\n{hosts}")
        with ExitStack() as full:
            for address in addresses:
                full.enter_context(bind(address, 443, quick.network)).listen(0)
                for _ in range(4):  # with its queue full, it drops what more comes
                    caller = full.enter_context(bind("127.0.0.1", 0, quick.network))
                    caller.setblocking(False)
                    caller.connect_ex((address, 443))
            done = quick.run([TATTLE], env=LOGIN)
        refused(done, 69, "no answer within 3 s from EventBridge")


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
