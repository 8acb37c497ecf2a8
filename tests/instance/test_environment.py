"""The environment decides nothing under PAM: neither what a user put before the items of pam_exec,
nor any variable that the interpreter or a library would read. What delivers has none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standins.instance import Instance, Text
from support import ROOT, eventually
from tattle.delivery.fields import detail
from tattle.errors import TattleError
from tattle.login.hook import context
from tattle.login.pam import parse, trusted_block

FUZZED_BLOCKS = 10_000
FUZZED_RUNS = 100

# Which of our own modules look at the environment, and for what. The login's side knows it only as
# bytes; on the delivery's side it is what a shell's user may have set, or nothing.
READERS = {
    "__main__.py",  # is PAM_SERVICE there?
    "delivery/deliver.py",  # sets RES_OPTIONS
    "delivery/aws.py",  # which of AWS's files does a shell's user name? sets no_proxy
    "delivery/imds.py",  # AWS_EC2_METADATA_DISABLED
    "shell/check.py",  # NO_COLOR
    "shell/cli.py",  # PAM_*; sets RES_OPTIONS
}


def test_no_other_module_of_ours_looks_at_the_environment() -> None:
    package = ROOT / "src" / "tattle"
    looks = re.compile(r"\b(os|posix)\.(environ|getenv)")
    modules = [path for path in package.rglob("*.py") if looks.search(path.read_text())]
    assert {str(path.relative_to(package)) for path in modules} == READERS


@pytest.mark.root
def test_what_delivers_or_stands_by_has_an_empty_environment(instance: Instance) -> None:
    """Also what the kernel shows of it: nothing of it has ever been there."""
    variables = [
        *(("LD_BIND_NOW", "1"), ("LC_ALL", "tr_TR.ISO-8859-9"), ("TZ", "Asia/Tokyo")),
        *(("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("https_proxy", "http://127.0.0.1:9")),
        *(("PYTHONHOME", "/nowhere"), ("PYTHONEXECUTABLE", "/nowhere"), ("HOME", "/nowhere")),
    ]
    instance.eventbridge.set(fault="hang")
    with instance.session() as session:
        for user in ("first", "second"):
            assert session.hook(user=user, before=variables).returncode == 0
    eventually(instance.next_deliverers)
    for process in [*instance.deliverers(), *instance.next_deliverers()]:
        assert instance.read(f"/proc/{process.pid}/environ") == ""


# The fuzzer

ITEMS = ("SERVICE", "USER", "TTY", "RHOST", "RUSER", "TYPE")
FIELDS = ("username", "remote_host", "session", "service", "tty", "remote_user")
INTERESTING = [f"PAM_{item}".encode() for item in ITEMS] + [
    *(b"", b"PAM_", b"TATTLE_TIME", b"TATTLE_BOOT", b"SSH_CONNECTION", b"SSH_AUTH_INFO_0"),
    *(b"PAM_USER\n", b"\nPAM_SERVICE", b"PAM_SERVICE=sshd", b"TATTLE_UNVERIFIED_PAM_USER"),
]
no_nul = st.binary(max_size=30).map(lambda value: value.replace(b"\0", b"\n"))
values = st.one_of(
    no_nul,
    st.sampled_from(
        [
            *(b"root", b"", b"open_session", b"close_session", b"PAM_SERVICE=", b"\nPAM_TYPE=x"),
            *(b"PAM_SERVICE=sshd\nPAM_USER=root\nPAM_TYPE=open_session", b"=", b"\xff\xfe", b'"'),
        ]
    ),
)
variables = st.one_of(
    st.tuples(st.one_of(st.sampled_from(INTERESTING), no_nul), values).map(b"=".join),
    no_nul,  # no `=` in it, mostly
)
user_part = st.lists(variables, max_size=8)
genuine_items = st.fixed_dictionaries(
    {
        b"PAM_SERVICE": values,
        b"PAM_USER": values.filter(bool),
        b"PAM_TTY": st.none() | values,
        b"PAM_RHOST": st.none() | values,
        b"PAM_RUSER": st.none() | values,
        b"PAM_TYPE": st.sampled_from([b"open_session", b"close_session"]),
    }
)
Items = dict[bytes, Union[bytes, None]]


def block_of(items: Items) -> list[bytes]:
    names = [f"PAM_{item}".encode() for item in ITEMS]  # hypothesis gives them in any order
    values = [(name, items[name]) for name in names]
    return [name + b"=" + value for name, value in values if value is not None]


def environ_of(block: Iterable[bytes]) -> bytes:
    return b"".join(variable + b"\0" for variable in block)


def entry_of(environ: bytes) -> tuple[str, dict[str, str], set[str]]:
    """As the hook and then the deliverer do it: the detail, the PAM items, the context's names."""
    block = trusted_block(environ)
    session = parse(block + context(environ[: -len(block)]))
    assert session.context["TATTLE_PARENT"] == str(os.getppid())
    ours = {name for name in session.context if not name.startswith("TATTLE_UNVERIFIED_SSH_")}
    return detail(session, FIELDS, {}, lambda _: None, lambda _: False), session.pam, ours


CONTEXT = {
    *("TATTLE_TIME", "TATTLE_UPTIME", "TATTLE_PARENT", "TATTLE_PARENT_START", "TATTLE_BOOT"),
}


@settings(max_examples=FUZZED_BLOCKS, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=user_part, items=genuine_items)
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_environment_before_a_genuine_block_changes_the_entry(
    before: list[bytes], items: Items
) -> None:
    genuine = environ_of(block_of(items))
    told, pam, ours = entry_of(environ_of(before) + genuine)
    assert (told, pam, ours) == entry_of(genuine)
    assert ours == CONTEXT
    assert pam == {
        name.decode(): value.decode(errors="backslashreplace")
        for name, value in items.items()
        if value is not None
    }


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=user_part, items=genuine_items, data=st.data())
def test_an_odd_block_is_refused(before: list[bytes], items: Items, data: st.DataObject) -> None:
    """But for one without its PAM_SERVICE, which PAM always knows, after one of the user's."""
    block = block_of(items)
    oddity = data.draw(st.sampled_from(["swap", "twice", "more", "no service", "cut", "no type"]))
    place = data.draw(st.integers(1, len(block) - 1))
    if oddity == "swap":
        other = data.draw(st.integers(0, len(block) - 1).filter(lambda n: n != place))
        block[place], block[other] = block[other], block[place]
    elif oddity == "twice":
        block.insert(data.draw(st.integers(place, len(block))), block[place])
    elif oddity == "more":
        name = data.draw(no_nul).replace(b"=", b"")
        block.insert(data.draw(st.integers(place, len(block))), b"X" + name + b"=1")
    elif oddity == "no service":
        del block[0]
        before = [variable for variable in before if not variable.startswith(b"PAM_SERVICE=")]
    elif oddity == "no type":
        block[-1] = b"PAM_TYPE=" + data.draw(
            st.sampled_from([b"", b"auth", b"setcred", b"open_session ", b"OPEN_SESSION"])
        )
    environ = environ_of([*before, *block])
    if oddity == "cut":
        environ = environ[: -data.draw(st.integers(1, 10))]
    with pytest.raises(TattleError, match="refused"):
        trusted_block(environ)


@pytest.mark.parametrize(
    "environ",
    [
        b"",
        b"\0",
        b"PAM_USER=alice\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_USER=\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=open_session",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=auth\0",
        b"PAM_SERVICE=sshd\0PAM_TYPE=open_session\0PAM_USER=alice\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=open_session\0A=1\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=open_session\0\0",
        b"PAM_SERVICE=sshd\0A=1\0PAM_USER=alice\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_USER=root\0PAM_TYPE=open_session\0",
        b"PAM_SERVICE=sshd\0PAM_USER=alice\0PAM_RHOST=a\0PAM_TTY=b\0PAM_TYPE=open_session\0",
        b"xPAM_SERVICE=sshd\0PAM_USER=alice\0PAM_TYPE=open_session\0",
    ],
)
def test_a_block_that_pam_exec_does_not_make_is_refused(environ: bytes) -> None:
    with pytest.raises(TattleError, match="refused"):
        trusted_block(environ)


@pytest.mark.root
@pytest.mark.parametrize(
    "odd",
    [
        {"user": None},
        {"user": ""},
        {"type": "auth"},
        {"type": ""},
        {"service": None, "tty": None},
    ],
)
def test_the_hook_refuses_an_odd_block_with_a_line_in_the_log(
    instance: Instance, odd: dict[str, Text | None]
) -> None:
    settings: dict[str, Any] = {"before": [("PAM_SERVICE", "sshd"), ("A", "1")], **odd}
    result = instance.hook(**settings)
    assert result.returncode == 64
    assert "refused" in instance.syslog.wait_for("").message
    assert instance.spool() == []


@pytest.mark.root
@pytest.mark.slow
@settings(
    max_examples=FUZZED_RUNS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    before=st.lists(st.tuples(st.one_of(st.sampled_from(INTERESTING), no_nul), values), max_size=8),
    user=values.filter(bool),
    rhost=st.none() | values,
    type_=st.sampled_from(["open_session", "close_session"]),
)
def test_the_artifact_is_no_more_impressed(
    shared_instance: Instance,
    before: list[tuple[bytes, bytes]],
    user: bytes,
    rhost: bytes | None,
    type_: str,
) -> None:
    box = shared_instance
    box.eventbridge.clear()
    result = box.hook(type_, user=user, rhost=rhost, before=before)
    assert result.returncode == 0
    (entry,) = box.eventbridge.wait_for(1)
    assert entry.detail == {
        "username": user.decode(errors="backslashreplace"),
        "remote_host": (rhost or b"").decode(errors="backslashreplace"),
        "session": {"open_session": "opened", "close_session": "closed"}[type_],
    }
