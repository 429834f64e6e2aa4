"""Every setting of every command, defined once.

The command line, TOML files, `--help`, the validation and the run's own `settings.toml` are all made from these classes.
A field's description is its help text; its bounds are its validation.
"""

import difflib
import re
import reprlib
import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from loratune.errors import UserError
from loratune.reading import load_toml

DURATION_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
PART = r"(\d+(?:\.\d+)?)([smh])"  # of a duration
LONGEST_DURATION = 40  # letters
BROKEN = "has a character that is no text (a null, or bytes that are not UTF-8); rename what it stands for"


def parse_duration(value: Any) -> Any:
    """`90s`, `10m`, `1.5h` or `1h30m` to seconds; a bare number is seconds."""
    if not isinstance(value, str):
        return value
    plain = value.replace(" ", "")
    if len(plain) <= LONGEST_DURATION and re.fullmatch(rf"({PART})+", plain, re.ASCII):
        return sum(float(number) * DURATION_UNITS[unit] for number, unit in re.findall(PART, plain, re.ASCII))
    try:
        return float(value)
    except ValueError:
        raise ValueError("not a duration; write it like 90s, 10m or 1h30m") from None


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=365 * 86400)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Penalty = Annotated[float, Field(ge=1, le=10)]
BATCH, SHORT_BATCH = 1024, 512  # tokens in an optimiser step, unless somebody says how many
SHORT_RUN = 64_000  # tokens of a run that learns more in smaller and more steps (measured: RESULTS.md)
VAL_ROWS, FEWEST_VAL_ROWS = 64, 8  # measured each time; of fewer it is chance whether they say that training helped
STOP_RULES = ("epochs", "steps", "budget")
ADAPTER = Path("model/gpt2_lora_finetuned")
RUNS = Path("runs")
PROMPTS = "JSON file with a list of prompts; default: test.json, or where there is none those that come with loratune"


class Settings(BaseModel):
    """What all settings have in common: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    POSITIONAL: ClassVar[tuple[str, ...]] = ()  # fields that the command line takes without their names

    @classmethod
    def over(cls, from_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """The values of a settings file and of the command line, which wins."""
        return {**from_file, **given}

    @classmethod
    def checked(cls, values: dict[str, Any], origin: str = "", unknown: tuple[str, ...] = ()):
        """Validate `values`; raises one UserError with all problems, each with its remedy.

        `unknown` are options that the command line did not recognise; `origin` is put before each problem.
        """
        problems = [cls._unknown(name) for name in unknown]
        problems += [f"{flag(name)}: {BROKEN}" for name, value in values.items() if is_broken(value)]
        try:
            settings = cls(**values)
        except ValidationError as error:
            problems += [cls._problem(detail) for detail in error.errors()]
        if problems := problems + cls.contradictions(values):
            raise UserError(*(origin + problem for problem in problems))
        return settings

    @classmethod
    def contradictions(cls, values: dict[str, Any]) -> list[str]:
        """Problems that lie in no single value but between several."""
        return []

    @classmethod
    def _unknown(cls, name: str) -> str:
        known = [flag(field) for field in cls.model_fields if field not in cls.POSITIONAL]
        close = difflib.get_close_matches(flag(name), known, n=1, cutoff=0.6)
        return f"{flag(name)}: unknown setting; " + (f"did you mean {close[0]}?" if close else "--help lists them all")

    @classmethod
    def _problem(cls, detail: dict) -> str:
        if detail["type"] == "extra_forbidden":
            return cls._unknown(str(detail["loc"][0]))
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:
            return message
        field = str(detail["loc"][0])
        name = field if field in cls.POSITIONAL else flag(field)
        if detail["type"] == "missing":
            return f"{name} is missing: {cls.model_fields[field].description}"
        return f"{name}: {message[0].lower()}{message[1:]} (given: {reprlib.repr(detail['input'])})"

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def command(self, name: str) -> str:
        """The command line, for a shell, of the command `name` with these settings; defaults are left out."""
        words = ["loratune", name]
        for field, value in self.model_dump(mode="json").items():
            if getattr(self, field) != self.__class__.model_fields[field].get_default(call_default_factory=True):
                words += options_of(field, value)
        return shlex.join(words)


def options_of(field: str, value: Any) -> list[str]:
    """A setting as it stands on a command line."""
    if isinstance(value, bool):
        return [flag(field if value else f"no_{field}")]
    if isinstance(value, dict):
        return [flag(field), *(f"{name}={column}" for name, column in value.items())]
    return [flag(field), *map(str, value if isinstance(value, list) else [value])]


def is_broken(value: Any) -> bool:
    """Whether a text in it has a null character, which no path can have, or bytes that are no text (as a file name may)."""
    if isinstance(value, dict):
        return is_broken([*value, *value.values()])
    if isinstance(value, list):
        return any(map(is_broken, value))
    return isinstance(value, str | Path) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in str(value))


def is_zero(value: Any) -> bool:
    """Of a value as it was given; what is no number is said elsewhere."""
    try:
        return float(value) == 0
    except (TypeError, ValueError):
        return False


def flag(field: str) -> str:
    return "--" + field.removeprefix("--").replace("_", "-")


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, names with dashes or underscores. Raises UserError with file and line."""
    values: dict[str, Any] = {}
    for name, value in load_toml(path).items():
        field = name.replace("-", "_")
        if field in values:
            raise UserError(f"{path}: {name} stands twice, with a dash and with an underscore; leave one out")
        values[field] = value
    return values


class ModelChoice(Settings):
    model: str = Field(
        "auto",
        description="base model: a short name (gpt2, smollm2-135m), a Hugging Face name, a folder, a .gguf file, "
        "or auto (GPT-2 if it is at hand, else SmolLM2-135M-Instruct)",
    )


class Machine(Settings):
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0 means one for each physical core")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; auto takes a GPU if there is one")


class Rows(Settings):
    max_tokens: int = Field(1024, ge=64, description="most tokens in a row")
    template: str = Field("instruction", description="prompt template: instruction, chatml, plain, or a .toml file with your own")


class DryRun(Settings):
    dry_run: bool = Field(False, description="check everything, print what would be done, and stop")


class PrepareSettings(ModelChoice, DryRun):
    """Turn Dolly 15k, FinQA or your own files into training, validation and test data."""

    out: Path = Field(Path("data"), description="folder to write to")
    data: list[str] = Field(
        ["dolly", "finqa"],
        min_length=1,
        description="what to prepare: dolly, finqa, .jsonl/.json/.csv/.tsv/.parquet files or folders of them "
        "(those named val or test stay apart), a folder with FinQA's own train.json, dev.json and test.json, "
        "or a Hugging Face data set (owner/name)",
    )
    val: list[str] = Field([], description="your own files, or folders of them, to validate on: kept whole, never trained on")
    test: list[str] = Field([], description="your own files, or folders of them, to test on: kept whole, never trained on")
    source: Literal["auto", "hub", "snapshot"] = Field(
        "auto",
        description="where dolly and finqa come from; auto takes the hub if it answers within seconds, else the shipped snapshot",
    )
    columns: dict[str, str] = Field(
        {},
        description="which of your columns is which, as instruction=question output=answer [input=context group=page], or messages=chat",
    )
    skip_bad: bool = Field(
        False,
        description="leave out rows of your own data that cannot be used, count them, and list them in prepare_report.json, "
        "instead of refusing the file",
    )
    finqa_target: Literal["program", "answer"] = Field(
        "program", description="what FinQA's response is: the program or the answer"
    )
    fact_tokens: int = Field(320, ge=32, description="most tokens of a FinQA page's facts to keep, the best ranked first")
    max_tokens: int = Field(
        1024, ge=64, description="most tokens in a row; longer ones are shortened, the input first, and counted"
    )
    val_fraction: float = Field(
        0.05, ge=0, lt=0.5, description="share of the groups held out for validation, and again as much for the test"
    )
    template: str = Field(
        "instruction",
        description="prompt template used for counting tokens: instruction, chatml, plain, or a .toml file",
    )
    seed: Seed = Field(0, description="seed of the split")


class TrainSettings(ModelChoice, Machine, Rows, DryRun):
    """Train a LoRA adapter on the prepared data."""

    # What a run can never change: the adapter's form, and which rows each step takes.
    FIXED: ClassVar[tuple[str, ...]] = ("rank", "alpha", "targets", "seed", "batch_tokens", "max_tokens")
    # What belongs to one start of a run and is not kept with it.
    OF_A_START: ClassVar[tuple[str, ...]] = ("resume", "accept_changes", "dry_run")

    data: Path = Field(Path("data"), description="folder with train.jsonl and val.jsonl")
    out: Path = Field(ADAPTER, description="folder for the adapter")
    run: str | None = Field(None, pattern=r"^\w[\w.-]*$", description="name of the run, runs/NAME; default: date and time")
    resume: bool = Field(False, description="go on with --run NAME, or with the newest run")
    accept_changes: bool = Field(
        False,
        description="with --resume: go on although settings, data, base, packages or the machine have changed since the run began "
        "(never the adapter's form and the order of the data: --rank, --alpha, --targets, --seed, --batch-tokens, --max-tokens)",
    )

    targets: list[str] = Field(
        ["all"],
        min_length=1,
        description="linear layers to adapt: all, attention, mlp, or their names (such as q_proj, mlp.c_fc)",
    )
    rank: int = Field(16, ge=1, le=1024, description="rank of the adapter's matrices")
    alpha: float = Field(32, gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")

    epochs: float | None = Field(None, gt=0, le=10_000, description="stop after this many passes over the data")
    steps: int | None = Field(None, gt=0, description="stop after this many optimiser steps")
    budget: Duration | None = Field(None, description="stop after this time, such as 10m or 1h30m; 1h if no stop rule is given")
    patience: int = Field(0, ge=0, description="stop early after this many validations without improvement; 0 means never")

    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="course of the learning rate after the warm-up"
    )
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the run in which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    batch_tokens: int | None = Field(
        None,
        ge=64,
        description="tokens in an optimiser step, prompts included, a longer row alone; "
        f"default: {BATCH}, or {SHORT_BATCH} in a run of less than {SHORT_RUN:,} tokens",
    )
    micro_tokens: int | None = Field(
        None,
        ge=64,
        description="tokens computed at once: fewer save memory, the result stays the same; default: what a short test finds best",
    )
    low_memory: bool = Field(
        False,
        description="compute each layer twice instead of keeping its inside: less memory, a third to two fifths slower, the same result",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the large multiplications; auto takes bf16 where a short test shows that it is faster"
    )
    validations: int = Field(
        10,
        ge=1,
        description="how often to measure the validation loss; fewer, if that took a tenth of a --budget",
    )
    val_rows: int = Field(
        VAL_ROWS,
        ge=1,
        description="validation rows measured each time, the same ones; "
        f"fewer, but at least {FEWEST_VAL_ROWS}, where measuring them twice takes a tenth of a --budget",
    )
    seed: Seed = Field(0, description="seed of the data order and of the adapter's first weights")
    repeat: int = Field(
        1, ge=1, le=100, description="train this often, with one seed after the other, to see how much chance is in the result"
    )

    @staticmethod
    def raise_micro_tokens(kept: dict[str, Any]) -> dict[str, Any]:
        """Settings as a run or an adapter keeps them, with micro_tokens of at least max_tokens, which --resume asks for.

        Runs on a GPU were once kept with fewer.
        """
        longest, at_once = kept.get("max_tokens"), kept.get("micro_tokens")
        too_few = isinstance(longest, int) and isinstance(at_once, int) and at_once < longest
        return kept | {"micro_tokens": longest} if too_few and kept.get("device") == "cuda" else kept

    def kept(self) -> "TrainSettings":
        """The settings as they are kept with a run."""
        return self.model_copy(update=dict.fromkeys(self.OF_A_START, False))

    @classmethod
    def over(cls, from_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """A stop rule on the command line replaces the file's, whichever it is."""
        if any(rule in given for rule in STOP_RULES):
            from_file = {name: value for name, value in from_file.items() if name not in STOP_RULES}
        return super().over(from_file, given)

    @classmethod
    def contradictions(cls, values: dict[str, Any]) -> list[str]:
        problems = []
        if values.get("resume") and str(values.get("repeat", 1)) != "1":
            problems.append("--resume and --repeat contradict each other; go on with one of the runs, --run NAME-seedN")
        if values.get("accept_changes") and not values.get("resume"):
            problems.append("--accept-changes is for a run that goes on; give --resume, too, or leave it out")
        if len(rules := [flag(name) for name in STOP_RULES if values.get(name) is not None]) > 1:
            problems.append(f"{' and '.join(rules)} contradict each other; give one of them")
        longest, at_once = (values.get(name, cls.model_fields[name].default) for name in ("max_tokens", "micro_tokens"))
        # Text that is no number, or one of thousands of digits, is refused elsewhere.
        if all(str(size).isdecimal() and len(str(size)) < 20 for size in (longest, at_once)) and int(longest) > int(at_once):
            problems.append(f"--max-tokens {longest} is more than --micro-tokens {at_once}; lower the first or raise the second")
        return problems


class AdapterUse(Machine):
    model: str | None = Field(None, description="base model; default: the one that the adapter was trained on")
    template: str | None = Field(None, description="another prompt template than the adapter's own")


class AdapterChoice(AdapterUse):
    adapter: Path = Field(ADAPTER, description="folder with the adapter")


class Sampling(Settings):
    max_new_tokens: int = Field(128, ge=1, description="most tokens in an answer")
    temperature: float = Field(0.0, ge=0, description="0 always takes the likeliest token; higher is more varied")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens that together have this probability")
    top_k: int = Field(0, ge=0, description="sample from this many likeliest tokens; 0 means all")
    seed: Seed = Field(0, description="seed of the sampling, the same for both models, and of the choice of rows")


class Decoding(Sampling):
    repetition_penalty: Penalty = Field(
        1.0,
        description="makes tokens less likely that the answer already has, unless it is held to a language; 1 means not at all",
    )
    batch_size: int = Field(
        64, ge=1, description="most answers written at the same time, fewer where memory is short; they do not depend on it"
    )


class CompareSettings(AdapterChoice, Decoding, DryRun):
    """Let the base and the tuned model answer the same prompts, side by side."""

    repetition_penalty: Penalty = Field(
        1.1,  # without it, small models' greedy answers go round in circles (RESULTS.md)
        description="of both models' answers: makes tokens less likely that the answer already has; 1 means not at all",
    )
    prompts: Path | None = Field(None, description=PROMPTS)
    out: Path = Field(Path("model_comparison.json"), description="file to write; the report is written beside it")
    format: Literal["html", "md", "both"] = Field("html", description="of the report: a page, Markdown (for an issue), or both")
    evaluation: Path = Field(
        Path("evaluation.json"),
        description="what `loratune evaluate` wrote, for the report; left out if it is of another adapter",
    )


def listed(value: Any) -> Any:
    """One path where several may stand, as a settings file would name it."""
    return [value] if isinstance(value, str | Path) else value


class EvaluateSettings(AdapterUse, Decoding, DryRun):
    """Measure the base and the tuned model, or several tuned ones, on the same held-out rows."""

    adapter: Annotated[list[Path], BeforeValidator(listed)] = Field(
        [ADAPTER], min_length=1, description="folder with the adapter; several are measured side by side"
    )
    data: str = Field(
        "data/test.jsonl",
        description="a .jsonl file, or dolly or finqa: that part of data/test.jsonl (FinQA's dev part is in val.jsonl)",
    )
    facts: Literal["retrieved", "gold"] = Field(
        "retrieved",
        description="what FinQA's rows show: the facts that were retrieved, or the gold ones alone; "
        "rows whose gold facts nobody knows are left out then, and counted",
    )
    rows: int = Field(0, ge=0, description="measure this many rows, drawn evenly from the sources; 0 means all")
    generate: int = Field(
        32, ge=0, description="let both models answer this many of the rows and score the answers; 0 means none"
    )
    samples: int = Field(
        1, ge=1, le=100, description="answer each row this often, with one seed after the other; scores are means over them"
    )
    bare: bool = Field(True, description="measure the base with a bare prompt, too: the instruction and the input alone")
    forgetting: Path | None = Field(
        None,
        description="text file (UTF-8) on which to measure what the tuned model has forgotten; default: prose of FinQA's test pages",
    )
    constrain: bool = Field(False, description="let FinQA's rows be answered only with programs that can be carried out")
    max_tokens: int = Field(1024, ge=64, description="most tokens in a row")
    out: Path = Field(Path("evaluation.json"), description="file to write")

    @classmethod
    def contradictions(cls, values: dict[str, Any]) -> list[str]:
        if str(values.get("samples", 1)) == "1" or not is_zero(values.get("temperature", 0)):
            return []
        return ["--samples: at --temperature 0 all answers would be the same; raise it, such as to 1, or leave --samples out"]


class AskSettings(AdapterChoice, Sampling):
    """Answer a question about a page of figures with a program, and carry it out."""

    POSITIONAL = ("question",)

    question: str = Field(description="what to ask, in quotation marks")
    page: Path = Field(
        description="JSON file with the page: pre_text and post_text, lists of sentences, and table, a list of rows"
    )
    fact_tokens: int | None = Field(
        None,
        ge=32,
        description="most tokens of the page's facts to show; default: as in the data that the adapter was trained on",
    )
    constrain: bool = Field(True, description="allow only programs that can be carried out")


class QuickstartSettings(ModelChoice, Machine, DryRun):
    """Do the main job once: prepare, train, evaluate, compare."""

    out: Path = Field(Path("quickstart"), description="folder for everything it writes")
    budget: Duration = Field("5m", validate_default=True, description="time to train, such as 5m")
    prompts: Path | None = Field(None, description=PROMPTS)


class PreviewSettings(ModelChoice, Rows):
    """Show rows as the model sees them: the prompt, what is learned, and what was cut."""

    data: Path = Field(Path("data/train.jsonl"), description="a .jsonl file, or a folder with train.jsonl")
    rows: int = Field(4, ge=1, description="rows to show, drawn evenly from the sources")
    source: str | None = Field(None, description="only rows of this source, such as dolly or finqa")
    cut: bool = Field(False, description="only rows that were shortened or dropped, the first ones in the file")
    seed: Seed = Field(0, description="seed of the choice of rows")


class DoctorSettings(Machine):
    """Check whether this machine can train, and what will be slow and why."""
