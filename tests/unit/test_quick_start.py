"""What makes the deliverer start sooner changes nothing: neither whom it trusts, nor what botocore
does with a call."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.handlers import BUILTIN_HANDLERS
from botocore.session import Session as AwsSession

from standins.ca import Ca
from standins.eventbridge import EventBridge
from tattle.aws import eventbridge as events
from tattle.aws.credentials import aws_session
from tattle.aws.errors import CA_ADVICE
from tattle.aws.eventbridge import Publisher
from tattle.errors import TattleError
from tattle.event.config import Config
from tattle.login.pam import Session

OTHERS = Ca("Another").pem
CALLS = [
    *("events.PutEvents", "events.DescribeEventBus"),
    *("sts.AssumeRole", "sts.AssumeRoleWithWebIdentity"),
]


def send() -> None:
    session = Session({"PAM_TYPE": "open_session", "PAM_USER": "test"}, {"TATTLE_TIME": "0"})
    publisher = Publisher(Config(), 5)
    publisher.send(publisher.entry(session, lambda _: False))


class TestTheAuthorities:
    """Amazon's are tried first; all that botocore knows where these do not do."""

    @pytest.fixture
    def endpoint(
        self, on_ec2: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> EventBridge:
        monkeypatch.setattr(events, "AMAZON_ROOTS", tmp_path / "amazon.pem")
        monkeypatch.setattr("botocore.httpsession.where", lambda: str(tmp_path / "all.pem"))
        stand_in = EventBridge(ca=Ca())
        url = stand_in.url.replace("127.0.0.1", "localhost")
        monkeypatch.setenv("AWS_ENDPOINT_URL_EVENTBRIDGE", url)
        return stand_in

    @pytest.mark.parametrize(("amazons", "connections"), [(True, 1), (False, 2)])
    def test_one_of_amazons_does_and_so_does_any_other(
        self, amazons: bool, connections: int, endpoint: EventBridge, tmp_path: Path
    ) -> None:
        with endpoint as eventbridge:
            assert eventbridge._ca
            mine = eventbridge._ca.pem
            (tmp_path / "amazon.pem").write_bytes(mine if amazons else OTHERS)
            (tmp_path / "all.pem").write_bytes(OTHERS if amazons else mine)
            send()
            assert len(eventbridge.entries()) == 1
            assert eventbridge.connection_count() == connections

    def test_one_that_nobody_knows_does_not(self, endpoint: EventBridge, tmp_path: Path) -> None:
        for name in ("amazon.pem", "all.pem"):
            (tmp_path / name).write_bytes(OTHERS)
        with endpoint, pytest.raises(TattleError, match="certificate") as caught:
            send()
        assert caught.value.advice == CA_ADVICE

    @pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
    def test_amazons_do_not_where_others_have_been_chosen(
        self,
        variable: str,
        endpoint: EventBridge,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with endpoint as eventbridge:
            assert eventbridge._ca
            for name in ("amazon.pem", "all.pem"):
                (tmp_path / name).write_bytes(eventbridge._ca.pem)
            chosen = tmp_path / "chosen.pem"
            chosen.write_bytes(OTHERS)
            monkeypatch.setenv(variable, str(chosen))
            with pytest.raises(TattleError, match="certificate"):
                send()


@pytest.mark.parametrize("call", CALLS)
def test_botocores_handlers_for_our_calls_are_all_there(call: str, on_ec2: None) -> None:
    assert handlers(aws_session()[0], call) == handlers(AwsSession(), call)


def handlers(session: AwsSession, call: str) -> list[str]:
    """The names of the functions that see that call, in their order."""
    events = {name.split(".")[0] for name, *_ in BUILTIN_HANDLERS}
    emitter = session.get_component("event_emitter")._emitter
    found = [emitter._handlers.prefix_search(f"{event}.{call}") for event in sorted(events)]
    names = (getattr(handler, "__name__", "") for several in found for handler in several)
    return [name for name in names if name]  # moto's has none, where another test imports it
