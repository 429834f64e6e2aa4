"""`loratune quickstart`: the main job once, from the shipped data to a measured comparison."""

from rich.table import Table
from rich.text import Text

from loratune.commands import compare, evaluate, prepare, train
from loratune.console import console, say
from loratune.models.find import find_base
from loratune.settings import CompareSettings, EvaluateSettings, PrepareSettings, QuickstartSettings, TrainSettings

HELD_OUT_ROWS = 100
ANSWERED_ROWS = 24


def run(settings: QuickstartSettings) -> dict:
    """Each part is the command that a person would run; their settings are printed so that one can go on from there."""
    out = settings.out
    compare.read_prompts(settings.prompts)  # now, not after the training
    model = find_base(settings.model).name
    machine = {"threads": settings.threads, "device": settings.device}
    adapter = out / "model" / "gpt2_lora_finetuned"

    title("1 of 4: prepare the data", f"loratune prepare --source snapshot --model {model} --out {out / 'data'}")
    prepared = prepare.run(PrepareSettings(source="snapshot", model=model, out=out / "data"))

    title("2 of 4: train", f"loratune train --model {model} --data {out / 'data'} --budget {settings.budget:g}s --out {adapter}")
    trained = train.run(
        TrainSettings(model=model, data=out / "data", out=adapter, budget=settings.budget, validations=3, val_rows=40, **machine)
    )

    if not trained["finished"]:
        return {"prepare": prepared, "train": trained, "finished": False}

    rows = f"--rows {HELD_OUT_ROWS} --generate {ANSWERED_ROWS}"
    title("3 of 4: measure", f"loratune evaluate --adapter {adapter} --data {out / 'data' / 'test.jsonl'} {rows}")
    measured = evaluate.run(
        EvaluateSettings(
            adapter=adapter,
            data=str(out / "data" / "test.jsonl"),
            rows=HELD_OUT_ROWS,
            generate=ANSWERED_ROWS,
            out=out / "evaluation.json",
            **machine,
        )
    )

    title(
        "4 of 4: compare",
        f"loratune compare --adapter {adapter} --prompts {settings.prompts} --evaluation {out / 'evaluation.json'}",
    )
    compared = compare.run(
        CompareSettings(
            adapter=adapter,
            prompts=settings.prompts,
            out=out / "model_comparison.json",
            evaluation=out / "evaluation.json",
            max_new_tokens=96,
            **machine,
        )
    )
    show_improvement(measured)
    say(f"Side by side: {out / 'model_comparison.html'}   Numbers: {out / 'evaluation.json'}   Adapter: {adapter}/")
    return {"prepare": prepared, "train": trained, "evaluate": measured, "compare": compared}


def title(step: str, command: str) -> None:
    console.rule(Text(step, style="bold"))
    say(command)


def show_improvement(measured: dict) -> None:
    """What improved, by how much, on rows that neither training nor the choice of the adapter has seen."""
    table = Table(title="Held-out responses: lower is better")
    for column in ("", "base", "tuned", "change", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    parts = {"all": measured, **measured["by_source"]}
    for name, part in parts.items():
        base, tuned, difference = part["base"], part["tuned"], part["difference"]["nll"]
        low, high = difference["interval"]
        table.add_row(
            f"{name}: loss (nats a token)",
            f"{base['nll']:.3f}",
            f"{tuned['nll']:.3f}",
            f"{difference['mean']:+.3f}",
            f"{low:+.3f} to {high:+.3f}",
        )
        table.add_row(f"{name}: perplexity", f"{base['perplexity']:.2f}", f"{tuned['perplexity']:.2f}", "", "")
    console.print(table)
