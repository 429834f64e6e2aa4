"""End markers, such as <|endoftext|>, which outputs may already end with: take them off.

Training puts an end token behind every answer, so one that the text holds would be a second.
"""

from collections.abc import Mapping

# End markers of all model families, which data sets made for one of them hold as text. </s> is not among
# them, because it is HTML, too.
END_MARKERS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|return|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|END_OF_TURN_TOKEN|>",
)


def list_end_markers(tokenizer) -> tuple[str, ...]:
    """List the end markers that are removed from outputs, the longest first."""
    return tuple(sorted({*END_MARKERS, *tokenizer.end_texts}, key=lambda marker: (-len(marker), marker)))


def strip_end_markers(output: str, markers: tuple[str, ...]) -> str:
    """Remove the markers at the end of an output, and the white space after them."""
    while (text := output.rstrip()).endswith(markers):
        output = text.removesuffix(next(marker for marker in markers if text.endswith(marker)))
    return output


def describe_end_markers(count: Mapping[str, int]) -> str:
    """Say what became of the end markers of one source's outputs; "" where there were none."""
    if not (number := count.get("end_markers_removed", 0)):
        return ""
    outputs = "output ends" if number == 1 else "outputs end"
    return (
        f"{number:,} {outputs} with an end marker such as <|endoftext|>; it is taken off, since every "
        "response gets its end anyway"
    )
