"""What a model was measured to do before: an evaluation that was stopped goes on, and another adapter's has
the base's part.

Losses and answers are functions of the model, the row and the settings. Each is noted as soon as it is known,
a line of a file that only grows: a kill costs what was being computed, and nothing else.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loratune.system.atomic import keep_newest
from loratune.system.cache import compute_cache_key
from loratune.system.hardware import identify_processor
from loratune.system.read import hash_file

MAX_CACHES = 16  # notebooks; the ones not used for longest are removed


class ResultCache:
    """Values, as JSON has them, by their keys. A line that cannot be read counts as none, a full disk is no
    reason to stop.
    """

    def __init__(self, path: Path):
        self.path, self.known = path, {}
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            keep_newest(path.parent, "measured-*.jsonl", MAX_CACHES)
            for line in path.read_bytes().splitlines():
                with suppress(ValueError, TypeError):
                    key, value = json.loads(line)
                    self.known[key] = value

    def note(self, key: str, value: Any) -> None:
        self.known[key] = value
        with suppress(OSError), open(self.path, "ab", buffering=0) as file:
            # In one call, and with its line feed first: whole beside those of another process, and after half
            # a line, too.
            file.write(f"\n{json.dumps([key, value])}".encode())


def load_result_cache(
    folder: Path, base: Mapping[str, str], adapter: Path | None, device: str
) -> ResultCache:
    """That of the base of this content with this adapter on it, as this code computes on this machine."""
    files = {path.name: hash_file(path) for path in adapter.glob("adapter_*")} if adapter else {}
    key = compute_cache_key(base=dict(base), adapter=files, processor=identify_processor(device))
    return ResultCache(folder / f"measured-{key}.jsonl")
