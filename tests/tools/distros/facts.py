"""What a release brings, as README.md's table of distributions has it."""

from __future__ import annotations

import re

from standins.instance import Instance


def of(box: Instance) -> dict[str, str]:
    return {
        "OpenSSH": first(r"OpenSSH_([\w.]+)", box.run(["ssh", "-V"]).stderr),
        "PAM": package(box, "libpam-modules"),
        "Python": box.run(["/usr/bin/python3", "-V"]).stdout.split()[-1],
        "util-linux": package(box, "util-linux"),
        "sudo": package(box, "sudo"),
        "systemd": package(box, "systemd"),
        "user_readenv=1 in": ", ".join(sorted(readenv(box))) or "no file",
        "sudo-i includes sudo": includes(box, "sudo-i", "sudo"),
        "su-l includes su": includes(box, "su-l", "su"),
        "sshd -G": yes(box.run(["/usr/sbin/sshd", "-G"]).returncode == 0),
        "PAMServiceName": yes(
            box.run(["/usr/sbin/sshd", "-T", "-o", "PAMServiceName=x"]).returncode == 0
        ),
        "sshd -T says": first(r"(?i)^(usepam \w+)$", box.run(["/usr/sbin/sshd", "-T"]).stdout),
        "~/.pam_environment": "obeyed" if user_environment(box) else "has no effect",
    }


def package(box: Instance, name: str) -> str:
    """A package's version, without epoch and Debian's revision."""
    told = box.run(["dpkg-query", "-W", "-f", "${Version}", name]).stdout
    return told.rpartition(":")[2].partition("-")[0].partition("+")[0]


def readenv(box: Instance) -> set[str]:
    return {
        file.name
        for file in box.path("/etc/pam.d").iterdir()
        if re.search(r"(?m)^[^#\n]*\buser_readenv=1\b", file.read_text())
    }


def includes(box: Instance, service: str, other: str) -> str:
    if not box.path(f"/etc/pam.d/{service}").exists():
        return f"no {service}"
    included = rf"(?m)^(@include|\w+\s+(include|substack))\s+{other}$"
    return yes(re.search(included, box.read(f"/etc/pam.d/{service}")))


def user_environment(box: Instance) -> bool:
    """Whether the release's stock files let a user's variables into the PAM environment of sshd."""
    box.write("/home/alice/.pam_environment", "FROM_THE_USER=1\n", owner="alice")
    return box.ssh("alice", "echo $FROM_THE_USER").stdout == "1\n"


def first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else "?"


def yes(condition: object) -> str:
    return "yes" if condition else "no"
