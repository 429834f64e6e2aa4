"""`loratune compare` as a user meets it, on a model of a few thousand numbers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from loratune.api import compare as command
from loratune.cli.main import main
from loratune.data import snapshot
from loratune.generation.request import Answer
from support.evaluations import evaluation
from support.tuned_models import save_tuned

PROMPTS = ["Name a colour.", "Why <script>alert(1)</script> & not?", "Say [bold]this[/bold]."]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base, an adapter that changes its answers, and prompts; also the working directory."""
    monkeypatch.chdir(tmp_path)
    save_tuned(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps(PROMPTS))
    return tmp_path


def compare(*options: str) -> int:
    return main(["compare", "--adapter", "adapter", "--max-new-tokens", "12", "--threads", "1", *options])


def written(place) -> list[dict]:
    return json.loads((place / "model_comparison.json").read_text())


def test_json_contract(place, capsys):
    assert compare("--json") == 0
    printed = json.loads(capsys.readouterr().out)
    rows = written(place)
    assert [row["prompt"] for row in rows] == PROMPTS
    for row in rows:
        for side in ("fine_tuned", "regular"):
            assert isinstance(row[side], str)
            assert 0 <= row[f"{side}_tokens"] <= 12 and 0 <= row[f"{side}_rep_4"] <= 1
            assert row[f"{side}_ended"] in ("eos", "length")
            assert f"{side}_result" not in row
    assert any(row["fine_tuned"] != row["regular"] for row in rows)
    assert (
        printed["prompts"] == 3
        and printed["out"] == "model_comparison.json"
        and printed["page"] == "model_comparison.html"
    )
    tokens = [row["regular_tokens"] for row in rows]
    assert printed["regular"]["mean_tokens"] == pytest.approx(sum(tokens) / 3)


def test_the_regular_answers_are_those_of_the_base_alone(place):
    """An adapter that does nothing leaves the regular answers where they were, and gives the same ones."""
    assert compare() == 0
    with_effect = written(place)
    save_tuned(place, effect=False)
    assert compare() == 0
    for row, before in zip(written(place), with_effect, strict=True):
        assert row["fine_tuned"] == row["regular"] == before["regular"]


def test_same_seed_same_answers_whatever_the_batch(place):
    sampled = ["--temperature", "1", "--top-p", "0.9", "--seed", "3"]
    assert compare(*sampled) == 0
    first = written(place)
    assert compare(*sampled, "--batch-size", "1") == 0
    assert written(place) == first
    assert compare("--temperature", "1", "--top-p", "0.9", "--seed", "4") == 0
    assert written(place) != first


def test_programs_are_executed_and_shown(place, monkeypatch, capsys):
    texts = {"fine_tuned": "subtract(5829, 5735), divide(#0, 5735)", "regular": "table_sum(net sales, none)"}

    def answers(tuned, prompts, settings, *, base_format):
        return tuple(
            [Answer(tuned.tokenizer.encode(texts[side]), "eos")] * len(prompts)
            for side in ("regular", "fine_tuned")
        )

    monkeypatch.setattr(command, "generate_base_and_tuned", answers)
    assert compare() == 0
    for row in written(place):
        assert row["fine_tuned_result"] == 0.01639
        assert "regular_result" not in row  # it needs a table, which a prompt does not have
    assert "= 0.01639" in capsys.readouterr().out
    assert "= 0.01639</p>" in (place / "model_comparison.html").read_text()


def test_the_page_escapes_texts_and_needs_nothing_else(place, capsys):
    assert compare() == 0
    page = (place / "model_comparison.html").read_text()
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; not?" in page
    assert not re.search(r"""src=|href="(?!#)|url\((?!#)|@import|https?:""", page)
    assert "greedy, repetition penalty 1.1, at most 12 new tokens" in page and "base" in page
    command = re.search(r"loratune compare (.*)</code>", page)[1]
    assert sorted(command.split()) == sorted(
        ["--adapter", "adapter", "--max-new-tokens", "12", "--threads", "1"]
    )
    assert "Say [bold]this[/bold]." in capsys.readouterr().out


@pytest.mark.parametrize(("format", "made"), [("html", {"html"}), ("md", {"md"}), ("both", {"html", "md"})])
def test_the_formats_of_the_report(place, capsys, format, made):
    assert compare("--format", format, "--json") == 0
    assert {path.suffix[1:] for path in place.glob("model_comparison.*")} == made | {"json"}
    printed = json.loads(capsys.readouterr().out)
    assert {"page": "html", "markdown": "md"}.items() >= {
        (name, printed[name][17:]) for name in ("page", "markdown") if name in printed
    }
    assert {"page" in printed, "markdown" in printed} == {"html" in made, "md" in made}
    if "md" in made:
        text = (place / "model_comparison.md").read_text()
        for row in written(place):
            assert f"```text\n{row['prompt']}\n```" in text and row["fine_tuned"] in text


def test_an_evaluation_of_the_adapter_is_shown(place):
    measured = evaluation("held-out text", str(place / "elsewhere" / ".." / "adapter"))
    (place / "evaluation.json").write_text(json.dumps(measured))
    assert compare("--format", "md") == 0
    assert "FinQA's facts" not in (place / "model_comparison.md").read_text()
    measured["tuned"] = measured["base"] = measured["tuned"] | {"execution_accuracy": 0.5}
    (place / "evaluation.json").write_text(json.dumps(measured))
    assert compare("--format", "both") == 0
    assert "| FinQA's facts | gold |" in (place / "model_comparison.md").read_text()
    page = (place / "model_comparison.html").read_text()
    assert "On 20 held-out rows the adapter lowers the perplexity" in page and "3 held-out examples" in page
    assert "\nloratune evaluate " in page or "<code>loratune evaluate " in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps(evaluation(adapter="another")),
            "evaluation.json is about another adapter (another), not adapter",
        ),
        (
            json.dumps(evaluation() | {"rows": "many"}),
            "evaluation.json: rows: input should be a valid integer",
        ),
        (json.dumps(evaluation(adapter="a\0b")), "is about another adapter"),
        ("[", "evaluation.json, line 1: not valid JSON"),
    ],
)
def test_an_evaluation_that_does_not_fit_is_left_out_and_said(place, capsys, content, message):
    (place / "evaluation.json").write_text(content)
    assert compare() == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Left out of the report: " in said and message in said
    assert "held-out" not in (place / "model_comparison.html").read_text()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no such file"), ("{}", "mine.json: base: field required")]
)
def test_an_evaluation_that_was_asked_for_must_be_whole(place, capsys, content, message):
    if content:
        (place / "mine.json").write_text(content)
    assert compare("--evaluation", "mine.json") == 2
    assert message in capsys.readouterr().err
    assert not (place / "model_comparison.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "test.json: a JSON list of texts is needed"),
        ('"one"', "a JSON list of texts is needed"),
        ("[]", "test.json: the list is empty"),
        (
            '["good", 5, "good", {"prompt": "x"}]',
            "entry 4: a text or a list of messages is needed, not an object",
        ),
        ('["good", true, null]', "entry 2: a text or a list of messages is needed, not true or false"),
        ('["good", "  "]', "entry 2: a text is needed, not a blank one"),
        ('["good",\n"unfinished]', "test.json, line 2: not valid JSON"),
        ("", "test.json, line 1: not valid JSON"),
        (b'["\xff"]', "not UTF-8"),
        (
            json.dumps(["good", "x" * 600]),
            "entry 2: the prompt has 633 tokens, this model takes 511; shorten it",
        ),
    ],
)
def test_bad_prompt_files_are_refused(place, capsys, content, message):
    (place / "test.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert compare() == 2
    assert message in capsys.readouterr().err
    assert not (place / "model_comparison.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "nowhere.json"], "nowhere.json: there is no such file"),
        (["--adapter", "nowhere"], "--adapter nowhere: there is no such folder"),
        (["--out", "result.html"], "name the .json file"),
        (["--out", "result.md", "--format", "both"], "name the .json file"),
        (["--format", "pdf"], "--format: input should be 'html', 'md' or 'both'"),
        (["--out", "adapter"], "adapter: this is a folder; a file is needed"),
        (["--temprature", "1"], "did you mean --temperature?"),
        (["--top-p", "0"], "--top-p: input should be greater than 0"),
        (["--max-new-tokens", "many"], "--max-new-tokens"),
    ],
)
def test_bad_input(place, capsys, options, message):
    assert compare(*options) == 2
    assert message in capsys.readouterr().err
    assert not (place / "model_comparison.json").exists()


def test_an_adapter_made_for_another_base_is_refused(place, capsys):
    from support.small_models import save_model

    save_model(place / "other", seed=7)
    assert compare("--model", "other") == 2
    assert "made for the base model base" in capsys.readouterr().err


def test_too_little_room_for_an_answer_is_said(place, capsys):
    (place / "test.json").write_text(json.dumps(["x" * 470]))
    assert compare() == 0
    assert "entry 1: the model has room for only 9 tokens of an answer" in " ".join(
        capsys.readouterr().out.split()
    )
    assert written(place)[0]["fine_tuned_tokens"] <= 9


def test_the_script_in_the_root(place):
    script = Path(__file__).parents[2] / "inference.py"
    found = subprocess.run(
        [sys.executable, script, "--prompts", "nowhere.json"], capture_output=True, text=True
    )
    assert found.returncode == 2 and "nowhere.json: there is no such file" in found.stderr
    bare = subprocess.run([sys.executable, "-S", "-E", script], capture_output=True, text=True, cwd=place)
    assert bare.returncode == 1 and "run `make setup`, then `.venv/bin/python inference.py`" in bare.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", "[]", "adapter_config.json must be a JSON object"),
        ("adapter_config.json", '{"peft_type": "LORA"}', "lora_alpha must be a finite number"),
        (
            "adapter_config.json",
            '{"peft_type": "LORA", "lora_alpha": "big"}',
            "lora_alpha must be a finite number",
        ),
        ("loratune.json", '{"base": {}}', "base has a name and a fingerprint"),
        ("loratune.json", "[]", "base has a name and a fingerprint"),
        ("loratune.json", '{"base": {"name": 5, "fingerprint": "a"}}', "base has a name and a fingerprint"),
        ("loratune.json", '{"prepared": {"fact_tokens": "x"}}', "fact_tokens a whole number"),
        (
            "adapter_config.json",
            '{"peft_type": "LORA", "lora_alpha": NaN}',
            "lora_alpha must be a finite number",
        ),
        (
            "adapter_config.json",
            '{"peft_type": "LORA", "lora_alpha": 2, "alpha_pattern": [1]}',
            "alpha_pattern must be an object",
        ),
        ("adapter_model.safetensors", "x", "adapter_model.safetensors cannot be read"),
    ],
)
def test_broken_adapters_are_refused(place, capsys, name, content, message):
    (place / "adapter" / name).write_text(content)
    assert compare() == 2
    assert message in capsys.readouterr().err
    assert not (place / "model_comparison.json").exists()


def test_half_an_adapter_is_refused(place, capsys):
    path = place / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    del weights[next(name for name in weights if "lora_B" in name)]
    save_file(weights, path, metadata={"format": "pt"})
    assert compare() == 2
    assert "only one of its two matrices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (r'["\ud800 hi"]', "entry 1: a text is needed, not one with a broken character"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_prompts_that_no_tokenizer_takes(place, capsys, prompts, message):
    (place / "test.json").write_text(prompts)
    assert compare() == 2
    assert message in capsys.readouterr().err


def test_prompts_as_windows_saves_them_and_a_terminal_that_lacks_letters(place):
    (place / "test.json").write_text('["日本"]', encoding="utf-8-sig")
    command = [sys.executable, "-m", "loratune", "compare", "--adapter", "adapter", "--max-new-tokens", "4"]
    result = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert result.returncode == 0, result.stderr
    assert [row["prompt"] for row in written(place)] == ["日本"]


def test_a_base_that_is_not_at_hand_is_named(place, capsys, monkeypatch):
    monkeypatch.chdir(place / "adapter")
    assert main(["compare", "--adapter", ".", "--prompts", "../test.json"]) == 2
    assert "its base model is not available; name it with --model" in capsys.readouterr().err
    assert (
        main(
            [
                "compare",
                "--adapter",
                ".",
                "--prompts",
                "../test.json",
                "--model",
                "../base",
                "--max-new-tokens",
                "2",
            ]
        )
        == 0
    )


def test_without_a_test_json_the_prompts_that_are_shipped_are_taken(place, capsys):
    """As after `pip install loratune`, in a folder of one's own."""
    shipped = json.loads(snapshot.PROMPTS.read_text(encoding="utf-8"))
    (place / "test.json").unlink()
    assert compare("--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reads"].keys() == {"loratune's own test.json"}
    assert compare("--max-new-tokens", "2") == 0
    assert [row["prompt"] for row in written(place)] == shipped
    page = (place / "model_comparison.html").read_text(encoding="utf-8")
    assert str(snapshot.PROMPTS) not in page and "--prompts" not in page
    assert compare("--prompts", "test.json") == 2  # which is asked for
    assert "test.json: there is no such file" in capsys.readouterr().err
    (place / "test.json").mkdir()
    assert compare() == 2  # not passed over
