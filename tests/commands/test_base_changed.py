"""A base whose weights are the adapter's and whose configuration or tokenizer is another one now."""

import json

import pytest

from support.evaluating import evaluate, measured


def change_config(place) -> None:
    path = place / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-4}))


def change_tokenizer(place) -> None:
    path = place / "base" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 7}))


CHANGES = {
    "configuration (config.json)": change_config,
    "tokenizer (its files or generation_config.json)": change_tokenizer,
}


@pytest.mark.parametrize("part", CHANGES)
def test_it_is_refused_by_name_and_used_as_it_is_now_when_it_is_asked_for(place, capsys, part):
    CHANGES[part](place)
    assert evaluate() == 2
    told = capsys.readouterr().err
    assert (
        f"--adapter adapter: the {part} of its base model base is another one now than when it was trained"
        in told
    )
    remedy = told.strip().rpartition("by adding ")[2]
    assert evaluate(*remedy.split()) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert (
        f"warning: --adapter adapter: trained with another {part} of base; with this one it may answer "
        "otherwise" in told
    )


def test_both_are_named_together(place, capsys):
    for change in CHANGES.values():
        change(place)
    assert evaluate() == 2
    assert f"the {' and '.join(CHANGES)} of its base model" in capsys.readouterr().err


def test_other_files_are_of_no_matter(place):
    (place / "base" / "README.md").write_text("new")
    assert evaluate() == 0


@pytest.mark.parametrize("change", CHANGES.values())
def test_an_adapter_that_says_nothing_of_them_is_used(place, capsys, change):
    """As those of the first version of loratune."""
    before = measured(place, "--generate", "2")
    path = place / "adapter" / "loratune.json"
    facts = json.loads(path.read_text())
    facts["base"] = {name: facts["base"][name] for name in ("name", "hub_name", "fingerprint")}
    path.write_text(json.dumps(facts))
    assert measured(place, "--generate", "2") == before
    change(place)
    assert evaluate("--generate", "2") == 0
    assert "warning" not in capsys.readouterr().out
