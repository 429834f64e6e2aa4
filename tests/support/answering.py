"""Answer plain prompts, all with the same settings."""

from collections.abc import Collection, Sequence

from loratune.generation.decoding import Decoding
from loratune.generation.engine import generate
from loratune.generation.request import Answer, build_requests
from loratune.models.decoder import Decoder


def answer_all(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    end_ids: Collection[int],
    decoding: Decoding,
    *,
    constraints: Sequence | None = None,
    samples: int = 1,
    **options,
) -> list[Answer]:
    requests = build_requests(prompts, decoding, constraints=constraints, samples=samples)
    return generate(decoder, requests, end_ids, **options)
