"""Prompts: instructions and conversations, encoded in a template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from loratune.data.conversation import check_prompt
from loratune.data.example import Message
from loratune.data.template import PromptTemplate
from loratune.errors import UserError
from loratune.models.tokenizer import Tokenizer

Prompt = str | Sequence[Message]  # an instruction, or a conversation that waits for an answer


@dataclass(frozen=True)
class PromptFormat:
    """A prompt template and the tokenizer fitted to it."""

    template: PromptTemplate
    tokenizer: Tokenizer

    def encode(self, prompts: Sequence[Prompt], input: str = "") -> list[list[int]]:
        """Return the ids of the prompts; no text in them becomes a special token.

        Args:
            prompts: instructions, or conversations that wait for an answer.
            input: text that the instructions refer to.

        Raises:
            UserError: a conversation is unusable, or the template cannot show it.
        """
        return self.tokenizer.encode_prompts([self.split(prompt, input) for prompt in prompts])

    def split(self, prompt: Prompt, input: str = "") -> Sequence[str]:
        """Split a prompt into the template's texts and the user's, in turn."""
        if isinstance(prompt, str):
            return self.template.split_prompt(prompt, input)
        try:
            check_prompt(prompt)
        except ValueError as error:
            raise UserError(f"a prompt is no conversation: {error}") from None
        self.template.check(prompt)
        return self.template.split_conversation(prompt)


def is_single_prompt(prompts: Prompt | Sequence[Prompt]) -> TypeGuard[Prompt]:
    """Return whether this is one instruction or conversation, not a list of them."""
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Mapping))
