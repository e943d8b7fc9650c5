"""What guests of a public demonstration may do: try the built-in model on small data, with one run each.

The limits are enforced here, where every job and request is checked, regardless of how a guest connects.
"""

import math
import re
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.access.policy import USERS, UserPolicy, Users, downloads_of, quota_exceeded
from lora_studio.access.serving import Serving
from lora_studio.config.sections import Config
from lora_studio.config.settings import effective_batch
from lora_studio.errors import StudioError
from lora_studio.files import bytes_in
from lora_studio.jobs.kinds import made_by
from lora_studio.models.hub import VISITORS
from lora_studio.models.memory import learned_bytes, sequences_at_once
from lora_studio.models.shape import shape_of
from lora_studio.workspace import DEMO_MODEL, ConfigT, Workspace, shipped_data

ELSEWHERE = "To do this with your own models and data, install LoRA Studio or duplicate the Space."
HOUR, SHRINK_SECONDS = 3600.0, 60.0
SMALL_FILES = 1_000_000  # bytes of a checkpoint of the built-in model beside what it learned
_OF_HUB, _OF_PLACE = VISITORS
_CHECKPOINT = re.compile(r"checkpoint-[0-9]+")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits per guest, except for those that all guests share: `runs_an_hour` and disk space for a number of guests.
    Guests from one address may be one person, so they share `runs_of_address` an hour, `quotas_of_address`, `questions`
    waiting for an answer and `waiting_jobs` in the queue.

    `tokens` is the number of tokens that a run's settings let it train on and evaluate, `at_once` how many of them are
    in memory together. `prepared_bytes` limits the prepared data of all visitors.
    """

    rows: int = 500
    steps: int = 600
    tokens: int = 4_000_000
    at_once: int = 32_768
    max_length: int = 1024
    answer_tokens: int = 512
    questions: int = 3
    waiting_jobs: int = 3
    test_rows: int = 50
    checkpoints: int = 3
    runs_an_hour: int = 12
    runs_of_address: int = 4
    hours_kept: int = 24
    quotas_together: int = 20
    quotas_of_address: int = 4
    prepared_bytes: int = 1_000_000_000


LIMITS = Limits()
ABOUT = (
    f"Guests can train the built-in model: up to {LIMITS.rows} rows, {LIMITS.steps} steps, and one run each, kept "
    f"for {LIMITS.hours_kept} hours. Other models, exports and the Hub are reserved for the owner."
)


def named(hub_account: str) -> str:
    """The user name of a guest who logged in with a Hub account."""
    return f"{_OF_HUB}{hub_account}"


def new_name(place: str) -> str:
    """A new, unused name for an anonymous guest from this place."""
    return f"{_OF_PLACE}{place}-{secrets.token_hex(5)}"


def origin(visitor: str) -> str:
    """What guests who may be one person have in common: the place they come from; for other users, their name."""
    return visitor.rpartition("-")[0] if visitor.startswith(_OF_PLACE) else visitor


def hub_name(visitor: str) -> str:
    """The Hub account that a visitor logged in with; "" for others."""
    return visitor.removeprefix(_OF_HUB) if visitor.startswith(_OF_HUB) else ""


class Guests(Users):
    """The users of a public demonstration: the owner may do everything, everyone else what the limits allow.

    `pending_bytes` returns the bytes of uploads outside the workspace for users whose names match.
    """

    def __init__(
        self,
        workspace: Workspace,
        owner: str,
        folders: Sequence[Path] = (),
        quota: int | None = None,
        device_share: int = 1,
    ) -> None:
        super().__init__(workspace, owner, folders, quota, device_share)
        self.pending_bytes: Callable[[Callable[[str], bool]], int] = lambda matches: 0
        self._shrunk_at = 0.0
        runs_folder = self.workspace.runs_folder
        runs = (
            (run.read_facts()["created"], name)
            for name, run in made_by(self.workspace)
            if run.path.parent == runs_folder
        )
        # Includes runs that were deleted since.
        self._starts = deque(sorted((when, name) for when, name in runs if self.is_guest(name)))

    def policy(self, user_id: str) -> "GuestPolicy":
        return GuestPolicy(self, user_id)

    def is_guest(self, name: str) -> bool:
        return name not in ("", self.owner)

    def forget_guests(self) -> None:
        """Removes the uploads and drafts of anonymous guests of an earlier server: their sessions cannot be resumed."""
        for folder in (self.workspace.root / USERS).glob("guest-*"):
            shutil.rmtree(folder)

    def run_started(self, user_id: str) -> None:
        """Counts a run towards the hourly limits."""
        if self.is_guest(user_id):
            self._starts.append((time.time(), user_id))

    def check_starts(self, user_id: str) -> None:
        """Raises `StudioError` if all guests together, or those who may be this person, started too many runs within an
        hour."""
        while self._starts and time.time() - self._starts[0][0] >= HOUR:
            self._starts.popleft()
        place = origin(user_id)
        own = sum(origin(name) == place for _, name in self._starts)
        for starts, limit, subject in (
            (own, LIMITS.runs_of_address, "Guests with your address"),
            (len(self._starts), LIMITS.runs_an_hour, "Guests"),
        ):
            if starts >= limit:
                raise StudioError(f"{subject} started {limit} runs within the last hour.", "Try again later.")

    def check_shared_room(self, size: int, user_id: str) -> None:
        """Raises `StudioError` if the guests of one address, or all guests together, have no room for `size` more
        bytes."""
        place = origin(user_id)
        self._check_quotas(
            size,
            lambda name: origin(name) == place,
            LIMITS.quotas_of_address,
            "Runs and files of guests with your address use",
        )
        self._check_quotas(size, self.is_guest, LIMITS.quotas_together, "Uploads and runs of guests use")

    def _check_quotas(self, size: int, matches: Callable[[str], bool], quotas: int, subject: str) -> None:
        assert self.quota is not None
        used, limit = self.used_bytes(matches) + self.pending_bytes(matches), quotas * self.quota
        if used + max(size, 1) > limit:
            raise quota_exceeded(used, size, limit, subject, "Try again later.")

    def remove_old(self) -> None:
        """Removes jobs and uploads of guests that are older than the retention time."""
        self._shrink_cache()
        oldest = time.time() - LIMITS.hours_kept * HOUR
        jobs = [folder for name, folder in made_by(self.workspace) if self.is_guest(name)]
        downloads = [path for name, path in downloads_of(self.workspace) if self.is_guest(name)]
        with suppress(FileNotFoundError):  # another guest's request removes the same
            for folder in jobs:
                if folder.read_facts()["created"] < oldest:
                    shutil.rmtree(folder.path.rename(folder.path.with_name(f".deleted-{folder.id}")))
            for own in (*(self.workspace.root / USERS).glob("*"), *downloads):
                if max((path.stat().st_mtime for path in own.rglob("*")), default=0.0) < oldest:
                    shutil.rmtree(own)

    def _shrink_cache(self) -> None:
        """Removes prepared data beyond the shared limit, oldest first. It is prepared again on demand."""
        cache = self.workspace.cache_folder
        if time.time() - self._shrunk_at < SHRINK_SECONDS or not cache.is_dir():
            return
        self._shrunk_at = time.time()
        entries = sorted((path.stat().st_mtime, path) for path in cache.iterdir() if path.is_dir())
        sizes = {path: bytes_in(path) for _, path in entries}
        total = sum(sizes.values())
        for _, path in entries:
            if total <= LIMITS.prepared_bytes:
                return
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


class GuestPolicy(UserPolicy):
    """What one visitor of a public demonstration may do."""

    def __init__(self, guests: Guests, user_id: str) -> None:
        super().__init__(guests, user_id)
        self._guests = guests
        self.max_queued = None if self.is_admin else LIMITS.waiting_jobs
        self.max_answer = None if self.is_admin else LIMITS.answer_tokens

    def run_created(self) -> None:
        self._guests.run_started(self.owner_id)

    def check_room(self, size: int = 0) -> None:
        if self.is_admin or not self.has_quota:
            return
        self._guests.remove_old()
        super().check_room(size)
        self._guests.check_shared_room(size, self.owner_id)

    def _room_hint(self) -> str:
        return (
            f"Delete your run to free space, or come back later: everything is removed after {LIMITS.hours_kept} hours."
        )

    def check_may(self, action: str) -> None:
        if not self.is_admin:
            raise StudioError(f"Guests cannot {action} here.", ELSEWHERE)

    def check_request(self, params: Mapping[str, Any]) -> None:
        if self._pays_for(str(params.get("target"))) and super()._is_hub_name(str(params.get("model"))):
            params = {**params, "model": ""}  # read only where the guest pays for it
        super().check_request(params)
        if self.is_admin:
            return
        for name in ("model", "base"):
            if params.get(name) not in (None, "", DEMO_MODEL):
                raise self._refusal(str(params[name]))
        tokens = (params.get("settings") or {}).get("max_new_tokens") or 0
        if self.max_answer is not None and tokens > self.max_answer:
            raise StudioError(
                f"Guests are limited to {self.max_answer} tokens per answer; {tokens} were requested.",
                "Lower max new tokens.",
            )

    def admit(self, config: ConfigT) -> ConfigT:
        if self.is_admin:
            return config
        assert isinstance(config, Config)
        rented = self._pays_for(config.compute.target)
        if not rented and (beyond := _beyond(config)):
            raise StudioError("\n".join(["This run exceeds the limits for guests.", *beyond]), ELSEWHERE)
        if any(self.can_read(run) for run in self._guests.workspace.runs()):
            raise StudioError("Guests can have one run, and yours already exists.", "Delete it to start another run.")
        self._guests.check_starts(self.owner_id)
        quota = self._guests.quota
        if quota is not None and (needed := _disk(config)) > quota:
            raise StudioError(
                f"Checkpoints and adapter would need {needed / 1e6:,.0f} MB; guests have {quota / 1e6:,.0f} MB.",
                "Lower the rank (lora.r), save no modules in full, or keep fewer checkpoints.",
            )
        if rented:
            return config
        data = config.data.model_copy(
            update={
                "max_samples": min(config.data.max_samples or LIMITS.rows, LIMITS.rows),
                "max_eval_samples": min(config.data.max_eval_samples or LIMITS.test_rows, LIMITS.test_rows),
            }
        )
        return config.model_copy(update={"data": data})

    def _pays_for(self, target: str) -> bool:
        """Whether jobs on that target use the guest's own account, and nothing of this machine."""
        return target.startswith("hf-jobs:") and bool(self.jobs_token(self.owner_id))

    def test_rows(self, requested: int | None) -> int | None:
        return requested if self.is_admin else min(requested or LIMITS.test_rows, LIMITS.test_rows)

    def shares_queue_with(self, owner_id: str) -> bool:
        return origin(owner_id) == origin(self.owner_id)

    def _is_hub_name(self, name: str) -> bool:
        if self.is_admin:
            return super()._is_hub_name(name)
        run, _, checkpoint = name.partition("/")
        own = self._may_read_run(run) and (not checkpoint or _CHECKPOINT.fullmatch(checkpoint) is not None)
        return own or name == DEMO_MODEL or name in shipped_data()

    def _refusal(self, name: str) -> StudioError:
        if self.is_admin:
            return super()._refusal(name)
        return StudioError(
            f"{name!r} is not available to guests: they can use the built-in model, the built-in datasets and their "
            "own uploads.",
            ELSEWHERE,
        )


def _disk(config: Config) -> int:
    """Bytes of the checkpoints that a run keeps, of one more while it is being written, and of the adapter."""
    model = shape_of(config.model.name)
    checkpoints = 1 if config.training.save_strategy == "no" else config.training.save_total_limit + 2
    return checkpoints * (learned_bytes(config, model) + SMALL_FILES) if model else 0


def _beyond(config: Config) -> list[str]:
    """The settings of a guest's request that exceed the limits."""
    training = config.training
    rows = min(config.data.max_samples or LIMITS.rows, LIMITS.rows)
    batch = effective_batch(config)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(rows / batch * training.num_train_epochs)
    data, tracking = config.data, config.tracking
    trained = steps * batch * data.max_length * (2 if training.compares else 1)
    measured = _measured(config, steps, steps * batch / rows)
    answer = config.generation.max_new_tokens
    widest = max(sequences_at_once(config), config.evaluation.per_device_eval_batch_size)
    limits = (
        (config.model.name == DEMO_MODEL, f"{config.model.name} is not the built-in model."),
        (config.compute.world_size == 1, "Guests train in one process. Set compute.processes to auto."),
        (
            steps <= LIMITS.steps,
            f"{rows} rows give {steps:,} steps; guests are limited to {LIMITS.steps}. Use fewer epochs.",
        ),
        (
            data.max_length <= LIMITS.max_length,
            f"The max length is {data.max_length} tokens; guests are limited to {LIMITS.max_length}.",
        ),
        (
            trained <= LIMITS.tokens,
            f"{steps:,} steps of {batch:,} rows with up to {data.max_length:,} tokens are {trained:,} tokens; "
            f"guests are limited to {LIMITS.tokens:,}. Use fewer steps, smaller batches or shorter rows.",
        ),
        (
            widest * data.max_length <= LIMITS.at_once,
            f"{widest:,} rows per batch with up to {data.max_length:,} tokens; guests are limited to "
            f"{LIMITS.at_once:,} tokens per batch. Use smaller batches and more gradient accumulation.",
        ),
        (
            measured <= LIMITS.tokens,
            f"Evaluations would process up to {measured:,} tokens; guests are limited to {LIMITS.tokens:,}. "
            "Evaluate less often, or use fewer sample generations.",
        ),
        (
            answer <= LIMITS.answer_tokens or not config.evaluation.gen_eval_samples,
            f"Answers may have {answer:,} tokens; guests are limited to {LIMITS.answer_tokens}.",
        ),
        (
            0 < training.save_total_limit <= LIMITS.checkpoints,
            f"{training.save_total_limit} checkpoints are kept; guests are limited to {LIMITS.checkpoints}.",
        ),
        (
            tracking.report_to == "tensorboard",
            f"Metrics are sent to {tracking.report_to}; metrics of guests stay on this machine.",
        ),
    )
    return [words for fits, words in limits if not fits]


def _measured(config: Config, steps: int, epochs: float) -> int:
    """The maximum number of tokens that evaluations process. A generated token needs its own step and counts as ten."""
    how = config.evaluation
    times = {"no": 0, "epoch": math.ceil(epochs), "steps": steps // how.eval_steps}[how.eval_strategy] + 2
    rows = min(config.data.max_eval_samples or LIMITS.test_rows, LIMITS.test_rows) * config.data.max_length
    return times * (rows + 10 * how.gen_eval_samples * config.generation.max_new_tokens)


def users_of(workspace: Workspace, serving: Serving) -> Users | None:
    """The users of a served page; None if whoever opens it is at this machine and may do everything."""
    if serving.trusts_visitors:
        return None
    kind = Guests if serving.guests else Users
    users = kind(workspace, serving.owner, serving.folders, int(serving.quota_gb * 1e9), serving.device_share)
    if isinstance(users, Guests):
        users.forget_guests()
    return users
