"""Let the base and the tuned model answer the same prompts, with the same settings and the same random
numbers.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from loratune.config.shared import DecodingConfig
from loratune.generation.constrained import Constraint
from loratune.generation.engine import Answer, generate
from loratune.models.lora import without_adapter
from loratune.system.messages import progress


def generate_base_and_tuned(
    decoder,
    prompts: list[list[int]],
    end_ids: Collection[int],
    decoding: DecodingConfig,
    constraints: Sequence[Constraint | None] | None = None,
) -> tuple[list[Answer], list[Answer]]:
    """The base's answers and the tuned model's; one set of weights in memory, the adapter switched off and
    on.
    """
    with without_adapter(decoder):
        base = generate_with_progress(decoder, prompts, end_ids, decoding, "base answers ", constraints)
    return base, generate_with_progress(decoder, prompts, end_ids, decoding, "tuned answers", constraints)


def generate_with_progress(
    decoder,
    prompts: list[list[int]],
    end_ids: Collection[int],
    decoding: DecodingConfig,
    title: str,
    constraints: Sequence[Constraint | None] | None = None,
    samples: int = 1,
    known_answers: Mapping[int, Answer] | None = None,
    on_answer: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """As `generate`, with a progress bar."""
    started, written = time.perf_counter(), 0
    with progress(title, samples * len(prompts) - len(known_answers or ())) as advance:

        def on_progress(tokens: int, answers: int) -> None:
            nonlocal written
            written += tokens
            advance(answers, f"{written / (time.perf_counter() - started):4.0f} tokens/s")

        return generate(
            decoder, prompts, end_ids, decoding, on_progress, constraints, samples, known_answers, on_answer
        )
