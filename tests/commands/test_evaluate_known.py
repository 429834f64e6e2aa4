"""An evaluation that was stopped goes on, and what is known is not measured again."""

import json

import pytest
from safetensors.torch import load_file, save_file

from loratune.evaluation.result_cache import ResultCache
from loratune.models.decoder import Decoder
from support.evaluating import evaluate, measured, written


def test_an_evaluation_that_was_stopped_goes_on(place, monkeypatch, capsys):
    """Wherever it was, with all that was known, and its result is that of one which nobody stopped."""
    options = ("--generate", "10", "--temperature", "1", "--samples", "2", "--constrain")
    whole, stopped, note = measured(place, *options), 0, ResultCache.note
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "another cache"))

    def note_and_stop(self, key, value):
        note(self, key, value)
        if len(self.known) % 7 == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResultCache, "note", note_and_stop)
        while evaluate(*options) == 130:
            stopped += 1
    assert written(place) == whole and stopped >= 9
    capsys.readouterr()
    monkeypatch.setattr(Decoder, "forward", None)  # nothing is left to compute
    assert measured(place, *options) == whole
    assert "tuned answers: 20 of 20 known from an earlier evaluation" in capsys.readouterr().out


def test_what_is_known_of_the_base_serves_another_adapter(place, monkeypatch):
    measured(place, "--generate", "4")
    (place / "another").mkdir()
    (place / "another" / "adapter_config.json").write_bytes(
        (place / "adapter" / "adapter_config.json").read_bytes()
    )
    matrices = load_file(place / "adapter" / "adapter_model.safetensors")
    save_file(
        {name: matrix * 1.5 for name, matrix in matrices.items()},
        place / "another" / "adapter_model.safetensors",
    )
    notebooks = {path: path.read_bytes() for path in (place / "cache").glob("measured-*")}
    result = measured(place, "--generate", "4", "--adapter", "another", "--model", "base")
    assert len(notebooks) == 2 and all(path.read_bytes() == content for path, content in notebooks.items())
    assert len(list((place / "cache").glob("measured-*"))) == 3
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "another cache"))
    assert measured(place, "--generate", "4", "--adapter", "another", "--model", "base") == result


@pytest.mark.parametrize(
    "options",
    [
        ["--max-new-tokens", "4"],
        ["--repetition-penalty", "1.5"],
        ["--temperature", "0.5"],
        ["--temperature", "1", "--seed", "1"],
        ["--temperature", "1", "--top-k", "5"],
        ["--temperature", "1", "--top-p", "0.5"],
        ["--constrain"],
        ["--template", "plain"],
    ],
    ids=" ".join,
)
def test_what_is_known_is_not_taken_for_other_settings(place, monkeypatch, options):
    measured(place, "--generate", "10")
    measured(place, "--generate", "10", "--temperature", "1")
    result = measured(place, "--generate", "10", *options)
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "another cache"))
    assert measured(place, "--generate", "10", *options) == result


def scale_rope(place) -> None:
    path = place / "base" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 4.0}
    path.write_text(json.dumps(config))


def test_a_base_whose_config_was_edited_is_another_model(place, monkeypatch, capsys):
    """Scaled for longer contexts, as the makers of some models advise: what was measured before is not shown
    again.
    """
    before = measured(place, "--generate", "4", "--model", "base")
    scale_rope(place)
    capsys.readouterr()
    after = measured(place, "--generate", "4", "--model", "base")
    assert "known from an earlier evaluation" not in capsys.readouterr().out
    assert after["base"]["nll"] != before["base"]["nll"]
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "another cache"))
    assert measured(place, "--generate", "4", "--model", "base") == after
