"""Which devices a job gets: what it asks for, who holds which devices, and why it has to wait.

A job holds a set of devices from the start of its worker to its end; the set is in its folder, so that whoever looks
after the workspace next finds it again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio import units
from lora_studio.config.compute import Compute, accumulation, beyond_machine
from lora_studio.config.parsing import ConfigError, Problem, load_config, machine_conflicts, merge, parse, to_yaml
from lora_studio.config.sections import Config
from lora_studio.config.settings import effective_batch
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.accelerators import AUTO, generation_lacks
from lora_studio.models.hardware import Device, choose, default_devices, device_for
from lora_studio.units import GIB, gib
from lora_studio.workspace import JobFolder, RunFolder, write_atomically

OTHER_PROGRAM_BYTES = GIB
"""Memory in use on a GPU that no job holds, from which on another program is said to use it: less is the driver's."""
CHAT = "the chat"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job asks for: the devices with these `ids`, which `names` calls as a person knows them; without ids
    `count` devices of those that `auto` may take.

    `memory` is what it needs on each of them, in bytes; None where that is not known. The jobs of `owner` may hold
    `share` devices at a time; None for any number.
    """

    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    count: int = 1
    memory: int | None = None
    owner: str = ""
    share: int | None = None

    @property
    def size(self) -> int:
        """How many devices it holds while it works."""
        return len(self.ids) or self.count

    def missing(self, offered: Sequence[Device]) -> list[str]:
        """Names of the devices it asks for that are not offered."""
        there = {device.id for device in offered}
        return [name for key, name in zip(self.ids, self.names, strict=True) if key not in there]

    def check(self, offered: Sequence[Device]) -> None:
        """Raises `StudioError` where it asks for a device that is not offered."""
        if missing := self.missing(offered):
            raise StudioError(
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not available now.",
                "Start a new run on another device, from this one's adapter or settings.",
            )


def request_facts(
    config: Config, offered: Sequence[Device], *, memory: int | None = None, share: int | None = None
) -> JsonObject:
    """What a run's request notes of its demand. Raises `StudioError` for a device that is not offered."""
    choice, count = config.compute.device, device_count(config.compute, offered)
    named = () if choice == AUTO else choose(choice, offered)
    if share is not None and max(count, len(named)) > share:
        raise StudioError(
            f"{units.count(max(count, len(named)), 'device')} were asked for, and visitors may use {share} at a time.",
            "Choose fewer devices, or auto.",
        )
    return {
        **({"devices": list(map(_entry, named))} if named else {}),
        **({"device_count": count} if count > 1 else {}),
        **({"memory_bytes": memory} if memory is not None else {}),
        **({"device_share": share} if share is not None else {}),
    }


def single_device(choice: str) -> str:
    """The `compute.device` of what works on one device. Raises `ConfigError` for what names none, or several."""
    device = parse({"compute": {"device": choice}}).compute.device
    if "," in device:
        raise ConfigError([Problem("compute.device", "only a training takes several devices; name one", choice)])
    return device


def problems_here(config: Config, offered: Sequence[Device]) -> list[Problem]:
    """What these devices can't do of a config: one that is not there, and what the chosen one lacks."""
    choice = config.compute.device
    try:
        choose(choice, offered)
    except StudioError as error:
        return [Problem("compute.device", f"{error.message[:1].lower()}{error.message[1:].rstrip('.')}", choice)]
    device, gpus = device_for(choice, offered), sum(device.is_gpu for device in offered)
    problems = list(machine_conflicts(config, device.kind))
    if why := generation_lacks(config.model.quantization, device.capability):
        words = f"{config.model.quantization} cannot run here: {why}; use 4bit or none"
        problems.append(Problem("model.quantization", words, config.model.quantization))
    together = max(device_count(config.compute, offered), config.compute.gpus)
    if together > 1 and any(each.is_slice for each in choose(choice, offered)):
        words = "a process sees one MIG slice alone, and slices do not train together: choose one, or whole GPUs"
        problems.append(Problem("compute.device", words, choice))
    if why := beyond_machine(config.compute, gpus if device.is_gpu else 0):
        problems.append(Problem("compute.processes", why, config.compute.world_size))
    return problems


def device_count(compute: Compute, offered: Sequence[Device]) -> int:
    """How many of the devices that `auto` may take a run needs: a GPU for each process; the CPU is one device."""
    on_gpu = compute.device == AUTO and default_devices(offered)[0].is_gpu
    return compute.world_size if on_gpu else 1


def batch_note(config: Config, before: int, now: int) -> str:
    """What becomes of the batches of a run that began with `before` processes and goes on with `now`, in a sentence."""
    _, note = accumulation(config.training.gradient_accumulation_steps, before, now)
    return note or f"Effective batch {effective_batch(config, now):,}, as before."


def change_processes(run: RunFolder, processes: str, offered: Sequence[Device]) -> None:
    """Lets a run that ended go on in another number of processes, on as many of the GPUs that it names. Raises
    `ConfigError` where that can't be."""
    before = load_config(run.config)
    compute: dict[str, str] = {"processes": processes}
    gpus = before.compute.device.split(",") if before.compute.gpus else []
    if gpus and processes.isdecimal() and int(processes) != len(gpus):  # the first of those it had, or any others
        compute["device"] = ",".join(gpus[: int(processes)]) if int(processes) < len(gpus) else AUTO
    config = parse(merge(before.model_dump(), {"compute": compute}))
    if problems := problems_here(config, offered):
        raise ConfigError(problems)
    facts = {name: value for name, value in run.read_facts().items() if name not in ("devices", "device_count")}
    facts |= request_facts(config, offered, share=facts.get("device_share"))
    write_atomically(run.config, to_yaml(config))
    write_atomically(run.facts, json.dumps(facts, indent=2))


def demand_of(facts: Mapping[str, Any]) -> Demand:
    """The demand that a job's request notes."""
    named = _entries(facts.get("devices"))
    count = facts.get("device_count")
    return Demand(
        ids=tuple(key for key, _ in named),
        names=tuple(name for _, name in named),
        count=count if isinstance(count, int) and count > 0 else 1,
        memory=facts.get("memory_bytes"),
        owner=str(facts.get("maker", "")),
        share=facts.get("device_share"),
    )


def write_held(folder: JobFolder, held: Sequence[Device]) -> None:
    """Notes which devices the worker that is about to start holds; none for one that needs none."""
    if held:
        write_atomically(folder.devices, json.dumps({"devices": list(map(_entry, held))}))
    else:
        folder.devices.unlink(missing_ok=True)


def read_held(folder: JobFolder) -> list[tuple[str, str]]:
    """Id and name of each device that the job's latest worker was given; none where that was not noted."""
    try:
        noted = json.loads(folder.devices.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return _entries(noted.get("devices")) if isinstance(noted, dict) else []


def _entry(device: Device) -> JsonObject:
    return {"id": device.id, "name": device.title}


def _entries(listed: Any) -> list[tuple[str, str]]:
    items = listed if isinstance(listed, list) else []
    readable = [item for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]
    return [(item["id"], str(item.get("name") or item["id"])) for item in readable]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds devices: a job, or the chat. `noun` and `title` name it; `memory` is what it needs on each device."""

    noun: str
    title: str
    ids: tuple[str, ...]
    owner: str = ""
    memory: int = 0
    job: str = ""

    def words(self, reader: str | None) -> str:
        """The holder in a sentence that is shown to that user (None: who may see all): of another's job no more than
        its kind."""
        if not self.job:
            return self.title
        if reader not in (None, self.owner):
            return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun} of another visitor"
        return f"the {self.noun} {self.title}"


@dataclass(frozen=True, slots=True)
class Placement:
    """The devices that a job gets; none and `why` where it has to wait, `short` where that is for want of memory."""

    devices: tuple[Device, ...] = ()
    why: str = ""
    short: bool = False


class Allocation:
    """Gives devices out to jobs in the order of the queue.

    A job that waits for some of several devices keeps the free ones from those behind it, so that its turn comes.
    Devices on which a chat holds memory are given out last.
    """

    def __init__(self, offered: Sequence[Device], holders: Iterable[Holder]) -> None:
        self.offered = list(offered)
        self.holders = list(holders)
        self._reserved: set[str] = set()

    def place(self, demand: Demand, kind: str = "", *, beside: bool = False) -> Placement:
        """The devices for a job, which are its own from `take` on. `kind` is the kind of device that it was meant for,
        where it names none. With `beside` it takes a device that others hold where none is free."""
        if why := self._unavailable(demand, kind):
            return Placement(why=why)
        candidates = self._candidates(demand, kind)
        taken = {key for holder in self._jobs() for key in holder.ids}
        own = {key for holder in self._jobs() if holder.owner == demand.owner for key in holder.ids}
        exceeds = demand.share is not None and len(own) + demand.size > demand.share
        if beside:
            allowed = [device for device in candidates if device.id in own or not (exceeds and own)]
            ranked = sorted(allowed or candidates, key=lambda device: (device.id in taken, *self._rank(device)))
            return Placement(tuple(ranked[: demand.size]))
        free = [device for device in candidates if device.id not in taken | self._reserved]
        if len(free) < demand.size:
            self._reserved |= {device.id for device in free}
            return Placement(why=self._busy_words(demand, candidates, taken))
        if exceeds:
            used = units.count(len(own), "device")
            return Placement(why=f"Its owner's jobs already use {used}; a visitor may use {demand.share} at a time.")
        need = demand.memory or 0
        if all(need > device.memory_total for device in candidates):
            need = 0  # more than there is anywhere: a person agreed to that before, and it need not wait
        enough = [device for device in free if need <= self.room(device)]
        if len(enough) < demand.size:
            return Placement(why=self._memory_words(demand, free), short=True)
        return Placement(tuple(sorted(enough, key=self._rank)[: demand.size]))

    def take(self, holder: Holder) -> None:
        """From now on these devices are held."""
        self.holders.append(holder)

    def for_session(self, now: str = "", choice: str = AUTO) -> Device:
        """The device for a child that answers chats: of those that `choice` (a `compute.device`) may take one that no
        job holds, the one that it has (`now`) where it may stay, else that with the most free memory. Raises
        `StudioError` for one that is not there."""
        taken = {key for holder in self._jobs() for key in holder.ids}
        return min(
            choose(choice, self.offered),
            key=lambda device: (device.id in taken, device.id != now, -self.room(device)),
        )

    def blocker(self, compute: Compute) -> str | None:
        """Id of a job for which a run with these settings has to wait; None where enough devices are free, and where
        it names one that is not there."""
        try:
            candidates = {device.id for device in choose(compute.device, self.offered)}
        except StudioError:
            return None
        taken = {key for holder in self._jobs() for key in holder.ids} & candidates
        free = len(candidates - taken)
        if not taken or (compute.device == AUTO and free >= device_count(compute, self.offered)):
            return None
        return next(holder.job for holder in self._jobs() if taken & set(holder.ids))

    def room(self, device: Device) -> int:
        """Bytes that a new job may take there: what is free, less what holders need and have not taken yet."""
        needed = sum(holder.memory for holder in self.holders if device.id in holder.ids)
        return min(device.memory_free, max(0, device.memory_total - needed))

    def users(self, device: Device, reader: str | None) -> list[str]:
        """Who uses a device, as that user may know it; None is who may see all."""
        words = [holder.words(reader) for holder in self.holders if device.id in holder.ids]
        used = device.memory_total - device.memory_free
        return words or (["another program"] if device.is_gpu and used > OTHER_PROGRAM_BYTES else [])

    def _jobs(self) -> list[Holder]:
        return [holder for holder in self.holders if holder.job]

    def _rank(self, device: Device) -> tuple[bool, int]:
        chats = any(device.id in holder.ids for holder in self.holders if not holder.job)
        return chats, -self.room(device)

    def _candidates(self, demand: Demand, kind: str) -> list[Device]:
        if demand.ids:
            return [device for device in self.offered if device.id in demand.ids]
        return [device for device in default_devices(self.offered) if kind in ("", device.kind)]

    def _unavailable(self, demand: Demand, kind: str) -> str:
        """Why the devices are not to be had at all; "" where they are there."""
        if missing := demand.missing(self.offered):
            return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not available now."
        available = len(self._candidates(demand, kind))
        if available < demand.size:
            return f"It needs {units.count(demand.size, 'device')}; {available or 'none'} of that kind can be used now."
        return ""

    def _busy_words(self, demand: Demand, candidates: Sequence[Device], taken: set[str]) -> str:
        if demand.ids or len(candidates) == 1:
            device = next((each for each in candidates if each.id in taken), None)
            if device is None:
                return f"{candidates[0].label} is reserved for a job ahead of it."
            users = [holder.words(demand.owner) for holder in self._jobs() if device.id in holder.ids]
            subject = device.label if len(self.offered) > 1 else "The device"
            return f"{subject} is in use by {' and '.join(users)}."
        if demand.size > 1:
            free = sum(device.id not in taken for device in candidates)
            return f"It needs {units.count(demand.size, 'device')}; {free} of {len(candidates)} are free."
        return f"All {len(candidates)} devices are in use."

    def _memory_words(self, demand: Demand, free: Sequence[Device]) -> str:
        largest = max(free, key=self.room)
        words = f"It needs about {gib(demand.memory or 0)}; {largest.label} has {gib(self.room(largest))} free"
        users = self.users(largest, demand.owner)
        return f"{words}, as {' and '.join(users)} uses it too." if users and largest.is_gpu else f"{words}."
