"""What .github holds: the workflow covers what pyproject.toml promises, and says what exists."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import yaml

from support import ROOT

GITHUB = ROOT / ".github"


def workflow() -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load((GITHUB / "workflows/build.yml").read_text())
    return found


def steps() -> list[dict[str, Any]]:
    return [step for job in workflow()["jobs"].values() for step in job["steps"]]


BY_DISTROS = ["3.14", "3.15"]  # the test tools' lock has no wheels for them all


def test_every_python_of_the_classifiers_is_tested() -> None:
    """There or by `./build.sh distros`, whose suites bring the newest."""
    text = (ROOT / "pyproject.toml").read_text()
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert workflow()["jobs"]["test"]["strategy"]["matrix"]["python"] + BY_DISTROS == promised


def test_actions_are_pinned_and_rights_are_few() -> None:
    for step in steps():
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", "a@" + "0" * 40)), step
    assert workflow()["permissions"] == {"contents": "read"}
    assert "permissions" not in workflow()["jobs"]["test"]


def test_what_it_runs_is_shell_and_takes_nothing_from_outside_as_code() -> None:
    scripts = [step["run"] for step in steps() if "run" in step]
    assert any("./build.sh test" in script for script in scripts)
    for script in scripts:
        assert "${{" not in script
        done = subprocess.run(["/bin/bash", "-n"], input=script, text=True)
        assert done.returncode == 0, script


def test_a_release_has_all_that_build_sh_makes() -> None:
    (script,) = (one["run"] for one in steps() if "gh release create" in one.get("run", ""))
    made = re.findall(r"dist/[\w.]*\w", (ROOT / "build.sh").read_text())
    assert {*made} <= {*script.split()}


def test_folders_and_files_it_names_are_there() -> None:
    for page in GITHUB.glob("*.md"):
        for name in re.findall(r"`((?:src|tests|\.)/[\w./]+)`", page.read_text()):
            assert (ROOT / name).exists(), name
