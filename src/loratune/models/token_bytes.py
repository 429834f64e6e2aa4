"""The bytes of tokens, as byte-level and other tokenizers write them in their vocabularies."""

import re


def convert_token_to_bytes(token: str, byte_decoder: dict[str, int]) -> bytes:
    """Convert a token to its UTF-8 bytes.

    Args:
        token: as it stands in the vocabulary.
        byte_decoder: of a byte-level tokenizer; empty for others, which write a space as U+2581 and a lone
            byte as <0x0A>.
    """
    if byte_decoder:
        return bytes(byte_decoder[character] for character in token)
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(byte[1])
    return token.replace("\u2581", " ").encode()


def build_byte_decoder() -> dict[str, int]:
    """Map the characters that byte-level tokenizers write for bytes to these bytes.

    A byte that is a visible Latin-1 character stands for itself; the others are written, in order, as the
    characters from U+0100 on (Radford et al. 2019, section 2.2).
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }
