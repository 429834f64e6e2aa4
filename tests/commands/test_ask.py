"""`loratune ask` as a user meets it, on a model of a few thousand numbers."""

import json

import pytest

from loratune.cli.main import main
from loratune.commands import ask as command
from loratune.config.prepare import PrepareConfig
from loratune.data.template import load_template
from loratune.model import load_tuned_model
from loratune.system.atomic import write_json
from loratune.system.read import read_json
from loratune.tasks.finqa.program import execute_program, parse_program
from loratune.tasks.finqa.questions import parse_question
from loratune.tasks.finqa.records import FinqaOptions, build_finqa_records
from support.tuned_models import save_tuned

TABLE = [
    ["( in millions )", "2010", "2009"],
    ["net sales", "$ 5829", "$ 5735"],
    ["cost of goods", "200", "300"],
]
PAGE = {
    "pre_text": ["net sales rose in 2010 .", "the company sells boats and a few planes ."],
    "post_text": ["costs fell by 5.0% ( 5.0 % ) ."],
    "table": TABLE,
}
ASKED = "what is the percentage change in net sales from 2009 to 2010?"
PROGRAM = "subtract(5829, 5735), divide(#0, 5735)"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base, an adapter and a page; also the working directory."""
    monkeypatch.chdir(tmp_path)
    save_tuned(tmp_path)
    write_json(tmp_path / "page.json", PAGE)
    return tmp_path


def ask(question: str = ASKED, *options: str) -> int:
    return main(["ask", question, "--page", "page.json", "--adapter", "adapter", "--threads", "1", *options])


def asked_json(capsys, *options: str) -> dict:
    assert ask(ASKED, "--json", *options) == 0
    return json.loads(capsys.readouterr().out)


def answering(monkeypatch, answer: str) -> None:
    monkeypatch.setattr(command, "generate_program", lambda *_: answer)


def test_the_answer_is_a_program_that_was_carried_out(place, capsys):
    """The random model ends nowhere of its own accord; held to the language it does."""
    result = asked_json(capsys, "--max-new-tokens", "250", "--fact-tokens", "60")
    assert list(result)[:5] == ["question", "facts", "program", "steps", "result"]
    program = parse_program(result["program"])
    assert [step["operation"] for step in result["steps"]] == [step.operation for step in program][
        : len(result["steps"])
    ]
    if "problem" not in result:
        assert result["result"] == execute_program(program, TABLE) == result["steps"][-1]["value"]
    assert (
        asked_json(capsys, "--max-new-tokens", "20", "--no-constrain", "--fact-tokens", "60")["result"]
        is None
    )


def test_steps_and_result_are_shown(place, capsys, monkeypatch):
    answering(monkeypatch, PROGRAM)
    assert ask() == 0
    shown = capsys.readouterr().out
    assert "  #0 = 5829 - 5735 = 94\n  #1 = #0 / 5735 = 0.01639\nResult: 0.01639 = 1.639 %\n" in shown
    assert "net sales | 2010 : $ 5829 ; 2009 : $ 5735" in shown
    result = asked_json(capsys)
    assert result["steps"][1] == {"operation": "divide", "arguments": ["#0", "5735"], "value": 0.01639}
    assert (result["result"], result["percent"]) == (0.01639, 1.639)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("table_average(net sales, none)", "  #0 = table_average(net sales) = 5782\nResult: 5782\n"),
        ("greater(5829, const_m1)", "  #0 = 5829 > -1 = yes\nResult: yes\n"),
        ("multiply(5829, const_100)", "  #0 = 5829 * 100 = 582900\nResult: 582900\n"),
        (
            "subtract(5829, 5829), divide(5735, #0)",
            "  #0 = 5829 - 5829 = 0\nwarning: no result: divide(5735, #0): float division",
        ),
        ("It rose.", "Program: It rose.\nwarning: no result: 'It rose.' is not of the form"),
    ],
)
def test_other_answers(place, capsys, monkeypatch, answer, shown):
    answering(monkeypatch, answer)
    assert ask() == 0
    assert shown in capsys.readouterr().out


def test_the_prompt_is_that_of_held_out_rows(place, monkeypatch):
    """Facts, their order and the instruction come from the code that prepares FinQA, with the adapter's own
    limit on facts.
    """
    seen = []

    def answer_to(record, *_):
        seen.append(record)
        return PROGRAM

    monkeypatch.setattr(command, "generate_program", answer_to)
    assert ask() == 0 and ask(ASKED, "--fact-tokens", "100") == 0
    described = read_json(place / "adapter" / "loratune.json")
    write_json(
        place / "adapter" / "loratune.json",
        described | {"prepared": {"fact_tokens": 100, "finqa_target": "program"}},
    )
    assert ask() == 0 and ask(ASKED, "--fact-tokens", "320") == 0
    default = PrepareConfig.model_fields["fact_tokens"].default
    for record, limit in zip(seen, (default, 100, 100, 320), strict=True):
        # In the small model's tokenizer a token is a byte.
        options = FinqaOptions("program", limit, lambda texts: [len(text.encode()) for text in texts])
        (wanted,) = build_finqa_records(
            [parse_question({**PAGE, "id": "page", "question": ASKED})], "val", options
        )
        assert (record.instruction, record.input) == (wanted.instruction, wanted.input)
    assert seen[0].input != seen[1].input


def test_an_adapter_that_was_trained_on_results_is_warned_of(place, capsys, monkeypatch):
    answering(monkeypatch, PROGRAM)
    assert ask() == 0 and "warning" not in capsys.readouterr().out
    described = read_json(place / "adapter" / "loratune.json")
    write_json(
        place / "adapter" / "loratune.json",
        described | {"prepared": {"fact_tokens": 320, "finqa_target": "answer"}},
    )
    assert ask() == 0
    assert "warning: the adapter was trained to write results, not programs" in capsys.readouterr().out


def test_finqas_own_records_are_pages(place, capsys, monkeypatch):
    answering(monkeypatch, PROGRAM)
    plain = asked_json(capsys)
    own = {"question": "another?", "program": "add(1, 2)"}
    write_json(place / "page.json", {**PAGE, "id": "A/2010/page_1.pdf-1", "qa": own, "annotation": {}})
    assert asked_json(capsys) == plain
    write_json(place / "page.json", {**PAGE, "table": []})
    assert list(asked_json(capsys)["facts"]) == ["text_0", "text_1", "text_2"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ([], "page.json: a JSON object is needed, not a list"),
        ({**PAGE, "table": None}, "page.json: table must be a list, not null"),
        ({**PAGE, "table": [["a", 1]]}, "page.json: table must be a list of rows, each a list of texts"),
        ({**PAGE, "post_text": "words"}, "page.json: post_text must be a list, not text"),
        (
            {"pre_text": [], "post-text": [], "table": []},
            "page.json: post_text is missing (there are: pre_text, post-text, table",
        ),
        ({**PAGE, "pre_text": ["a \ud800 b"]}, "page.json: pre_text holds a broken character"),
        ({"pre_text": ["."], "post_text": [], "table": []}, "there is nothing to show"),
    ],
)
def test_unusable_pages(place, capsys, page, message):
    (place / "page.json").write_text(json.dumps(page))
    assert ask() == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["how?"], "--page is missing: JSON file with the page"),
        (["--page", "page.json"], "question is missing: what to ask, in quotation marks"),
        ([" ", "--page", "page.json"], "question is blank"),
        (["how?", "--page", "nowhere.json"], "nowhere.json: there is no such file"),
        (
            ["how?", "--page", "page.json", "--adapter", "nowhere"],
            "--adapter nowhere: there is no such folder",
        ),
        (
            ["how?", "--page", "page.json", "--adapter", "adapter", "--max-new-tokens", "480"],
            "lower --fact-tokens",
        ),
        (["what", "now?", "--page", "page.json"], "--now?: unknown setting"),
    ],
)
def test_bad_input(place, capsys, words, message):
    assert main(["ask", *words]) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_the_template_is_the_adapters(place, monkeypatch):
    prompts = []

    def generate(decoder, requests, end_ids):
        prompts.extend(request.prompt for request in requests)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "generate", generate)
    for template in ("instruction", "plain"):
        assert ask(ASKED, "--template", template, "--fact-tokens", "60") == 130
        tokenizer = load_tuned_model([place / "adapter"]).tokenizer
        before, _, _ = load_template(template).with_input.partition("{instruction}")
        assert tokenizer.decode(prompts[-1]).startswith(f"{before}{ASKED}\nAnswer with a program.\n\n")
