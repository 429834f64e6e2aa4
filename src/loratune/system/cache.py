"""Keys of the caches: one rule for tokens, losses and answers, timings, and unpacked models.

A value may come from a cache only if all that it depends on is the same. Each cache names what that is. Our
own code and the libraries that compute are always part of it: what is computed may change with any of them.
"""

import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import loratune
from loratune.system.read import hash_file

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy")


def compute_cache_key(**parts: Any) -> str:
    """Return 32 hexadecimal digits for a value that depends on these parts, which are as JSON has them."""
    everything = {"parts": parts, "code": hash_package_code(), "libraries": list_library_versions()}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


@cache
def hash_package_code() -> str:
    """Return what identifies all our own code."""
    return hash_python_files(Path(loratune.__file__).parent)


def hash_python_files(package: Path) -> str:
    """Return the sha256 of the Python files below `package`, their names included."""
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
