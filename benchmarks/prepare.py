"""How fast files become examples: ours, trl's own preparation and the tokenizer alone, on the same rows in one run.

    python -m benchmarks.prepare [--data FILE] [--tokenizer FOLDER] [--rows N] [--rounds N]

Ours is the whole way of `prepare()`: file, conversations, text, tokens, mask, stored rows; nothing comes from a cache
but the tokenizer's own fingerprint, which is made once for a tokenizer in memory.
trl gets the messages in memory and its training template. The tokenizer alone gets the finished texts, and uses all
cores. The three take turns, and the median of the rounds' ratios counts: a machine that others use as well changes its
speed from one second to the next, and the best round of each would compare moments of different speed. What was made
is thrown away between the rounds, not while the clock runs. A file of 78,000 rows is prepared twice in new processes;
the second time it comes from the cache. The last line is one JSON object.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from lora_studio.data.dataset import Prepared, prepare
from lora_studio.data.store import RecordStore
from lora_studio.workspace import model_source

GOALS = {"trl": 4.5, "tokenizer": 0.65, "second_start_seconds": 1.0}
MANY_ROWS = 78_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="alpaca", help="a file or the name of a shipped dataset")
    parser.add_argument("--tokenizer", default=model_source("demo"), help="a folder with a tokenizer")
    parser.add_argument("--rows", type=int, default=8000, help="the file's rows are repeated to so many")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(prepare(args.data, tokenizer).part.records, path, args.rows)
        prepared = ours(path, tokenizer)
        texts = [prepared.encoder.render(chat) for chat in prepared.conversations]
        trl = trl_preparation(prepared, tokenizer)
        backend = tokenizer.backend_tokenizer
        contenders: dict[str, Callable[[], Any]] = {
            "ours": lambda: ours(path, tokenizer),
            "trl": trl,
            "tokenizer": lambda: backend.encode_batch_fast(texts, add_special_tokens=False),
        }
        path_of_many = Path(folder) / "many.jsonl"
        write_rows(prepared.part.records, path_of_many, MANY_ROWS)
        starts = [start(path_of_many, args.tokenizer, Path(folder) / "cache") for _ in range(2)]
        print(f"{MANY_ROWS:,} rows: first start {starts[0]:.1f} s, second {starts[1]:.2f} s (goal 1)", flush=True)
        rounds = [timed(contenders, len(texts)) for _ in range(args.rounds)]
    speed = {name: round(len(texts) / median(each[name] for each in rounds), 1) for name in contenders}
    ratios = {name: round(median(each[name] / each["ours"] for each in rounds), 3) for name in ("trl", "tokenizer")}
    print(f"ours is {ratios['trl']:.2f} x trl (goal {GOALS['trl']}), {ratios['tokenizer']:.2f} x the tokenizer alone")
    result = {"rows": len(texts), "tokens": int(prepared.train.length.sum()), "rows_per_second": speed}
    print(json.dumps({**result, "ours_to": ratios, "start_seconds": starts, "goals": GOALS}))


def timed(contenders: dict[str, Callable[[], Any]], rows: int) -> dict[str, float]:
    """Seconds of each, one after the other."""
    seconds = {}
    for name, work in contenders.items():
        gc.collect()
        began = time.perf_counter()
        made = work()
        seconds[name] = time.perf_counter() - began
        del made
    print(", ".join(f"{name} {rows / each:,.0f} rows/s" for name, each in seconds.items()), flush=True)
    return seconds


def write_rows(records: RecordStore, path: Path, rows: int) -> None:
    """The records over and over, as JSONL."""
    fields = [record.fields for record in records.records(range(len(records)))]
    with path.open("w", encoding="utf-8") as file:
        for one in islice(cycle(fields), rows):
            file.write(json.dumps(one, ensure_ascii=False, default=str) + "\n")


def ours(path: Path, tokenizer: Any) -> Prepared:
    """Nothing is cached: without a folder everything is made anew."""
    return prepare(str(path), tokenizer, validation_fraction=0, max_length=1 << 20)


def start(path: Path, tokenizer: str, cache: Path) -> float:
    """Seconds until a new process has the examples in hand, libraries and tokenizer loaded beforehand."""
    with ProcessPoolExecutor(1, get_context("spawn")) as child:
        return child.submit(_start, str(path), tokenizer, cache).result()


def _start(path: str, name: str, cache: Path) -> float:
    tokenizer = AutoTokenizer.from_pretrained(name)
    began = time.perf_counter()
    prepared = prepare(path, tokenizer, cache_folder=cache, max_length=2048)
    assert len(prepared.train[0].input_ids) > 0
    return time.perf_counter() - began


def trl_preparation(prepared: Prepared, tokenizer: Any) -> Callable[[], Any]:
    """What SFTTrainer does with conversations before it trains: template, tokens, assistant mask."""
    disable_caching()
    disable_progress_bars()
    tokenizer.chat_template = prepared.template.source
    messages = [{"messages": chat.to_dicts()} for chat in prepared.conversations]
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=1, **tiny))
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, assistant_only_loss=True, max_length=None, report_to=[], use_cpu=True, bf16=False
        )
        trainer = SFTTrainer(
            model=model, args=settings, train_dataset=Dataset.from_list(messages[:2]), processing_class=tokenizer
        )
    rows = Dataset.from_list(messages)
    return lambda: trainer._prepare_dataset(rows, tokenizer, settings, False, None, "train")


if __name__ == "__main__":
    main()
