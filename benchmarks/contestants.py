"""The three tools that `peers` compares: each trains the same rows once and prints its speed, peak memory and
held-out loss as one JSON object.
"""

import argparse
import json
import resource
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import torch
from transformers import TrainerCallback

from loratune.config.train import DEFAULT_BATCH_TOKENS
from loratune.data.example import Example
from loratune.data.packing import batch_in_order, input_length, pack, pack_best_fit
from loratune.data.sample import draw_stratified_sample
from loratune.data.sources.dolly import load_dolly
from loratune.data.template import load_template
from loratune.data.tokenize import tokenize_records
from loratune.evaluation.likelihood import count_targets, response_nll
from loratune.models.adapter import load_adapter, save_adapter
from loratune.models.load import PRECISIONS, load_model, set_precision
from loratune.models.lora import add_lora
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system.hardware import count_usable_cores
from loratune.system.memory import release_memory_when_freed
from loratune.tasks.finqa.records import FinqaOptions
from loratune.tasks.finqa.source import load_finqa
from loratune.training.objective import ResponseNll
from loratune.training.step import ADAMW_BETAS, adamw, train_step

RANK, ALPHA, RATE, STEP_ROWS, PADDED, HELD_OUT = 16, 32, 1e-3, 8, 512, 40
STEP_TOKENS = MICRO_TOKENS = DEFAULT_BATCH_TOKENS  # as in a run of ordinary length
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def loratune(rows: list[Example], options: Namespace, folder: Path) -> float:
    if options.low_memory:
        release_memory_when_freed()
    decoder = set_precision(load_model(resolve_model(options.base)).decoder, PRECISIONS[options.precision])
    add_lora(decoder, RANK, ALPHA, dropout=0.0, targets=["all"])
    decoder.gradient_checkpointing = options.low_memory
    optimizer = adamw(decoder.train(), 0.0)
    clock = Clock()
    lengths = [input_length(row) for row in rows]
    for group in batch_in_order(lengths, range(len(rows)), STEP_TOKENS):
        batches = [
            pack([rows[number] for number in part]) for part in pack_best_fit(lengths, group, MICRO_TOKENS)
        ]
        train_step(decoder, optimizer, batches, objective=ResponseNll(), learning_rate=RATE, clip=1.0)
        clock.tick(sum(tokens_of(rows[number]) for number in group))
    save_adapter(decoder, folder, options.base)
    return clock.tokens_per_second()


def trl(rows: list[Example], options: Namespace, folder: Path, *callbacks: TrainerCallback) -> float:
    from trl import SFTConfig, SFTTrainer

    data = [{"input_ids": row.prompt + row.response, "completion_mask": mask_of(row)} for row in rows]
    settings = SFTConfig(
        **common(options, folder), max_length=1024, completion_only_loss=True, gradient_checkpointing=False
    )
    return trained(
        SFTTrainer, settings, data, rows, options, folder, *callbacks, peft_config=peft_config(options)
    )


def trainer(rows: list[Example], options: Namespace, folder: Path) -> float:
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    data = [padded(row) for row in rows]
    model = get_peft_model(peft_base(options), peft_config(options))
    return trained(
        Trainer, TrainingArguments(**common(options, folder)), data, rows, options, folder, model=model
    )


def trained(
    kind: type,
    settings,
    data: list[dict],
    rows: list[Example],
    options: Namespace,
    folder: Path,
    *callbacks,
    **more,
) -> float:
    """Train with one of the Trainers, the rows in their order, and save the adapter; return real tokens/s."""
    from datasets import Dataset

    class InOrder(kind):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Watch(TrainerCallback):
        def on_step_end(self, *_, **__):
            done = len(clock.ends) * STEP_ROWS
            clock.tick(sum(map(tokens_of, rows[done : done + STEP_ROWS])))

    clock = Clock()
    model = {"model": more.pop("model", None) or peft_base(options)}
    watching = [Watch(), *callbacks]
    trainer = InOrder(
        **model, args=settings, train_dataset=Dataset.from_list(data), callbacks=watching, **more
    )
    trainer.train()
    trainer.model.save_pretrained(folder)
    return clock.tokens_per_second()


def common(options: Namespace, folder: Path) -> dict:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": STEP_ROWS // options.batch,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "adam_beta1": ADAMW_BETAS[0],
        "adam_beta2": ADAMW_BETAS[1],
        "weight_decay": 0.0,
        "use_cpu": True,
        "bf16": options.precision == "bf16",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def peft_base(options: Namespace):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)


def peft_config(options: Namespace):
    from peft import LoraConfig
    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(options.base).model_type
    return LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=TARGETS[kind],
        task_type="CAUSAL_LM",
        fan_in_fan_out=kind == "gpt2",
    )


def padded(row: Example) -> dict:
    """Cut or pad a row to one length, as most tutorials do; its loss is the response's, as in the others."""
    ids, labels = (row.prompt + row.response)[:PADDED], ([-100] * len(row.prompt) + row.response)[:PADDED]
    room = PADDED - len(ids)
    return {
        "input_ids": ids + [0] * room,
        "labels": labels + [-100] * room,
        "attention_mask": [1] * len(ids) + [0] * room,
    }


def mask_of(row: Example) -> list[int]:
    return [0] * len(row.prompt) + [1] * len(row.response)


def tokens_of(row: Example) -> int:
    return len(row.prompt) + len(row.response)


class Clock:
    """Real tokens per second, the first step left out: it warms up."""

    def __init__(self):
        self.ends: list[float] = []
        self.tokens: list[int] = []

    def tick(self, tokens: int) -> None:
        self.ends.append(time.perf_counter())
        self.tokens.append(tokens)

    def tokens_per_second(self) -> float:
        return sum(self.tokens[1:]) / (self.ends[-1] - self.ends[0])


def real_rows(tokenizer, count: int) -> tuple[list[Example], list[Example]]:
    """Return `count` rows to train on, of both sources and all lengths, and those that the loss is measured
    on.
    """
    finqa = load_finqa(
        "snapshot", FinqaOptions("program", 320, lambda texts: list(map(len, tokenizer.encode_batch(texts))))
    )
    records = draw_stratified_sample(
        [*load_dolly(from_hub=False).records, *finqa[0].records], count + HELD_OUT, seed=0
    )
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).tolist()
    rows, _ = tokenize_records(
        [records[number] for number in order], load_template("instruction"), tokenizer, max_tokens=1024
    )
    return rows[:count], rows[count:]


def held_out_loss(base, rows: list[Example], folder: Path) -> float:
    load_adapter(base.decoder, folder)
    return float(response_nll(base.decoder, rows).sum() / count_targets(rows).sum())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tool", choices=("loratune", "trl", "trainer"))
    parser.add_argument("--base", required=True, help="model folder")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--batch", type=int, default=1, help="rows in a micro-batch of trl and trainer")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--low-memory", action="store_true")
    return parser


def main(options: Namespace) -> None:
    torch.set_num_threads(count_usable_cores())
    torch.manual_seed(0)
    rows, held_out = real_rows(Tokenizer.load(Path(options.base)), options.rows)
    tools = {"loratune": loratune, "trl": trl, "trainer": trainer}
    with tempfile.TemporaryDirectory() as folder:
        speed = tools[options.tool](rows, options, Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        loss = held_out_loss(load_model(resolve_model(options.base)), held_out, Path(folder))
    measured = {
        "tokens_per_second": round(speed, 1),
        "peak_memory_gb": round(peak, 3),
        "loss": round(loss, 4),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main(build_parser().parse_args())
