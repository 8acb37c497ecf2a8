"""An entry for PutEvents is within EventBridge's limits, or is refused as too large; of each record
in the spool comes one entry, or it is rejected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from standins.eventbridge import ENTRIES_BYTES, check_entry
from standins.eventbridge import entry_size as size_by_the_stand_in
from tattle.aws import eventbridge as events
from tattle.delivery.batches import Batch, Sender
from tattle.delivery.queue import Queue
from tattle.delivery.watchdog import Heartbeat
from tattle.errors import TattleError
from tattle.event import config
from tattle.event.fields import FROM_INSTANCE, FROM_SESSION, FROM_SSHD
from tattle.login.pam import Session
from unit.sessions import attempt, block, blocks, session, sessions, thorough

ALL_FIELDS = (*FROM_SESSION, *FROM_SSHD, *FROM_INSTANCE, "tag:Name", "tag:é")


@pytest.fixture(scope="module")
def publisher() -> Iterator[events.Publisher]:
    """One that asks nobody: who and where this instance is has been configured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", "/nonexistent")
        told = config.parse(
            "[tattle]\nregion = us-east-1\nresource = arn:aws:ec2:::é\nevent-bus = audit\n"
            f"[service sudo]\nsource = sudo\nfields = {', '.join(ALL_FIELDS)}\n"
        )
        yield events.Publisher(told, 1.0)


class OneRecord:
    """A queue of one record, that remembers whether it was rejected."""

    def __init__(self, record: bytes) -> None:
        self.record = record
        self.rejected = ""

    def spool_of(self, _: str) -> OneRecord:
        return self

    def read(self, _: str) -> bytes:
        return self.record

    def move_if_from_elsewhere(self, *_: object) -> bool:
        return False

    def reject(self, _: str, reason: str) -> None:
        self.rejected = reason


WHOLE = block(PAM_SERVICE="sudo", PAM_USER="u", TATTLE_TIME="1", PAM_TYPE="close_session")
WHOLE += b"TATTLE_BOOT=b\0"


@thorough
@given(record=st.one_of(blocks.map(lambda damage: WHOLE + damage), blocks, st.binary()))
@example(record=WHOLE + b"TATTLE_TIME=" + b"9" * 19)
@example(record=WHOLE + b"TATTLE_TIME=" + b"9" * 30)
@example(record=WHOLE + b"TATTLE_TIME=" + "²".encode())
@example(record=WHOLE + b"TATTLE_PARENT_START=1\0TATTLE_UPTIME=" + b"9" * 400)
@example(record=WHOLE + b"TATTLE_UNVERIFIED_SSH_CONNECTION=a %b b 1" % (b"9" * 5000))
def test_any_record_is_one_entry_or_rejected(publisher: events.Publisher, record: bytes) -> None:
    """Another exception would stop delivery at that record for good."""
    queue = OneRecord(record)
    sender = Sender(cast(Queue, queue), Heartbeat([]))
    parts = list(sender.batches(["0"], publisher))
    batches = [part for part in parts if isinstance(part, Batch)]
    assert bool(batches) != bool(queue.rejected)
    for bus, entries in batches:
        ((_, entry),) = entries.values()
        assert entry["EventBusName"] == bus
        assert check_entry(entry) is None
        assert size_by_the_stand_in(entry) < ENTRIES_BYTES


@thorough
@given(ours=sessions, service=st.sampled_from(["sshd", "sudo"]))
def test_any_session_is_within_eventbridges_limits_or_refused_as_too_large(
    publisher: events.Publisher, ours: Session, service: str
) -> None:
    ours.pam["PAM_SERVICE"] = service
    entry = attempt(publisher.entry, ours, lambda _: True)
    if isinstance(entry, TattleError):
        assert entry.status == os.EX_DATAERR
        assert str(ENTRIES_BYTES) in str(entry)
        told = (*ours.pam.values(), *ours.context.values())
        assert sum(map(len, told)) > ENTRIES_BYTES / 20
        return
    assert size_by_the_stand_in(entry) < ENTRIES_BYTES
    assert check_entry(entry) is None
    assert entry["EventBusName"] == "audit"
    assert entry["Source"] == ("sudo" if service == "sudo" else "com.unbounce.tattle")
    assert entry["Time"].timestamp() == int(ours.context["TATTLE_TIME"]) // 10**9


@pytest.mark.parametrize("service", ["sshd", "sudo"])
def test_the_largest_entry_that_eventbridge_takes_is_an_entry(
    service: str, publisher: events.Publisher
) -> None:
    context = {"TATTLE_TIME": "1"}
    small = publisher.entry(session(context=context, PAM_SERVICE=service), lambda _: True)
    room = ENTRIES_BYTES - 1 - size_by_the_stand_in(small)
    pam = {"PAM_SERVICE": service, "PAM_RHOST": "x" * room}
    largest = publisher.entry(session(context=context, **pam), lambda _: True)
    assert size_by_the_stand_in(largest) == ENTRIES_BYTES - 1
    pam["PAM_RHOST"] += "x"
    with pytest.raises(TattleError, match="bytes"):
        publisher.entry(session(context=context, **pam), lambda _: True)


@given(st.text(), st.text(), st.text(), st.lists(st.text()))
def test_an_entrys_size_is_counted_as_eventbridge_counts(
    source: str, kind: str, told: str, resources: list[str]
) -> None:
    entry = {"Source": source, "DetailType": kind, "Detail": told, "Resources": resources}
    assert events.entry_size({**entry, "Time": 0}) == size_by_the_stand_in({**entry, "Time": 0})
