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
@pytest.mark.parametrize("user", [0, 1000])
def test_an_advice_is_for_who_reads_it(
    advice: str, user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(sys, "argv", ["/opt/tattle"])
    assert runnable(advice) == ADVICE[advice][user > 0]
