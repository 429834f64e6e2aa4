"""Keep what a model was measured to do: an evaluation that was stopped continues, and the base's part serves
every adapter.

Losses and answers are functions of the model, the example and the settings. Each is noted as soon as it is
known, as a line of a file that only grows: a kill costs what was being computed, and nothing else.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loratune.system.cache import RESULTS, compute_cache_key, get_cache_path, prune_cache
from loratune.system.hardware import identify_processor
from loratune.system.read import hash_file


class ResultCache:
    """Values, as JSON has them, by their keys.

    A line that cannot be read counts as none, and a full disk is no reason to stop.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, Any] = {}
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            prune_cache(path.parent, RESULTS)
            for line in path.read_bytes().splitlines():
                with suppress(ValueError, TypeError):
                    key, value = json.loads(line)
                    self.known[key] = value

    def note(self, key: str, value: Any) -> None:
        """Keep a value, in memory and as a line of the file."""
        self.known[key] = value
        with suppress(OSError), open(self.path, "ab", buffering=0) as file:
            # In one call, and with its line feed first: whole beside those of another process, and after half
            # a line, too.
            file.write(f"\n{json.dumps([key, value])}".encode())


def load_result_cache(
    folder: Path, base: Mapping[str, str], adapter: Path | None, device: str
) -> ResultCache:
    """Load what is known of a base with an adapter, as this code computes on this machine.

    Args:
        folder: of the cache.
        base: the hashes of the base's content.
        adapter: the adapter's folder; None for the base alone.
        device: "cpu" or "cuda".
    """
    files = {path.name: hash_file(path) for path in adapter.glob("adapter_*")} if adapter else {}
    key = compute_cache_key(base=dict(base), adapter=files, processor=identify_processor(device))
    return ResultCache(get_cache_path(folder, RESULTS, key))
