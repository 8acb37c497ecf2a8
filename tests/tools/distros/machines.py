"""A machine that is one of many, and that stops: what an image carries to other machines, and what
a shutdown leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import TemporaryDirectory

from check_json import Finding
from standins.imds import identity_document
from standins.instance import INSTANCE_ID_FILE, REMOTE_HOST, SPOOL, TATTLE, Instance
from support import ARTIFACT, changed
from tools.distros import systemd
from tools.distros.scenarios import (
    GIVE_UP_AFTER_SECONDS,
    complaints,
    follow_advice,
    prepare,
    succeeds,
    until,
)

LATE = "time.sleep(3); detach()"
CLONE = "i-0c10e0c10e0c10e0c"


def another(box: Instance, furnish: Callable[[Instance], None]) -> AbstractContextManager[Instance]:
    """One of the same release."""
    assert box._other_root
    return systemd.booted(ARTIFACT, box._other_root, furnish)


@contextmanager
def cloned(builder: Instance) -> Iterator[Instance]:
    """Another instance, whose disk is the builder's image."""
    image = succeeds(builder.run(["sh", "-c", f"tar -C {SPOOL} -cf - . | base64"]))

    def furnish(box: Instance) -> None:
        prepare(box)
        box.write(INSTANCE_ID_FILE, f"{CLONE}\n")
        box.run(["mkdir", "-m", "700", SPOOL], check=True)
        succeeds(box.run(["sh", "-c", f"base64 -d | tar -C {SPOOL} -xf -"], input=image))

    with another(builder, furnish) as box:
        box.imds.set(document=identity_document(instanceId=CLONE))
        yield box


def told(found: list[Finding]) -> list[str]:
    return sorted({finding.id for finding in found})


def golden_image(box: Instance) -> None:
    """What waits on a builder that has no role, an image carries to its clones: none sends it, and
    `check` on a clone says nothing of the builder's role."""
    box.imds.set(role=None)
    succeeds(box.ssh("alice", "true"))
    until(lambda: "role" in told(complaints(box)), "check does not miss the role")
    until(lambda: len(box.records()) == 2, "the builder's events don't wait")
    until(lambda: box.path(f"{SPOOL}/.fault").exists(), "it isn't noted what keeps them back")
    with cloned(box) as clone:
        assert not {"role", "delivery"} & {*told(complaints(clone))}, complaints(clone)
        done = succeeds(clone.run([TATTLE, "flush"]))
        assert done == "0 delivered, 0 remain, 2 of another machine\n", done
        assert clone.spool() == ["elsewhere"]
        assert told(complaints(clone)) == ["elsewhere"], complaints(clone)
        follow_advice(clone)
        assert clone.eventbridge.entries() == []
        succeeds(clone.ssh("ubuntu", "true"))
        entries = clone.eventbridge.wait_for(2, GIVE_UP_AFTER_SECONDS)
        assert [entry.detail["username"] for entry in entries] == ["ubuntu", "ubuntu"]
        assert all(entry.raw["Resources"][0].endswith(f"/{CLONE}") for entry in entries)


def has_ended(box: Instance) -> bool:
    """Tell whether the first process is gone, or about to be reaped."""
    try:
        return Path(f"/proc/{box.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def young_deliverer(box: Instance) -> None:
    """Deliverers that the last logouts start, and that systemd's one SIGTERM finds before they have
    left the login, don't hold up the shutdown for the 90 seconds until its SIGKILL."""
    with another(box, prepare) as machine, TemporaryDirectory() as folder:
        slow = Path(folder, "tattle")
        changed(ARTIFACT, slow, r"^        detach\(\)$", f"        {LATE}")
        machine.install(slow)
        words = ["ssh", "alice@127.0.0.1", "read go"]
        ssh = machine.ssh_command(*words, user="alice", source=REMOTE_HOST)
        with machine.popen(ssh, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL) as session:
            try:
                machine.eventbridge.wait_for(1, GIVE_UP_AFTER_SECONDS)
                until(lambda: not machine.records(), "what arrived stays in the spool")
                machine.kill_deliverers()
                machine.run(["systemctl", "poweroff"])
                until(lambda: has_ended(machine), "a deliverer holds up the shutdown")
            finally:
                session.kill()


SCENARIOS: dict[str, Callable[[Instance], None]] = {
    "golden image": golden_image,
    "young deliverer": young_deliverer,
}
