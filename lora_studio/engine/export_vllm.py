"""The adapter with the exact command by which vLLM serves it beside its base.

What vLLM can't serve as an adapter (DoRA, trained biases, modules trained whole, scales of their own, ranks above 512)
is said before anything is copied: a merged model serves all of them.
"""

import shlex
from typing import Any

from lora_studio.adapter_extras import extras, scales_differ
from lora_studio.adapter_settings import read_lora
from lora_studio.architecture import architecture, read_config
from lora_studio.engine.export_trial import try_adapter
from lora_studio.engine.export_work import Outcome, Work, base_to_name, copy_files, is_local, plain_name
from lora_studio.engine.export_zip import rewritten
from lora_studio.errors import StudioError
from lora_studio.exports import carried
from lora_studio.workspace import DEMO_MODEL, model_source

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for --max-lora-rank (vllm/config/lora.py)."""


def export(
    work: Work, *, base_name: str, keep_local_base: bool, served_name: str, max_model_len: int | None
) -> Outcome:
    """A folder with the adapter, its chat template and `serve.sh`."""
    settings = read_lora(work.adapter)
    rank = max_rank(settings)
    base = base_to_name(work, base_name, keep_local=keep_local_base)
    name = plain_name(served_name) if served_name.strip() else work.name
    texts = rewritten(work, base)
    texts.pop("report.md", None)
    copy_files(work, [path for path in carried(work.adapter) if path.name not in texts], work.out / "adapter")
    for file, text in texts.items():
        (work.out / "adapter" / file).write_text(text, encoding="utf-8")
    source = model_source(base) if base == DEMO_MODEL else base
    length = max_model_len or longest_text(base, work.card.get("revision"))
    template = (work.out / "adapter" / "chat_template.jinja").is_file()
    arguments = serve_arguments(
        source, name, rank=rank, revision=work.card.get("revision"), max_model_len=length, template=template
    )
    script = work.out / "serve.sh"
    script.write_text(serve_script(source, arguments), encoding="utf-8")
    script.chmod(0o755)
    tried, same = try_adapter(work, work.out / "adapter")
    notes = ["The command itself was not run: it needs vLLM and a GPU. The adapter's folder was tried with peft."]
    if is_local(source):
        notes.append(f"The base is a folder of this machine, {source}. Elsewhere: BASE=FOLDER_OR_HUB_NAME ./serve.sh")
    if settings.get("target_parameters"):
        notes.append(
            "The adapter is on stacked experts, which not every version of vLLM serves, nor for every family: where "
            "yours does not, take the merged model."
        )
    words = (
        f"Run this, or serve.sh in a copy of the folder, where vLLM is; clients ask for the model {name}, or for the "
        "base by its own name."
    )
    return Outcome(words, f"cd {shlex.quote(str(work.final))} && {arguments}", tried=tried, same=same, notes=notes)


def max_rank(settings: dict[str, Any]) -> int:
    """The least --max-lora-rank that holds the adapter. Raises `StudioError` for adapters that vLLM can't serve."""
    merged = "Take the merged model instead: vLLM serves it as any other."
    lacking = extras({**settings, "target_parameters": None})
    if scales_differ(settings):
        lacking.append("another scale for some modules (rank_pattern, alpha_pattern)")
    if lacking:
        raise StudioError(f"vLLM can't serve an adapter with {' and '.join(lacking)}.", merged)
    rank = max([int(settings["r"]), *map(int, (settings.get("rank_pattern") or {}).values())])
    fitting = [allowed for allowed in RANKS if allowed >= rank]
    if not fitting:
        raise StudioError(f"vLLM serves adapters up to rank {RANKS[-1]}, and this one has {rank}.", merged)
    return fitting[0]


def longest_text(base: str, revision: str | None) -> int | None:
    """Tokens that the base can read, where its config is on this machine."""
    numbers = read_config(base, revision)
    model = architecture(numbers) if numbers else None
    return model.longest if model else None


def serve_script(base: str, arguments: str) -> str:
    """`serve.sh`: the same command with the base as a variable, so that it runs on another machine as well."""
    rest = arguments.removeprefix(f"vllm serve {shlex.quote(base)}")
    return f"""#!/bin/sh
# Serves the adapter beside its base: needs `pip install vllm` and a GPU.
# The base is a name on the Hub, or a folder of the machine that this runs on. Another one than the following:
# BASE=FOLDER_OR_HUB_NAME ./serve.sh
[ -n "$BASE" ] || BASE={shlex.quote(base)}
cd "$(dirname "$0")" || exit 1
exec vllm serve "$BASE"{rest}
"""


def serve_arguments(
    base: str, name: str, *, rank: int, revision: str | None, max_model_len: int | None, template: bool
) -> str:
    """The command as a shell reads it; whatever comes from a person or a file is quoted."""
    parts = ["vllm", "serve", base, *(["--revision", revision] if revision else [])]
    parts += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}=./adapter"]
    parts += ["--max-model-len", str(max_model_len)] if max_model_len else []
    parts += ["--chat-template", "./adapter/chat_template.jinja"] if template else []
    return shlex.join(parts)
