"""What reaches a user by pip and by make: the files of the package, the versions it needs, and the Python it
runs on.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from loratune.cli.main import main
from loratune.data import snapshot
from loratune.doctor import packages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_shipped_prompts_are_those_of_the_repository():
    assert snapshot.PROMPTS.read_bytes() == (ROOT / "test.json").read_bytes()


def test_every_file_of_the_package_is_in_the_wheel():
    """Each file that is not Python matches a pattern of its own folder."""
    source = ROOT / "src"
    files = [
        path
        for path in (source / "loratune").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    data = {path for path in files if path.suffix != ".py"}
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    shipped = {
        path
        for name, own in patterns.items()
        for one in own
        for path in (source / name.replace(".", "/")).glob(one)
    }
    assert data and data <= shipped


def python(folder: Path, name: str, version: tuple[int, int]) -> None:
    """A Python of this version that can say so, and writes down that it was to make an environment."""
    script = (
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec "{sys.executable}" -c "import sys; sys.version_info = '
        f'{version}; $2"; fi\n'
    )
    (folder / name).write_text(f'{script}echo "{name} $*" >> "{folder}/made"; exit 3\n')
    (folder / name).chmod(0o755)


def made_with(place: Path, *options: str) -> tuple[str, str]:
    """Which Python was to make the environment, and what was said."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, place)
    tools = place / "tools"
    for tool in ("make", "sh", "test"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    done = subprocess.run(
        ["make", "setup", *options], cwd=place, env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert done.returncode != 0  # none of these can make one
    made = tools / "made"
    return made.read_text() if made.exists() else "", done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("there", "options", "made"),
    [
        ({"python3.11": (3, 11), "python3": (3, 14)}, [], "python3.11 -m venv .venv\n"),
        ({"python3.12": (3, 12), "python3": (3, 12)}, [], "python3.12 -m venv .venv\n"),
        ({"python3.11": (3, 9), "python3.13": (3, 13)}, [], "python3.13 -m venv .venv\n"),
        ({"python3": (3, 14)}, [], "python3 -m venv .venv\n"),
        ({"python3": (3, 10)}, [], ""),
        ({}, [], ""),
        ({"python3.11": (3, 11), "mine": (3, 12)}, ["PYTHON=mine"], "mine -m venv .venv\n"),
        ({"python3.11": (3, 11), "mine": (3, 10)}, ["PYTHON=mine"], ""),
    ],
)
def test_make_takes_a_python_that_is_new_enough(tmp_path, there, options, made):
    (tmp_path / "tools").mkdir()
    for name, version in there.items():
        python(tmp_path / "tools", name, version)
    used, told = made_with(tmp_path, *options)
    assert used == made
    assert ("Python 3.11 or newer" in told and "make PYTHON=" in told) is (not made)


DECLARED = [
    "torch>=2.9",
    "numpy >= 2",
    "rich",
    "psutil>=7.0.1",
    'colorama>=1; sys_platform == "win32"',
    "peft>=1; extra == 'x'",
]


@pytest.fixture
def declared(monkeypatch):
    """Which versions are there, of what DECLARED asks for."""
    there = {"torch": "2.9.0+cpu", "numpy": "2.0rc1", "rich": "1", "psutil": "7.0.10"}
    monkeypatch.setattr(packages, "requires", lambda _: DECLARED)
    monkeypatch.setattr(packages, "find_installed_version", there.get)
    return there


def test_packages_that_are_new_enough_are_no_finding(declared):
    assert packages.find_outdated_packages() == {}


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("torch", "2.8.0"),
        ("torch", "2.8.1+cu128"),
        ("torch", "1.13"),
        ("numpy", "1.26.4"),
        ("psutil", "7.0.0"),
        ("psutil", "6"),
    ],
)
def test_a_package_that_is_too_old_stops_each_command_but_the_doctor(
    declared, capsys, monkeypatch, name, version
):
    declared[name] = version
    needed = {"torch": "2.9", "numpy": "2", "psutil": "7.0.1"}[name]
    assert packages.find_outdated_packages() == {name: needed}
    assert main(["train", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert (
        f"error: {name} {version} is too old: loratune needs {needed} or newer; pip install "
        f"'{name}>={needed}'" in told
    )
    assert packages.inspect_packages().outdated == {name: needed}


def test_each_bound_is_kept_by_the_tested_versions():
    pinned = packages.read_pinned_versions(ROOT / "requirements.txt")
    bounds = dict(
        re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?", one).groups() for one in PROJECT["project"]["dependencies"]
    )
    assert {"torch", "transformers", "huggingface_hub", "numpy", "pydantic"} <= {
        name for name, bound in bounds.items() if bound
    }
    for name, bound in bounds.items():
        assert not bound or not packages.is_older(pinned[name], bound)
