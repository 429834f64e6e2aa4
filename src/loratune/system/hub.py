"""The Hugging Face hub: whether it is reachable, what is cached, and downloads."""

import os
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from loratune.errors import UserError
from loratune.system.atomic import convert_os_error

# No telemetry. huggingface_hub reads this when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

REMEDY = "check the name and the connection, or download the files on another machine and give their folder"


def is_hub_reachable(seconds: float = 3.0) -> bool:
    """Return whether the hub answers within `seconds`; False without asking when HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(
            urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=seconds
        ):
            return True
    except OSError:
        return False


def find_cached_file(repository: str, file: str) -> Path | None:
    """Return the path of a model's file in the local cache, without a request; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file)
    return Path(path) if isinstance(path, str) else None


def list_repository_files(repository: str, kind: str = "model") -> list[str]:
    """List the names of a repository's files.

    Raises:
        UserError: the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import list_repo_files

    with translate_hub_errors(repository, kind):
        return list_repo_files(repository, repo_type=kind)


def download(repository: str, patterns: list[str], kind: str = "model") -> Path:
    """Download a repository's files that match `patterns`, unless they are cached, and return their folder.

    Args:
        repository: owner/name.
        patterns: of file names, such as *.json.
        kind: "model" or "dataset".

    Raises:
        UserError: the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download

    with translate_hub_errors(repository, kind):
        return Path(snapshot_download(repository, repo_type=kind, allow_patterns=patterns))


@contextmanager
def translate_hub_errors(repository: str, kind: str):
    """Convert the hub's errors to UserErrors with a remedy."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        # Of the package that this version of huggingface_hub speaks HTTP with.
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        RepositoryNotFoundError,
    )

    kind = "data set" if kind == "dataset" else kind
    title = f"{kind} {repository}"
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{title}: its owner asks for a login and consent on the hub; {REMEDY}") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{title}: the hub has no such {kind}, or it is private; {REMEDY}") from error
    except HFValidationError as error:
        raise UserError(f"{title}: not a Hugging Face name; it has the form owner/name") from error
    except HfHubHTTPError as error:
        raise UserError(
            f"{title}: the hub answered with an error ({error.response.status_code}); {REMEDY}"
        ) from error
    except (HTTPError, OSError) as error:
        # Files that are not in the cache are OSErrors, too; a full disk has a remedy of its own.
        if isinstance(error, OSError) and isinstance(
            known := convert_os_error(error, Path(repository)), UserError
        ):
            raise known from error
        raise UserError(
            f"{title}: not in the local cache, and the hub cannot be reached; {REMEDY}"
        ) from error
