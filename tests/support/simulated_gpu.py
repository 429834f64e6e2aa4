"""Simulate a GPU: "cuda" stands for the CPU, so results are right, but speed is not tested."""

import pytest
import torch

from loratune.system import hardware


def simulate_gpu(monkeypatch: pytest.MonkeyPatch, fault: str = "") -> None:
    """Let torch find a GPU that computes, or fails with the text `fault`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # optimisers ask
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Abacus 3")
    monkeypatch.setattr(hardware, "detect_gpu", lambda: hardware.Gpu("Abacus 3", 8 * 10**9, fault))
    for kind in (torch.nn.Module, torch.Tensor):
        monkeypatch.setattr(kind, "to", on_the_cpu(kind.to))


def on_the_cpu(to):
    return lambda self, *where, **options: to(
        self, *("cpu" if one == "cuda" else one for one in where), **options
    )
