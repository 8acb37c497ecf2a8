"""What a person reads of an error."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tattle.errors import LONGEST_LINE, TattleError, one_line, runnable
from unit.sessions import thorough

ADVICE = {
    "sudo tattle check": ("tattle check", "sudo /opt/tattle check"),
    "to send them again: sudo sh -c 'mv a b' && sudo tattle flush": (
        "to send them again: sh -c 'mv a b' && tattle flush",
        "to send them again: sudo sh -c 'mv a b' && sudo /opt/tattle flush",
    ),
    "sudo sed -i '3d' /etc/pam.d/sudo && sudo ls": (
        "sed -i '3d' /etc/pam.d/sudo && ls",
        "sudo sed -i '3d' /etc/pam.d/sudo && sudo ls",
    ),
    "set PAM_TYPE=open_session": ("set PAM_TYPE=open_session", "set PAM_TYPE=open_session"),
    "": ("", ""),
}


@pytest.mark.parametrize("advice", ADVICE)
@pytest.mark.parametrize(("user", "by_sudo"), [(0, False), (0, True), (1000, False)])
def test_an_advice_is_for_who_reads_it(
    advice: str, user: int, by_sudo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under sudo that is a shell which is not root's."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(sys, "argv", ["/opt/tattle"])
    monkeypatch.delenv("SUDO_UID", raising=False)
    if by_sudo:
        monkeypatch.setenv("SUDO_UID", "1000")
    assert runnable(advice) == ADVICE[advice][user > 0 or by_sudo]


@thorough
@given(st.text() | st.text(alphabet=st.characters(codec=None)))
def test_one_line_is_one_line_of_what_can_be_seen(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= LONGEST_LINE + 1
    assert one_line(line) == line
    if text.isprintable() and len(text) <= LONGEST_LINE:
        assert line == text


def test_what_an_error_says_stays_readable() -> None:
    assert one_line("Müller hat 3 € · ok 日本") == "Müller hat 3 € · ok 日本"
    assert one_line("a\nb\x1b\u202e\udcff") == r"a\nb\x1b\u202e\udcff"
    assert one_line(str(TattleError("one\ntwo", 1))) == r"one\ntwo"
