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


Settings = dict[str, object]


WELL: Settings = {"fault": None}


def _setting(
    name: str, stand_in: str, begin: Settings, message: str, end: Settings = WELL
) -> Outage:
    """An outage that is a setting of `imds` or `eventbridge`."""
    return Outage(
        name,
        lambda box: getattr(box, stand_in).set(**begin),
        lambda box: getattr(box, stand_in).set(**end),
        message,
    )


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


IMDS_HANGS = "IMDS at http://169.254.169.254/ does not answer"
NO_EVENTBRIDGE = "EventBridge can't be reached"
OUTAGES = [
    _setting("imds-hangs", "imds", {"fault": "hang"}, IMDS_HANGS),
    _setting("eventbridge-hangs", "eventbridge", {"fault": "hang"}, NO_EVENTBRIDGE),
    _setting("throttled", "eventbridge", {"fault": "throttle"}, "ThrottlingException"),
    _setting("no-role", "imds", {"role": None}, "no credentials", {"role": "tattle"}),
    Outage("both-refuse", _refuse, _accept_again, "can't be reached"),
    Outage("no-route", _remove_routes, _restore_routes, "can't be reached"),
    Outage("no-name", _forget_name, lambda box: box.resolve(EVENTBRIDGE_HOST), NO_EVENTBRIDGE),
]
