"""What an ordinary user can try by logging in: a real sshd, Debian's own PAM stack, which lets
~/.pam_environment into the environment of a hook that runs as root."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import readme_blocks as readme
from standins.eventbridge import Call, EventBridge
from standins.instance import EVENTBRIDGE_HOST, REMOTE_HOST, TATTLE, Instance
from standins.server import bind
from support import eventually, need

pytestmark = [pytest.mark.root, pytest.mark.slow]

EVIL = "/home/alice/evil"  # alice's folder of traps
OWNED = "/tmp/owned"  # a trap writes there when root springs it
DECOY_PORT = 8888
DECOY = f"http://127.0.0.1:{DECOY_PORT}"

# What the user sets, by what it is aimed at.
ATTACKS: dict[str, dict[str, str]] = {
    "the items of pam_exec": {
        "PAM_SERVICE": "sudo",
        "PAM_USER": "root",
        "PAM_TTY": "tty1",
        "PAM_RHOST": "8.8.8.8",
        "PAM_RUSER": "bob",
        "PAM_TYPE": "close_session",
    },
    "the items of pam_exec, inside other values": {
        "A": "PAM_SERVICE=sshd PAM_USER=root PAM_TYPE=close_session",
        "PAM_SERVICE=x": "PAM_USER=root",
        "PAM_TYPE": "PAM_SERVICE=sshd",
        "TATTLE_TIME": "1",
        "TATTLE_PARENT": "1",
        "TATTLE_UNVERIFIED_PAM_USER": "root",
    },
    "shiv": {
        "SHIV_ENTRY_POINT": "evil:main",
        "SHIV_MODULE": "evil:main",
        "SHIV_CONSOLE_SCRIPT": "evil",
        "SHIV_INTERPRETER": "1",
        "SHIV_ROOT": f"{EVIL}/root",
        "SHIV_FORCE_EXTRACT": "1",
        "SHIV_COMPILE_PYC": "1",
        "SHIV_COMPILE_WORKERS": "1",
        "SHIV_EXTEND_PYTHONPATH": "1",
        "SHIV_PREPEND_PYTHONPATH": EVIL,
    },
    "AWS: endpoints": {
        "AWS_ENDPOINT_URL": DECOY,
        "AWS_ENDPOINT_URL_EVENTBRIDGE": DECOY,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": DECOY,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "ipv6",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EXECUTION_ENV": "AWS_Lambda",
        "AWS_SDK_UA_APP_ID": "alice",
    },
    "AWS: files": {
        "AWS_PROFILE": "evil",
        "AWS_DEFAULT_PROFILE": "evil",
        "AWS_CONFIG_FILE": f"{EVIL}/config",
        "AWS_SHARED_CREDENTIALS_FILE": f"{EVIL}/credentials",
        "AWS_CREDENTIAL_FILE": f"{EVIL}/credentials",
        "BOTO_CONFIG": f"{EVIL}/credentials",
        "AWS_CA_BUNDLE": f"{EVIL}/ca.pem",
        "REQUESTS_CA_BUNDLE": f"{EVIL}/ca.pem",
        "CURL_CA_BUNDLE": f"{EVIL}/ca.pem",
        "AWS_DATA_PATH": f"{EVIL}/models",
        "AWS_LOGIN_CACHE_DIRECTORY": EVIL,
        "HOME": EVIL,
    },
    "AWS: credentials": {
        "AWS_ACCESS_KEY_ID": "AKIAALICE",
        "AWS_SECRET_ACCESS_KEY": "alice",
        "AWS_SESSION_TOKEN": "alice",
        "AWS_SECURITY_TOKEN": "alice",
        "AWS_CREDENTIAL_EXPIRATION": "2001-01-01T00:00:00Z",
        "AWS_BEARER_TOKEN_EVENTBRIDGE": "alice",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": DECOY,
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "alice",
        "AWS_WEB_IDENTITY_TOKEN_FILE": f"{EVIL}/config",
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/alice",
        "AWS_ROLE_SESSION_NAME": "alice",
    },
    "AWS: whether and how often": {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_EC2_METADATA_V1_DISABLED": "false",
        "AWS_METADATA_SERVICE_TIMEOUT": "0",
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "0",
        "AWS_MAX_ATTEMPTS": "0",
        "AWS_RETRY_MODE": "evil",
        "AWS_DEFAULTS_MODE": "evil",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
        "AWS_AUTH_SCHEME_PREFERENCE": "noauth",
        "BOTO_DISABLE_COMMONNAME": "1",
        "BOTO_DISABLE_CRT": "true",
        "BOTOCORE_EXPERIMENTAL__PLUGINS": "evil=evil",
        "BOTO_EXPERIMENTAL__ADD_PROXY_HOST_HEADER": "1",
    },
    "proxies": {
        **{
            name: DECOY
            for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
            for name in (upper, upper.lower())
        },
        "NO_PROXY": "localhost",
        "no_proxy": "localhost",
        "REQUEST_METHOD": "GET",
    },
    "TLS": {
        "SSL_CERT_FILE": f"{EVIL}/ca.pem",
        "SSL_CERT_DIR": EVIL,
        "SSLKEYLOGFILE": f"{EVIL}/keys",
        "OPENSSL_CONF": f"{EVIL}/openssl.cnf",
        "OPENSSL_CONF_INCLUDE": EVIL,
        "OPENSSL_MODULES": EVIL,
        "OPENSSL_ENGINES": EVIL,
        "CTLOG_FILE": f"{EVIL}/config",
        "RANDFILE": f"{EVIL}/config",
    },
    "Python": {
        "PYTHONPATH": EVIL,
        "PYTHONHOME": EVIL,
        "PYTHONSTARTUP": f"{EVIL}/startup.py",
        "PYTHONINSPECT": "1",
        "PYTHONUSERBASE": EVIL,
        "PYTHONWARNINGS": "error",
        "PYTHONBREAKPOINT": "evil.main",
        "PYTHONCASEOK": "1",
        "PYTHONDEBUG": "1",
        "PYTHONDEVMODE": "1",
        "PYTHONDUMPREFS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONHASHSEED": "evil",
        "PYTHONINTMAXSTRDIGITS": "1",
        "PYTHONIOENCODING": "evil",
        "PYTHONLEGACYWINDOWSSTDIO": "1",
        "PYTHONMALLOC": "evil",
        "PYTHONMALLOCSTATS": "1",
        "PYTHONNODEBUGRANGES": "1",
        "PYTHONOPTIMIZE": "2",
        "PYTHONPLATLIBDIR": "evil",
        "PYTHONPROFILEIMPORTTIME": "1",
        "PYTHONPYCACHEPREFIX": EVIL,
        "PYTHONTRACEMALLOC": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONVERBOSE": "3",
        "PYTHON_GIL": "evil",
        "PYTHON_JIT": "1",
        "PYTHON_CPU_COUNT": "1",
        "PYTHON_PRESITE": "evil",
    },
    "the C library, once the program runs": {
        "RES_OPTIONS": "timeout:30 attempts:9 ndots:15",
        "HOSTALIASES": f"{EVIL}/hosts",
        "LOCALDOMAIN": "evil.example",
        "RESOLV_HOST_CONF": f"{EVIL}/hosts",
        "RESOLV_ADD_TRIM_DOMAINS": "com",
        "TMPDIR": EVIL,
        "TEMP": EVIL,
        "TMP": EVIL,
        "PATH": EVIL,
        "TZ": "Asia/Tokyo",
        "POSIXLY_CORRECT": "1",
        "COLUMNS": "-1",
        "IFS": "/",
        "ENV": f"{EVIL}/startup.py",
        "BASH_ENV": f"{EVIL}/startup.py",
    },
    "the language": {
        "LANG": "tr_TR.ISO-8859-9",
        "LANGUAGE": "tr",
        "LC_ALL": "tr_TR.ISO-8859-9",
        "LC_CTYPE": "ja_JP.EUC-JP",
        "LC_NUMERIC": "de_DE",
        "LC_TIME": "ar_SA",
    },
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
    "models/events/2015-10-07/service-2.json": "{}",
    "models/endpoints.json": "{}",
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


def pam_environment(variables: Mapping[str, str]) -> str:
    """The text of a ~/.pam_environment; see pam_env.conf(5)."""
    return "".join(f'{name} DEFAULT="{value}"\n' for name, value in variables.items())


def attack(box: Instance, variables: Mapping[str, str]) -> None:
    """Have alice prepare herself, and the machine be one that still is to unpack botocore."""
    need("user_readenv=1" in box.read("/etc/pam.d/sshd"), "needs a stock Debian 12 PAM stack")
    box.write("/home/alice/.pam_environment", pam_environment(variables), owner="alice")
    box.run(["rm", "-rf", EVIL], check=True)
    for name, content in TRAPS.items():
        box.write(f"{EVIL}/{name}", content, 0o755, owner="alice")
    box.run(["chown", "-R", "alice:", EVIL], check=True)


@contextmanager
def logged_in(box: Instance, **popen_options: Any) -> Iterator[subprocess.Popen[str]]:
    """Alice's session, open while entered: she reads a line. sshd closes it after that."""
    command = box.ssh_command(
        "ssh", "alice@127.0.0.1", "echo in; read line", user="alice", source=REMOTE_HOST
    )
    pipe = subprocess.PIPE
    with box.popen(command, stdin=pipe, stdout=pipe, stderr=pipe, **popen_options) as ssh:
        assert ssh.stdout
        assert ssh.stdout.readline() == "in\n", ssh.communicate()
        yield ssh
        ssh.communicate("\n", timeout=20)


def assert_reported(box: Instance, began: float) -> list[Call]:
    """Both events are what they should be, and went where they should."""
    entries = box.eventbridge.wait_for(2)
    for entry, state in zip(entries, ("opened", "closed")):
        assert {**entry.raw, "Time": 0} == {
            "Time": 0,
            "Source": "com.unbounce.tattle",
            "DetailType": "SSH connection event detected",
            "Resources": ["arn:aws:ec2:us-east-1:012345678901:instance/i-abc123abc123"],
            "Detail": f'{{"username": "alice", "remote_host": "{REMOTE_HOST}", '
            f'"session": "{state}"}}',
        }
        assert int(began) <= entry.raw["Time"] <= time.time()
    assert len(entries) == 2
    calls = box.eventbridge.calls()
    for call in calls:
        assert (call.outcome, call.host, call.server_name) == (
            "accepted",
            EVENTBRIDGE_HOST,
            EVENTBRIDGE_HOST,
        )
    return calls


def assert_a_login_is_reported(box: Instance) -> list[Call]:
    """Log in and out. The two events are sent by two processes, neither of which meets a trap."""
    with EventBridge(bind("127.0.0.1", DECOY_PORT, f"/proc/{box.pid}/ns/net")) as decoy:
        began = time.time()
        with logged_in(box):
            box.eventbridge.wait_for(1)
            eventually(lambda: box.spool() == [])
            box.kill_deliverers()
        calls = assert_reported(box, began)
        assert decoy.connection_count() == 0
    assert box.log() == []
    assert not box.path(OWNED).exists(), box.read(OWNED)
    return calls


def user_agents(calls: Iterable[Call]) -> set[str]:
    """What the calls say of the client; botocore lists its features in any order."""
    return {
        re.sub(r"(?<= m/)\S+", lambda m: ",".join(sorted(m[0].split(","))), agent)
        for agent in (call.headers["user-agent"] for call in calls)
    }


@pytest.fixture(scope="module")
def usual_user_agents(shared_instance: Instance) -> set[str]:
    shared_instance.reset()
    return user_agents(assert_a_login_is_reported(shared_instance))


@pytest.mark.parametrize("aim", ATTACKS)
def test_what_a_user_sets_changes_neither_event_nor_destination_nor_code(
    usual_user_agents: set[str], instance: Instance, aim: str
) -> None:
    shutil.rmtree(instance.path("/var/cache/tattle"))  # so that shiv has something to do
    attack(instance, ATTACKS[aim])
    assert user_agents(assert_a_login_is_reported(instance)) == usual_user_agents


def test_all_of_it_reaches_the_hook(instance: Instance, artifact: Path) -> None:
    """Or else the test above would show nothing."""
    variables = {name: value for attacks in ATTACKS.values() for name, value in attacks.items()}
    attack(instance, variables)
    try:
        instance.install(DUMPING_HOOK)
        with logged_in(instance):
            (opened,) = blocks(instance)
        opened, closed = blocks(instance, 2)
    finally:
        instance.install(artifact)
    for block in (opened, closed):
        names = [variable.partition("=")[0] for variable in block]
        assert {name.partition("=")[0] for name in variables} <= {*names}
        assert names.count("PAM_USER") == 2
        assert block.index("PAM_USER=root") < block.index("PAM_USER=alice")


def blocks(box: Instance, count: int = 1) -> list[list[str]]:
    """The environment blocks that DUMPING_HOOK was given, once there are that many."""
    eventually(lambda: len(dumped(box)) >= count)
    return [block.split("\n") for block in dumped(box)]


def dumped(box: Instance) -> list[str]:
    return box.read("/tmp/blocks").split("\n\n")[:-1] if box.path("/tmp/blocks").exists() else []


# The order and form of what comes before pam_exec's own items


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


def test_what_the_client_and_sshds_own_files_set_does_not_reach_the_hook(
    instance: Instance, artifact: Path
) -> None:
    names = {name: value for aim in ATTACKS.values() for name, value in aim.items()}
    names = {name: "/nowhere" for name in [*names, "LD_PRELOAD"] if re.fullmatch(r"\w+", name)}
    del names["PATH"]  # her shell's own
    instance.start_sshd("AcceptEnv *", "PermitUserEnvironment yes")
    try:
        key = instance.read("/home/alice/.ssh/authorized_keys")
        options = ",".join(f'environment="{name}={value}"' for name, value in names.items())
        instance.write("/home/alice/.ssh/authorized_keys", f"{options} {key}", 0o600, "alice")
        variables = "".join(f"{name}={value}\n" for name, value in names.items())
        instance.write("/home/alice/.ssh/environment", variables, 0o600, "alice")
        instance.install(DUMPING_HOOK)
        setting = [f"SetEnv=LC_EVIL=1 {' '.join(f'{n}={v}' for n, v in names.items())}"]
        done = instance.ssh(
            "alice", "/usr/bin/env", options=["-o", *setting], env={"LC_PAPER": "x"}
        )
        assert "\nLD_PRELOAD=/nowhere\n" in done.stdout  # in her own session, and there alone
        for block in blocks(instance, 2):
            own = {variable.partition("=")[0] for variable in block}
            assert not (own - {f"PAM_{item}" for item in PAM_ITEMS}) & {*names, "LC_EVIL"}
        instance.install(artifact)
        instance.syslog.clear()
        began = time.time()
        instance.ssh("alice", "true", options=["-o", *setting])
        assert_reported(instance, began)
    finally:
        instance.install(artifact)


PAM_ITEMS = ("SERVICE", "USER", "TTY", "RHOST", "RUSER", "TYPE")


# What the loader and the C library do before the program's first line


@pytest.fixture(scope="module")
def shared_object(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    need(shutil.which("cc"), "needs a C compiler")
    folder = tmp_path_factory.mktemp("so")
    (folder / "owned.c").write_text(OWNED_C)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "owned.so", "owned.c"], cwd=folder, check=True)
    return (folder / "owned.so").read_bytes()


def remove_user_readenv(box: Instance) -> None:
    """Close the hole as README.md's quick start does."""
    box.write("/etc/pam.d/sshd", box.read("/etc/pam.d/sshd"))  # so that a reset brings it back
    command = readme.commands(readme.text("pam-line"))[0]
    assert "user_readenv" in command
    box.run(["/bin/sh", "-c", command.replace("sudo ", "")], check=True)


# What runs a user's code: the loader's two, in any program.
LOADER = {"LD_PRELOAD": f"{EVIL}/owned.so", "LD_AUDIT": f"{EVIL}/owned.so"}


@pytest.mark.parametrize("variable", LOADER)
def test_with_user_readenv_a_users_code_runs_as_root_at_open_and_at_close(
    instance: Instance, shared_object: bytes, variable: str
) -> None:
    attack(instance, {variable: LOADER[variable]})
    instance.write(f"{EVIL}/owned.so", shared_object, owner="alice")
    with logged_in(instance):
        assert instance.path(OWNED).exists()
        instance.path(OWNED).unlink()
    eventually(instance.path(OWNED).exists)


def test_what_python_obeys_in_spite_of_its_options_reaches_no_python(instance: Instance) -> None:
    """From 3.11 on, even with -I: a file of the value's name with the ending ._pth says where all
    modules are. And a time zone may be a FIFO, which Python opens before the program begins."""
    fifo = f"{EVIL}/fifo"
    python = f"{EVIL}/python"
    variables = {"PYTHONEXECUTABLE": python, "__PYVENV_LAUNCHER__": python, "TZ": f":{fifo}"}
    attack(instance, variables)
    instance.run(["mkfifo", "-m", "666", fifo], check=True)
    assert_a_login_is_reported(instance)


def test_without_user_readenv_none_of_it_runs(instance: Instance, shared_object: bytes) -> None:
    attack(instance, {**LOADER, "OPENSSL_CONF": f"{EVIL}/openssl.cnf"})
    instance.write(f"{EVIL}/owned.so", shared_object, owner="alice")
    remove_user_readenv(instance)
    assert_a_login_is_reported(instance)


def test_with_user_readenv_a_user_keeps_the_hook_from_running(instance: Instance) -> None:
    """LD_TRACE_LOADED_OBJECTS: the loader lists the libraries, and ends with status 0."""
    attack(instance, {"LD_TRACE_LOADED_OBJECTS": "1"})
    instance.ssh("alice", "true")
    instance.syslog.wait_for("session closed for user alice")
    eventually(lambda: instance.processes("sshd") == [])
    assert instance.spool() == []
    assert instance.processes(TATTLE) == []
    assert instance.eventbridge.entries() == []


def test_without_user_readenv_the_hook_runs_at_once(instance: Instance) -> None:
    attack(instance, {"LD_TRACE_LOADED_OBJECTS": "1", "TZ": f":{EVIL}/fifo", "LD_DEBUG": "all"})
    instance.run(["mkfifo", "-m", "666", f"{EVIL}/fifo"], check=True)
    remove_user_readenv(instance)
    assert_a_login_is_reported(instance)


# More than execve(2) takes: a third of the stack's limit, 2 MiB of usual 8. sshd keeps variables of
# this name from the session, so that the user's own shell starts as ever.
TOO_MUCH = {f"SSH_AUTH_INFO_{number}": "x" * 8000 for number in range(300)}


def test_only_without_user_readenv_no_user_can_keep_the_hook_from_starting(
    instance: Instance,
) -> None:
    attack(instance, TOO_MUCH)
    assert instance.ssh("alice", "echo in").stdout == "in\n"
    assert "Argument list too long" in instance.syslog.wait_for("execve").message
    assert instance.spool() == []
    instance.configure_pam(control="required")
    assert "in\n" not in instance.ssh("alice", "echo in").stdout  # unseen, she does not get in
    remove_user_readenv(instance)
    instance.eventbridge.clear()
    instance.syslog.clear()
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


# `tattle check` finds the hole


def check(box: Instance) -> subprocess.CompletedProcess[str]:
    return box.run([TATTLE, "check"])


def test_check_names_the_line_and_a_command_that_removes_it(instance: Instance) -> None:
    attack(instance, {"LD_PRELOAD": "/nowhere"})
    lines = instance.read("/etc/pam.d/sshd").splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if re.match(r"session.*user_readenv=1", line)]
    found = check(instance)
    assert found.returncode == 1
    assert f"/etc/pam.d/sshd:{number} " in found.stdout
    (command,) = re.findall(r"sed -i .*user_readenv.*", found.stdout)
    instance.write("/etc/pam.d/sshd", "\n".join([*lines, ""]))  # so that a reset brings it back
    instance.run(["/bin/sh", "-c", command], check=True)
    assert "user_readenv" not in "".join(
        line for line in instance.read("/etc/pam.d/sshd").splitlines() if line[0:1] != "#"
    )
    mended = check(instance)
    assert "user_readenv" not in mended.stdout, mended.stdout
    assert mended.returncode == 0, mended.stdout


@pytest.mark.parametrize(
    "line",
    [
        "session required pam_env.so user_readenv=2",
        "session required pam_env.so user_readenv=01 envfile=/etc/default/locale",
        "session required pam_env.so user_readenv=0 user_readenv=1",
        "session required pam_env.so \\\n    user_readenv=1",
        "SESSION required pam_env.so user_readenv=1",
        "session [success=ok default=ignore] pam_env.so user_readenv=1",
        "-session optional /lib/x86_64-linux-gnu/security/pam_env.so user_readenv=1",
        "@include opened",
        "session include opened",
        "session substack opened",
    ],
)
def test_check_finds_the_hole_however_it_is_written(instance: Instance, line: str) -> None:
    attack(instance, {})
    remove_user_readenv(instance)
    instance.write("/etc/pam.d/opened", "session required pam_env.so user_readenv=1\n")
    stack = instance.read("/etc/pam.d/sshd")
    instance.write("/etc/pam.d/sshd", f"{line}\n{stack}")
    found = check(instance)
    assert found.returncode == 1
    assert "user_readenv" in found.stdout


@pytest.mark.parametrize(
    "line",
    [
        "# session required pam_env.so user_readenv=1",
        "session required pam_env.so user_readenv=0",
        "session required pam_env.so user_readenv=1 user_readenv=0",
        "session required pam_env.so # user_readenv=1",
    ],
)
def test_check_sees_no_hole_where_there_is_none(instance: Instance, line: str) -> None:
    attack(instance, {})
    remove_user_readenv(instance)
    stack = instance.read("/etc/pam.d/sshd")
    instance.write("/etc/pam.d/sshd", f"{line}\n{stack}")
    found = check(instance)
    assert found.returncode == 0, found.stdout
