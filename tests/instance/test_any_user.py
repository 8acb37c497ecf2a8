"""Every user of the instance may run tattle, and leaves nothing behind but a cache of their own."""

from __future__ import annotations

import os
import shutil

import pytest

from standins.instance import TATTLE, Instance

pytestmark = pytest.mark.root

LOGIN = {"PAM_TYPE": "open_session", "PAM_USER": "test", "PAM_RHOST": "test"}


@pytest.mark.parametrize("argument", ["--version", "--help"])
@pytest.mark.parametrize(("user", "cache"), [("root", "/var/cache"), ("ubuntu", "/home/ubuntu")])
def test_version_and_help_unpack_nothing(
    instance: Instance, user: str, cache: str, argument: str
) -> None:
    shutil.rmtree(instance.path(f"{cache}/tattle"), ignore_errors=True)
    shutil.rmtree(instance.path(f"{cache}/.cache"), ignore_errors=True)
    there = sorted(os.listdir(instance.path(cache)))
    done = instance.run([TATTLE, argument], user=user)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(instance.path(cache))) == there


def test_a_user_unpacks_to_a_cache_of_their_own(instance: Instance) -> None:
    shutil.rmtree(instance.path("/home/ubuntu/.cache"), ignore_errors=True)
    instance.write("/tmp/ca.pem", instance.ca.pem)
    done = instance.run([TATTLE], user="ubuntu", env={**LOGIN, "AWS_CA_BUNDLE": "/tmp/ca.pem"})
    assert (done.returncode, done.stderr) == (0, "")
    assert len(instance.eventbridge.entries()) == 1
    assert instance.path("/home/ubuntu/.cache/tattle").stat().st_mode & 0o777 == 0o700
