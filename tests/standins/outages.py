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
    message: str
    """What the one line in the log says."""

    @property
    def hangs(self) -> bool:
        """Whether it takes its time to be noticed."""
        return self.name.endswith("-hangs")

    def __str__(self) -> str:
        return self.name


def _remove_routes(box: Instance) -> None:
    box.run(["ip", "address", "delete", METADATA, "dev", "lo"], check=True)
    box.resolve(EVENTBRIDGE_HOST, UNROUTABLE)


def _restore_routes(box: Instance) -> None:
    box.run(["ip", "address", "add", METADATA, "dev", "lo"], check=True)
    box.resolve(EVENTBRIDGE_HOST)


def _forget_name(box: Instance) -> None:
    hosts = box.read("/etc/hosts")
    box.write("/etc/hosts", "".join(x for x in hosts.splitlines(True) if "amazonaws" not in x))


def _fault(name: str, services: tuple[str, ...], fault: str, message: str) -> Outage:
    def fail(box: Instance, fault: str | None) -> None:
        for service in services:
            getattr(box, service).set(fault=fault)

    return Outage(name, lambda box: fail(box, fault), lambda box: fail(box, None), message)


OUTAGES = [
    _fault("imds-hangs", ("imds",), "hang", "IMDS at http://169.254.169.254/ does not answer"),
    _fault("eventbridge-hangs", ("eventbridge",), "hang", "EventBridge can't be reached"),
    _fault("both-refuse", ("imds", "eventbridge"), "refuse", "can't be reached"),
    _fault("throttled", ("eventbridge",), "throttle", "ThrottlingException"),
    Outage("no-route", _remove_routes, _restore_routes, "can't be reached"),
    Outage(
        "no-name",
        _forget_name,
        lambda box: box.resolve(EVENTBRIDGE_HOST),
        "EventBridge can't be reached",
    ),
    Outage(
        "no-role",
        lambda box: box.imds.set(role=None),
        lambda box: box.imds.set(role="tattle"),
        "no credentials",
    ),
]
