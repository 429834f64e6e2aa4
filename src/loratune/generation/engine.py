"""Generate answers with continuous batching and speculative decoding.

Continuous batching: a finished answer leaves the batch, and the next prompt takes its slot. One step reads
all weights once, however many answers are running, so batching pays. New prompts are computed in the same
call as the newest tokens of the running answers.

Speculative decoding: guesses of the next tokens are computed in the same call, too. The model's own choices
are appended up to the first wrong guess, so an answer is the same as without guesses, and exactly one random
number is drawn for each of its tokens (Leviathan et al. 2023, "Fast inference from transformers via
speculative decoding"; arXiv:2211.17192).

A prompt with several answers is computed once; its other answers start with a copy of its keys and values.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from loratune.generation.cache import KVCache, choose_slot_count
from loratune.generation.request import Answer, Request, RunningAnswer, compute_max_answer_tokens
from loratune.models.decoder import Decoder
from loratune.models.merge import merge_adapter

MAX_SLOTS = 64  # answers that run at the same time, by default
MAX_PREFILL_TOKENS = 512  # of new prompts in one call, to bound its memory; a longer prompt is computed alone
CHEAP_CALL_TOKENS = 16  # tokens in one call; fewer are hardly faster


@dataclass(frozen=True)
class Update:
    """What one step added to one answer."""

    id: int  # of the request
    ids: list[int]  # the new tokens, without EOS
    answer: Answer | None  # the whole answer, once it is finished

    @property
    def token_count(self) -> int:
        """The number of tokens that were generated, EOS included."""
        return len(self.ids) + (self.answer is not None and self.answer.ended == "eos")


class Engine:
    """Answers requests, which may be submitted at any time; each step calls the model once.

        with merge_adapter(decoder):
            engine = Engine(decoder, tokenizer.end_ids)
            for token in engine.stream(Request(prompt)):
                ...

    The engine uses the decoder as it is. `merge_adapter` makes each call faster but costs as much as several
    calls, so it belongs around everything that an engine does, not around each answer.

    An answer depends on its request and the model alone, not on the other requests.
    """

    def __init__(
        self,
        decoder: Decoder,
        end_ids: Collection[int],
        *,
        max_slots: int = MAX_SLOTS,
        capacity: int | None = None,
    ):
        """Allocate slots for `max_slots` answers, or fewer if memory is short.

        Args:
            decoder: the model.
            end_ids: the tokens that end an answer.
            max_slots: the most answers that run at the same time; further requests wait.
            capacity: the most tokens of a prompt and its answer together; None: as many as the model has
                positions. Memory is only taken from the system as it is used.
        """
        self.decoder, self.end_ids = decoder, end_ids
        self.capacity = capacity or decoder.spec.max_positions
        self.slots = choose_slot_count(decoder, max_slots, self.capacity)
        self.cache = KVCache(decoder, self.slots, self.capacity)
        self.ids = count()
        self.waiting: deque[RunningAnswer] = deque()
        self.running: list[RunningAnswer] = []  # in the order of the cache's slots
        self.undelivered: list[Update] = []
        self.streams: dict[int, deque[Update]] = {}  # updates that a stream has not yielded yet

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to return."""
        return bool(self.waiting or self.running or self.undelivered)

    def submit(self, request: Request) -> int:
        """Put a request at the end of the queue.

        Returns:
            Its id, which its updates carry.

        Raises:
            ValueError: the prompt is empty, leaves no room for an answer, or does not fit with its answer
                into the engine's capacity.
        """
        max_tokens = compute_max_answer_tokens(
            request.prompt, request.decoding.max_new_tokens, self.decoder.spec.max_positions
        )
        if len(request.prompt) + max_tokens > self.capacity:
            raise ValueError(
                f"a prompt of {len(request.prompt)} tokens and an answer of up to {max_tokens} do not fit "
                f"into this engine's capacity of {self.capacity} tokens"
            )
        answer = RunningAnswer(next(self.ids), request, max_tokens)
        self.waiting.append(answer)
        return answer.id

    def cancel(self, request_id: int) -> None:
        """Cancel a waiting or running request and free its slot; it has no further updates.

        The id of a finished or unknown request is ignored.
        """
        self.streams.pop(request_id, None)
        self.waiting = deque(answer for answer in self.waiting if answer.id != request_id)
        self.undelivered = [update for update in self.undelivered if update.id != request_id]
        for slot, answer in enumerate(self.running):
            if answer.id == request_id:
                self.free_slot(slot)
                break

    def step(self) -> list[Update]:
        """Call the model once: start waiting requests in free slots, and continue the running answers.

        If it raises, even by Ctrl-C, all requests are dropped, and the engine can be used again.

        Returns:
            The updates since the last call, without those of requests that `stream` reads.
        """
        self.advance()
        updates, self.undelivered = self.undelivered, []
        return updates

    def stream(self, request: Request) -> Generator[int, None, Answer]:
        """Yield the tokens of a request as they come; it is submitted when the first token is asked for.

        Other requests continue meanwhile. Closing the stream early cancels its request.

        Returns:
            The whole answer, as the value of `yield from`.

        Raises:
            ValueError: as `submit`.
            RuntimeError: the request was cancelled, or dropped because another step raised.
        """
        request_id = self.submit(request)
        updates = self.streams[request_id] = deque()
        try:
            while True:
                while not updates:
                    if request_id not in self.streams:
                        raise RuntimeError("the request was cancelled")
                    self.advance()
                update = updates.popleft()
                yield from update.ids
                if update.answer:
                    return update.answer
        finally:
            self.cancel(request_id)

    def advance(self) -> None:
        """Call the model once; pass each update to its stream, or keep it for `step`."""
        if not self.waiting and not self.running:
            return
        try:
            updates = self.compute_updates()
        except BaseException:
            # The cache and the answers may be out of step.
            for state in (self.waiting, self.running, self.cache.lengths, self.streams):
                state.clear()
            raise
        for update in updates:
            self.streams.get(update.id, self.undelivered).append(update)

    @torch.inference_mode()
    def compute_updates(self) -> list[Update]:
        starting = self.fill_slots()
        for answer in self.running:
            answer.look_ahead(CHEAP_CALL_TOKENS // len(self.running) - 1)
        logits = compute_next_logits(self.decoder, self.cache, self.running, starting=starting)
        self.running += starting
        updates = []
        for slot, (answer, rows) in enumerate(zip(self.running, logits, strict=True)):
            known = len(answer.ids)
            finished = answer.add(answer.choose(rows), self.end_ids)
            self.cache.truncate(slot, answer.cached_length)
            updates.append(Update(answer.id, answer.ids[known:], finished))
        for slot in reversed(range(len(updates))):
            if updates[slot].answer:
                self.free_slot(slot)
        return updates

    def fill_slots(self) -> list[RunningAnswer]:
        """Fill the free slots from the queue.

        An answer to the prompt of a running one starts with a copy of its cache and is running at once. The
        others are returned: their prompts are computed by the next call, at least one, and as many as fit.
        """
        starting: list[RunningAnswer] = []
        tokens = 0
        while self.waiting and len(self.running) + len(starting) < self.slots:
            answer = self.waiting[0]
            slot = self.find_slot(answer.prompt)
            if slot is not None:
                self.cache.copy_prefix(slot, answer.cached_length)
                self.running.append(answer)
            elif starting and (
                answer.prompt == starting[-1].prompt or tokens + len(answer.prompt) > MAX_PREFILL_TOKENS
            ):
                break  # until that prompt is in the cache, or a call has room for this one
            else:
                starting.append(answer)
                tokens += len(answer.prompt)
            self.waiting.popleft()
        return starting

    def find_slot(self, prompt: list[int]) -> int | None:
        """Return the first slot with a running answer to this prompt; None if there is none."""
        return next((slot for slot, other in enumerate(self.running) if other.prompt == prompt), None)

    def free_slot(self, slot: int) -> None:
        """Remove an answer; the last one takes its slot, as in the cache."""
        self.cache.free_slot(slot)
        self.running[slot] = self.running[-1]
        self.running.pop()


def compute_next_logits(
    decoder: Decoder, cache: KVCache, running: list[RunningAnswer], *, starting: list[RunningAnswer]
) -> tuple[Tensor, ...]:
    """Compute the next token's logits for each answer, after its newest token and after each guessed one.

    Args:
        decoder: the model.
        cache: of the running answers; this call adds its tokens.
        running: answers in the order of their slots.
        starting: answers whose prompts this call computes; they take the next slots.

    Returns:
        [1 + guesses, vocabulary] for each running answer, then [1, vocabulary] for each new one.
    """
    ids, positions = [], []
    for answer in running:
        ids += [answer.newest_token, *answer.guess]
        positions += range(answer.cached_length, answer.cached_length + 1 + len(answer.guess))
    rows = list(range(len(ids)))
    for answer in starting:
        ids += answer.prompt
        positions += range(len(answer.prompt))
        rows.append(len(ids) - 1)
    ids, positions, rows = (
        torch.tensor(values, device=decoder.head_weight.device) for values in (ids, positions, rows)
    )
    new_lengths = [1 + len(answer.guess) for answer in running]
    attend = cache.prepare_attention(new_lengths, [len(answer.prompt) for answer in starting])
    return decoder.logits(decoder(ids, positions, attend, rows)).split(new_lengths + [1] * len(starting))


def generate(
    decoder: Decoder,
    requests: Sequence[Request],
    end_ids: Collection[int],
    *,
    batch_size: int = MAX_SLOTS,
    on_step: Callable[[int, Mapping[int, Answer]], None] | None = None,
) -> list[Answer]:
    """Answer all requests, with the adapter merged into the weights meanwhile.

    Args:
        decoder: the model, with or without an adapter.
        requests: prompts and their settings.
        end_ids: the tokens that end an answer.
        batch_size: the most answers that run at the same time; fewer if memory is short.
        on_step: called after each step with the number of tokens that it generated and the answers that it
            finished, by their index among the requests.

    Returns:
        The answers in the order of the requests.

    Raises:
        ValueError: a prompt is empty or leaves no room for an answer.
    """
    if not requests:
        return []
    max_positions = decoder.spec.max_positions
    lengths = [
        len(request.prompt)
        + compute_max_answer_tokens(request.prompt, request.decoding.max_new_tokens, max_positions)
        for request in requests
    ]
    # The shortest first: they fill the slots within a few calls, so that the calls for long prompts serve
    # many running answers. Equal prompts are adjacent.
    order = sorted(
        range(len(requests)), key=lambda index: (len(requests[index].prompt), requests[index].prompt)
    )
    answers: dict[int, Answer] = {}
    with merge_adapter(decoder):
        engine = Engine(decoder, end_ids, max_slots=min(batch_size, len(requests)), capacity=max(lengths))
        index_by_id = {engine.submit(requests[index]): index for index in order}
        while engine.has_work:
            updates = engine.step()
            finished = {index_by_id[update.id]: update.answer for update in updates if update.answer}
            answers |= finished
            if on_step:
                on_step(sum(update.token_count for update in updates), finished)
    return [answers[index] for index in range(len(requests))]
