"""Generate answers, many at the same time, with continuous batching: a finished answer leaves the batch and
the next prompt takes its place.

One step reads all the weights once, however many answers are being written: that is why a batch pays. New
prompts travel in the same call as the others' newest tokens, and so do guesses of what follows these: the
model's choice at each token in turn is added to the answer, up to the first that was guessed wrong. So an
answer is what it would be without guesses, and a random number is drawn for each of its tokens and no other
(with random guesses: Leviathan et al. 2023, "Fast inference from transformers via speculative decoding";
arXiv:2211.17192).

A prompt that is to be answered several times is read once: its other answers begin with a copy of what is
stored of it.
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

MAX_SLOTS = 64  # answers that are written at the same time, by default
MAX_PREFILL_TOKENS = 512  # of new prompts in one call, to bound its memory; a longer prompt comes alone
CHEAP_CALL_TOKENS = 16  # tokens in one call: fewer take hardly less time


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
    """Answers requests, which may be submitted at any time, by steps of one call of the model each.

        with merge_adapter(decoder):
            engine = Engine(decoder, tokenizer.end_ids)
            for token in engine.stream(Request(prompt)):
                ...

    The engine computes with the decoder as it is. `merge_adapter` makes each call faster and costs as much as
    several of them, so it belongs around all that an engine does, not around each answer.

    An answer is a function of its request and the model, not of the other requests.
    """

    def __init__(
        self,
        decoder: Decoder,
        end_ids: Collection[int],
        *,
        max_slots: int = MAX_SLOTS,
        capacity: int | None = None,
    ):
        """Make room for `max_slots` answers, or fewer where memory is short.

        Args:
            decoder: the model.
            end_ids: the tokens that end an answer.
            max_slots: most answers that are written at the same time; further requests wait.
            capacity: most tokens of a prompt and its answer together; None: as many as the model has
                positions. Memory is taken from the system as it is used.
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
        """Drop a request, waiting or running, and free its slot; no further update of it comes.

        An id that is finished or unknown is ignored.
        """
        self.streams.pop(request_id, None)
        self.waiting = deque(answer for answer in self.waiting if answer.id != request_id)
        self.undelivered = [update for update in self.undelivered if update.id != request_id]
        for slot, answer in enumerate(self.running):
            if answer.id == request_id:
                self.free_slot(slot)
                break

    def step(self) -> list[Update]:
        """Call the model once: start waiting requests while slots are free, and continue the running answers.

        Returns:
            An update for each running answer, and those since the last call that no stream was there for.
            Where a request is read by `stream`, its updates go there.

        If it raises, by Ctrl-C too, all requests are dropped, and the engine can be used again.
        """
        self.advance()
        updates, self.undelivered = self.undelivered, []
        return updates

    def stream(self, request: Request) -> Generator[int, None, Answer]:
        """Submit a request when the first token is asked for, and yield its tokens as they come.

        Other requests go on meanwhile. A stream that is closed early cancels its request.

        Returns:
            The whole answer, as the value of `yield from`.

        Raises:
            ValueError: as `submit`.
            RuntimeError: the request was cancelled, or dropped because a step of somebody else raised.
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
        """Call the model once and hand each update to its stream, or keep it for `step`."""
        if not self.waiting and not self.running:
            return
        try:
            updates = self.compute_updates()
        except BaseException:
            # The cache and the answers may be half a step apart.
            for remaining in (self.waiting, self.running, self.cache.lengths, self.streams):
                remaining.clear()
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

        Where a running answer has the same prompt, the new one joins them. The others are returned: the next
        call reads their prompts, as many as one call should compute, but at least one.
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
                break  # until that prompt has been read, or there is time for this one
            else:
                starting.append(answer)
                tokens += len(answer.prompt)
            self.waiting.popleft()
        return starting

    def find_slot(self, prompt: list[int]) -> int | None:
        """Return the first slot that holds an answer to this prompt."""
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
        cache: holds what the running answers have been fed, and stores what this call feeds.
        running: answers in the order of their slots.
        starting: answers whose prompts are read by this call; they take the next slots.

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
    """Answer all requests, with the adapter merged into the weights for that time.

    Args:
        decoder: the model, with or without an adapter.
        requests: prompts and their settings.
        end_ids: the tokens that end an answer.
        batch_size: most answers that are written at the same time; fewer where memory is short.
        on_step: called after each step with the number of tokens it generated and the answers that it
            finished, by their place among the requests.

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
    # The shortest first: they fill the slots within few calls, and the long ones' calls carry many running
    # answers. Equal prompts stand together.
    order = sorted(
        range(len(requests)), key=lambda place: (len(requests[place].prompt), requests[place].prompt)
    )
    answers: dict[int, Answer] = {}
    with merge_adapter(decoder):
        engine = Engine(decoder, end_ids, max_slots=min(batch_size, len(requests)), capacity=max(lengths))
        places = {engine.submit(requests[place]): place for place in order}
        while engine.has_work:
            updates = engine.step()
            finished = {places[update.id]: update.answer for update in updates if update.answer}
            answers |= finished
            if on_step:
                on_step(sum(update.token_count for update in updates), finished)
    return [answers[place] for place in range(len(requests))]
