"""The recipes: files for the host and for whoever receives the events. Printed, never applied."""

from __future__ import annotations

import importlib.resources
import json
import os

from tattle.errors import TattleError
from tattle.event.config import is_default

FOLDER = importlib.resources.files("tattle") / "recipes"
# JSON has no comments. The other recipes say what they are for in a line `# NAME: …`.
PURPOSES = {
    "iam-policy.json": "what an instance's role needs: to send events to one bus",
    "mute-user.json": "an event pattern: logins, but not those of a deploy user",
    "mute-network.json": "an event pattern: logins, but not those from a network",
    "mute-loop.json": "an event pattern: logins, but not one user's from one host (scp in a loop)",
}
IAM_POLICY = "iam-policy.json"


def recipes() -> list[tuple[str, str]]:
    """Return name and purpose, one line, of each recipe."""
    return [(name, purpose(name)) for name in names()]


def names() -> list[str]:
    """Return the names of the recipes, sorted."""
    return sorted(file.name for file in FOLDER.iterdir())


def purpose(name: str) -> str:
    """Return what a recipe is for, in one line."""
    if name in PURPOSES:
        return PURPOSES[name]
    lines = (line.lstrip("#; ") for line in text(name).splitlines())
    return next(line[len(name) + 2 :] for line in lines if line.startswith(f"{name}: "))


def text(name: str) -> str:
    """Return a recipe as it is. Raises TattleError if there is none of that name."""
    if name not in names():
        similar = [known for known in names() if name and known.startswith(name)]
        advice = f"there is {' and '.join(similar)}" if similar else "`tattle recipe` lists them"
        raise TattleError(f"no recipe {name!r}", os.EX_USAGE, advice)
    return (FOLDER / name).read_text("utf-8")


def iam_policy(partition: str, region: str, account: str, buses: list[str]) -> str:
    """Return iam-policy.json for an instance's own place: `aws`, `us-east-1`, 12 digits.

    A bus is a name, "" for the default one, or the ARN of a bus elsewhere.
    """
    own = f"arn:{partition}:events:{region}:{account}:event-bus"
    arns = [bus if bus.startswith("arn:") else f"{own}/{bus or 'default'}" for bus in buses]
    policy = json.loads(text(IAM_POLICY))
    (reporting,) = policy["Statement"]
    reporting["Resource"] = arns[0] if len(arns) == 1 else arns
    named = [arn for arn in arns if not is_default(arn)]
    if named:
        policy["Statement"].append(
            {
                "Sid": "SeeThatTheBusExists",
                "Effect": "Allow",
                "Action": "events:DescribeEventBus",
                "Resource": named[0] if len(named) == 1 else named,
            }
        )
    return json.dumps(policy, indent=2) + "\n"
