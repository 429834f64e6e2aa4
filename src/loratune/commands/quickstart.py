"""`loratune quickstart`: prepare, train, evaluate and compare once, with the shipped data."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from loratune.api.compare import choose_report_paths
from loratune.api.evaluate import build_evaluation_settings, load_inputs
from loratune.api.prompts import choose_prompts_file, read_prompts
from loratune.commands import compare, evaluate, prepare, train
from loratune.commands.dry_run import Plan, format_duration, show_plan
from loratune.config.compare import CompareConfig
from loratune.config.evaluate import EvaluateConfig
from loratune.config.prepare import PrepareConfig
from loratune.config.quickstart import QuickstartConfig
from loratune.config.train import TrainConfig
from loratune.data.resolve_template import fit_tokenizer, resolve_template
from loratune.data.sample import draw_stratified_sample
from loratune.data.tokenize import tokenize_records
from loratune.evaluation.forgetting import draw_windows, load_prose
from loratune.generation.prompt_format import Prompt, PromptFormat
from loratune.models.load import load_model
from loratune.models.resolve import resolve_model
from loratune.report.terminal.evaluation import show_improvement
from loratune.system.console import console, say
from loratune.system.device import choose_device
from loratune.system.memory import release_finished_work

HELD_OUT_ROWS = 100
ANSWERED_ROWS = 24


@dataclass(frozen=True)
class CommandConfigs:
    """The four commands that a person would run."""

    prepare: PrepareConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    compare: CompareConfig


def run(settings: QuickstartConfig) -> dict:
    """Run the four commands that a person would, and print each with its options, so that one can go on."""
    out = settings.out
    # Read now, so that a broken file is found before the training.
    prompts = read_prompts(choose_prompts_file(settings.prompts))
    parts = build_command_configs(settings, resolve_model(settings.model).name)
    adapter = parts.train.out
    if settings.dry_run:
        return show_plan(plan_quickstart(settings, parts, prompts))

    show_title("1 of 4: prepare the data", parts.prepare.to_command_line("prepare"))
    prepared = prepare.run(parts.prepare)

    show_title("2 of 4: train", parts.train.to_command_line("train"))
    trained = train.run(parts.train)
    if not trained["finished"]:
        return {"prepare": prepared, "train": trained, "finished": False}
    release_finished_work()  # so that the trained model does not lie beside the measured one

    show_title("3 of 4: measure", parts.evaluate.to_command_line("evaluate"))
    evaluation = evaluate.evaluate_and_show(load_inputs(parts.evaluate), parts.evaluate)

    show_title("4 of 4: compare", parts.compare.to_command_line("compare"))
    compared = compare.run(parts.compare)
    show_improvement(evaluation)
    say(
        f"Side by side: {out / 'model_comparison.html'}   Numbers: {out / 'evaluation.json'}   Adapter: "
        f"{adapter}/"
    )
    return {"prepare": prepared, "train": trained, "evaluate": evaluation.to_json(), "compare": compared}


def build_command_configs(settings: QuickstartConfig, model: str) -> CommandConfigs:
    out, machine = settings.out, {"threads": settings.threads, "device": settings.device}
    data, adapter, evaluation = out / "data", out / "model" / "gpt2_lora_finetuned", out / "evaluation.json"
    return CommandConfigs(
        PrepareConfig(source="snapshot", model=model, out=data),
        TrainConfig(model=model, data=data, out=adapter, budget=settings.budget, **machine),
        EvaluateConfig(
            adapter=[adapter],
            data=str(data / "test.jsonl"),
            rows=HELD_OUT_ROWS,
            generate=ANSWERED_ROWS,
            out=evaluation,
            **machine,
        ),
        CompareConfig(
            adapter=adapter,
            prompts=settings.prompts,
            out=out / "model_comparison.json",
            evaluation=evaluation,
            max_new_tokens=96,
            **machine,
        ),
    )


def plan_quickstart(settings: QuickstartConfig, parts: CommandConfigs, prompts: Sequence[Prompt]) -> Plan:
    """Estimate the time with the base in place of the tuned model and unsplit rows in place of held-out ones.

    They take as long.
    """
    choose_device(settings.threads, settings.device)
    base = load_model(resolve_model(parts.prepare.model))
    template = resolve_template(parts.train.template, base.tokenizer)
    tokenizer = fit_tokenizer(base.tokenizer, template)
    surveys = prepare.survey_all(parts.prepare, tokenizer, template)
    preparing = prepare.plan_preparation(parts.prepare, surveys, template, tokenizer=tokenizer)
    sample = draw_stratified_sample(
        [record for one in surveys for record in one.sample], HELD_OUT_ROWS, seed=0
    )
    rows, _ = tokenize_records(sample, template, tokenizer, max_tokens=parts.evaluate.max_tokens)
    windows = draw_windows(load_prose(None), base.tokenizer, base.decoder.spec.max_positions, seed=0)
    answered = [row.prompt for row in rows[: len(rows) * ANSWERED_ROWS // HELD_OUT_ROWS]]
    measuring = evaluate.estimate_evaluation_seconds(
        base.decoder,
        rows,
        answered,
        windows=windows,
        models=3,  # the base with and without a template, and the tuned model
        adapters=1,
        settings=build_evaluation_settings(parts.evaluate),
    )
    encoded = PromptFormat(template, tokenizer).encode(prompts)
    reports = choose_report_paths(parts.compare.out, "html")
    comparing = compare.plan_comparison(base.decoder, encoded, parts.compare, reports=reports)
    seconds = [preparing.seconds, settings.budget, measuring, comparing.seconds]
    return Plan(
        {**preparing.reads, **comparing.reads},
        [*preparing.writes, parts.train.out, parts.evaluate.out, *comparing.writes],
        sum(known for known in seconds if known is not None),
        f"of that {format_duration(settings.budget)} to train, as --budget says; the rest was timed on a "
        "small piece",
    )


def show_title(step: str, command: str) -> None:
    console.rule(Text(step, style="bold"))
    say(command)
