"""Inspect and check the installed packages: their versions, and whether loratune was tested with them."""

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import loratune
from loratune.doctor.finding import Finding
from loratune.errors import Problem, UserError
from loratune.system.hardware import torch_build

SHOWN_PACKAGES = ("transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "peft")
# Only a checkout has it.
REQUIREMENTS_FILE = Path(loratune.__file__).parents[2] / "requirements.txt"
X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Packages:
    """What the checks need to know about the installed packages."""

    python: str
    torch: str
    build: str  # what torch is built for, such as CUDA 13.0, or CPU
    libraries: Mapping[str, bool]  # for matrix products: MKL, oneDNN -> whether torch has it
    processor_kind: str  # such as x86_64
    needed: Mapping[str, str | None]  # package -> version, None where it is missing
    outdated: Mapping[str, str]  # package -> the oldest version that loratune works with
    others: Mapping[str, str]  # further packages that are shown -> version
    pinned: Mapping[str, str]  # package -> the version that loratune was tested with


def inspect_packages() -> Packages:
    import torch

    return Packages(
        python=platform.python_version(),
        torch=torch.__version__,
        build=torch_build(),
        libraries={"MKL": torch.backends.mkl.is_available(), "oneDNN": torch.backends.mkldnn.is_available()},
        processor_kind=platform.machine().lower(),
        needed={name: find_installed_version(name) for name in list_required_packages()},
        outdated=find_outdated_packages(),
        others={name: number for name in SHOWN_PACKAGES if (number := find_installed_version(name))},
        pinned=read_pinned_versions(REQUIREMENTS_FILE),
    )


def find_installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def list_required_packages() -> list[str]:
    try:
        lines = requires("loratune") or []
        return [name for line in lines for name in re.findall(r"^[\w.-]+", line)]
    except PackageNotFoundError:  # the source is used without being installed
        return []


def find_outdated_packages() -> dict[str, str]:
    """Find packages that are older than loratune's own metadata requires; the values are what it requires."""
    try:
        lines = requires("loratune") or []
    except PackageNotFoundError:
        return {}
    bounds = [match.groups() for line in lines if (match := re.fullmatch(r"([\w.-]+)\s*>=\s*([\d.]+)", line))]
    return {
        name: bound
        for name, bound in bounds
        if (installed := find_installed_version(name)) and is_older(installed, bound)
    }


def parse_release(version: str) -> list[int]:
    """Return the numbers that a version begins with."""
    match = re.match(r"\d+(\.\d+)*", version)
    return list(map(int, match[0].split("."))) if match else []


def is_older(version: str, bound: str) -> bool:
    """Compare the numbers that a version begins with: 2.9.0+cpu is not older than 2.9."""
    versions = [parse_release(text) for text in (version, bound)]
    longest = max(map(len, versions))
    installed, needed = ([*numbers, *[0] * (longest - len(numbers))] for numbers in versions)
    return installed < needed


def refuse_outdated_packages() -> None:
    """Raise UserError for packages with which results would be wrong, or errors hard to understand.

    Torch before 2.9 has no CPU kernel for heads that share keys (pytorch#157893): it silently reads past
    them. Pip respects the bounds, but a later downgrade may not.
    """
    problems = [
        Problem(
            f"{name} {find_installed_version(name)} is too old: loratune needs {bound} or newer",
            remedy=f"pip install '{name}>={bound}'",
        )
        for name, bound in find_outdated_packages().items()
    ]
    if problems:
        raise UserError(*problems)


def read_pinned_versions(path: Path) -> dict[str, str]:
    """Read `name==version` lines; empty where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return dict(
        line.strip().split("==") for line in lines if line.count("==") == 1 and not line.startswith("#")
    )


def check_versions(packages: Packages) -> Iterable[Finding]:
    libraries = ", ".join(name for name, has in packages.libraries.items() if has) or "no fast library"
    others = ", ".join(f"{name} {number}" for name, number in packages.others.items())
    found = (
        f"loratune {loratune.__version__}, Python {packages.python}, torch {packages.torch} "
        f"({packages.build}; {libraries}), {others}"
    )
    yield Finding("versions", found)


def check_missing(packages: Packages) -> Iterable[Finding]:
    if names := [name for name, number in packages.needed.items() if number is None]:
        yield Finding(
            "packages", f"not installed: {', '.join(names)}", "problem", f"pip install {' '.join(names)}"
        )


def check_outdated(packages: Packages) -> Iterable[Finding]:
    if packages.outdated:
        names = ", ".join(f"{name} (needed: {bound})" for name, bound in packages.outdated.items())
        bounds = " ".join(f"'{name}>={bound}'" for name, bound in packages.outdated.items())
        yield Finding("packages", f"too old: {names}", "problem", f"pip install {bounds}")


def check_untested(packages: Packages) -> Iterable[Finding]:
    """Compare with the tested versions; a build's own mark, such as 2.13.0+cpu, is not a difference."""
    installed = {**packages.needed, **packages.others, "torch": packages.torch}
    differing = [
        f"{name} {installed[name]} (tested with {tested})"
        for name, tested in packages.pinned.items()
        if installed.get(name) and installed[name].split("+")[0] != tested
    ]
    if differing:
        remedy = "usually harmless; `pip install -r requirements.txt` installs the tested ones"
        yield Finding("packages", ", ".join(differing), "warning", remedy)


def check_libraries(packages: Packages) -> Iterable[Finding]:
    missing = [name for name in ("MKL", "oneDNN") if not packages.libraries[name]]
    if missing and (packages.processor_kind in X86 or not any(packages.libraries.values())):
        remedy = "install torch from PyPI or https://download.pytorch.org/whl/cpu, whose builds have them"
        yield Finding(
            "torch", f"built without {' and '.join(missing)}: matrix products are slow", "warning", remedy
        )


CHECKS = (check_versions, check_missing, check_outdated, check_untested, check_libraries)
