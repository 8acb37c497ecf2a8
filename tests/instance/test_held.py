"""What a user hands on by su or sudo can't hold up the deliverer of everybody's events."""

from __future__ import annotations

import pytest

from standins.instance import SYSTEM_PYTHON, Instance
from support import eventually

pytestmark = pytest.mark.root

YEARS = 9 * 10**18  # nanoseconds
# What su hands on to the hook: code for a process that becomes it
INHERITED = {
    "timer slack": f"ctypes.CDLL(None).prctl(29, ctypes.c_ulong({YEARS}), 0, 0, 0)",
    "scheduling policy": "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))",
    "one CPU": "os.sched_setaffinity(0, {0})",
    "priority": "os.nice(19)",
    "the OOM killer's first victim": "open('/proc/self/oom_score_adj', 'w').write('1000')",
    "I/O priority": "subprocess.run(['/usr/bin/ionice', '-c', '3', '-p', str(os.getpid())])",
}
# What the kernel says of a process, by what it is about
LOOKS = {
    "timer slack": "cat /proc/$1/timerslack_ns",
    "scheduling policy": "chrt --pid $1",
    "one CPU": "taskset --pid $1",
    "priority": "ps -o ni= -p $1",
    "the OOM killer's first victim": "cat /proc/$1/oom_score_adj",
    "I/O priority": "ionice -p $1",
}


def wrapper(code: str) -> list[str]:
    """A command that runs that code and then becomes the hook."""
    become = "os.execv('/usr/bin/env', ['env', '-u', 'LC_CTYPE', *sys.argv[1:]])"
    return [SYSTEM_PYTHON, "-ISc", f"import ctypes, os, subprocess, sys\n{code}\n{become}"]


def deliverers_scheduling(box: Instance) -> dict[str, str]:
    eventually(box.deliverers)
    (deliverer,) = box.deliverers()
    pid = str(deliverer.pid)
    return {
        what: box.run(["/bin/sh", "-c", look, "-", pid]).stdout.replace(pid, "PID")
        for what, look in LOOKS.items()
    }


def test_nothing_of_a_callers_scheduling_is_the_deliverers(instance: Instance) -> None:
    instance.hook()
    usual = deliverers_scheduling(instance)
    instance.kill_deliverers()
    assert instance.hook(wrapper=wrapper("\n".join(INHERITED.values()))).returncode == 0
    assert deliverers_scheduling(instance) == usual


@pytest.mark.parametrize("arguments", [(), ("--wait=20",)])
def test_a_timer_slack_of_years_holds_up_nobody(
    instance: Instance, arguments: tuple[str, ...]
) -> None:
    slack = wrapper(INHERITED["timer slack"])
    for count in (1, 2):
        assert instance.hook(wrapper=slack, arguments=arguments).returncode == 0
        instance.eventbridge.wait_for(count)
    instance.hook(user="somebody else")
    instance.eventbridge.wait_for(3)
