"""The stand-in for EventBridge's input transformer, against the table in its documentation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from standins.transformer import NotDeliveredError, transform

EVENT: dict[str, Any] = {
    "time": "2015-11-11T21:29:54Z",
    "resources": ["arn:aws:ec2:us-east-1:123456789012:instance/i-abcd1111"],
    "detail": {"instance-id": "i-0123456789", "state": "RUNNING", "none": "", "odd": 'a"b\\c'},
}
PATHS = {
    "instance": "$.detail.instance-id",
    "state": "$.detail.state",
    "missing": "$.detail.x",
    "odd": "$.detail.odd",
    "none": "$.detail.none",
    "first": "$.resources[0]",
}


@pytest.mark.parametrize(
    ("template", "output"),
    [
        # as documented
        ('"instance <instance> is in <state>"', '"instance i-0123456789 is in RUNNING"'),
        (r'"instance \"<instance>\" is in <state>"', r'"instance \"i-0123456789\" is in RUNNING"'),
        ('{"instance": <instance>}', '{"instance": "i-0123456789"}'),
        ('{"state": [9, <state>, true]}', '{"state": [9, "RUNNING", true]}'),
        ('{"state": "<state>"}', '{"state": "RUNNING"}'),
        ('"nothing: <missing>"', '"nothing: "'),
        # and what follows for values that stand alone
        ("[<odd>, <none>]", json.dumps([EVENT["detail"]["odd"], ""])),
        ("<first>", json.dumps(EVENT["resources"][0])),
    ],
)
def test_what_a_target_gets(template: str, output: str) -> None:
    assert transform({"InputPathsMap": PATHS, "InputTemplate": template}, EVENT) == output


def test_a_quote_inside_quotes_breaks_the_message() -> None:
    with pytest.raises(NotDeliveredError):
        transform({"InputPathsMap": PATHS, "InputTemplate": '"it is <odd>"'}, EVENT)


@pytest.mark.parametrize("paths", [{"a b": "$.x"}, {"a": "x"}, {"a": "$['x']"}])
def test_what_put_targets_refuses(paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=": "):
        transform({"InputPathsMap": paths, "InputTemplate": '"x"'}, EVENT)
