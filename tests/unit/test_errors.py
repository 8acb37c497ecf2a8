"""What a person reads of an error."""

from __future__ import annotations

import os
import sys

import pytest

from tattle.errors import runnable

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
