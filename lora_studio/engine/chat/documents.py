"""The worker that writes rows about documents: `python -m lora_studio.engine.chat.documents FOLDER [--resume]`.

Answers are appended to answers.jsonl one by one; a resumed job keeps them and asks about the remaining chunks only. The
events always end with a `Finished`, and result.json is written last. A model of this machine is loaded here; for a
server no torch is. Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_studio.chat.documents import DocumentsRequest, as_answer, request_of, result_of, used_chunks
from lora_studio.data.generated import fill, read_rows
from lora_studio.data.readers.documents import Chunk
from lora_studio.engine.chat.server import Reply, Server, ask_all
from lora_studio.engine.runtime import (
    WRONG_INPUT,
    EventLog,
    Explained,
    JsonLines,
    StopSignal,
    begin,
    emit_finished,
    ending_of,
    is_out_of_memory,
    leave,
    see_one_gpu,
    unexpected,
)
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Reason, RunStarted, Warned
from lora_studio.jobs.kinds import DocumentsFolder
from lora_studio.models.accelerators import CPU
from lora_studio.models.adapters import read_card
from lora_studio.models.hub import SERVER_KEY
from lora_studio.workspace import write_atomically

ADAPTER = "adapter"
MIN_ANSWER_TOKENS = 32
"""What a prompt has to leave of the context for an answer."""
Replies = Iterator[tuple[int, Reply]]
"""Replies with the position of their chunk, in any order."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes rows and returns the exit code."""
    module = "lora_studio.engine.chat.documents"
    child = begin(arguments, module, DocumentsFolder, "generation", lambda folder: folder.facts)
    if child is None:
        return WRONG_INPUT
    folder, log, stop = child.folder, child.log, child.stop
    key = os.environ.pop(SERVER_KEY, "")
    see_one_gpu()
    if not child.resume:
        folder.answers.unlink(missing_ok=True)

    def work() -> None:
        log.phase("start")
        write_rows(folder, log, stop, key)

    ending = ending_of(work, stop, explain=_explain)
    if ending.state == "done":
        result = result_of(folder, request_of(folder), ending.state)
        write_atomically(folder.complete, json.dumps(result, indent=2) + "\n")
    return emit_finished(log, ending)


def write_rows(folder: DocumentsFolder, log: EventLog, stop: StopSignal, key: str) -> None:
    """The program: asks the writer about all chunks without an answer."""
    request = request_of(folder)
    chunks = used_chunks(folder, request.writing)
    answered = {answer["chunk"] for answer in folder.read_answers()}
    remaining = [chunk for chunk in chunks if chunk.number not in answered]
    prompts = [fill(request.writing.prompt, chunk, request.writing.questions) for chunk in remaining]
    ask = _ask_server if request.server else _ask_model
    replies = ask(request, prompts, log, stop, key, len(answered))
    _append(folder, remaining, replies, log, len(answered), len(chunks))
    stop.end_at_once()


def _append(
    folder: DocumentsFolder, remaining: Sequence[Chunk], replies: Replies, log: EventLog, done: int, total: int
) -> None:
    with JsonLines(folder.answers) as answers:
        for position, reply in replies:
            rows = read_rows(reply.text, remaining[position].number)
            tokens = reply.input_tokens, reply.output_tokens
            answers.add([as_answer(remaining[position].number, rows, reply.text, tokens, cut=reply.cut)])
            done += 1
            log.progress(done, total)


def _begin(log: EventLog, stop: StopSignal, done: int, total: int) -> None:
    log.phase("answer", total, "chunks")
    log.progress(done, total)
    stop.finish_step_first()


def _ask_server(
    request: DocumentsRequest, prompts: Sequence[str], log: EventLog, stop: StopSignal, key: str, done: int
) -> Replies:
    """Several requests at a time, without a device."""
    writing, reported = request.writing, set[str]()

    def tell(words: str) -> None:
        """A warning, once for each reason."""
        reason = words.partition(" Trying again")[0]
        if reason not in reported:
            reported.add(reason)
            log.emit(Warned(time.time(), words))

    log.emit(RunStarted(time.time(), os.getpid(), "", "", done, CPU))
    server = Server(
        request.server,
        request.model,
        key,
        max_new_tokens=writing.max_new_tokens,
        temperature=writing.temperature,
        tell=tell,
    )
    _begin(log, stop, done, done + len(prompts))
    yield from ask_all(server, prompts, at_once=writing.batch_size, stop=lambda: stop.asked)


def _ask_model(
    request: DocumentsRequest, prompts: Sequence[str], log: EventLog, stop: StopSignal, key: str, done: int
) -> Replies:
    """Batches of a base or an adapter, the longest prompts first, so that a lack of memory shows at once."""
    from lora_studio.engine.chat.generate import Column, generate, generation_config  # seconds: torch
    from lora_studio.engine.models import load, multi_adapter

    writing = request.writing
    dtype, kind = load.dtype_name(load.choose_dtype("auto")), load.device_kind()
    log.emit(RunStarted(time.time(), os.getpid(), kind, dtype, done, kind))
    card = read_card(Path(request.adapter)) if request.adapter else None
    log.phase("model")
    model = multi_adapter.load_base(
        request.model,
        revision=card.revision if card else None,
        quantization=card.quantization if card else writing.quantization,
        four_bit=card.values.get("four_bit") if card else None,
        log=log,
    )
    if card:
        multi_adapter.add_adapters(model, {ADAPTER: Path(request.adapter)})
        for note in model.notes[ADAPTER]:
            log.emit(Warned(time.time(), note))
    longest, limit = (
        max((len(model.tokenizer(prompt)["input_ids"]) for prompt in prompts), default=0),
        model.longest_text,
    )
    if limit is not None and longest + MIN_ANSWER_TOKENS > limit:
        raise StudioError(
            f"The longest prompt has {longest:,} tokens; {request.model} reads and writes at most {limit:,}.",
            "Lower the chunk size, or shorten the prompt.",
        )
    system = card.values.get("system_prompt") if card else None
    opening = [{"role": "system", "content": system}] if system else []
    settings = generation_config(
        model,
        max_new_tokens=writing.max_new_tokens,
        temperature=writing.temperature,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
    )
    _begin(log, stop, done, done + len(prompts))
    longest_first = sorted(range(len(prompts)), key=lambda position: (-len(prompts[position]), position))
    for first in range(0, len(prompts), writing.batch_size):
        batch = longest_first[first : first + writing.batch_size]
        columns = [
            Column(ADAPTER if card else None, [*opening, {"role": "user", "content": prompts[position]}])
            for position in batch
        ]
        answers = generate(model, columns, settings, seed=first, stop=lambda: stop.asked)
        if stop.asked:
            return
        for position, answer in zip(batch, answers, strict=True):
            yield position, Reply(answer.text, answer.prompt_tokens, answer.tokens, cut=answer.finish == "length")


def _explain(error: Exception) -> Explained:
    if is_out_of_memory(error):
        return Explained(Reason.OUT_OF_MEMORY, "Out of memory.", "Lower the chunks at once, then start a new one.")
    return unexpected("Writing rows", error, "See its log for details.")


if __name__ == "__main__":
    leave(main())
