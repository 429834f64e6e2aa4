"""An evaluation and a comparison as the commands leave them, with texts that a test chooses."""

from pathlib import Path

from pydantic import TypeAdapter

from loratune.evaluation.result import Evaluation
from loratune.report.schema import LogRow
from loratune.report.summary import Comparison

# Texts that would do something if a page took them as markup, a format or a colour.
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></svg></textarea><script src=//x>",
    "<!-- ]]> &lt;b&gt; &#60;i",
    "{{ 7 * 7 }}{% endraw %}",
    "$\\frac{1}$ $x^2",
    "#0b0b01 url(https://x)",
    "\x00\x1b[31m\x85",
    "日本 🜚",
]


def parse(kind, values: dict):
    """What the report makes of values from a file."""
    return TypeAdapter(kind).validate_python(values)


def part(low: float = -0.7, high: float = -0.5) -> dict:
    mean = (low + high) / 2
    return {
        "rows": 20,
        "answered_rows": 2,
        "base": {"nll": 2.7, "perplexity": 14.9, "rouge_l": 0.1, "eos_rate": 0.25, "facts": "gold"},
        "base_bare": {"nll": 3.2, "perplexity": 24.5},
        "tuned": {"nll": 2.1, "perplexity": 8.2, "rouge_l": 0.3, "eos_rate": 1.0, "facts": "gold"},
        "difference": {
            "nll": {"mean": mean, "interval": [low, high]},
            "rouge_l": {"mean": 0.2, "interval": [0.1, 0.3]},
            "eos_rate": {"mean": 0.75, "interval": [0.5, 1.0]},
        },
        "improved": 17,
        "tied": 1,
        "regressed": 2,
        "tie_threshold": 0.01,
    }


def example(text: str = "word", change: float = -0.5) -> dict:
    side = {
        "nll": 2.0,
        "answer": text,
        "ended": "eos",
        "tokens": 3,
        "scores": {"rouge_l": 0.5},
        "result": text,
    }
    return {
        "id": text,
        "source": text,
        "category": text,
        "instruction": text,
        "input": text,
        "wanted": text,
        "wanted_result": text,
        "change": change,
        "base": side,
        "tuned": side,
    }


def evaluation(text: str = "word", adapter: str = "adapter") -> dict:
    return {
        "base_model": "base",
        "adapter": adapter,
        "data": text,
        "template": "instruction",
        "facts": "gold",
        "decoding": {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0},
        "shortened": {text: {"rows": 20, "inputs_cut": 1, "responses_cut": 0, "dropped": 0}},
        **part(),
        "by_source": {text: part(), f"{text}b": part(-0.1, 0.1)},
        "by_category": {f"{text}c": part(0.1, 0.2), f"{text}d": part()},
        "telling": {text: [text]},
        "forgetting": {
            "text": text,
            "windows": 8,
            "base": {"nll": 3.0},
            "tuned": {"nll": 3.1},
            "difference": part(0.05, 0.15)["difference"],
        },
        "examples": [example(text, change) for change in (-0.5, 0.0, 0.5)],
    }


def row(base: str = "word", tuned: str = "word", prompt: str = "word") -> dict:
    found = {"prompt": prompt, "fine_tuned": tuned, "regular": base}
    for side in ("fine_tuned", "regular"):
        found |= {f"{side}_tokens": 3, f"{side}_ended": "eos", f"{side}_rep_4": 0.0, f"{side}_result": base}
    return found


def comparison(
    text: str = "word", evaluated: dict | None = None, rows: list[dict] | None = None
) -> Comparison:
    of_side = {"eos_rate": 0.5, "mean_tokens": 3.0, "rep_4": 0.1}
    return Comparison(
        rows=rows or [row(text, text, text)],
        summary={"fine_tuned": of_side, "regular": of_side},
        base=text,
        adapter=Path("adapter"),
        settings={"Prompts": text},
        evaluation=evaluated and parse(Evaluation, evaluated),
        training=[
            LogRow(step=0, val_nll=2.5),
            *(LogRow(step=n, tokens=100 * n, loss=2.0) for n in range(1, 9)),
            LogRow(step=8, val_nll=2.0),
        ],
        counts={"training": {text: {"rows": 5}}},
        versions={"torch": text},
        commands=[text],
    )
