"""`tattle check` in ten faults: it names the cause, and who does what it says sees it gone.

`pytest -rP` shows what it printed, before and after.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from failures import CONF, eventbridge, file, imds
from standins.ca import UNTRUSTED
from standins.eventbridge import Rejection
from standins.instance import EVENTBRIDGE_HOST, TATTLE, Instance
from support import eventually

pytestmark = pytest.mark.root

SPOOL = "/var/spool/tattle"
PAM = "/etc/pam.d/sshd"
Change = Callable[[Instance], Any]


class Fault(NamedTuple):
    """`finding`: how its line begins. `advice`: what is below it. `follow`: what a person does who
    reads it; None: runs the command at its end."""

    provoke: Change
    finding: str
    advice: str
    follow: Change | None = None
    arguments: tuple[str, ...] = ()


def no_pam_line(box: Instance) -> None:
    box.write(PAM, "".join(line for line in lines(box, PAM) if TATTLE not in line))


def lines(box: Instance, path: str) -> list[str]:
    return box.read(path).splitlines(keepends=True)


def read_only(box: Instance) -> None:
    box.run(["mount", "-o", "remount,ro", "/var/spool"], check=True)


def rejected(box: Instance) -> None:
    box.eventbridge.set(rejections=[Rejection("ubuntu", "MalformedDetail", "no", times=1)])
    box.hook()
    box.syslog.wait_for("set aside")


def without_that_line(box: Instance) -> None:
    """As with the editor that the advice starts, at the line that it names."""
    kept = lines(box, CONF)
    del kept[1]
    box.write(CONF, "".join(kept))


FAULTS = {
    "IMDS down": Fault(
        imds(fault="refuse"),
        "✗ identity: IMDS at http://169.254.169.254/ can't be reached",
        "aws ec2 modify-instance-metadata-options --instance-id INSTANCE --http-endpoint enabled;",
        imds(fault=None),
    ),
    "no role": Fault(
        imds(role=None),
        "✗ role: no credentials: IMDS at http://169.254.169.254/ answers 404",
        "attach an instance profile: aws ec2 associate-iam-instance-profile",
        imds(role="tattle"),
    ),
    "denied": Fault(
        eventbridge(fault="access-denied"),
        "✗ send: EventBridge: AccessDeniedException",
        "the role must allow it: tattle recipe iam-policy.json",
        eventbridge(fault=None),
        ("--send",),
    ),
    "throttled": Fault(
        eventbridge(fault="throttle"),
        "✗ send: EventBridge: ThrottlingException: Rate exceeded",
        "nothing: it is tried again. If it lasts, ask AWS for a higher PutEvents quota",
        eventbridge(fault=None),
        ("--send",),
    ),
    "bad certificate": Fault(
        eventbridge(certificate=UNTRUSTED),
        "✗ endpoint: EventBridge can't be reached: SSL validation failed",
        f"`ca-bundle` in {CONF} must name the authority",
        lambda box: box.eventbridge.set(certificate="good"),
    ),
    "no name": Fault(
        lambda box: box.write("/etc/hosts", "127.0.0.1 localhost\n"),
        f"✗ name: {EVENTBRIDGE_HOST} does not resolve",
        "look at /etc/resolv.conf, and in a VPC at enableDnsSupport: getent hosts",
        lambda box: box.resolve(EVENTBRIDGE_HOST),
    ),
    "read-only spool": Fault(read_only, "✗ disk: /var/spool is read-only", "mount -o remount,rw"),
    "bad configuration": Fault(
        file(CONF, "[tattle]\nsauce = org.example\n"),
        f"✗ configuration: {CONF}, line 2: [tattle] sauce: there is no such key",
        "fix that line: sudoedit +2",
        without_that_line,
    ),
    "PAM line missing": Fault(no_pam_line, "✗ pam sshd: no line runs tattle", "echo 'session "),
    "records rejected": Fault(
        rejected, f"✗ rejected: 1 event in {SPOOL}/rejected", "to send them again: sh -c 'mv -n"
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_names_the_cause_and_its_advice_leads_to_a_tick(name: str, instance: Instance) -> None:
    fault = FAULTS[name]
    instance.configure_pam(user_readenv=False)
    instance.hook()
    eventually(lambda: not instance.spool())
    instance.kill_deliverers()
    fault.provoke(instance)
    try:
        before = instance.run([TATTLE, "check", *fault.arguments])
        print(f"$ sudo tattle check {' '.join(fault.arguments)}\n{before.stdout}")
        assert (before.returncode, before.stderr) == (1, "")
        found = re.search(rf"^{re.escape(fault.finding)}.*\n    → (.*)", before.stdout, re.M)
        assert found, before.stdout
        assert fault.advice in found[1]
        if fault.follow:
            fault.follow(instance)
        else:
            command = re.sub("^[^:]*: ", "", found[1])
            print(f"$ {command}\n{instance.run(['/bin/sh', '-c', command], check=True).stdout}")
    finally:
        instance.run(["mount", "-o", "remount,rw", "/var/spool"], check=True)
    after = instance.run([TATTLE, "check", *fault.arguments])
    print(f"$ sudo tattle check {' '.join(fault.arguments)}\n{after.stdout}")
    assert (after.returncode, after.stderr) == (0, "")
    assert after.stdout.splitlines()[-1].startswith("0 errors, 0 warnings, ")
