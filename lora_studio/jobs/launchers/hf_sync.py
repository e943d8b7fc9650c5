"""Both ends of a run on Hugging Face Jobs, and what travels between them through a private bucket.

`python -m lora_studio.jobs.launchers.hf_sync RUN_FOLDER` is the courier, on this machine. With `--there MOUNT` it is
the program of the job, which starts the worker and sends what it writes. The run's folder here is what it is there,
seconds later: events and log only grow, everything else arrives whole.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from lora_studio.config.fields import read_yaml
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, read_object
from lora_studio.jobs.events import Finished, Reason, Warned, read_state
from lora_studio.jobs.kinds import append_event
from lora_studio.jobs.launchers import last_error
from lora_studio.jobs.launchers.hf_jobs import (
    MOUNT,
    SUBMITTING,
    UPLOADING,
    Place,
    bundle,
    may_come,
    mirror,
    prefix_of,
    put_in_place,
    read_place,
    remove_file,
    script,
    write_place,
)
from lora_studio.jobs.launchers.local import child_environment, read_worker, worker_command
from lora_studio.models.hub import HubAwayError, hub_words, jobs_offer, refusal, token_in, without_tokens
from lora_studio.workspace import RunFolder

if TYPE_CHECKING:
    from huggingface_hub import BucketFile, HfApi, JobInfo

LABEL = "lora-studio"
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
EVERY = "LORA_STUDIO_SYNC_SECONDS"
FINAL = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
LOG_SECONDS = 20.0  # between two looks at the log of a job that has sent nothing yet
MAX_WAIT = 60.0
TIDY_ATTEMPTS = 4
OUT_OF_TIME = "out_of_time"  # the mark in the bucket
TEXTS = (".json", ".jsonl", ".md", ".yaml", ".txt", ".log", ".csv")
MAX_TEXT_BYTES = 64 << 20


def _faults() -> tuple[type[Exception], ...]:
    """What a lost connection, or a Hub with a problem, raises in its client."""
    from huggingface_hub.utils import httpx

    return (httpx.HTTPError, OSError, RuntimeError)


def _status(error: Exception) -> int:
    """The HTTP status that an error of the client tells of; 0 for none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


# -- here: the courier


class Courier:
    """Takes a run to the Hub, follows its job, and brings back what it writes, until everything is here."""

    def __init__(self, folder: RunFolder, place: Place, token: str) -> None:
        from huggingface_hub import HfApi

        self.folder, self.place, self._token = folder, place, token
        self._api: HfApi = HfApi(token=token)
        self._every = float(os.environ.get(EVERY, "10"))
        self._prefix = prefix_of(folder, place)
        self._faults = _faults()
        self._passing: tuple[type[Exception], ...] = (*self._faults, HubAwayError, ValueError)
        self._stop_sent = False
        self._log_read = 0.0

    def run(self) -> int:
        """The exit code of the worker, or what stands for it."""
        try:
            if not self.place.job:
                self._submit()
            elif not self._patiently(self._is_account):
                self._note(trouble=f"Log in as {self.place.account} to follow the job.")
                return 1
            return self._follow()
        except StudioError as error:
            return self._end("failed", Reason.REFUSED, error.message, error.hint or "")
        except _UnwantedError:
            return self._leave_early("Stopped before the job was started.")

    def _is_account(self) -> bool:
        """Whether the token is that of the account that the job was started with."""
        try:
            with hub_words(self.place.namespace):
                return bool(self._token) and self._api.whoami()["name"] == self.place.account
        except HubAwayError:
            raise
        except StudioError:  # the token is accepted no more
            return False

    def _note(self, **values: Any) -> None:
        self.place = replace(self.place, **values)
        write_place(self.folder, self.place)

    def _tell(self, line: str) -> None:
        print(time.strftime("%H:%M:%S"), without_tokens(line, self._token), flush=True)

    # -- to the Hub

    def _submit(self) -> None:
        if self.place.stage != SUBMITTING:
            self._patiently(self._agree)
            self._patiently(self._upload)
            if self._wanted():
                raise _UnwantedError
            self._note(stage=SUBMITTING, since=time.time(), trouble="")
            job = None
        else:
            job = self._patiently(self._find_job)
        job = job or self._run_job()
        self._tell(f"Job {job.id} on {self.place.flavor}: {job.status.stage}")
        self._note(job=job.id, url=job.url, stage=str(job.status.stage), since=time.time(), trouble="")

    def _agree(self) -> None:
        """The terms as of now: who pays, and what it costs. Raises `StudioError` for what the Hub would refuse."""
        place = self.place
        terms = jobs_offer(
            place.flavor,
            place.timeout,
            self._token,
            namespace=place.namespace,
            prepaid=True,  # the Hub knows better once it is asked for the job
            visitor=place.own_token,
        )
        self._note(
            account=terms.account,
            namespace=terms.namespace,
            hardware=terms.hardware,
            dollars_per_hour=terms.dollars_per_hour,
        )

    def _upload(self) -> None:
        place, api = self.place, self._api
        try:
            api.create_bucket(place.bucket, private=True, exist_ok=True)
            private = api.bucket_info(place.bucket).private
        except self._faults as error:
            if 400 <= _status(error) < 500 and _status(error) not in (408, 429):
                raise refusal(_status(error), str(error), place.namespace) from None
            raise
        if not private:
            raise StudioError(f"The bucket {place.bucket} is public.", "Make it private, or delete it, on the Hub.")
        parcels = bundle(self.folder, place, self._every)
        size = sum(len(source) if isinstance(source, bytes) else source.stat().st_size for source, _ in parcels)
        self._tell(f"Uploading {len(parcels)} files, {size / 1e6:,.1f} MB, to {place.bucket}/{self._prefix}")
        api.batch_bucket_files(place.bucket, add=[(source, f"{self._prefix}/in/{name}") for source, name in parcels])

    def _find_job(self) -> "JobInfo | None":
        """The job of this start, where the Hub has made it already."""
        return next(iter(self._api.list_jobs(labels={LABEL: self.place.nonce}, namespace=self.place.namespace)), None)

    def _run_job(self) -> "JobInfo":
        """Starts the job. Where the answer is lost, looks whether there is one before asking again: no job twice."""
        from huggingface_hub import Volume

        place = self.place
        mount = Volume(type="bucket", source=place.bucket, mount_path=MOUNT, path=f"{self._prefix}/in", read_only=True)
        while True:
            try:
                return self._api.run_job(
                    image=place.image,
                    command=["sh", "-c", script(cpu=place.flavor.startswith("cpu"))],
                    env={"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **QUIET},
                    secrets={"HF_TOKEN": self._token},
                    flavor=place.flavor,
                    timeout=place.timeout,
                    labels={LABEL: place.nonce, "name": self.folder.id[:100]},
                    volumes=[mount],
                    namespace=place.namespace,
                )
            except self._faults as error:
                status = _status(error)
                if 400 <= status < 500 and status not in (408, 429):
                    raise refusal(status, getattr(error, "server_message", "") or "", place.namespace) from None
                self._stumble(error)
            job = self._patiently(self._find_job)
            if job is not None:
                return job
            if self._wanted():
                raise _UnwantedError

    def _patiently(self, action: Callable[[], Any]) -> Any:
        """Does it until it works: what fails for want of a connection is tried again, later and later."""
        wait = self._every
        while True:
            try:
                return action()
            except self._passing as error:
                self._stumble(error)
            self._sleep(wait)
            if self._wanted() and self.place.stage == UPLOADING:
                raise _UnwantedError
            wait = min(2 * wait, MAX_WAIT)

    def _stumble(self, error: Exception) -> None:
        status = _status(error)
        words = refusal(status, "", self.place.namespace).message if status else "No connection to the Hub."
        words = error.message if isinstance(error, StudioError) else words
        self._tell(f"{words}: {type(error).__name__}: {error}")
        if self.place.trouble != words:
            self._note(trouble=words)

    # -- following

    def _follow(self) -> int:
        wait = self._every
        while True:
            try:
                stage, message = self._look()
                if stage != "SCHEDULING":
                    self._bring()
                if stage in FINAL:
                    return self._finish(stage, message)
                self._heed(stage)
                wait = self._every
            except self._faults as error:
                self._stumble(error)
                worker = read_worker(self.folder)
                if _status(error) in (401, 403) and worker is not None and worker.killed:
                    lost = "The Hub does not accept the token any more: it did not confirm the cancel."
                    return self._end("failed", Reason.VANISHED, lost, f"Look at the job on {self.place.url}.")
                wait = min(2 * wait, MAX_WAIT)
            self._sleep(wait)

    def _look(self) -> tuple[str, str]:
        """The job's stage on the Hub, and what the Hub says of it."""
        place = self.place
        try:
            job = self._api.inspect_job(job_id=place.job, namespace=place.namespace)
        except self._faults as error:
            if _status(error) != 404:
                raise
            stage, message, seconds = "DELETED", "", place.seconds
        else:
            stage, message = str(job.status.stage), job.status.message or ""
            ran = job.durations.running_secs if job.durations else None
            seconds = float(ran if ran is not None else 0.0)
        changed = {} if stage == place.stage else {"since": time.time()}
        if changed:
            self._tell(f"Job {place.job}: {stage} {message}".rstrip())
        message = without_tokens(message, self._token)
        if changed or seconds != place.seconds or place.trouble or message != place.message:
            self._note(stage=stage, message=message, seconds=seconds, measured=time.time(), trouble="", **changed)
        return stage, message

    def _heed(self, stage: str) -> None:
        """What was asked of the job since the last look."""
        worker = read_worker(self.folder)
        if worker is None or not (worker.stop_asked or worker.killed):
            return
        if worker.killed or not self.place.synced:  # or nothing has begun that could be saved
            self._tell("Cancelling the job")
            self._api.cancel_job(job_id=self.place.job, namespace=self.place.namespace)
        elif not self._stop_sent:
            self._tell("Asking the worker to save and end")
            self._api.batch_bucket_files(self.place.bucket, add=[(b"stop", f"{self._prefix}/stop")])
            self._stop_sent = True

    def _wanted(self) -> bool:
        """Whether an end was asked for."""
        worker = read_worker(self.folder)
        return worker is None or bool(worker.stop_asked or worker.killed)

    def _sleep(self, seconds: float) -> None:
        """Waits, but not for long once an end is asked for."""
        end, before = time.monotonic() + seconds, self._wanted()
        while time.monotonic() < end and self._wanted() == before:
            time.sleep(min(0.2, seconds))

    def _bring(self) -> None:
        """Brings what is new: checkpoints and adapter first, then complete.json, log and events."""
        below = f"{self._prefix}/out/"
        listed = {
            item.path.removeprefix(below): item
            for item in self._listed(below.rstrip("/"))
            if item.path.startswith(below)
        }
        arriving = {name: item for name, item in listed.items() if may_come(name)}
        new = {name: item for name, item in arriving.items() if self.place.synced.get(name) != item.xet_hash}
        incoming = self.folder.path / ".incoming"
        if new:
            pairs: list[Any] = [(item, incoming / name) for name, item in new.items()]
            self._api.download_bucket_files(self.place.bucket, pairs)
            put_in_place(incoming, self.folder, list(new))
        gone = [name for name in self.place.synced if listed and name not in listed and name.startswith("checkpoints/")]
        for name in gone:
            remove_file(self.folder.path, name)
        if new or gone:
            self._note(synced={name: item.xet_hash for name, item in arriving.items()})
        elif not arriving and time.monotonic() - self._log_read > LOG_SECONDS:
            self._read_log()

    def _listed(self, below: str) -> "list[BucketFile]":
        """The files below a folder of the bucket; none where there is no such folder, or no bucket any more."""
        from huggingface_hub import BucketFile

        try:
            items = list(self._api.list_bucket_tree(self.place.bucket, below, recursive=True))
        except self._faults as error:
            if _status(error) != 404:
                raise
            return []
        return [item for item in items if isinstance(item, BucketFile)]

    def _read_log(self) -> None:
        """What the job printed, while it has sent nothing itself: it installs packages, or could not begin."""
        self._log_read = time.monotonic()
        try:
            lines = list(self._api.fetch_job_logs(job_id=self.place.job, namespace=self.place.namespace, tail=200))
        except self._passing as error:
            self._tell(f"No log: {type(error).__name__}")
            return
        text = without_tokens("\n".join(lines), self._token)
        if text:
            mirror(self.folder.log, text.encode() + b"\n")

    # -- the end

    def _finish(self, stage: str, message: str) -> int:
        if not self.place.synced:
            self._log_read = 0.0
            self._read_log()
        if self._patiently(self._is_out_of_time):
            self._note(out_of_time=True)
        if not self.place.keep:
            self._tidy_up()
        worker, state = read_worker(self.folder), read_state(self.folder.events)
        launched = worker.launched if worker else 0.0
        if state.final and (state.finished or 0.0) >= launched:
            self._note(ended=True, trouble="")
            return {"done": 0, "stopped": 130}.get(state.state, 2 if state.reason is Reason.REFUSED else 1)
        if self._wanted():
            return self._leave_early("Stopped before the job had begun to train.")
        if self.place.out_of_time:
            return self._end("stopped", Reason.OUT_OF_TIME, "The time limit was near before the worker had begun.")
        how = f" ({message})" if message else ""
        if stage == "CANCELED":
            return self._end("stopped", Reason.CANCELLED_ELSEWHERE, f"The job was cancelled on Hugging Face{how}.")
        if "timeout" in message.lower() or "timed out" in message.lower():
            return self._end("failed", Reason.OUT_OF_TIME, f"The job's time limit was reached{how}.")
        return self._end("failed", Reason.VANISHED, f"The job on Hugging Face ended without a last word{how}.")

    def _leave_early(self, message: str) -> int:
        """The end of what was stopped before its worker could say a word; of a cancel the watcher has the words."""
        worker = read_worker(self.folder)
        if worker is None or worker.killed:
            self._note(ended=True, trouble="")
            return 130
        return self._end("stopped", Reason.STOPPED, message)

    def _end(self, state: str, reason: Reason, message: str, hint: str = "") -> int:
        """The last word of a job whose worker left none."""
        if not hint and reason is not Reason.REFUSED:
            saved = self.folder.checkpoint_folders()
            hint = "Resume continues from the last checkpoint." if saved else "Resume starts over."
            hint += (
                f" The log ends with:\n{last}" if state == "failed" and (last := last_error(self.folder.log)) else ""
            )
        self._tell(f"{message} {hint}")
        append_event(
            self.folder, Finished(time.time(), state, read_state(self.folder.events).step, message, hint, reason)
        )
        self._note(ended=True, trouble="")
        return 130 if state == "stopped" else 2 if reason is Reason.REFUSED else 1

    def _is_out_of_time(self) -> bool:
        """Whether the job has left the mark that its time limit was near."""
        try:
            return bool(list(self._api.get_bucket_paths_info(self.place.bucket, [f"{self._prefix}/{OUT_OF_TIME}"])))
        except self._faults as error:
            if _status(error) != 404:
                raise
            return False

    def _tidy_up(self) -> None:
        """Removes the job's files from the Hub, now that everything is here; where it can't, the run says so."""
        for attempt in range(TIDY_ATTEMPTS):
            try:
                names = [item.path for item in self._listed(self._prefix) if item.path.startswith(f"{self._prefix}/")]
                if names:
                    self._api.batch_bucket_files(self.place.bucket, delete=names)
                return
            except self._faults as error:
                self._stumble(error)
            self._sleep(self._every * 2**attempt)
        where = f"{self.place.bucket}/{self._prefix}"
        append_event(self.folder, Warned(time.time(), f"The files of the job could not be deleted from {where}."))


class _UnwantedError(Exception):
    """An end was asked for before there was a job."""


# -- there: in the job


class Outbox:
    """Sends what a worker writes into the bucket, with the names that files have on the machine that it came from."""

    def __init__(self, api: "HfApi", order: JsonObject, run: RunFolder, names: Mapping[str, str], token: str) -> None:
        self._api, self._bucket, self._prefix = api, str(order["bucket"]), str(order["prefix"])
        self._run, self._names, self._token = run, dict(sorted(names.items(), key=lambda item: -len(item[0]))), token
        self._sent = {name: stamp for name, stamp in self._files().items() if name not in self._grows}
        self._there: set[str] = set()  # in the bucket

    @property
    def _grows(self) -> tuple[str, str]:
        return self._run.log.name, self._run.events.name

    def _files(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file that may be sent now: a checkpoint once it is whole."""
        torn = set(self._run.checkpoints.glob("*")) - set(self._run.checkpoint_folders())
        stamps = {}
        for path in self._run.path.rglob("*"):
            name = str(PurePosixPath(*path.relative_to(self._run.path).parts))
            if may_come(name) and not torn & {path, *path.parents}:
                with suppress(FileNotFoundError):  # the worker deletes old checkpoints
                    status = path.stat()
                    if path.is_file():
                        stamps[name] = (status.st_size, status.st_mtime_ns)
        return stamps

    def send(self) -> None:
        """Sends what is new: the events last, as they were before the other files were looked for."""
        log, events = self._grows
        words = {name: self._text(self._run.path / name) for name in (log, events)}
        now = self._files()
        new = [name for name, stamp in now.items() if self._sent.get(name) != stamp and name not in self._grows]
        gone = [name for name in self._there if name not in now and name.startswith("checkpoints/")]
        grown = [name for name in (log, events) if name in now and self._sent.get(name) != (len(words[name]), 0)]
        if new or gone:
            self._batch([(self._content(name), name) for name in new], gone)
            self._there = (self._there | set(new)) - set(gone)
        if grown:
            self._batch([(words[name], name) for name in grown], [])
        self._sent = {**now, **{name: (len(words[name]), 0) for name in (log, events)}}

    def _batch(self, add: Iterable[tuple[Path | bytes, str]], delete: Iterable[str]) -> None:
        out = f"{self._prefix}/out"
        self._api.batch_bucket_files(
            self._bucket,
            add=[(content, f"{out}/{name}") for content, name in add],
            delete=[f"{out}/{name}" for name in delete],
        )

    def _content(self, name: str) -> Path | bytes:
        path = self._run.path / name
        if path.suffix not in TEXTS or path.stat().st_size > MAX_TEXT_BYTES:
            return path
        return self._text(path)

    def _text(self, path: Path) -> bytes:
        """A text with the paths of the other machine; whole lines of what grows."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return b""
        if path.name == self._run.events.name:
            content = content[: content.rfind(b"\n") + 1]
        for remote_path, path_here in self._names.items():
            name = json.dumps(path_here)[1:-1] if path.suffix in (".json", ".jsonl") else path_here
            content = content.replace(remote_path.encode(), name.encode())
        return content.replace(self._token.encode(), b"hf_...") if self._token else content

    def mark_out_of_time(self) -> None:
        """Leaves a mark that the time limit is near, for whoever follows the job."""
        self._api.batch_bucket_files(self._bucket, add=[(b"yes", f"{self._prefix}/{OUT_OF_TIME}")])

    def stop_asked(self) -> bool:
        """Whether whoever follows the job wants the worker to save and end."""
        return bool(list(self._api.get_bucket_paths_info(self._bucket, [f"{self._prefix}/stop"])))


def unpack(mount: Path, order: JsonObject) -> tuple[RunFolder, dict[str, str]]:
    """The run's folder on the job's own disk, its config with the paths of this machine, and for each of these paths
    the one that it stands for."""
    run = RunFolder(Path(tempfile.gettempdir()) / "lora-studio" / "runs" / str(order["run"]))
    shutil.rmtree(run.path, ignore_errors=True)
    shutil.copytree(mount / "run", run.path)
    config = read_yaml(run.config)
    names = {str(run.path): str(order["here"])}
    for setting, (below, here) in order["paths"].items():
        section, _, name = setting.partition(".")
        config[section][name] = str(mount / below)
        names[str(mount / below)] = here
    compute = config.get("compute") or {}
    config["compute"] = {key: compute[key] for key in ("processes", "strategy") if key in compute}  # this is the target
    run.config.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return run, names


def there(mount: Path) -> int:
    """The job's program: starts the worker, sends what it writes, and stops it before the time limit."""
    from huggingface_hub import HfApi

    order, token = read_object(mount / "order.json"), token_in({})
    run, names = unpack(mount, order)
    outbox = Outbox(HfApi(token=token), order, run, names, token)
    began = float(os.environ.get("LORA_STUDIO_BEGAN", time.time()))
    seconds = float(order["timeout"])
    last_call = began + seconds - max(min(0.15 * seconds, 600.0), 60.0)
    stops = _Stops()
    command = [*worker_command(run, str(order["module"])), str(run.path), *(["--resume"] if order["resume"] else [])]
    with run.log.open("ab") as log:
        worker = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=run.path, env=child_environment()
        )
    faults = _faults()
    while worker.poll() is None:
        end = time.monotonic() + float(order["every"])
        while worker.poll() is None and time.monotonic() < end and not stops.new:
            time.sleep(0.1)
        try:
            if worker.poll() is None:
                outbox.send()
                stops.add(outbox.stop_asked())
            if time.time() > last_call and not stops.heeded:
                stops.add(True)
                outbox.mark_out_of_time()
        except faults as error:
            print(f"Not sent: {type(error).__name__}: {without_tokens(str(error), token)}", flush=True)
        if stops.take():
            worker.send_signal(signal.SIGTERM)
    return _send_last(outbox, began + seconds, faults, worker.returncode)


class _Stops:
    """Whether a stop is asked for, by a signal, by a file in the bucket, or by the time."""

    def __init__(self) -> None:
        self.new = self.heeded = False
        signal.signal(signal.SIGTERM, lambda number, frame: self.add(True))

    def add(self, stop: bool) -> None:
        self.new = self.new or (stop and not self.heeded)

    def take(self) -> bool:
        """Whether to pass a stop on now: once."""
        now, self.new = self.new, False
        self.heeded = self.heeded or now
        return now


def _send_last(outbox: Outbox, until: float, faults: tuple[type[Exception], ...], code: int) -> int:
    """Sends the rest, again and again while there is time; the job's exit code: a run that was stopped is no error."""
    while True:
        try:
            outbox.send()
            return 0 if code == 130 else code if code >= 0 else 128 - code
        except faults as error:
            print(f"Not sent: {type(error).__name__}: {without_tokens(str(error))}", flush=True)
        if time.time() > until:
            return 1
        time.sleep(2)


def main(arguments: Sequence[str]) -> int:
    """The courier of a run's folder, or with `--there` the program of the job."""
    if arguments[0] == "--there":
        return there(Path(arguments[1]))
    folder = RunFolder(Path(arguments[0]))
    place = read_place(folder)
    if place is None:
        print("place.json is damaged: the job cannot be followed.", flush=True)
        return 1
    return Courier(folder, place, token_in({})).run()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # what is asked stands in worker.json
    sys.exit(main(sys.argv[1:]))
