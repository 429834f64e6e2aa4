"""The cache: one folder, one rule for its keys, and one way to read, write and prune it.

A value may come from the cache only if everything that it depends on is the same. Each kind of value names
what that is; our own code and the libraries that compute are always part of it.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import loratune
from loratune.errors import UserError
from loratune.system.atomic import replace_atomically
from loratune.system.read import hash_file

Value = TypeVar("Value")

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy")


@dataclass(frozen=True)
class CacheKind:
    """One kind of value in the cache."""

    name: str  # of its files or folders, before the key
    suffix: str
    title: str  # what it is, for people
    max_files: int | None  # the least recently used beyond this are removed; None: pruned by another rule

    @property
    def pattern(self) -> str:
        return f"{self.name}-*{self.suffix}"


UNPACKED_MODELS = CacheKind("gguf", "", "unpacked base models", None)  # see `models.resolve`
TOKENS = CacheKind("tokens", ".npz", "encoded data", 4)  # some ten MB each
MEASUREMENTS = CacheKind("trial", ".json", "timings of this machine", 64)
RESULTS = CacheKind("measured", ".jsonl", "losses and answers", 16)
CACHE_KINDS = (UNPACKED_MODELS, TOKENS, MEASUREMENTS, RESULTS)


def get_cache_folder() -> Path:
    return Path(os.environ.get("LORATUNE_CACHE") or Path.home() / ".cache" / "loratune")


def get_cache_path(folder: Path, kind: CacheKind, key: str) -> Path:
    return folder / f"{kind.name}-{key}{kind.suffix}"


def read_cached(path: Path, read: Callable[[Path], Value]) -> Value | None:
    """Read a cached file and mark it as used.

    Returns:
        The result of `read`; None if the file is missing, or if `read` finds it broken.
    """
    with suppress(UserError, OSError, ValueError, TypeError, LookupError, EOFError, BadZipFile):
        value = read(path)
        mark_used(path)
        return value
    return None


def write_cached(path: Path, kind: CacheKind, write: Callable[[Path], object]) -> None:
    """Write a file of the cache with `write`, and prune its kind.

    A full or read-only disk is no reason to stop: without a cache everything works, only slower.
    """
    with suppress(UserError, OSError):
        with replace_atomically(path) as beside:
            write(beside)
        prune_cache(path.parent, kind)


def mark_used(path: Path) -> None:
    """Mark a file or folder of the cache as used, so that others are pruned first."""
    with suppress(OSError):  # another user's cache may be read-only
        os.utime(path)


def prune_cache(folder: Path, kind: CacheKind) -> None:
    """Remove the least recently used files of this kind. Raises OSError if that is not permitted."""
    if kind.max_files is None:
        return
    newest_first = sorted(folder.glob(kind.pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[kind.max_files :]:
        path.unlink(missing_ok=True)


def compute_cache_key(**parts: Any) -> str:
    """Compute the key of a value that depends on these parts, which are JSON values: 32 hex digits."""
    everything = {"parts": parts, "code": hash_package_code(), "libraries": list_library_versions()}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


@cache
def hash_package_code() -> str:
    """Return a hash of all of our own code."""
    return hash_python_files(Path(loratune.__file__).parent)


def hash_python_files(package: Path) -> str:
    """Return the sha256 of the Python files below `package`, including their names."""
    files = {str(path.relative_to(package)): hash_file(path) for path in sorted(package.rglob("*.py"))}
    return hashlib.sha256(json.dumps([loratune.__version__, files]).encode()).hexdigest()


@cache
def list_library_versions() -> dict[str, str | None]:
    """Return the installed version of each library that computes; None for one that is not there."""
    return {name: find_installed_version(name) for name in LIBRARIES}


def find_installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
