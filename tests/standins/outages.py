"""The ways in which AWS can be away from an instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from standins.instance import EVENTBRIDGE_HOST, Instance

UNROUTABLE = "192.0.2.1"  # RFC 5737
METADATA = "169.254.169.254/32"


@dataclass(frozen=True)
class Outage:
    """A way in which AWS can be away."""

    name: str
    begin: Callable[[Instance], object]
    end: Callable[[Instance], object]
    told: str
    """What the one line in the log says."""

    def __str__(self) -> str:
        return self.name


def _refuse(box: Instance) -> None:
    box.imds.set(fault="refuse")
    box.eventbridge.set(fault="refuse")


def _accept_again(box: Instance) -> None:
    box.imds.set(fault=None)
    box.eventbridge.set(fault=None)


def _remove_routes(box: Instance) -> None:
    box.run(["ip", "address", "delete", METADATA, "dev", "lo"], check=True)
    box.resolve(EVENTBRIDGE_HOST, UNROUTABLE)


def _restore_routes(box: Instance) -> None:
    box.run(["ip", "address", "add", METADATA, "dev", "lo"], check=True)
    box.resolve(EVENTBRIDGE_HOST)


def _forget_name(box: Instance) -> None:
    hosts = box.read("/etc/hosts")
    box.write("/etc/hosts", "".join(x for x in hosts.splitlines(True) if "amazonaws" not in x))


OUTAGES = [
    Outage(
        "imds-hangs",
        lambda box: box.imds.set(fault="hang"),
        lambda box: box.imds.set(fault=None),
        "IMDS at http://169.254.169.254/ does not answer",
    ),
    Outage(
        "eventbridge-hangs",
        lambda box: box.eventbridge.set(fault="hang"),
        lambda box: box.eventbridge.set(fault=None),
        "EventBridge can't be reached",
    ),
    Outage("both-refuse", _refuse, _accept_again, "can't be reached"),
    Outage("no-route", _remove_routes, _restore_routes, "can't be reached"),
    Outage(
        "no-name",
        _forget_name,
        lambda box: box.resolve(EVENTBRIDGE_HOST),
        "EventBridge can't be reached",
    ),
    Outage(
        "throttled",
        lambda box: box.eventbridge.set(fault="throttle"),
        lambda box: box.eventbridge.set(fault=None),
        "ThrottlingException",
    ),
    Outage(
        "no-role",
        lambda box: box.imds.set(role=None),
        lambda box: box.imds.set(role="tattle"),
        "no credentials",
    ),
]
