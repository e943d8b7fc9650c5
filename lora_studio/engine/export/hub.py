"""Uploads an adapter or a merged model to a repository on the Hugging Face Hub, with a model card.

The token comes from HF_TOKEN in this child's environment and is sent only to the Hub: it appears in no error, event or
log.
"""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id

from lora_studio.config.fields import read_yaml
from lora_studio.engine.export import merged as export_merged
from lora_studio.engine.export.archive import rewritten
from lora_studio.engine.export.context import ExportContext, ExportResult, base_to_name, copy_files, try_adapter
from lora_studio.engine.runtime import Stopped
from lora_studio.errors import StudioError
from lora_studio.export.card import CARD_NAME, Subject, model_card
from lora_studio.models.adapter_files import carried
from lora_studio.models.hub import DATASET_PREFIX, TOKENS_PAGE, is_dataset_name, parse_dataset_name, without_tokens

_ALONE = re.compile(r"[\w.-]+")


def no_token() -> StudioError:
    """The error for a missing token."""
    return StudioError(
        "No Hub token is configured.",
        "Set HF_TOKEN before the start, log in with `hf auth login`, or enter a token when asked. Create one with "
        f"write access at {TOKENS_PAGE}.",
    )


@dataclass(frozen=True)
class Published:
    """The repository's name, its page, and whether it is public."""

    repo: str
    link: str
    private: bool


def check_name(repo: str) -> str:
    """A repository's name, with or without an owner. Raises `StudioError` for names that the Hub refuses."""
    name = repo.strip()
    hint = (
        "Write it as OWNER/NAME: letters, digits, dots, dashes and underscores, at most 96 characters, such as "
        "me/pirate-lora."
    )
    if not name:
        raise StudioError("The repository has no name.", hint)
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise StudioError(f"{name[:120]!r} is not a valid repository name.", hint) from None
    if "/" not in name and not _ALONE.fullmatch(name):
        raise StudioError(f"{name[:120]!r} is not a valid repository name.", hint)
    return name


def full_name(repo: str, token: str, *, endpoint: str | None = None) -> str:
    """The repository's name with its owner, by default the token's. Asks the Hub.

    Raises `StudioError` if the token is invalid or read-only.
    """
    name = check_name(repo)
    with _in_words(name):
        account = HfApi(endpoint=endpoint, token=token).whoami()
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise StudioError("This Hub token is read-only.", f"Create a token with write access: {TOKENS_PAGE}.")
    return name if "/" in name else f"{account['name']}/{name}"


def publish(
    folder: Path,
    repo: str,
    token: str,
    *,
    private: bool,
    update: bool,
    message: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
    endpoint: str | None = None,
) -> Published:
    """Uploads all files of a folder in one commit; `check` may raise to stop.

    `update` allows an existing repository; its visibility never changes. Raises `StudioError`.
    """
    api = HfApi(endpoint=endpoint, token=token)
    with _in_words(repo):
        hidden = _make_repository(api, repo, private=private, update=update)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        with _operations(folder, paths, on_progress, check) as operations:
            api.preupload_lfs_files(repo, operations, num_threads=1, free_memory=False)
            check()
            api.create_commit(repo, operations, commit_message=message, num_threads=1)
    return Published(repo, f"{api.endpoint}/{repo}", hidden)


def _make_repository(api: HfApi, repo: str, *, private: bool, update: bool) -> bool:
    """Creates the repository if it does not exist, and returns whether it is private."""
    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private)
        return private
    if not update:
        raise StudioError(
            f"{repo} already exists on the Hub.", "Choose another name, or allow an update, which replaces its files."
        )
    if private and not info.private:
        raise StudioError(
            f"{repo} already exists on the Hub and is public.",
            "Choose another name, or set private to off.",
        )
    return bool(info.private)


class _Counted(io.BufferedReader):
    """A file that reports how many bytes were read, once counting has begun; a read is where a stop takes effect."""

    def __init__(self, path: Path, tell: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._tell, self.counting = tell, False

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        if self.counting:
            self._tell(len(block))
        return block


@contextmanager
def _operations(
    folder: Path, paths: Sequence[Path], on_progress: Callable[[int, int], None], check: Callable[[], None]
) -> Iterator[list[CommitOperationAdd]]:
    """The files as huggingface_hub takes them, opened; they are read once before, for their hashes."""
    total, done = sum(path.stat().st_size for path in paths), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        on_progress(min(done, total), total)
        check()

    with ExitStack() as stack:
        files = [stack.enter_context(_Counted(path, tell)) for path in paths]
        operations = []
        for path, file in zip(paths, files, strict=True):
            operations.append(CommitOperationAdd(path.relative_to(folder).as_posix(), file))
            check()
        for file in files:
            file.counting = True
        yield operations


@contextmanager
def _in_words(repo: str) -> Iterator[None]:
    """Converts the library's errors to `StudioError`."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise StudioError("HF_HUB_OFFLINE disables access to the Hub.", "Unset it and start again.") from None
    except HfHubHTTPError as error:
        raise _refused(error, repo) from None
    except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise StudioError(
            f"The Hub cannot be reached: {_clean(error)}", "Check the network and HF_ENDPOINT, and try again."
        ) from None
    except (RuntimeError, ValueError) as error:
        inner = error.__cause__
        if isinstance(inner, HfHubHTTPError):
            raise _refused(inner, repo) from None
        raise StudioError(f"The upload to {repo} failed: {_clean(inner or error)}", "Try again.") from None


def _refused(error: HfHubHTTPError, repo: str) -> StudioError:
    """The meaning of the Hub's response."""
    status, message = error.response.status_code, _clean(error.server_message or error)
    if status == 401:
        return StudioError("The Hub rejects this token.", f"It may have expired. Create a new one at {TOKENS_PAGE}.")
    if status == 403:
        return StudioError(
            f"This token has no write access to {repo}: {message}",
            f"Grant it at {TOKENS_PAGE}, or use another owner.",
        )
    if status == 409:
        return StudioError(f"{repo} already exists on the Hub.", "Choose another name, or allow an update.")
    if status == 404:
        return StudioError(
            f"{repo} does not exist on the Hub, or this token has no access to it.", "Check the owner's name."
        )
    if status == 429:
        return StudioError("The Hub's rate limit was exceeded.", "Try again in a few minutes.")
    return StudioError(f"The Hub rejected the upload to {repo} ({status}): {message}", "Try again later.")


def _clean(error: object) -> str:
    """The first line of an error, shortened, without anything that looks like a token."""
    return without_tokens(str(error).strip().partition("\n")[0])[:300]


def export(
    work: ExportContext,
    *,
    repo: str,
    content: str,
    private: bool,
    update: bool,
    base_name: str,
    license: str,
    dtype: str,
) -> ExportResult:
    """Makes the files, verifies them, uploads them, and returns the link."""
    repository = check_name(repo.strip() or work.name)
    base = base_to_name(work, base_name)
    token = (os.environ.get("HF_TOKEN") or get_token() or "").strip()
    if not token:
        raise no_token()
    name = full_name(repository, token)  # asks the Hub: what is wrong with the token is known before anything slow
    merged = content == "merged"
    if merged:
        result = export_merged.export(work, dtype=dtype, max_shard_size="5GB")
        tried, same, notes = result.tried, result.same, result.notes
    else:
        (tried, same), notes = _adapter(work, base), ()
    subject = Subject(work.title, base, name, hub_data(work), license, merged, dtype if merged else "")
    (work.out / CARD_NAME).write_text(model_card(work.adapter, work.run, subject), encoding="utf-8")
    work.log.phase("upload", sum(path.stat().st_size for path in work.out.rglob("*") if path.is_file()), "bytes")
    try:
        published = publish(
            work.out,
            name,
            token,
            private=private,
            update=update,
            message=f"{'Merged model' if merged else 'Adapter'} trained with LoRA Studio",
            on_progress=work.log.progress,
            check=work.stop.check,
        )
    except Stopped:
        work.warn(
            f"The repository {name} may already exist on the Hub without files. Delete it there, or allow an update."
        )
        raise
    visibility = "visible only to you and people you add" if published.private else "public"
    return ExportResult(
        f"Published on the Hub as {published.repo}; {visibility}.",
        link=published.link,
        tried=tried,
        same=same,
        notes=notes,
    )


def _adapter(work: ExportContext, base: str) -> tuple[str, bool | None]:
    """The adapter's files in `work.out`, verified."""
    texts = rewritten(work, base)
    copy_files(work, [path for path in carried(work.adapter) if path.name not in texts], work.out)
    for file, text in texts.items():
        (work.out / file).write_text(text, encoding="utf-8")
    return try_adapter(work, work.out)


def hub_data(work: ExportContext) -> str:
    """The training set's name on the Hub, if it is from there."""
    if work.run is None or not work.run.config.is_file():
        return ""
    name = str(read_yaml(work.run.config).get("data", {}).get("train_file", ""))
    if not is_dataset_name(name) or Path(name).exists():
        return ""
    return parse_dataset_name(name)[0] if name.startswith(DATASET_PREFIX) else name
