"""The silent errors of the field: where each was seen, what loratune does, and a fault that reproduces it.

A fault is a small change to our source with which the error is there, and the test that fails then. Its code
is found wherever it stands and however it is laid out, so moving or reformatting code breaks no fault.
`docs/silent_errors.md` is written from this list: python tests/silent/errors.py
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "silent_errors.md"


@dataclass(frozen=True)
class Fault:
    old: str  # occurs exactly once in the package, white space and trailing commas apart
    new: str
    test: str  # in tests/, as pytest names it

    def find(self, package: Path) -> tuple[Path, re.Match[str]]:
        """Return the file below `package` and the place in it. Raises ValueError unless there is exactly
        one.
        """
        pattern = laid_out_anyhow(self.old)
        sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
        places = [(path, match) for path, code in sources.items() for match in pattern.finditer(code)]
        if len(places) != 1:
            where = ", ".join(str(path.relative_to(package)) for path, _ in places) or "nowhere"
            raise ValueError(f"found {where}, not in one place: {self.old}")
        return places[0]

    def changed(self, match: re.Match[str]) -> str:
        """Return the code of the whole file in which `match` was found, with the fault in it."""
        return match.string[: match.start()] + self.new + match.string[match.end() :]


def laid_out_anyhow(code: str) -> re.Pattern[str]:
    """Return a pattern of the code with any white space between its words and signs."""
    parts = re.findall(r"\w+|[^\w\s]", code)
    pattern = r"[ \t]*" if code[:1].isspace() else ""
    for before, part in zip(["", *parts], parts, strict=False):
        if before:
            pattern += r"\s+" if before[-1].isidentifier() and part[0].isidentifier() else r"\s*"
            pattern += r"(?:,\s*)?" if part in ")]}" and before != "," else ""
        pattern += re.escape(part)
    return re.compile(pattern)


@dataclass(frozen=True)
class SilentError:
    error: str
    seen: str  # threads, as owner/name#number
    here: str  # what loratune does
    faults: tuple[Fault, ...]


ERRORS: dict[str, tuple[SilentError, ...]] = {
    "What is trained on": (
        SilentError(
            "The model never stops: the padding token is the EOS token, and every EOS is masked",
            "huggingface/trl#976 huggingface/transformers#23530 huggingface/transformers#22794 "
            "huggingface/blog#1302",
            "EOS is a target of every complete response; there is no padding, and no token is masked "
            "because of its id",
            (
                Fault(
                    "[*response, tokenizer.eos_id]",
                    "[*response]",
                    "data/test_tokenize.py::test_prompt_and_response_are_tokenised_separately",
                ),
                Fault(
                    "predicted = range(first, length + 1)",
                    "predicted = range(first, length)",
                    "evaluation/test_likelihood.py::test_each_row_is_what_transformers_gives_it_alone",
                ),
            ),
        ),
        SilentError(
            "The EOS token comes from another file: the model ends with one token, and generation waits "
            "for another",
            "vllm-project/vllm#4180 meta-llama/llama-cookbook#640",
            "the tokenizer's own EOS is trained and ends an answer, whatever `generation_config.json` "
            "says; the tokens named there end an answer, too",
            (
                Fault(
                    "        return cls(tokenizer,",
                    "        from transformers import AutoConfig\n\n"
                    "        tokenizer.eos_token_id = AutoConfig.from_pretrained(folder).eos_token_id\n"
                    "        return cls(tokenizer,",
                    "models/test_tokenizer.py::test_eos_comes_from_the_tokenizer",
                ),
            ),
        ),
        SilentError(
            "The prompt is trained on, too: the mask exists but is not used",
            "karpathy/nanochat#582 huggingface/alignment-handbook#56",
            "only the response's tokens are targets, wherever they are counted",
            (
                Fault(
                    "        first = max(len(example.prompt), 1)",
                    '        example = Example([], example.prompt + example.response, "", "")\n        '
                    "first = 1",
                    "data/test_packing.py::test_target_index_points_to_the_preceding_token",
                ),
            ),
        ),
        SilentError(
            "The response marker is not found among the tokens, and the example is dropped or trained on "
            "whole",
            "huggingface/trl#1820 huggingface/trl#1920 huggingface/trl#980 huggingface/trl#1183",
            "prompt and response are tokenised separately and joined; the mask follows from their "
            "lengths, and nothing is searched for",
            (
                Fault(
                    "        row = Example(prompt, [*response, tokenizer.eos_id], record.id, record.source)",
                    "        whole = tokenizer.encode(template.render(record.instruction, record.input) + "
                    "record.output)\n"
                    "        response = whole[len(prompt) :]\n"
                    "        row = Example(whole[: len(prompt)], [*response, tokenizer.eos_id], record.id, "
                    "record.source)",
                    "data/test_tokenize.py::test_prompt_and_response_are_tokenised_separately",
                ),
            ),
        ),
        SilentError(
            "Two BOS tokens: the template has one, and the tokenizer adds its own",
            "deepseek-ai/DeepSeek-R1#151 sgl-project/sglang#888 allenai/reward-bench#164",
            "a prompt begins with one BOS where the tokenizer defines it, or with the template's own; "
            "other texts get none",
            (
                Fault(
                    "[protect(parts) for parts in prompts], add_special_tokens=False)",
                    "[protect(parts) for parts in prompts])",
                    "models/test_bos.py::test_bos_text_in_user_input_is_not_bos",
                ),
                Fault(
                    "[ids if ids[: len(self.bos)] == self.bos else [*self.bos, *ids] for ids in batch]",
                    "[[*self.bos, *ids] for ids in batch]",
                    "models/test_bos.py::test_template_with_bos_gets_no_second_bos",
                ),
            ),
        ),
        SilentError(
            "Long answers are truncated without a word",
            "huggingface/transformers#30998 hiyouga/LlamaFactory#3995 huggingface/trl#6025",
            "the input is truncated first, then the end of the response; both are counted by source, and "
            "more than 5 % is a warning",
            (
                Fault(
                    "int(any(one.example and one.response_tokens_cut for one in self.examples))",
                    "0",
                    "data/test_tokenize.py::test_counts_are_kept_for_each_source",
                ),
                Fault(
                    "count_excess_tokens(example, max_tokens) > 0 and bool(record.input)",
                    "False",
                    "data/test_tokenize.py::test_counts_are_kept_for_each_source",
                ),
            ),
        ),
        SilentError(
            "Truncation removes the wrong end",
            "verl-project/verl#6372 huggingface/trl#3398 rasbt/mini-coding-agent#12",
            "the beginnings of the input and of the response are kept; a chat keeps its system message "
            "and its newest turns, each complete",
            (
                Fault(
                    "response=example.response[:room], context=context",
                    "response=example.response[-room:], context=context",
                    "data/test_tokenize.py::test_truncation_keeps_the_instruction_and_then_the_response",
                ),
                Fault(
                    "tokenizer.decode(tokens[:keep]).strip()",
                    "tokenizer.decode(tokens[len(tokens) - keep :]).strip()",
                    "data/test_tokenize.py::test_truncated_input_is_a_prefix_and_barely_shorter_than_needed",
                ),
                Fault(
                    "turns[:first_removable] + turns[start:]",
                    "turns[: len(turns) + first_removable - start]",
                    "data/test_tokenize.py::test_chat_loses_as_few_oldest_turns_as_needed",
                ),
            ),
        ),
        SilentError(
            "Of a conversation the wrong turns are learned: only the last answer, or the user's words too",
            "huggingface/trl#2424 zai-org/GLM-4#803 NVIDIA-NeMo/Speech#16284 StarsfieldAI/R1-V#78",
            "every answer is learned, each with its end token, and nothing else; `--learn last` learns the "
            "last one; the losses and gradients of one pass are those of each answer alone",
            (
                Fault(
                    'return answers[-1:] if learn == "last" else answers',
                    "return answers[-1:]",
                    "data/test_tokenize_chats.py::"
                    "test_answers_with_a_weight_are_learned_each_with_its_end_and_nothing_else",
                ),
                Fault(
                    "context = tuple((end - start, begin - start) "
                    "for (_, end), (begin, _) in pairwise(spans))",
                    "context = ()",
                    "data/test_tokenize_chats.py::"
                    "test_one_pass_has_the_losses_and_gradients_of_each_answer_alone",
                ),
            ),
        ),
        SilentError(
            "An answer marked with weight 0 is learned all the same",
            "hiyouga/LlamaFactory#9630 baidu-baige/LoongForge#89",
            "it is context, and counted",
            (
                Fault(
                    'if message["role"] == "assistant" and message.get("weight", 1)',
                    'if message["role"] == "assistant"',
                    "data/test_tokenize_chats.py::"
                    "test_answers_with_a_weight_are_learned_each_with_its_end_and_nothing_else",
                ),
            ),
        ),
        SilentError(
            "The token that ends an answer is outside of the chat template's mask, so the model never stops",
            "huggingface/trl#5988 NVIDIA-NeMo/Megatron-Bridge#3927",
            "the end token that follows an answer is always learned, also behind a `{% generation %}` block; "
            "a template that writes none is refused",
            (
                Fault(
                    "return (start, end.end()) if end else span",
                    "return span",
                    "data/test_learned_spans.py::test_a_generation_block_without_the_end_is_extended_by_it",
                ),
                Fault(
                    "return end + len(template.end_token)",
                    "return end",
                    "data/test_learned_spans.py::test_what_is_learned_is_the_answer_and_its_end",
                ),
            ),
        ),
        SilentError(
            "A chat template leaves out the reasoning of earlier answers, and they are trained without it",
            "modelscope/ms-swift#4939 axon-rl/gem#44 verl-project/verl#7807 THUDM/slime#330",
            "where the template writes the beginning of a conversation otherwise when more follows, each "
            "answer is an example of its own, as the model would write it, and this is said",
            (
                Fault(
                    "if whole[:stop] != answered[:stop]:",
                    "if False:",
                    "data/test_learned_spans.py::"
                    "test_a_template_that_leaves_out_earlier_reasoning_gives_each_answer_a_text",
                ),
            ),
        ),
        SilentError(
            "Examples without a target are trained on: the loss is 0.0 or NaN, and the run looks fine",
            "huggingface/trl#6668 huggingface/trl#6320 huggingface/trl#1053",
            "such examples are dropped and counted; a run without any example is refused",
            (
                Fault(
                    "    if room <= 0:\n        return None",
                    "    if False:\n        return None",
                    "data/test_tokenize.py::test_counts_are_kept_for_each_source",
                ),
            ),
        ),
        SilentError(
            "Nobody sees what is trained on: which tokens are targets, and what was truncated",
            "oumi-ai/oumi#1369 instructlab/training#243 allenai/open-instruct#1423",
            "`loratune preview` shows the examples as the training step sees them, with targets in "
            "colour and truncation marked, and counts what became of every row",
            (
                Fault(
                    '"mask": [0] * len(example.prompt) + learned',
                    '"mask": [1] * len(example.prompt) + learned',
                    "commands/test_preview.py::test_ids_and_mask_are_what_training_learns_from",
                ),
            ),
        ),
        SilentError(
            "Tokens cached by an earlier run are used although the template or the limit has changed",
            "MakazhanAlpamys/Soup#1067 dhruvdcoder/xlm-core#50 axolotl-ai-cloud/axolotl#1136",
            "the cache's key is a hash of the data, the base, the template, the limit, the code and the "
            "libraries' versions",
            (
                Fault(
                    "template=template.to_dict(), max_tokens=max_tokens",
                    "max_tokens=max_tokens",
                    "data/test_token_cache.py::test_cache_key_covers_everything_the_tokens_depend_on[template]",
                ),
            ),
        ),
        SilentError(
            "Held-out rows, or near-duplicates of them, are in the training data",
            "TIGER-AI-Lab/MAmmoTH#11 ai-forever/ru-gpts#23 huggingface/datasets#4261",
            "near-duplicates form groups, groups are never split, and training rows that resemble "
            "held-out ones are removed and counted",
            (
                Fault(
                    "held_out |= {record.group for record in splits[split]}",
                    "pass",
                    "data/test_dedup.py::test_groups_held_out_later_are_removed_from_earlier_splits",
                ),
                Fault(
                    "        link_similar(questions, INSTRUCTION_SIMILARITY),\n",
                    "",
                    "data/test_dedup.py::test_near_duplicates_share_a_group_and_others_do_not",
                ),
                Fault(
                    "        original = first.setdefault(hash_content(record), record)\n",
                    "        original = record\n",
                    "data/test_dedup.py::test_duplicates_are_removed_and_ids_become_unique",
                ),
                Fault(
                    "        link_openings(records),\n        link_equal(",
                    "        link_equal(",
                    "data/test_dedup.py::test_beginnings_of_one_chat_are_one_group",
                ),
            ),
        ),
        SilentError(
            "The validation or test part is empty or one-sided when the file is small or its rows have "
            "much in common",
            "keras-team/keras#23202 fastai/fastai#2339",
            "text that very many rows share, such as a system message, does not count as similarity; "
            "groups that are too large are divided, with a message; where chance leaves a part nearly "
            "empty, groups are dealt out in turn; shared passages stay in one part",
            (
                Fault(
                    "    return deal_groups(sizes, assigned, drawn, seed=seed, val_fraction=val_fraction)\n",
                    "    return by_chance\n",
                    "data/test_split.py::test_dissimilar_rows_of_a_small_file_fill_all_splits",
                ),
                Fault(
                    "    limit = min(max(SHARED_LIMIT_MIN, SHARED_LIMIT_SHARE * len(set(prompts))), "
                    "SHARED_LIMIT_MAX)\n",
                    "    limit = math.inf\n",
                    "data/test_split.py::test_near_duplicates_with_a_system_message_stay_together",
                ),
                Fault(
                    "SHARED_LIMIT_MIN, SHARED_LIMIT_SHARE, SHARED_LIMIT_MAX = 30, 0.02, 500\n",
                    "SHARED_LIMIT_MIN, SHARED_LIMIT_SHARE, SHARED_LIMIT_MAX = 3, 0.02, 500\n",
                    "data/test_split.py::test_passage_and_its_questions_stay_in_one_split",
                ),
            ),
        ),
        SilentError(
            "One's own validation or test file is trained on: files named together are mixed",
            "OpenRLHF/OpenRLHF#367 Lightning-AI/litgpt#1029 huggingface/datasets#5778",
            "files whose names say val or test, or that `--val` and `--test` name, are kept separate and "
            "whole; what they contain is removed from training and counted",
            (
                Fault(
                    "replace(source_data, own=split is not None)",
                    "replace(source_data, split=None)",
                    "commands/test_prepare.py::test_ones_own_validation_file_is_not_trained_on",
                ),
                Fault(
                    "record.group in held_out and record.id not in protected}",
                    "record.group in held_out}",
                    "commands/test_prepare.py::test_ones_own_validation_file_stays_whole_beside_ones_own_test_file",
                ),
            ),
        ),
        SilentError(
            "A stray quote in a CSV or TSV file swallows rows up to the next quote, or all to the end of "
            "the file",
            "tidyverse/vroom#484 NVIDIA/cudf#10490 pandas-dev/pandas#25228 apple/turicreate#1692 "
            "pytorch/text#612",
            "such a file is refused with the line number, even with `--skip-bad`; a file with tabs is "
            "read without quoting if only that fits every row",
            (
                Fault(
                    "delimiter=delimiter, strict=True",
                    "delimiter=delimiter, strict=False",
                    "data/test_readers.py::test_unparsable_row_is_refused_even_with_skip_bad",
                ),
            ),
        ),
        SilentError(
            "Only one of a chat's several answers is learned, without a warning; with a tool call in the "
            "chat, the wrong one",
            "huggingface/trl#1282 oobabooga/textgen#3343",
            "every answer of a chat is learned, calls included, and their number is said; a broken call is "
            "refused with file and line",
            (
                Fault(
                    "    messages = [*map(make_context, prompt), *completion]\n",
                    "    messages = [*map(make_context, [*prompt, *completion[:-1]]), completion[-1]]\n",
                    "commands/test_prepare_own_data.py::test_every_answer_of_a_chat_is_learned",
                ),
                Fault(
                    '        read["tool_calls"] = calls\n',
                    "        pass\n",
                    "commands/test_prepare_own_data.py::test_calls_are_learned_and_tools_kept",
                ),
            ),
        ),
        SilentError(
            "Answers marked as bad are learned: weight 0 in a chat, or false in the label column of "
            "KTO's format",
            "axolotl-ai-cloud/axolotl#1703 verl-project/verl#5316 unslothai/unsloth-zoo#912",
            "they are not learned, and they are counted; a marked answer in a chat may be context of a "
            "later one",
            (
                Fault(
                    "    return all(flags.values())",
                    "    return True",
                    "commands/test_prepare_own_data.py::test_an_answer_of_weight_0_is_never_learned",
                ),
                Fault(
                    "    good = [row for row in rows if not label or",
                    "    good = [row for row in rows if True or",
                    "commands/test_prepare_own_data.py::test_bad_answers_of_ktos_form_are_left_out",
                ),
            ),
        ),
        SilentError(
            "Spaces and line breaks around texts are stripped: an answer that is code loses its indentation",
            "EleutherAI/lm-evaluation-harness#4196",
            "texts of one's own files are kept to the byte; only a text of nothing but white space "
            "counts as empty",
            (
                Fault(
                    "    if text.strip():\n        return text\n",
                    "    if text.strip():\n        return text.strip()\n",
                    "commands/test_prepare_own_data.py::test_texts_stay_to_the_byte",
                ),
            ),
        ),
        SilentError(
            "Columns that change what a row means are ignored without a word: the system prompt, earlier "
            "turns, the question",
            "huggingface/trl#1186 huggingface/transformers#25054 huggingface/alignment-handbook#137",
            "the columns that were used are listed, and so are those that were not; known important ones "
            "cause a warning; no column is used twice",
            (
                Fault(
                    "    filled = [name for name in unused if",
                    "    filled = [name for name in [] if",
                    "commands/test_prepare_own_data.py::test_columns_that_are_not_used_are_named_and_those_that_matter_warned_of",
                ),
                Fault(
                    "    return sorted(candidates, key=lambda name: is_constant(rows, name))",
                    "    return list(candidates)",
                    "commands/test_prepare_own_data.py::test_a_question_is_taken_before_a_prompt_that_never_changes",
                ),
            ),
        ),
        SilentError(
            "A text that contains `<|endoftext|>` becomes that token: it ends the prompt, or the middle "
            "of an answer",
            "huggingface/transformers#29279 google-deepmind/gemma#770 OWASP/AISVS#930",
            "user text is encoded as text, with every kind of tokenizer; only a template's own markers "
            "become special tokens",
            (
                Fault(
                    "            return self._special_ids.isdisjoint(ids)\n",
                    "            return True\n",
                    "models/test_special_tokens.py::test_special_token_names_in_text_stay_text",
                ),
                Fault(
                    "        return len(markers) == sum(id_ in self._special_ids for id_ in ids)\n",
                    "        return True\n",
                    "models/test_special_tokens.py::test_user_text_never_becomes_a_special_token",
                ),
                Fault(
                    '    model = rename_vocab_entries(state["model"], names)\n',
                    '    model = state["model"]\n',
                    "models/test_special_tokens.py::test_special_token_names_in_text_stay_text",
                ),
                Fault(
                    "return self.template.split_prompt(prompt, input)",
                    'return (self.template.render(prompt, input), "")',
                    "commands/test_bos_everywhere.py::test_questions_are_asked_as_the_adapter_was_trained",
                ),
            ),
        ),
        SilentError(
            "The outputs in the data end with an end marker, and a second one is added: the model learns "
            "to write both",
            "IlyaGusev/rulm#34",
            "a marker at the end of an output is removed, in training and in references, and counted by "
            "source",
            (
                Fault(
                    "    while (text := output.rstrip()).endswith(markers):\n",
                    "    while (text := output.rstrip()).endswith(()):\n",
                    "commands/test_end_markers.py::test_training_is_the_same_with_and_without_them",
                ),
                Fault(
                    "[replace(record, output=strip_end_markers(record.output, markers)) for record in whole]",
                    "whole",
                    "commands/test_end_markers.py::test_evaluation_wants_what_training_learned",
                ),
            ),
        ),
        SilentError(
            "A base that was trained with BOS in front of every text is fine-tuned and measured without it",
            "h2oai/h2o-llmstudio#636 EleutherAI/lm-evaluation-harness#1465 unslothai/notebooks#251",
            "prompts begin as the tokenizer's configuration says, in every command, and the program says "
            "so; an adapter that was trained without BOS keeps its prompts",
            (
                Fault(
                    "        self.bos = detect_bos_ids(tokenizer) if bos is None else list(bos)",
                    "        self.bos = []",
                    "models/test_bos.py::test_prompts_equal_transformers_without_eos",
                ),
                Fault(
                    "other.prompt[:bos_length] + other.prompt[bos_length + excess :]",
                    "other.prompt[excess:]",
                    "data/test_tokenize.py::test_max_tokens_includes_bos_and_truncation_keeps_it",
                ),
                Fault(
                    "Example(list(tokenizer.bos), windows",
                    "Example([], windows",
                    "commands/test_bos_everywhere.py::test_the_base_is_measured_with_bos_if_the_adapter_was_trained_with_it",
                ),
                Fault(
                    "    return tokenizer if first else tokenizer.without_bos()\n",
                    "    return tokenizer\n",
                    "commands/test_bos_everywhere.py::test_questions_are_asked_as_the_adapter_was_trained",
                ),
                Fault(
                    "    if config.resume and not has_bos_prompts(get_run_folder(config)):\n"
                    "        return tokenizer.without_bos()\n",
                    "",
                    "commands/test_bos_everywhere.py::test_a_run_that_was_begun_without_it_goes_on_without",
                ),
            ),
        ),
    ),
    "The step": (
        SilentError(
            "Gradient accumulation differs from the large batch: it takes a mean of means",
            "huggingface/transformers#37766 huggingface/transformers#35438 huggingface/blog#2414",
            "the sum is divided by the number of target tokens in the whole step",
            (
                Fault(
                    "objective.losses(decoder, batch).sum() / weight",
                    "objective.losses(decoder, batch).mean() / len(micro_batches)",
                    "training/test_step.py::test_step_does_not_depend_on_the_micro_batches[llama]",
                ),
            ),
        ),
        SilentError(
            "The loss is divided by a count that includes tokens that are no targets: padding, or the prompt",
            "huggingface/trl#6369 getainode/ainode#186",
            "one sum over the targets, divided by their number",
            (
                Fault(
                    "sum(objective.weight(batch) for batch in micro_batches)",
                    "float(sum(len(batch.input_ids) for batch in micro_batches))",
                    "training/test_step.py::test_step_does_not_depend_on_the_micro_batches[llama]",
                ),
            ),
        ),
        SilentError(
            "The gradient is clipped after each micro-batch",
            "huggingface/transformers#1563 facebookresearch/lingua#59 tenstorrent/tt-metal#17568",
            "the gradient is clipped once, when it is complete",
            (
                Fault(
                    "        part.backward()\n",
                    "        part.backward()\n        "
                    "torch.nn.utils.clip_grad_norm_(adapter_parameters(decoder).values(), 0.01)\n",
                    "training/test_step.py::test_clipping_scales_only_longer_gradients",
                ),
            ),
        ),
        SilentError(
            "The gradients of a step remain for the next one, or are cleared before the step is taken",
            "bytetriper/RAE#67",
            "gradients are set to zero once a step, after the update",
            (
                Fault(
                    "        optimizer.step()\n    optimizer.zero_grad(set_to_none=False)\n",
                    "        optimizer.step()\n",
                    "training/test_step.py::test_steps_equal_torch_adamw[0.0]",
                ),
                Fault(
                    "    for batch in micro_batches:\n",
                    "    for batch in micro_batches:\n        decoder.zero_grad()\n",
                    "training/test_step.py::test_clipping_scales_only_longer_gradients",
                ),
            ),
        ),
        SilentError(
            "The learning rate schedule advances with each micro-batch",
            "huggingface/accelerate#963 Lightning-AI/pytorch-lightning#1476 starVLA/starVLA#210",
            "the rate is a function of the optimiser step, or of the share of the budget that has passed",
            (
                Fault(
                    "state.step, state.tokens = state.step + 1,",
                    "state.step, state.tokens = state.step + len(groups),",
                    "commands/test_train.py::test_micro_batches_change_neither_the_steps_nor_their_rates",
                ),
            ),
        ),
        SilentError(
            "The adapter is kept in bf16, and small updates are rounded away",
            "keras-team/keras-hub#2629",
            "the adapter, its gradient and the optimiser's moments are fp32, whatever the base's precision",
            (
                Fault(
                    "dropout).to(linear.weight.device)",
                    "dropout).to(linear.weight)",
                    "training/test_step.py::test_adapter_trains_in_fp32_on_a_bf16_base",
                ),
            ),
        ),
        SilentError(
            "Every epoch has the same order",
            "pytorch/pytorch#31771 modelscope/ms-swift#10050",
            "the order is a function of seed and epoch",
            (
                Fault(
                    "np.random.default_rng((seed, epoch))",
                    "np.random.default_rng(seed)",
                    "data/test_packing.py::test_order_differs_between_epochs_and_seeds",
                ),
            ),
        ),
        SilentError(
            "The loss is NaN, and the run continues, saves an adapter of NaN and reports success",
            "getainode/ainode#186 ml-explore/mlx-examples#557",
            "the run stops with the step, the records and a remedy; an adapter with a non-finite value "
            "is neither written nor read",
            (
                Fault(
                    "    if not finite:\n",
                    "    if False:\n",
                    "training/test_step.py::test_non_finite_loss_raises_and_changes_nothing",
                ),
                Fault(
                    "    weights = get_adapter_weights(decoder)\n",
                    "    weights = {name: matrix.nan_to_num() for name, matrix in "
                    "get_adapter_weights(decoder).items()}\n",
                    "interop/test_peft.py::test_non_finite_adapter_is_never_written",
                ),
            ),
        ),
        SilentError(
            "More than the adapter is trained: with the adapter off, the base is no longer the base",
            "huggingface/peft#493 huggingface/peft#741",
            "the optimiser holds the adapter's matrices only; embedding and head stay frozen",
            (
                Fault(
                    "    parameters = {}\n    for name, linear in named_linears(decoder):\n",
                    "    parameters = {'embedding': decoder.embedding.weight.requires_grad_()}\n"
                    "    for name, linear in named_linears(decoder):\n",
                    "training/test_step.py::test_only_the_adapter_is_trained",
                ),
            ),
        ),
    ),
    "Packing and positions": (
        SilentError(
            "Packed documents see each other",
            "unslothai/unsloth#1207 huggingface/trl#1230 huggingface/trl#805 huggingface/transformers#25452",
            "attention is computed for each document separately; packed equals unpacked",
            (
                Fault(
                    "list(split_into_blocks(lengths))",
                    "list(split_into_blocks([sum(lengths)]))",
                    "models/test_decoder.py::test_packed_documents_do_not_see_each_other[smollm2]",
                ),
            ),
        ),
        SilentError(
            "Positions continue from one packed document to the next",
            "huggingface/nanoVLM#201 hiyouga/LlamaFactory#7318 pytorch/torchtitan#2560",
            "positions start at 0 in each document",
            (
                Fault(
                    "positions += range(length)",
                    "positions += range(start, start + length)",
                    "training/test_step.py::test_packed_loss_equals_single_examples[gpt2]",
                ),
            ),
        ),
        SilentError(
            "Left padding shifts the positions in a batch: answers differ from those generated one at a time",
            "huggingface/transformers#21080 unslothai/unsloth#3699 ndif-team/nnsight#673 "
            "huggingface/transformers#22707",
            "there is no padding; each token has its own position, and a batch gives the answers that "
            "each prompt gives alone",
            (
                Fault(
                    "positions += range(len(answer.prompt))",
                    "positions += range(len(ids) - len(answer.prompt), len(ids))",
                    "generation/test_engine.py::test_greedy_answers_equal_transformers[gpt2]",
                ),
            ),
        ),
        SilentError(
            "The configuration has an attention window, and the computation ignores it",
            "hiyouga/LlamaFactory#7063 unslothai/unsloth#8253 axolotl-ai-cloud/axolotl#732",
            "examples and answers end where the window would begin to matter",
            (
                Fault(
                    "min(config.max_position_embeddings, window or config.max_position_embeddings)",
                    "config.max_position_embeddings",
                    "models/test_decoder.py::test_sliding_window_limits_the_positions",
                ),
            ),
        ),
    ),
    "Measuring": (
        SilentError(
            "The evaluation loss changes with the batch size",
            "huggingface/transformers#39241 huggingface/transformers#24839 karpathy/llm.c#710",
            "one global sum divided by one global count, in validation and in `evaluate`",
            (
                Fault(
                    "    total = sum(objective.losses(decoder, batch).sum(dtype=torch.float64).item() for "
                    "batch in batches)\n"
                    "    decoder.train(was_training)\n"
                    "    return total / sum(objective.weight(batch) for batch in batches)",
                    "    total = sum(objective.losses(decoder, batch).mean().item() for batch in batches)\n"
                    "    decoder.train(was_training)\n"
                    "    return total / len(batches)",
                    "training/test_step.py::test_validation_loss_does_not_depend_on_batching",
                ),
                Fault(
                    "    mean = nll.sum() / targets.sum()",
                    "    mean = (nll / targets).mean()",
                    "evaluation/test_likelihood.py::test_means_are_global_sums_over_global_counts",
                ),
            ),
        ),
        SilentError(
            "Validation runs with dropout on",
            "karpathy/nanoGPT#240 wolny/pytorch-3dunet#53",
            "validation runs in evaluation mode, and the previous mode is restored",
            (
                Fault(
                    "    decoder.eval()\n",
                    "",
                    "training/test_step.py::test_validation_loss_does_not_depend_on_batching",
                ),
            ),
        ),
        SilentError(
            "Evaluation collects the logits of all tokens, and runs out of memory",
            "huggingface/transformers#12878 huggingface/transformers#15466 huggingface/transformers#8476",
            "the head is computed for 1,024 vocabulary entries at a time, in training and in evaluation; "
            "no matrix of all targets by the whole vocabulary ever exists",
            (
                Fault(
                    "VOCAB_BLOCK_SIZE = 1024 ",
                    "VOCAB_BLOCK_SIZE = 1 << 30 ",
                    "training/test_step.py::test_full_logits_matrix_is_never_allocated",
                ),
            ),
        ),
        SilentError(
            "Nobody knows whether fine-tuning helped, because the base was measured with the adapter on, "
            "or not at all",
            "huggingface/peft#430 EleutherAI/lm-evaluation-harness#511 unslothai/unsloth#969",
            "base and tuned model answer and are scored in the same way, as one set of weights with the "
            "adapter off and on; differences have intervals",
            (
                Fault(
                    "        linear.adapter_enabled = False\n    try:\n        yield",
                    "        pass\n    try:\n        yield",
                    "commands/test_compare.py::test_the_regular_answers_are_those_of_the_base_alone",
                ),
                Fault(
                    "    low, high = np.percentile(resample_ratios(change, weights, seed), (tail, 100 - "
                    "tail))",
                    "    before = resample_ratios(np.asarray(base, float), weights, seed)\n"
                    "    after = resample_ratios(np.asarray(tuned, float), weights, seed + 1)\n"
                    "    low, high = np.percentile(after - before, (tail, 100 - tail))",
                    "evaluation/test_statistics.py::test_pairing_counts_the_change_not_the_spread_of_the_rows",
                ),
            ),
        ),
        SilentError(
            "Decoding removes spaces before punctuation, so that a correct answer is scored as wrong",
            "huggingface/tokenizers#1543 huggingface/transformers#32575 huggingface/transformers#25840",
            "decoded texts keep every space, whatever the tokenizer's configuration asks for",
            (
                Fault(
                    ", clean_up_tokenization_spaces=False)",
                    ")",
                    "models/test_tokenizer.py::test_decoding_keeps_spaces",
                ),
            ),
        ),
        SilentError(
            "ROUGE drops every letter outside a to z: a correct answer in another script scores 0",
            "huggingface/evaluate#256 google/adk-python#6292 bigscience-workshop/lm-evaluation-harness#157",
            "words are letters and digits of any script with their combining marks; English scores equal "
            "those of `rouge-score`",
            (
                Fault(
                    "    if text.isascii():\n        return (ASCII_WORD_OR_DECIMAL",
                    "    if True:\n        return (ASCII_WORD_OR_DECIMAL",
                    "evaluation/test_text_metrics.py::test_rouge_l_of_any_script",
                ),
                Fault(
                    '        return "m"\n',
                    '        return "o"\n',
                    "data/test_words.py::test_words_of_examples",
                ),
            ),
        ),
        SilentError(
            "A correct answer counts as wrong, or is not counted at all: a comma in a number, or "
            "questions that are left out",
            "stanford-crfm/helm#4337 anniedoris/design_qa#26",
            "an operation has two arguments, which distinguishes FinQA's thousands commas from "
            "separators; an operand with `$` is not a number; a question without a gold program is "
            "scored by its result, but is part of no loss and never trained on",
            (
                Fault(
                    'text.replace(",", "") if THOUSANDS.fullmatch(text) else None',
                    "None",
                    "tasks/finqa/test_program.py::test_thousands_comma_is_parsed_and_currency_sign_is_not",
                ),
                Fault(
                    'OPERAND = re.compile(r"(-?',
                    'OPERAND = re.compile(r"[$]?(-?',
                    "tasks/finqa/test_program.py::test_thousands_comma_is_parsed_and_currency_sign_is_not",
                ),
                Fault(
                    " or (split in HELD_OUT and is_scored(question))",
                    "",
                    "data/test_snapshot.py::test_held_out_finqa_splits_have_all_ids",
                ),
                Fault(
                    "is_only_marker or not record.has_target else row",
                    "is_only_marker else row",
                    "data/test_tokenize.py::test_no_target_row_has_an_empty_response",
                ),
            ),
        ),
    ),
    "Adapters and bases": (
        SilentError(
            "The adapter is silently not applied: its names match nothing, and the base answers",
            "vllm-project/vllm#34186 vllm-project/vllm#55193 huggingface/sentence-transformers#3865",
            "every matrix must match a layer, in the right shape; a saved adapter is read back and compared",
            (
                Fault(
                    "    if weights:\n        raise",
                    "    if False:\n        raise",
                    "interop/test_peft.py::test_adapter_with_unknown_matrices_is_refused",
                ),
                Fault(
                    "        attach_adapter(decoder, self.adapter.loras)\n",
                    "        pass\n",
                    "commands/test_compare.py::test_json_contract",
                ),
            ),
        ),
        SilentError(
            "A chat template writes BOS, and the tokenizer adds a second one",
            "sgl-project/sglang#888 vllm-project/vllm#27515 huggingface/open-r1#462 MakazhanAlpamys/Soup#781",
            "in a chat template only the template writes special tokens; the ids are those of "
            "`apply_chat_template`",
            (
                Fault(
                    "return Tokenizer(self.hugging_face, self.end_ids, bos=(), eos_id=end_id)",
                    "return Tokenizer(self.hugging_face, self.end_ids, [7], eos_id=end_id)",
                    "models/test_chat_encoding.py::test_prompts_are_those_of_transformers",
                ),
            ),
        ),
        SilentError(
            "Trained with one template, used with another",
            "ollama/ollama#6823 ollama/ollama#6330 hiyouga/LlamaFactory#5834",
            "one function renders every prompt; the template is saved with the adapter, and using "
            "another one takes an explicit option",
            (
                Fault(
                    'own = read_template(metadata["template"], tokenizer, origin)',
                    'own = resolve_template("instruction", tokenizer)',
                    "commands/test_evaluate.py::test_the_template_of_the_adapter_is_used_unless_another_is_asked_for",
                ),
                Fault(
                    '"### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}\\n\\n### Response:\\n"',
                    '"### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}\\n\\n### Response: "',
                    "data/test_template.py::test_default_template_text",
                ),
            ),
        ),
        SilentError(
            "GPT-2's Conv1D: weights and adapters are [in, out], which a square matrix does not reveal",
            "huggingface/peft#3531 predibase/lorax#106 axolotl-ai-cloud/axolotl#3095",
            "every layer is tested against `transformers`, and adapters against PEFT in both directions",
            (
                Fault(
                    "return weight.t()",
                    "return weight.t() if weight.dim() < 2 or weight.shape[0] != weight.shape[1] else weight",
                    "models/test_decoder.py::test_logits_equal_transformers[cerebras-gpt]",
                ),
            ),
        ),
        SilentError(
            "Tied embeddings: the head is mistaken for the embedding, or the other way round",
            "huggingface/transformers#45127 huggingface/peft#2972 hiyouga/LlamaFactory#10832",
            "neither is ever adapted; models of both kinds are tested, and adapters of the head are refused",
            (
                Fault(
                    "return self.embedding.weight if self.head is None else self.head.weight",
                    "return self.embedding.weight",
                    "models/test_decoder.py::test_logits_equal_transformers[tinyllama]",
                ),
            ),
        ),
        SilentError(
            "Rank-stabilised adapters are scaled like others",
            "sgl-project/sglang#40835 vllm-project/vllm#10798 NVIDIA/TensorRT-LLM#1668",
            "the scale is alpha / √rank where the adapter says so",
            (
                Fault(
                    '(rank**0.5 if config.get("use_rslora") else rank)',
                    "rank",
                    "interop/test_peft.py::test_peft_adapter_gives_the_same_logits_here[llama-rank-stabilised]",
                ),
            ),
        ),
        SilentError(
            "Ranks and alphas of single layers are ignored, or matched by another rule than in training",
            "huggingface/peft#3582 vllm-project/vllm-omni#6565 huggingface/diffusers#14409",
            "the rank is read from the matrices; patterns are matched as in PEFT; an adapter for which "
            "the order of the patterns matters, which PEFT does not save, is refused",
            (
                Fault(
                    "if compile_pattern(pattern).match(name)}",
                    "if name.endswith(pattern)}",
                    "interop/test_peft.py::test_peft_adapter_gives_the_same_logits_here[gpt2-alphas of no "
                    "layer]",
                ),
                Fault(
                    "    if len(own_alphas) > 1:",
                    "    if False:",
                    "interop/test_peft.py::test_unsupported_adapter_is_refused_with_the_option",
                ),
            ),
        ),
        SilentError(
            "An adapter without an alpha is loaded with the scale 0, and does nothing",
            "invergent-ai/surogate#173",
            "alpha must be present and finite",
            (
                Fault(
                    '(config.get("lora_alpha"), *patterns.values())',
                    '(config.setdefault("lora_alpha", 0), *patterns.values())',
                    "commands/test_compare.py::test_broken_adapters_are_refused",
                ),
            ),
        ),
        SilentError(
            "DoRA, trained biases, saved modules and other extras are ignored without a word",
            "huggingface/sentence-transformers#3980 unslothai/unsloth#918 ludwig-ai/ludwig#3984",
            "anything beyond W + s B A is refused by name; a test fails when a new version of PEFT has a "
            "setting that is unknown here",
            (
                Fault(
                    '    "alora_invocation_tokens",\n',
                    "",
                    "interop/test_peft.py::test_unsupported_adapter_is_refused_with_the_option",
                ),
                Fault(
                    'if config.get("bias", "none") != "none":',
                    "if False:",
                    "interop/test_peft.py::test_other_kinds_of_adapter_are_refused",
                ),
            ),
        ),
        SilentError(
            "PiSSA and similar methods move a part of the base's weights into the adapter; on the plain "
            "base their adapters are wrong",
            "huggingface/transformers#34468 huggingface/peft#1626",
            "refused, with a remedy",
            (
                Fault(
                    'if config.get("init_lora_weights") not in SUPPORTED_INITS:',
                    "if False:",
                    "interop/test_peft.py::test_unsupported_adapter_is_refused_with_the_option",
                ),
            ),
        ),
        SilentError(
            "Merged twice, or unmerged by subtraction: the base is not what it was",
            "huggingface/peft#1355 huggingface/peft#3531",
            "merging works on copies while answers are generated; afterwards the original weights are back",
            (
                Fault(
                    "alpha=lora.scale)",
                    "alpha=2 * lora.scale)",
                    "models/test_merge.py::test_merged_logits_equal_unmerged_and_weights_are_restored[plain-gpt2]",
                ),
                Fault(
                    "            linear.weight, linear.adapter_enabled, linear.packed = weight, enabled, "
                    "None",
                    "            linear.weight.data -= linear.lora.scale * linear.lora.B.data @ "
                    "linear.lora.A.data\n"
                    "            linear.adapter_enabled, linear.packed = enabled, None",
                    "models/test_merge.py::test_merged_logits_equal_unmerged_and_weights_are_restored[plain-gpt2]",
                ),
            ),
        ),
        SilentError(
            "Merged in bf16, the adapter is rounded away",
            "huggingface/peft#1388 unslothai/unsloth#3091 OpenBMB/MiniCPM-V#502 meta-pytorch/torchtune#1101",
            "answers are computed in fp32; a merged weight is summed in fp32 and rounded once",
            (
                Fault(
                    "torch.addmm(weight.float(), lora.B, lora.A, alpha=lora.scale).to(weight.dtype)",
                    "weight + (lora.scale * lora.B @ lora.A).to(weight.dtype)",
                    "models/test_merge.py::test_bf16_merge_rounds_the_sum_once[gpt2]",
                ),
            ),
        ),
        SilentError(
            "An adapter is applied to a base other than its own",
            "predibase/lorax#58",
            "hashes of the base's weights, configuration and tokenizer are saved with the adapter and "
            "compared",
            (
                Fault(
                    'if made_for["fingerprint"] != base.fingerprint:',
                    "if False:",
                    "commands/test_compare.py::test_an_adapter_made_for_another_base_is_refused",
                ),
                Fault(
                    "    elif changed:",
                    "    elif False:",
                    "commands/test_base_changed.py::test_both_are_named_together",
                ),
            ),
        ),
        SilentError(
            "Weights that are missing from the files are initialised at random",
            "huggingface/transformers#34759 huggingface/transformers#38870",
            "refused, with the name of the first one",
            (
                Fault(
                    'if missing := sorted(loading_info["missing_keys"]):',
                    "if missing := []:",
                    "commands/test_train_refused.py::test_a_model_whose_files_lack_weights_is_refused",
                ),
            ),
        ),
    ),
    "Runs, settings and the network": (
        SilentError(
            "A resumed run starts its data, or its optimiser, from the beginning",
            "modelscope/ms-swift#10050 ace-step/ACE-Step-1.5#742 OpenPipe/ART#72 starVLA/starVLA#210",
            "the data's order is a function of seed and step; the resumed run ends with the "
            "bit-identical adapter",
            (
                Fault(
                    "size, seed=step.seed, start=state.step):",
                    "size, seed=step.seed):",
                    "commands/test_train.py::test_interrupted_and_resumed_equals_uninterrupted",
                ),
                Fault(
                    "    if not tensors:\n        return\n",
                    "    return\n",
                    "commands/test_train.py::test_interrupted_and_resumed_equals_uninterrupted",
                ),
                Fault(
                    "torch.manual_seed(plan.step.seed * 1_000_003 + state.step)",
                    "_ = plan.step.seed",
                    "commands/test_train.py::test_interrupted_and_resumed_equals_uninterrupted",
                ),
            ),
        ),
        SilentError(
            "The last adapter is kept instead of the best",
            "huggingface/transformers#24103 huggingface/transformers#36201",
            "the one with the lowest validation loss is kept; a run that was never better than the base "
            "says so",
            (
                Fault(
                    "        restore_adapter_weights(model.decoder, load_best_weights(folder))\n",
                    "",
                    "commands/test_train.py::test_the_best_adapter_is_kept_not_the_last",
                ),
                Fault(
                    "    if not result.best_step:",
                    "    if False:",
                    "commands/test_train.py::test_an_adapter_that_learned_nothing_is_warned_of",
                ),
            ),
        ),
        SilentError(
            "A mistyped or outdated setting is accepted, and the default is used",
            "ml-explore/mlx-examples#1067 huggingface/peft#3582",
            "unknown names are refused, with a suggestion, on the command line and in settings files",
            (
                Fault(
                    'extra="forbid"',
                    'extra="ignore"',
                    "commands/test_train.py::test_settings_file_and_its_mistakes",
                ),
            ),
        ),
        SilentError(
            "bf16 on a CPU without support for it: slower, sometimes by far",
            "pytorch/pytorch#146508 pytorch/pytorch#86550 intel/intel-extension-for-pytorch#178 "
            "intel/ipex-llm#12472",
            "fp32 is used unless a short measurement on this machine shows that bf16 is faster",
            (
                Fault(
                    '["fp32", "bf16"] if bf16_is_fast else ["fp32"]',
                    '["fp32", "bf16"]',
                    "training/test_autotune.py::test_only_open_settings_are_candidates",
                ),
            ),
        ),
        SilentError(
            "The hub is contacted although everything is available locally, and offline work fails",
            "huggingface/transformers#44843 huggingface/transformers#45545 huggingface/transformers#30345",
            "with a model and data on the machine no connection is ever opened, by loratune or by a library",
            (
                Fault(
                    "    path = Path(name)\n    if path.suffix",
                    "    path = Path(name)\n    hub.answers()\n    if path.suffix",
                    "system/test_hub.py::test_local_model_and_data_make_no_network_request",
                ),
            ),
        ),
        SilentError(
            "A login is requested in the middle of the work, or a tracker reports it",
            "huggingface/trl#788 kohya-ss/sd-scripts#435",
            "never; a gated model or data set is refused with a remedy, telemetry is off, and there are "
            "no trackers",
            (
                Fault(
                    "    except GatedRepoError as error:\n",
                    "    except GatedRepoError as error:\n        input('token: ')\n",
                    "system/test_hub.py::test_gated_data_set_is_refused_without_a_login_prompt",
                ),
            ),
        ),
        SilentError(
            "Cached losses and answers of another model are shown: the key does not cover everything "
            "they depend on",
            "EleutherAI/lm-evaluation-harness#4063 EleutherAI/lm-evaluation-harness#2715",
            "the keys of all caches include the weights, the configuration, the tokenizer, the code and "
            "the libraries' versions",
            (
                Fault(
                    '"config": self.config, ',
                    "",
                    "commands/test_evaluate_known.py::test_a_base_whose_config_was_edited_is_another_model",
                ),
                Fault(
                    '"code": hash_package_code(), ',
                    "",
                    "system/test_cache.py::test_every_key_covers_the_package_code",
                ),
            ),
        ),
    ),
}

HEAD = """\
# The silent errors of the field

With these errors training seems to succeed, and the model is wrong. Each was reported in public for a widely
used tool; the threads are linked. Each has a test here. `tests/silent/errors.py` holds, for every row, a
small change to the source that introduces the error; `pytest tests/silent -m slow` makes each change in a
copy and checks that the named test fails.
"""


def faults() -> list[Fault]:
    return [fault for errors in ERRORS.values() for error in errors for fault in error.faults]


def document() -> str:
    parts = [HEAD]
    for title, errors in ERRORS.items():
        parts.append(f"\n## {title}\n\n| error | seen | here | tests |\n|---|---|---|---|\n")
        for one in errors:
            seen = ", ".join(map(linked, one.seen.split()))
            tests = "<br>".join(dict.fromkeys(f"`{fault.test.partition('[')[0]}`" for fault in one.faults))
            parts.append(f"| {one.error} | {seen} | {one.here} | {tests} |\n")
    return "".join(parts)


def linked(thread: str) -> str:
    repository, _, number = thread.partition("#")
    return f"[{repository.partition('/')[2]}#{number}](https://github.com/{repository}/issues/{number})"


if __name__ == "__main__":
    DOCS.write_text(document(), encoding="utf-8")
