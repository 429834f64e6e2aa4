"""TunedModel: a base model with one or more LoRA adapters, its tokenizer and its prompt template."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, overload

from loratune.data.chat_template import ChatTemplate
from loratune.data.example import Message
from loratune.data.resolve_template import (
    AUTO,
    check_template_choice,
    find_own_template,
    fit_tokenizer,
    get_date,
    read_template,
    resolve_template,
)
from loratune.data.template import PromptTemplate
from loratune.errors import Problem, UserError
from loratune.generation.decoding import Decoding
from loratune.generation.engine import Engine, generate
from loratune.generation.prompt_format import Prompt, PromptFormat, is_single_prompt
from loratune.generation.request import Request, build_requests
from loratune.models.adapter import (
    ADAPTER_METADATA_FILE,
    check_adapter_exists,
    check_adapter_files,
    read_adapter,
    read_adapter_metadata,
)
from loratune.models.adapter_base import check_adapter_base, resolve_adapter_base, resolve_bos
from loratune.models.decoder import Decoder
from loratune.models.load import PRECISIONS, load_model
from loratune.models.lora import Lora, attach_adapter, without_adapter
from loratune.models.merge import merge_adapter, write_merged_model
from loratune.models.peft_config import adapter_error
from loratune.models.resolve import ResolvedModel, resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system.atomic import fill_folder_atomically, refuse_unwritable
from loratune.system.device import choose_device
from loratune.system.messages import say, warn

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what the bytes of an unfinished character decode to


DEFAULT_PENALTY = 1.1  # as in `compare`: without it, greedy answers of small models repeat themselves


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in memory."""

    folder: Path
    loras: Mapping[str, Lora]  # our names of the adapted layers -> their adapters
    metadata: Mapping[str, Any]  # its loratune.json; empty for another tool's adapter


class TunedModel:
    """A base model with one or more adapters, which share its weights.

        model = loratune.load("model/gpt2_lora_finetuned")
        model.generate("What is a bond?", max_new_tokens=96)
        with model.base():  # without the adapter
            model.generate("What is a bond?", max_new_tokens=96)

    Attributes:
        decoder: the base model, with `adapter` on it.
        tokenizer: the base model's.
        template: turns an instruction into a prompt, as in training.
        resolved: where the base model is from.
        adapters: all adapters, in the order in which they were named.
        adapter: the one that answers.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        template: PromptTemplate,
        *,
        resolved: ResolvedModel,
        adapters: Sequence[LoadedAdapter],
    ):
        self.decoder, self.tokenizer, self.template = decoder, tokenizer, template
        self.resolved, self.adapters = resolved, tuple(adapters)
        self.adapter = self.adapters[0]
        attach_adapter(decoder, self.adapter.loras)

    @overload
    def generate(self, prompts: str | Sequence[Message], *, input: str = "", **decoding: Any) -> str: ...

    @overload
    def generate(self, prompts: Sequence[Prompt], *, input: str = "", **decoding: Any) -> list[str]: ...

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, input: str = "", **decoding: Any
    ) -> str | list[str]:
        """Answer one or more instructions, with the adapter on unless within `base()`.

        Args:
            prompts: an instruction or a conversation (a list of messages, each with role and content), or a
                list of these, which are answered at the same time.
            input: text that the instructions refer to.
            decoding: the fields of `Decoding`: max_new_tokens (128), temperature (0: greedy), top_p, top_k,
                repetition_penalty (1.1), seed.

        Returns:
            The answer's text; a list for a list.

        Raises:
            UserError: a prompt leaves no room for an answer, or a conversation is unusable.
            ValueError, TypeError: a setting is out of range or unknown.
        """
        if is_single_prompt(prompts):
            return self.generate([prompts], input=input, **decoding)[0]
        encoded = self.encode(cast(Sequence[Prompt], prompts), input)
        self.check_room(encoded)
        requests = build_requests(encoded, build_decoding(decoding))
        answers = generate(self.decoder, requests, self.tokenizer.end_ids)
        return [self.decode(answer.ids) for answer in answers]

    def stream(self, prompt: Prompt, *, input: str = "", **decoding: Any) -> Iterator[str]:
        """Answer one instruction or conversation and yield the text as it is written, in whole characters.

        The pieces, joined, are what `generate` returns; the arguments are the same.
        """
        (encoded,) = self.encode([prompt], input)
        self.check_room([encoded])
        request = Request(encoded, build_decoding(decoding))
        with self.session():
            engine = Engine(self.decoder, self.tokenizer.end_ids, max_slots=1)
            ids: list[int] = []
            written = ""
            for token in engine.stream(request):
                ids.append(token)
                # White space at the end waits: it is left out where the answer ends with it.
                text = self.decode(ids)
                if not text.endswith(REPLACEMENT) and len(text) > len(written):
                    yield text[len(written) :]
                    written = text
            if rest := self.decode(ids)[len(written) :]:
                yield rest

    @property
    def format(self) -> PromptFormat:
        """The template and tokenizer that the adapter was trained with."""
        return PromptFormat(self.template, self.tokenizer)

    @cached_property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer for plain text and text templates, where a chat template would bring BOS itself."""
        is_chat = isinstance(self.template, ChatTemplate)
        return self.tokenizer.for_text() if is_chat else self.tokenizer

    def encode(self, prompts: Sequence[Prompt], input: str = "") -> list[list[int]]:
        """Return the ids of the prompts in the adapter's template; see `PromptFormat.encode`."""
        return self.format.encode(prompts, input)

    def check_room(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise UserError where a prompt leaves no room for an answer."""
        longest = max(map(len, prompts), default=0)
        if longest >= (positions := self.decoder.spec.max_positions):
            raise UserError(
                f"a prompt has {longest:,} tokens, and this model takes {positions - 1:,}; shorten it"
            )

    def decode(self, ids: list[int]) -> str:
        """Return the text of an answer's ids."""
        return self.tokenizer.decode(ids).strip()

    @cached_property
    def own_format(self) -> PromptFormat | None:
        """The base model's own chat template; None where it has none that can be used."""
        template = find_own_template(self.tokenizer, today=get_date(self.template))
        return PromptFormat(template, fit_tokenizer(self.tokenizer, template)) if template else None

    @contextmanager
    def base(self) -> Iterator[None]:
        """Switch the adapter off within the context: the base model answers, in the same template.

        Raises:
            RuntimeError: within `session()`.
        """
        with without_adapter(self.decoder):
            yield

    @contextmanager
    def using(self, adapter: str | Path) -> Iterator[None]:
        """Let another of `adapters` answer within the context.

        Args:
            adapter: its folder, or the folder's name.

        Raises:
            UserError: it was not loaded.
            RuntimeError: within `session()`.
        """
        before, chosen = self.adapter, self.find_adapter(adapter)
        self.attach(chosen)
        try:
            yield
        finally:
            self.attach(before)

    def find_adapter(self, adapter: str | Path) -> LoadedAdapter:
        """Return the loaded adapter with this folder or folder name."""
        for one in self.adapters:
            if str(adapter) in (str(one.folder), one.folder.name):
                return one
        names = ", ".join(str(one.folder) for one in self.adapters)
        raise UserError(f"not loaded; loaded are {names}", setting="adapter", value=adapter)

    def attach(self, adapter: LoadedAdapter) -> None:
        """Let this adapter answer from now on."""
        attach_adapter(self.decoder, adapter.loras)
        self.adapter = adapter

    @contextmanager
    def session(self) -> Iterator[None]:
        """Merge the adapter into the weights within the context, once for all answers in it.

        Each call of `generate` or `stream` outside one merges for itself, which costs as much time as some
        tokens. Within `base()` there is nothing to merge, but the weights are prepacked.
        """
        with merge_adapter(self.decoder):
            yield

    def merge(self, folder: str | Path, *, precision: str = "fp32") -> Path:
        """Write the base model with the adapter merged in: a model folder that transformers loads.

        Args:
            folder: where; files of the same names are replaced.
            precision: of the weights, fp32 or bf16.

        Returns:
            The folder.

        Raises:
            UserError: the folder cannot be written, or the precision is unknown.
        """
        if precision not in PRECISIONS:
            raise UserError(f"choose {' or '.join(PRECISIONS)}", setting="precision", value=precision)
        folder = Path(folder)
        refuse_unwritable(folder, folder=True)
        with fill_folder_atomically(folder) as beside:
            write_merged_model(self.decoder, self.resolved.folder, beside, dtype=PRECISIONS[precision])
            self.tokenizer.save(beside)
        return folder


def build_decoding(settings: Mapping[str, Any]) -> Decoding:
    """Return the decoding settings with these changes."""
    settings = {"repetition_penalty": DEFAULT_PENALTY, **settings}
    return Decoding(**settings)


def load_tuned_model(
    adapters: Sequence[Path],
    *,
    model: str | None = None,
    template: str | None = None,
    threads: int = 0,
    device: str = "auto",
) -> TunedModel:
    """Load adapters of one base model, trained here or by another tool, and the base.

    Args:
        adapters: their folders; the first one answers.
        model: the base model; None: the one that the first adapter was trained on.
        template: a name or file; None: the one that the adapters were trained with.
        threads: of the CPU; 0: one for each physical core.
        device: auto, cpu or cuda.

    Raises:
        UserError: an adapter or the base is missing or broken, or they do not belong together: another base,
            template, or beginning of prompts.
    """
    check_adapters_exist(adapters)
    metadata = [read_adapter_metadata(adapter) for adapter in adapters]
    device = choose_device(threads, device)
    resolved = resolve_model(model) if model else resolve_adapter_base(adapters[0], metadata[0])
    for adapter, facts in zip(adapters, metadata, strict=True):
        check_adapter_base(adapter, facts, resolved, is_chosen=model is not None)
    if template is not None:
        check_template_choice(template)
    configured = Tokenizer.load(resolved.folder)
    templates = [
        choose_template(adapter, facts, template, tokenizer=configured)
        for adapter, facts in zip(adapters, metadata, strict=True)
    ]
    check_templates_equal(adapters, templates)
    if isinstance(templates[0], ChatTemplate):
        tokenizer = fit_tokenizer(configured, templates[0])
    else:
        tokenizer = resolve_bos(configured, adapters, metadata)
    base = load_model(resolved, device=device, tokenizer=tokenizer)
    loras = [read_adapter(base.decoder, adapter) for adapter in adapters]
    for adapter, facts in zip(adapters, metadata, strict=True):
        check_adapter_files(adapter, facts)
    loaded = [LoadedAdapter(*parts) for parts in zip(adapters, loras, metadata, strict=True)]
    return TunedModel(base.decoder, tokenizer, templates[0], resolved=resolved, adapters=loaded)


def check_adapters_exist(adapters: Sequence[Path]) -> None:
    """Raise UserError with every folder that is missing, or that holds no adapter."""
    remedy = "train an adapter with `loratune train`"
    missing = [adapter for adapter in adapters if not adapter.is_dir()]
    if missing:
        problem = "there is no such folder"
        raise UserError(*(Problem(problem, "adapter", adapter, remedy) for adapter in missing))
    for adapter in adapters:
        check_adapter_exists(adapter)


def choose_template(
    adapter: Path, metadata: Mapping[str, Any], choice: str | None, *, tokenizer: Tokenizer
) -> PromptTemplate:
    """Return the adapter's own template, unless the user chooses another."""
    own = None
    if "template" in metadata:
        origin = f"{adapter / ADAPTER_METADATA_FILE}: template"
        own = read_template(metadata["template"], tokenizer, origin)
    if choice is not None:
        chosen = resolve_template(choice, tokenizer, today=get_date(own))
        if own and chosen != own:
            warn(
                f"the adapter was trained with the template {own.name!r}; with {chosen.name!r} it will "
                "answer worse"
            )
        return chosen
    if own is None:
        own = resolve_template(AUTO, tokenizer)
        say(
            "The adapter was made by another tool and names no template; the default one is used: "
            f"{own.name!r}."
        )
    return own


def check_templates_equal(adapters: Sequence[Path], templates: Sequence[PromptTemplate]) -> None:
    """Raise UserError where an adapter was trained with another template than the first."""
    for adapter, template in zip(adapters, templates, strict=True):
        if template != templates[0]:
            raise adapter_error(
                adapter,
                f"trained with the template {template.name!r}, but {adapters[0]} with {templates[0].name!r}",
                remedy="evaluate it by itself, or choose one for all with `template`",
            )
