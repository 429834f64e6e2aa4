"""`loratune ask`: answer a question about a page of figures with a program, and execute it."""

import re
from pathlib import Path

from loratune.api.decoding import build_decoding
from loratune.api.load import load_for
from loratune.config.ask import AskConfig
from loratune.config.prepare import PrepareConfig
from loratune.data.example import Record
from loratune.data.json_values import read_text_field, require_object
from loratune.errors import UserError
from loratune.generation.constrained import TokenBytes
from loratune.generation.engine import generate
from loratune.generation.request import Request
from loratune.model import TunedModel
from loratune.system.console import say, warn
from loratune.system.read import read_json
from loratune.tasks.finqa.constraint import build_program_constraint
from loratune.tasks.finqa.program import (
    ProgramError,
    Step,
    Table,
    Value,
    iterate_step_results,
    parse_number,
    parse_program,
    round_value,
)
from loratune.tasks.finqa.questions import Question, parse_question
from loratune.tasks.finqa.records import FinqaOptions, build_finqa_records

OPERATORS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "exp": "^", "greater": ">"}


def run(settings: AskConfig) -> dict:
    question = read_question(settings.question, settings.page)
    model = load_for(settings)
    prepared = model.adapter.metadata.get("prepared", {})
    if prepared.get("finqa_target") == "answer":
        warn(
            "the adapter was trained to write results, not programs (--finqa-target answer); it will answer "
            "worse"
        )
    fact_tokens = (
        settings.fact_tokens
        or prepared.get("fact_tokens")
        or PrepareConfig.model_fields["fact_tokens"].default
    )
    record, facts = build_record(question, model, fact_tokens, page=settings.page)
    answer = generate_program(record, model, settings)
    result = {
        "question": question.text,
        "facts": facts,
        "program": answer,
        **calculate_steps(answer, question.table),
    }
    if is_fraction(question.text, result["steps"], result["result"]):
        result["percent"] = round_value(100 * result["result"])
    show_answer(result)
    return result


def read_question(question: str, page: Path) -> Question:
    """Read a question about a page in FinQA's form; other fields of the page are ignored.

    Raises:
        UserError: the question is blank, or a field of the page is wrong; it is named.
    """
    try:
        read_text_field({"question": question}, "question")
    except ValueError as error:
        raise UserError(
            f"{error}", remedy='ask something, such as "what was the growth of net sales?"'
        ) from None
    try:
        fields = {name: value for name, value in require_object(read_json(page)).items() if name != "qa"}
        return parse_question({**fields, "id": "page", "question": question})
    except ValueError as error:
        raise UserError(f"{error}", value=page) from error


def build_record(
    question: Question, model: TunedModel, fact_tokens: int, *, page: Path
) -> tuple[Record, dict[str, str]]:
    """Return the question as a held-out row of FinQA, and the facts shown with it, by id.

    Raises:
        UserError: the page holds no facts.
    """
    options = FinqaOptions(
        "program", fact_tokens, lambda texts: [len(ids) for ids in model.tokenizer.encode_batch(list(texts))]
    )
    (record,) = build_finqa_records([question], "test", options)
    shown = record.meta["kept_facts"]
    if not shown:
        raise UserError(
            "pre_text, table and post_text hold nothing of three words or more; there is nothing to show",
            value=page,
        )
    return record, dict(zip(shown, record.input.split("\n"), strict=True))


def generate_program(record: Record, model: TunedModel, settings: AskConfig) -> str:
    (prompt,) = model.encode([record.instruction], record.input)
    most = model.decoder.spec.max_positions - settings.max_new_tokens
    if len(prompt) > most:
        raise UserError(
            f"the prompt has {len(prompt):,} tokens, and with `max_new_tokens` {settings.max_new_tokens} "
            f"this model takes {max(most, 0):,}",
            remedy="lower `fact_tokens`",
        )
    vocabulary = (
        TokenBytes(model.tokenizer.get_token_bytes(), model.tokenizer.eos_id) if settings.constrain else None
    )
    constraint = build_program_constraint(record, vocabulary) if vocabulary else None
    request = Request(prompt, build_decoding(settings), constraint)
    (answer,) = generate(model.decoder, [request], model.tokenizer.end_ids)
    return model.decode(answer.ids)


def calculate_steps(answer: str, table: Table) -> dict:
    """Return the steps with their values up to the first that has none, and the result.

    Where there is no result, `problem` says why.
    """
    steps: list[dict] = []
    try:
        program = parse_program(answer)
        for step, value in zip(program, iterate_step_results(program, table), strict=True):
            steps.append(
                {"operation": step.operation, "arguments": list(step.arguments), "value": round_value(value)}
            )
    except ProgramError as error:
        return {"steps": steps, "result": None, "problem": str(error)}
    return {"steps": steps, "result": steps[-1]["value"]}


def is_fraction(question: str, steps: list[dict], result: Value | None) -> bool:
    """Tell whether the result is a share of 1 where a percentage was asked for."""
    if not isinstance(result, float) or not re.search("percent|%", question, re.IGNORECASE):
        return False
    return steps[-1]["operation"] == "divide" or any("%" in argument for argument in steps[-1]["arguments"])


def show_answer(result: dict) -> None:
    say("Facts shown to the model:")
    for text in result["facts"].values():
        say(f"  {text}")
    say(f"Program: {result['program']}")
    for number, step in enumerate(result["steps"]):
        say(
            f"  #{number} = {format_step(Step(step['operation'], tuple(step['arguments'])))} = "
            f"{format_value(step['value'])}"
        )
    if "problem" in result:
        warn(f"no result: {result['problem']}")
    else:
        percent = f" = {format_value(result['percent'])} %" if "percent" in result else ""
        say(f"Result: {format_value(result['result'])}{percent}")


def format_step(step: Step) -> str:
    first, second = (
        format_value(parse_number(part)) if part.startswith("const_") else part for part in step.arguments
    )
    return (
        f"{first} {OPERATORS[step.operation]} {second}"
        if step.operation in OPERATORS
        else f"{step.operation}({first})"
    )


def format_value(value: Value) -> str:
    """Format a value without needless digits: `94`, not `94.0`."""
    return value if isinstance(value, str) else f"{value:.15g}"
