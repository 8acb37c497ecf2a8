"""What .github holds: the workflow covers what pyproject.toml promises, and says what exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import ROOT, need_root

GITHUB = ROOT / ".github"


WORKFLOWS = {
    file.stem: yaml.safe_load(file.read_text()) for file in (GITHUB / "workflows").glob("*.yml")
}
JOBS = [job for workflow in WORKFLOWS.values() for job in workflow["jobs"].values()]
STEPS: list[dict[str, Any]] = [step for job in JOBS for step in job["steps"]]
ON: Any = True  # what YAML 1.1 makes of the key `on`


def script(containing: str, workflow: str = "build") -> str:
    """The script of the one step in which that stands."""
    steps = [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]
    (found,) = (step["run"] for step in steps if containing in step.get("run", ""))
    return str(found)


def bash(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as GitHub does: https://docs.github.com/actions/reference/workflows-and-actions/workflow-syntax#jobsjob_idstepsshell"""
    return subprocess.run(
        ["/bin/bash", "-e", "-c", script],
        cwd=folder,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


BY_DISTROS = ["3.14", "3.15"]  # the test tools' lock has no wheels for them all


def test_every_python_of_the_classifiers_is_tested() -> None:
    """There or by `./build.sh distros`, whose suites bring the newest."""
    text = (ROOT / "pyproject.toml").read_text()
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert (
        WORKFLOWS["build"]["jobs"]["test"]["strategy"]["matrix"]["python"] + BY_DISTROS == promised
    )


def test_actions_are_pinned_and_rights_are_few() -> None:
    for step in STEPS:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", "a@" + "0" * 40)), step
    assert [one["permissions"] for one in WORKFLOWS.values()] == [{"contents": "read"}] * 2
    for job in ("test", "compare", "audit"):
        assert "permissions" not in WORKFLOWS["build"]["jobs"][job]


def test_what_it_runs_is_shell_and_takes_nothing_from_outside_as_code() -> None:
    scripts = [step["run"] for step in STEPS if "run" in step]
    for one in scripts:
        assert "${{" not in one
        done = subprocess.run(["/bin/bash", "-n"], input=one, text=True)
        assert done.returncode == 0, one


def test_nothing_may_be_skipped_there(tmp_path: Path) -> None:
    """CI=true, which GitHub sets, has to get past sudo, and the Python, too."""
    need_root("sudo")
    (tmp_path / "build.sh").write_text('#!/bin/sh\necho "$1 $CI $PYTHON"\n')
    (tmp_path / "build.sh").chmod(0o755)
    done = bash(script("build.sh test"), tmp_path, CI="true", PYTHON="/a/python")
    assert done.stdout == "test true /a/python\n", done.stderr


@pytest.mark.parametrize(("other", "status"), [("same", 0), ("different", 1)])
def test_the_pythons_builds_are_compared(tmp_path: Path, other: str, status: int) -> None:
    for python, digest in (("3.9", "same"), ("3.13", other)):
        folder = tmp_path / f"digests/digest-{python}"
        folder.mkdir(parents=True)
        (folder / "tattle.sha256").write_text(f"{digest}  tattle\n")
    assert bash(script("uniq -c"), tmp_path).returncode == status
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/tattle.sha256").write_text("same  tattle\n")  # the release's own
    assert bash(script("dist/tattle.sha256 | wc"), tmp_path).returncode == status
    assert WORKFLOWS["build"]["jobs"]["release"]["needs"] == ["compare", "audit"]
    assert WORKFLOWS["build"]["jobs"]["compare"]["needs"] == "test"


def test_a_release_has_all_that_build_sh_makes() -> None:
    made = re.findall(r"dist/[\w.]*\w", (ROOT / "build.sh").read_text())
    assert {*made} <= {*script("gh release create").split()}


def test_vulnerabilities_and_updates_are_looked_for_without_being_asked() -> None:
    assert script("build.sh audit")
    assert script("build.sh lock", "update")
    for one in WORKFLOWS.values():
        assert re.fullmatch(r"\d+ \d+ .*", one[ON]["schedule"][0]["cron"])
    (update,) = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    assert update["package-ecosystem"] == "github-actions"
    assert update["schedule"] == {"interval": "weekly"}


def test_an_update_is_a_branch_of_its_own(tmp_path: Path) -> None:
    """And none where nothing changed. A repository and a gh are in the place of GitHub's."""
    upstream, checkout, bin_ = (tmp_path / name for name in ("upstream", "checkout", "bin"))
    bin_.mkdir()
    (bin_ / "gh").write_text('#!/bin/sh\necho "$@" >../asked\n')
    (bin_ / "gh").chmod(0o755)
    git = "git -c user.name=x -c user.email=x@x"
    bash(f"git init -q --bare -b main {upstream} && git clone -q {upstream} {checkout}", tmp_path)
    bash(f"echo 1 >lock; git add lock; {git} commit -qm 1; git push -q origin HEAD:main", checkout)
    update = script("gh pr create", "update")
    path = f"{bin_}:/usr/bin:/bin"
    assert bash(update, checkout, PATH=path).returncode == 0
    assert not (tmp_path / "asked").exists()
    (checkout / "lock").write_text("2\n")
    done = bash(update, checkout, PATH=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text() == "pr create --fill\n"
    branches = bash("git branch --format='%(refname:short)'", upstream).stdout.split()
    assert [one for one in branches if one.startswith("locks-")] != []
    assert bash("git show main:lock", upstream).stdout == "1\n"


def test_the_lock_is_resolved_by_a_program_of_a_known_hash() -> None:
    lock = (ROOT / ".ci/requirements.lock").read_text()
    assert re.findall(r"(?m)^(\S+)==\S+ \\$", lock) == ["uv"]
    assert lock.count("--hash=sha256:") > 1  # for more than one kind of machine
    installs = re.findall(r'pip "\S+" (?:install|download).*', (ROOT / "build.sh").read_text())
    assert installs
    assert all('"${hashed[@]}"' in one for one in installs)


def test_folders_and_files_it_names_are_there() -> None:
    for page in GITHUB.glob("*.md"):
        for name in re.findall(r"`((?:src|tests|\.)/[\w./]+)`", page.read_text()):
            assert (ROOT / name).exists(), name
