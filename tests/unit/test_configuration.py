"""/etc/tattle.conf is refused for what EventBridge would refuse, or if somebody else could have
written it, and the line is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tattle.delivery.config import Config, load, parse
from tattle.errors import TattleError

ARN = "arn:aws:events:us-east-1:012345678901:event-bus/"


@pytest.mark.parametrize(
    ("key", "longest"),
    [("source", 256), ("detail-type", 128), ("event-bus", 1600), ("resource", 2048)],
)
def test_a_text_is_as_long_as_eventbridge_takes(key: str, longest: int) -> None:
    fits = parse(f"[tattle]\n{key} = {'x' * longest}\n")
    assert getattr(fits, key.replace("-", "_")) == "x" * longest
    with pytest.raises(TattleError, match=rf"line 2: \[tattle\] {key}: .*{longest}") as caught:
        parse(f"[tattle]\n{key} = {'x' * (longest + 1)}\n")
    assert caught.value.status == os.EX_CONFIG
    assert "+2" in caught.value.advice


@pytest.mark.parametrize("bus", ["a b", "arn:aws:events:us-east-1:1:event-bus/x", ARN, "ä"])
def test_an_event_bus_that_is_none(bus: str) -> None:
    with pytest.raises(TattleError, match="event-bus"):
        parse(f"[service sudo]\nevent-bus = {bus}\n")


def test_the_buses_are_each_named_once() -> None:
    services = "[service su]\nevent-bus = one\n[service sudo]\nevent-bus = two\n"
    assert parse(services).buses() == ["", "one", "two"]
    assert parse(f"[tattle]\nevent-bus = two\n{services}").buses() == ["two", "one"]
    assert Config().buses() == [""]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[tattle]\nsauce: b\n", 2, r"\[tattle\] sauce: there is no such key"),
        ("\n\n[tattle]\nSAUCE = b\n", 4, "sauce"),
        ("[tattle]\nregion = us-east-1\n[service a]\nregion = us-east-1\n", 4, "region"),
        ("[service su]\nsource = aws.ec2\n", 2, "may not begin with aws."),
        ("[tattle]\nsource = a\n  fields = tty\n", 2, "source: .*indented by mistake"),
        ("[tattle]\nfields =\n  username\n  usernme\n", 2, "no field 'usernme'"),
        ("[tattle]\nsource = a\nwhatever\n", 3, "not understood: .*whatever"),
    ],
)
def test_a_fault_is_told_with_the_line_of_its_key(text: str, line: int, reason: str) -> None:
    with pytest.raises(TattleError, match=f"/etc/tattle.conf, line {line}: .*{reason}") as caught:
        parse(text)
    assert caught.value.status == os.EX_CONFIG
    assert caught.value.advice == f"fix that line: sudoedit +{line} /etc/tattle.conf"


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602, 0o1666])
def test_a_file_that_somebody_else_could_write_is_not_read(mode: int, tmp_path: Path) -> None:
    """It could send events elsewhere. Whom a file may belong to: test_trust.py."""
    file, bundle = tmp_path / "tattle.conf", tmp_path / "ca.pem"
    bundle.touch()
    for spoilt, begins in ((bundle, f"{file}, line 2: [tattle] ca-bundle: "), (file, "")):
        file.write_text(f"[tattle]\nca-bundle = {bundle}\n")
        assert load(str(file)).ca_bundle == str(bundle)
        spoilt.chmod(mode)
        with pytest.raises(TattleError) as caught:
            load(str(file))
        fault = f"{begins}{spoilt} belongs to or can be written by somebody else"
        assert (str(caught.value), caught.value.status) == (fault, os.EX_CONFIG)
        spoilt.chmod(0o600)


def test_a_link_to_a_trusted_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "fleet.conf").write_text("[tattle]\nsource = org.example\n")
    (tmp_path / "tattle.conf").symlink_to("fleet.conf")
    assert load(str(tmp_path / "tattle.conf")).source == "org.example"
