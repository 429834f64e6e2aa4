"""Generate answers under a progress bar."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from loratune.generation.engine import generate
from loratune.generation.request import Answer, Request
from loratune.models.decoder import Decoder
from loratune.system.messages import progress


def generate_with_progress(
    title: str,
    decoder: Decoder,
    requests: Sequence[Request],
    *,
    end_ids: Collection[int],
    batch_size: int,
    on_answer: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """Answer all requests as `generate` does, under a progress bar.

    Args:
        title: of the progress bar.
        decoder: the model.
        requests: prompts and their settings.
        end_ids: the tokens that end an answer.
        batch_size: the most answers that run at the same time.
        on_answer: called with the index of a request and its answer, as soon as that is finished.
    """
    started, generated = time.perf_counter(), 0
    with progress(title, len(requests)) as advance:

        def on_step(tokens: int, finished: Mapping[int, Answer]) -> None:
            nonlocal generated
            generated += tokens
            advance(len(finished), f"{generated / (time.perf_counter() - started):4.0f} tokens/s")
            if on_answer:
                for index, answer in finished.items():
                    on_answer(index, answer)

        return generate(decoder, requests, end_ids, batch_size=batch_size, on_step=on_step)
