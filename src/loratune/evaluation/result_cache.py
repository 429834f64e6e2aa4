"""Cache losses and answers: a stopped evaluation continues, and the base is measured once for all adapters.

A loss or an answer depends on the model, the example and the settings alone. Each is appended to a file as
soon as it is computed, so a killed process loses only what it was computing.
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
    """JSON values by key, in memory and in a file.

    A line that cannot be read is ignored, and a full disk does not stop the evaluation.
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
        """Store a value in memory and append it to the file."""
        self.known[key] = value
        with suppress(OSError), open(self.path, "ab", buffering=0) as file:
            # One unbuffered write keeps the line whole when another process appends, too; the leading line
            # feed separates it from a line that was only half written.
            file.write(f"\n{json.dumps([key, value])}".encode())


def load_result_cache(
    folder: Path, base: Mapping[str, str], adapter: Path | None, device: str
) -> ResultCache:
    """Load the cached results of a base with an adapter, as this version computes them on this machine.

    Args:
        folder: the cache folder.
        base: hashes of the base model's files.
        adapter: the adapter's folder; None for the base alone.
        device: "cpu" or "cuda".
    """
    files = {path.name: hash_file(path) for path in adapter.glob("adapter_*")} if adapter else {}
    key = compute_cache_key(base=dict(base), adapter=files, processor=identify_processor(device))
    return ResultCache(get_cache_path(folder, RESULTS, key))
