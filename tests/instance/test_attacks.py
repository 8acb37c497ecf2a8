"""What an ordinary user can try by logging in: a real sshd, Debian's own PAM stack, which lets
~/.pam_environment into the environment of a hook that runs as root.

What delivers is executed with an empty environment, and nothing of ours but the entry point, and
what a shell runs, looks at one. So a user's variables can only be aimed at the hook. (Which part of
its environment it trusts, unit/test_pam.py shows; any bytes as names, test_log.py.)
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

import readme_blocks as readme
from standins.eventbridge import EventBridge
from standins.instance import EVENTBRIDGE_HOST, REMOTE_HOST, TATTLE, Instance
from standins.server import bind
from support import ROOT, eventually, is_the_default_event, need

pytestmark = pytest.mark.root

EVIL = "/home/alice/evil"  # alice's folder of traps
OWNED = "/tmp/owned"  # a trap writes there when root springs it
DECOY_PORT = 8888
DECOY = f"http://127.0.0.1:{DECOY_PORT}"
FIFO = f"{EVIL}/fifo"

# Our modules that look at the environment, and for what. The login's side knows it only as bytes;
# on the delivery's side it is what a shell's user may have set, or nothing.
READERS = {
    "__main__.py",  # is PAM_SERVICE there?
    "delivery/deliver.py",  # sets RES_OPTIONS
    "aws/credentials.py",  # which of AWS's files does a shell's user name? sets no_proxy
    "aws/eventbridge.py",  # REQUESTS_CA_BUNDLE
    "aws/imds.py",  # AWS_EC2_METADATA_DISABLED
    "errors.py",  # SUDO_UID: does a command that is advised begin with sudo?
    "shell/report.py",  # NO_COLOR, TERM
    "shell/cli.py",  # PAM_*; sets RES_OPTIONS
}


def all_of(names: str, value: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), value)


VARIABLES = {
    # The items of pam_exec, also inside other values
    "PAM_SERVICE": "sudo",
    "PAM_USER": "root",
    "PAM_TTY": "tty1",
    "PAM_RHOST": "8.8.8.8",
    "PAM_RUSER": "bob",
    "PAM_TYPE": "close_session",
    "A": "PAM_SERVICE=sshd PAM_USER=root PAM_TYPE=close_session",
    "PAM_SERVICE=x": "PAM_USER=root",
    **all_of("TATTLE_TIME TATTLE_PARENT TATTLE_UNVERIFIED_PAM_USER", "1"),
    # shiv
    **all_of("SHIV_ENTRY_POINT SHIV_MODULE SHIV_CONSOLE_SCRIPT", "evil:main"),
    **all_of("SHIV_INTERPRETER SHIV_FORCE_EXTRACT SHIV_EXTEND_PYTHONPATH", "1"),
    **all_of("SHIV_ROOT SHIV_PREPEND_PYTHONPATH", EVIL),
    # Where AWS is
    **all_of("AWS_ENDPOINT_URL AWS_ENDPOINT_URL_EVENTBRIDGE", DECOY),
    **all_of("AWS_EC2_METADATA_SERVICE_ENDPOINT AWS_CONTAINER_CREDENTIALS_FULL_URI", DECOY),
    **all_of("HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy", DECOY),
    **all_of("AWS_REGION AWS_DEFAULT_REGION", "eu-west-1"),
    "AWS_EC2_METADATA_DISABLED": "true",
    # Whom to be, and whom to trust
    **all_of("AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE", "evil"),
    **all_of("AWS_CONFIG_FILE AWS_WEB_IDENTITY_TOKEN_FILE", f"{EVIL}/config"),
    **all_of("AWS_SHARED_CREDENTIALS_FILE BOTO_CONFIG", f"{EVIL}/credentials"),
    **all_of("AWS_CA_BUNDLE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE SSL_CERT_FILE", f"{EVIL}/ca.pem"),
    **all_of("AWS_DATA_PATH SSL_CERT_DIR OPENSSL_MODULES OPENSSL_ENGINES HOME", EVIL),
    "SSLKEYLOGFILE": f"{EVIL}/keys",
    "OPENSSL_CONF": f"{EVIL}/openssl.cnf",
    # Python; two of which it obeys in spite of its options. From 3.11 on, even with -I: a file of
    # the value's name with the ending ._pth says where all modules are.
    **all_of("PYTHONEXECUTABLE __PYVENV_LAUNCHER__", f"{EVIL}/python"),
    **all_of("PYTHONPATH PYTHONHOME PYTHONUSERBASE PYTHONPYCACHEPREFIX", EVIL),
    **all_of("PYTHONINSPECT PYTHONDEBUG PYTHONDEVMODE PYTHONDUMPREFS PYTHONCASEOK", "1"),
    **all_of("PYTHONHASHSEED PYTHONIOENCODING PYTHONMALLOC PYTHONPLATLIBDIR", "evil"),
    **all_of("PYTHON_GIL PYTHON_PRESITE", "evil"),
    **all_of("PYTHONOPTIMIZE PYTHONVERBOSE PYTHONPROFILEIMPORTTIME PYTHONINTMAXSTRDIGITS", "2"),
    "PYTHONSTARTUP": f"{EVIL}/startup.py",
    "PYTHONWARNINGS": "error",
    "PYTHONUTF8": "0",
    # The C library. Python opens the time zone's file before the program begins.
    "TZ": f":{FIFO}",
    "RES_OPTIONS": "timeout:30 attempts:9 ndots:15",
    **all_of("HOSTALIASES RESOLV_HOST_CONF", f"{EVIL}/hosts"),
    **all_of("TMPDIR TEMP TMP PATH", EVIL),
    **all_of("LANG LC_ALL LC_TIME", "tr_TR.ISO-8859-9"),
    "LC_CTYPE": "ja_JP.EUC-JP",
}

TRAP = f"""\
import posix
if posix.geteuid() == 0:
    posix.close(posix.open({OWNED!r}, posix.O_CREAT))
def main():
    pass
"""
TRAPS = {
    **{
        f"{name}.py": TRAP
        for name in (
            *("evil", "sitecustomize", "usercustomize", "startup", "site", "json", "six", "os"),
            *("syslog", "botocore/__init__", "tattle/__init__", "encodings/__init__"),
        )
    },
    "python._pth": f"{EVIL}\n",
    "config": f"[default]\nendpoint_url = {DECOY}\nca_bundle = {EVIL}/ca.pem\n"
    f"credential_process = {EVIL}/process\n[profile evil]\nregion = eu-west-1\n",
    ".aws/config": f"[default]\nendpoint_url = {DECOY}\n",
    "credentials": "[default]\naws_access_key_id = AKIAALICE\naws_secret_access_key = alice\n",
    "process": f"#!/bin/sh\necho process >>{OWNED}\n",
    "ca.pem": "not a certificate\n",
    "hosts": f"{EVENTBRIDGE_HOST} localhost\n",
    "events/2015-10-07/service-2.json": "{}",
    "openssl.cnf": f"openssl_conf = a\n[a]\nproviders = b\n[b]\nevil = c\n[c]\n"
    f"module = {EVIL}/owned.so\nactivate = 1\n",
}

# A shared object that leaves a mark where it is loaded by root.
OWNED_C = f"""
#include <stdio.h>
#include <unistd.h>
unsigned int la_version(unsigned int version) {{ return version; }}
__attribute__((constructor)) static void owned(void) {{
    if (geteuid() == 0) {{
        FILE *file = fopen("{OWNED}", "a");
        if (file) {{ fputs("loaded\\n", file); fclose(file); }}
    }}
}}
"""

# Writes down the environment block it was given, as a naive hook would see it.
DUMPING_HOOK = r"""#!/bin/sh
{ /usr/bin/tr '\n\0' '~\n' </proc/$$/environ; echo; } >>/tmp/blocks
"""


def attack(box: Instance, variables: Mapping[str, str]) -> None:
    """Have alice prepare herself; see pam_env.conf(5)."""
    box.configure_pam(user_readenv=True)
    lines = "".join(f'{name} DEFAULT="{value}"\n' for name, value in variables.items())
    box.write("/home/alice/.pam_environment", lines, owner="alice")
    box.run(["rm", "-rf", EVIL], check=True)
    for name, content in TRAPS.items():
        box.write(f"{EVIL}/{name}", content, 0o755, owner="alice")
    box.run(["mkfifo", "-m", "666", FIFO], check=True)
    box.run(["chown", "-R", "alice:", EVIL], check=True)


def assert_reported(box: Instance, began: float) -> None:
    """Both events are what they should be, and went where they should."""
    entries = box.eventbridge.wait_for(2)
    for entry, state in zip(entries, ("opened", "closed")):
        assert is_the_default_event(entry, "alice", REMOTE_HOST, state, began)
    assert len(entries) == 2
    for call in box.eventbridge.calls():
        expected = ("accepted", EVENTBRIDGE_HOST, EVENTBRIDGE_HOST)
        assert (call.outcome, call.host, call.server_name) == expected


def assert_a_login_is_reported(box: Instance) -> None:
    """Log in and out. The two events are sent by two processes, neither of which meets a trap."""
    with EventBridge(bind("127.0.0.1", DECOY_PORT, box.network)) as decoy:
        began = time.time()
        with box.logged_in("alice"):
            box.eventbridge.wait_for(1)
            eventually(lambda: box.spool() == [])
            (deliverer,) = box.deliverers()
            assert box.read(f"/proc/{deliverer.pid}/environ") == ""  # nothing has ever been there
            box.kill_deliverers()
        assert_reported(box, began)
        assert decoy.connection_count() == 0
    assert box.log() == []
    assert not box.path(OWNED).exists(), box.read(OWNED)


def blocks(box: Instance, count: int) -> list[list[str]]:
    """The environment blocks that DUMPING_HOOK was given, once there are that many."""

    def dumped() -> list[str]:
        there = box.path("/tmp/blocks").exists()
        return box.read("/tmp/blocks").split("\n\n")[:-1] if there else []

    eventually(lambda: len(dumped()) >= count)
    return [block.split("\n") for block in dumped()]


def names_in(block: list[str]) -> list[str]:
    return [variable.partition("=")[0] for variable in block]


# The environment


def test_no_other_module_of_ours_looks_at_the_environment() -> None:
    package = ROOT / "src" / "tattle"
    looks = re.compile(r"\b(os|posix)\.(environ|getenv)")
    modules = [path for path in package.rglob("*.py") if looks.search(path.read_text())]
    assert {str(path.relative_to(package)) for path in modules} == READERS


def test_what_a_user_sets_changes_neither_event_nor_destination_nor_code(
    instance: Instance,
) -> None:
    shutil.rmtree(instance.path("/var/cache/tattle"), ignore_errors=True)  # more to do
    attack(instance, VARIABLES)
    assert_a_login_is_reported(instance)


def test_all_of_it_reaches_the_hook(instance: Instance) -> None:
    """Or else the test above would show nothing."""
    attack(instance, VARIABLES)
    instance.install(DUMPING_HOOK)
    with instance.logged_in("alice"):
        pass
    for block in blocks(instance, 2):
        assert {name.partition("=")[0] for name in VARIABLES} <= {*names_in(block)}
        assert names_in(block).count("PAM_USER") == 2
        assert block.index("PAM_USER=root") < block.index("PAM_USER=alice")


def test_what_is_next_to_deliver_has_an_empty_environment_too(instance: Instance) -> None:
    instance.eventbridge.set(fault="hang")
    with instance.session() as session:
        for user in ("first", "second"):
            assert session.hook(user=user, before=VARIABLES.items()).returncode == 0
    eventually(instance.standbys)
    (process,) = instance.standbys()
    assert instance.read(f"/proc/{process.pid}/environ") == ""


def test_odd_lines_of_a_users_file_change_nothing(instance: Instance) -> None:
    attack(instance, {})
    lines = [
        'A DEFAULT="x\\',
        'PAM_SERVICE=sshd"',
        "PAM_USER DEFAULT=@{PAM_USER}${HOME}",
        "PAM_TYPE DEFAULT=@{PAM_RHOST} OVERRIDE=close_session",
        "= DEFAULT=PAM_USER=root",
        "B\x0bPAM_USER=root DEFAULT=x",
        "C DEFAULT=\xff\xfe\x01\x1b[2J",
        "SSH_CONNECTION DEFAULT=8.8.8.8",
        "SSH_AUTH_INFO_0 DEFAULT=password",
        "D DEFAULT=" + "x" * 1000,
        "PAM_RHOST=8.8.8.8 DEFAULT=",
        "PAM_USER",
    ]
    text = "".join(f"{line}\n" for line in lines).encode("latin-1")
    instance.write("/home/alice/.pam_environment", text, owner="alice")
    assert_a_login_is_reported(instance)


def test_a_language_that_python_has_no_name_for_does_not_stop_the_hook(instance: Instance) -> None:
    """Where such a locale is installed, or with a user's own in LOCPATH."""
    attack(instance, {"LC_ALL": "hy_AM.ARMSCII-8", "LOCPATH": f"{EVIL}/locales"})
    folder = f"{EVIL}/locales/hy_AM.ARMSCII-8"
    need(shutil.which("localedef"), "needs localedef")
    instance.run(["mkdir", "-p", f"{EVIL}/locales"], check=True)
    command = ["localedef", "--no-archive", "-i", "hy_AM", "-f", "ARMSCII-8", folder]
    need(instance.run(command).returncode == 0, "needs the sources of locales")
    assert_a_login_is_reported(instance)


def test_what_the_client_and_sshds_own_files_set_does_not_reach_the_hook(
    instance: Instance,
) -> None:
    names = {name for name in [*VARIABLES, "LD_PRELOAD"] if re.fullmatch(r"\w+", name)} - {"PATH"}
    instance.start_sshd("AcceptEnv *", "PermitUserEnvironment yes")
    key = instance.read("/home/alice/.ssh/authorized_keys")
    options = ",".join(f'environment="{name}=/nowhere"' for name in names)
    instance.write("/home/alice/.ssh/authorized_keys", f"{options} {key}", 0o600, "alice")
    variables = "".join(f"{name}=/nowhere\n" for name in names)
    instance.write("/home/alice/.ssh/environment", variables, 0o600, "alice")
    instance.install(DUMPING_HOOK)
    setting = f"SetEnv=LC_EVIL=1 {' '.join(f'{name}=/nowhere' for name in names)}"
    done = instance.ssh("alice", "/usr/bin/env", options=["-o", setting])
    assert "\nLD_PRELOAD=/nowhere\n" in done.stdout  # in her own session, and there alone
    for block in blocks(instance, 2):
        assert "/nowhere" not in "".join(block)
        assert "LC_EVIL" not in names_in(block)


# What the loader and the C library do before the program's first line


@pytest.fixture(scope="module")
def shared_object(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    need(shutil.which("cc"), "needs a C compiler")
    folder: Path = tmp_path_factory.mktemp("so")
    (folder / "owned.c").write_text(OWNED_C)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "owned.so", "owned.c"], cwd=folder, check=True)
    return (folder / "owned.so").read_bytes()


def remove_user_readenv(box: Instance) -> None:
    """Close the hole as README.md's quick start does."""
    box.write("/etc/pam.d/sshd", box.read("/etc/pam.d/sshd"))  # so that a reset brings it back
    command = readme.commands(readme.text("pam-lines"))[0]
    assert "user_readenv" in command
    box.run(["/bin/sh", "-c", command.replace("sudo ", "")], check=True)


# What makes the loader run a user's code, in any program
LOADER = {"LD_PRELOAD": f"{EVIL}/owned.so", "LD_AUDIT": f"{EVIL}/owned.so"}
# It lists the libraries, and ends with status 0.
NO_HOOK = {"LD_TRACE_LOADED_OBJECTS": "1"}
# More than execve(2) takes: a third of the stack's limit, 2 MiB of usual 8. sshd keeps variables of
# this name from the session, so that the user's own shell starts as ever.
TOO_MUCH = {f"SSH_AUTH_INFO_{number}": "x" * 8000 for number in range(300)}


@pytest.mark.parametrize("variable", LOADER)
def test_with_user_readenv_a_users_code_runs_as_root_at_open_and_at_close(
    instance: Instance, shared_object: bytes, variable: str
) -> None:
    attack(instance, {variable: LOADER[variable]})
    instance.write(f"{EVIL}/owned.so", shared_object, owner="alice")
    with instance.logged_in("alice"):
        assert instance.path(OWNED).exists()
        instance.path(OWNED).unlink()
    eventually(instance.path(OWNED).exists)


def test_with_user_readenv_a_user_keeps_the_hook_from_running(instance: Instance) -> None:
    attack(instance, NO_HOOK)
    instance.ssh("alice", "true")
    instance.syslog.wait_for("session closed for user alice")
    eventually(lambda: instance.processes("sshd") == [])
    assert instance.spool() == []
    assert instance.processes(TATTLE) == []
    attack(instance, TOO_MUCH)
    assert instance.ssh("alice", "echo in").stdout == "in\n"
    assert "Argument list too long" in instance.syslog.wait_for("execve").message
    assert instance.spool() == []
    instance.configure_pam(control="required", user_readenv=True)
    assert "in\n" not in instance.ssh("alice", "echo in").stdout  # unseen, she does not get in


def test_without_user_readenv_none_of_it_works(instance: Instance, shared_object: bytes) -> None:
    attack(instance, {**VARIABLES, **LOADER, **NO_HOOK, **TOO_MUCH, "LD_DEBUG": "all"})
    instance.write(f"{EVIL}/owned.so", shared_object, owner="alice")
    remove_user_readenv(instance)
    assert_a_login_is_reported(instance)
