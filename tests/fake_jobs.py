"""The Jobs and buckets of the fake Hub: shapes of the installed client, jobs as processes of this machine, and faults.

A job runs the very command that it was given; only the place where its volume is mounted is a folder of its own. The
content of files comes and goes by a stand-in of the native client (`stand_ins/hf_xet.py`).
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lora_studio.workspace import write_atomically

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]
FINAL = ("COMPLETED", "CANCELED", "ERROR", "DELETED")


def _hardware(name: str, title: str, cents_a_minute: float, gpu: tuple[str, str, str] | None) -> dict[str, Any]:
    accelerator = gpu and {
        "type": "gpu",
        "model": gpu[0],
        "quantity": gpu[1],
        "vram": gpu[2],
        "manufacturer": "Nvidia",
    }
    return {
        "name": name,
        "prettyName": title,
        "cpu": "2 vCPU",
        "ram": "16 GB",
        "ephemeralStorage": "50 GB",
        "accelerator": accelerator,
        "unitCostMicroUSD": round(cents_a_minute * 10_000),
        "unitCostUSD": cents_a_minute / 100,
        "unitLabel": "minute",
    }


HARDWARE = [
    _hardware("cpu-basic", "CPU Basic", 0.0167, None),
    _hardware("t4-small", "Nvidia T4 - small", 0.6667, ("T4", "1", "16 GB")),
    _hardware("a10g-small", "Nvidia A10G - small", 1.6667, ("A10G", "1", "24 GB")),
    _hardware("a10g-largex2", "Nvidia 2x A10G - large", 5.0, ("A10G", "2", "48 GB")),
]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match: a status, or a connection that breaks ("drop"), after
    some `seconds`. With `after` the Hub did what was asked, and only its answer is lost."""

    method: str
    path: str
    status: int | str
    times: int = 1
    after: bool = False
    seconds: float = 0.0

    def meets(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None


@dataclass
class Job:
    """A job as the Hub knows it, and the process that does it here."""

    id: str
    owner: str
    spec: dict[str, Any]
    folder: Path
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    stage: str = "SCHEDULING"
    message: str | None = None
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def shape(self, url: str) -> dict[str, Any]:
        now = time.time()
        running = None if self.started is None else int((self.finished or now) - self.started)
        return {
            "id": self.id,
            "createdAt": _time(self.created),
            "startedAt": _time(self.started),
            "finishedAt": _time(self.finished),
            "dockerImage": self.spec.get("dockerImage"),
            "command": self.spec["command"],
            "arguments": self.spec["arguments"],
            "environment": self.spec["environment"],
            "secrets": dict.fromkeys(self.spec.get("secrets", {}), ""),
            "flavor": self.spec["flavor"],
            "labels": self.spec.get("labels"),
            "volumes": self.spec.get("volumes"),
            "status": {"stage": self.stage, "message": self.message, "exposeUrls": None, "sshUrl": None},
            "durations": {
                "schedulingSecs": None if self.started is None else int(self.started - self.created),
                "runningSecs": running,
                "totalSecs": int((self.finished or now) - self.created),
            },
            "owner": {"id": "1" * 24, "name": self.owner, "type": "user"},
            "initiator": {"type": "user", "id": "1" * 24, "name": self.owner},
        }


def _time(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if seconds else None


class Jobs:
    """`capacity`: whether there is a machine free. With `scripted` no process does a job: the test says what becomes of
    it. `buckets` maps names to whether they are private;
    `files` bucket and path to hash, size and time.
    """

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self.folder = folder
        self.capacity = True
        self.scripted = False
        self.pays: dict[str, bool] = {}  # by namespace; all others pay
        self.faults: list[Fault] = []
        self.jobs: dict[str, Job] = {}
        self.buckets: dict[str, bool] = {}
        self.files: dict[tuple[str, str], dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}  # of files, by hash
        self.ever: set[str] = set()  # names of all files that ever were in a bucket
        self._lock = threading.Lock()

    def fail(
        self, method: str, path: str, status: int | str, times: int = 1, *, after: bool = False, seconds: float = 0.0
    ) -> None:
        self.faults.append(Fault(method, path, status, times, after, seconds))

    def answer(self, method: str, path: str, body: bytes, account: str) -> Answer | None:
        """The answer to a request to Jobs or buckets; None for one that is neither."""
        address = urlsplit(path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        query = parse_qs(address.query)
        if parts[:2] == ["api", "jobs"]:
            return self._job(method, parts[2:], query, body, account)
        if parts[:2] == ["api", "buckets"]:
            return self._bucket(method, parts[2:], query, body, account)
        if parts[0] == "xet" and method == "PUT":
            self.contents[parts[1]] = body
            return 200, {}
        if parts[0] == "xet":
            return 200, self.contents[parts[1]]
        if parts[0] == "buckets" and parts[3] == "resolve":
            return self._resolve("/".join(parts[1:3]), "/".join(parts[4:]))
        return None

    # -- jobs

    def _job(self, method: str, parts: list[str], query: dict[str, list[str]], body: bytes, account: str) -> Answer:
        if parts == ["hardware"]:
            return 200, HARDWARE
        if account not in MAY_RUN.get(parts[0], (parts[0],)):
            return 403, {"error": "Forbidden: you don't have the required permissions to run jobs"}
        if method == "POST" and len(parts) == 1:
            return self._run(parts[0], json.loads(body))
        if len(parts) == 1:
            wanted = [label.partition("=")[::2] for label in query.get("label", [])]
            jobs = [job for job in self.jobs.values() if job.owner == parts[0]]
            jobs = [job for job in jobs if all((job.spec.get("labels") or {}).get(key) == at for key, at in wanted)]
            return 200, [job.shape(self.url) for job in jobs]
        job = self.jobs.get(parts[1])
        if job is None or job.stage == "DELETED":
            return 404, {"error": "Job not found"}
        if parts[2:] == ["cancel"]:
            self.end(job, "CANCELED")
            return 200, job.shape(self.url)
        if parts[2:] == ["logs"]:
            return 200, self._events(job), {"Content-Type": "text/event-stream"}
        self._go_on(job)
        return 200, job.shape(self.url)

    def _run(self, owner: str, spec: dict[str, Any]) -> Answer:
        if spec["flavor"] not in [machine["name"] for machine in HARDWARE]:
            return 400, {"error": f"Invalid flavor {spec['flavor']}"}
        if self.pays.get(owner) is False:
            return 402, {"error": "Payment required"}
        number = f"{len(self.jobs):024x}"
        job = Job(number, owner, spec, self.folder / f"job-{number}")
        job.folder.mkdir(parents=True)
        self.jobs[number] = job
        shape = job.shape(self.url)
        self._go_on(job)
        return 200, shape

    def _go_on(self, job: Job) -> None:
        with self._lock:
            if job.stage == "SCHEDULING" and self.capacity:
                job.stage, job.started = "RUNNING", time.time()
                if self.scripted:
                    return
                threading.Thread(target=self._work, args=(job,), daemon=True).start()

    def _work(self, job: Job) -> None:
        """What a container does: mounts, runs the command with its secrets, and ends at the time limit."""
        mounts = {volume["mountPath"]: job.folder / f"mount-{at}" for at, volume in enumerate(job.spec["volumes"])}
        for volume in job.spec["volumes"]:
            self._mount(volume, mounts[volume["mountPath"]])
        command = job.spec["command"]
        for path, folder in mounts.items():
            command = [word.replace(path, str(folder)) for word in command]
        own = {"HOME": str(job.folder / "home"), "TMPDIR": str(job.folder / "tmp"), "HF_ENDPOINT": self.url}
        for name in ("home", "tmp"):
            (job.folder / name).mkdir()
        kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "LANG", "PYTHONPATH") if name in os.environ}
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        env = {**kept, "PATH": path, **own, **job.spec["environment"], **job.spec.get("secrets", {})}
        with job.log.open("wb") as log:
            job.process = subprocess.Popen(
                command,
                env=env,
                cwd=job.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            code = job.process.wait(job.spec.get("timeoutSeconds", 1800))
        except subprocess.TimeoutExpired:
            self.end(job, "ERROR", "Job timeout")
            return
        if job.stage == "RUNNING":
            job.message = None if code == 0 else f"Job failed with exit code: {code}"
            job.stage, job.finished = "COMPLETED" if code == 0 else "ERROR", time.time()

    def let_pass(self, seconds: float) -> None:
        """So much of the time of all jobs is over at once, as they see it (`stand_ins/sitecustomize.py`)."""
        for job in self.jobs.values():
            write_atomically(job.folder / "passed", str(seconds))

    def put(self, path: str, content: bytes, bucket: str = "me/lora-studio-jobs") -> None:
        """A file in a bucket, as a job writes it."""
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        self._change(bucket, {"type": "addFile", "path": path, "xetHash": digest, "mtime": 1000 * time.time()})

    def end(self, job: Job, stage: str, message: str | None = None) -> None:
        """Ends a job's process, as a cancel, a time limit or a machine that goes does."""
        if job.stage in FINAL:
            return
        job.stage, job.message, job.finished = stage, message, time.time()
        if job.process is not None and job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()

    def close(self) -> None:
        for job in self.jobs.values():
            self.end(job, "DELETED")

    def _events(self, job: Job) -> bytes:
        lines = job.log.read_text(errors="replace").splitlines() if job.log.exists() else []
        told = [{"data": line, "timestamp": _time(job.created)} for line in ["===== Job started", *lines]]
        return "".join(f"data: {json.dumps(line)}\n\n" for line in told).encode()

    def _mount(self, volume: dict[str, Any], folder: Path) -> None:
        """The files of a volume as of the start of the job."""

        folder.mkdir(parents=True)
        prefix = f"{volume['path']}/" if volume.get("path") else ""
        for (bucket, path), item in list(self.files.items()):
            if bucket == volume["source"] and path.startswith(prefix):
                target = folder / path.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self.contents[item["xetHash"]])

    # -- buckets

    def _bucket(self, method: str, parts: list[str], query: dict[str, list[str]], body: bytes, account: str) -> Answer:
        name, rest = "/".join(parts[:2]), parts[2:]
        if account not in MAY_RUN.get(parts[0], (parts[0],)):
            return 403, {"error": f"You don't have the rights to use the namespace {parts[0]}"}
        if method == "POST" and not rest:
            if name in self.buckets:
                return 409, {"error": "Bucket already exists", "url": f"{self.url}/buckets/{name}"}
            self.buckets[name] = json.loads(body or b"{}").get("visibility") == "private"
            return 200, {"url": f"{self.url}/buckets/{name}"}
        if name not in self.buckets:
            return 404, {"error": "Bucket not found"}
        if not rest:
            files = [item for (bucket, _), item in self.files.items() if bucket == name]
            size = sum(item["size"] for item in files)
            about = {"id": name, "private": self.buckets[name], "createdAt": _time(1.0), "size": size}
            return 200, {**about, "totalFiles": len(files)}
        return self._inside(name, rest, body)

    def _inside(self, name: str, rest: list[str], body: bytes) -> Answer:
        if rest[0] in ("xet-write-token", "xet-read-token"):
            store, until = f"{self.url}/xet", int(time.time()) + 3600
            headers = {
                "X-Xet-Cas-Url": store,
                "X-Xet-Access-Token": "xet",
                "X-Xet-Token-Expiration": str(until),
            }
            return 200, {"casUrl": store, "accessToken": "xet", "exp": until}, headers
        if rest[0] == "batch":
            for line in body.decode().splitlines():
                self._change(name, json.loads(line))
            return 200, {"success": True, "failed": []}
        if rest[0] == "paths-info":
            paths = json.loads(body)["paths"]
            return 200, [self.files[name, path] for path in paths if (name, path) in self.files]
        below = "/".join(rest[1:])
        inside = [item for (bucket, path), item in self.files.items() if bucket == name and path.startswith(below)]
        return 200, inside

    def _change(self, bucket: str, item: dict[str, Any]) -> None:
        if item["type"] == "deleteFile":
            self.files.pop((bucket, item["path"]), None)
            return
        self.ever.add(item["path"])
        self.files[bucket, item["path"]] = {
            "type": "file",
            "path": item["path"],
            "size": len(self.contents[item["xetHash"]]),
            "xetHash": item["xetHash"],
            "mtime": _time(item["mtime"] / 1000),
        }

    def _resolve(self, bucket: str, path: str) -> Answer:
        item = self.files.get((bucket, path))
        if item is None:
            return 404, {"error": "Entry not found"}
        refresh = f"{self.url}/api/buckets/{bucket}/xet-read-token"
        headers = {"X-Xet-Hash": item["xetHash"], "X-Xet-Refresh-Route": refresh, "X-Linked-Size": str(item["size"])}
        return 200, {}, headers


MAY_RUN = {"me": ("me",), "acme": ("me",), "ann": ("ann",), "poor": ("me",)}
"""Which accounts may run jobs for a namespace."""
