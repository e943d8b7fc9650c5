"""Adapter or merged model in a repository of the Hugging Face Hub, with a model card.

The token comes from HF_TOKEN in this child's environment, which the page and the terminal fill for this one child, or
from the Hub's own login; it is handed to the Hub's library and to nothing else.
"""

import os
from pathlib import Path

from huggingface_hub import get_token

from lora_studio.data.hub import PREFIX, is_hub_name, parse_name
from lora_studio.engine import export_merged
from lora_studio.engine.export_trial import try_adapter
from lora_studio.engine.export_work import Outcome, Work, base_to_name, copy_files
from lora_studio.engine.export_zip import rewritten
from lora_studio.engine.hub_upload import check_name, full_name, no_token, publish
from lora_studio.engine.stopping import Stopped
from lora_studio.exports import carried
from lora_studio.model_card import CARD_NAME, Subject, model_card
from lora_studio.parsing import read_yaml


def export(
    work: Work, *, repo: str, content: str, private: bool, update: bool, base_name: str, license: str, dtype: str
) -> Outcome:
    """Makes the files, tries them, sends them, and gives the link."""
    named = check_name(repo.strip() or work.name)
    base = base_to_name(work, base_name)
    token = (os.environ.get("HF_TOKEN") or get_token() or "").strip()
    if not token:
        raise no_token()
    name = full_name(named, token)  # asks the Hub: what is wrong with the token is known before anything slow
    merged = content == "merged"
    if merged:
        made = export_merged.export(work, dtype=dtype, max_shard_size="5GB")
        tried, same, notes = made.tried, made.same, made.notes
    else:
        (tried, same), notes = _adapter(work, base), ()
    subject = Subject(work.title, base, name, hub_data(work), license, merged, dtype if merged else "")
    (work.out / CARD_NAME).write_text(model_card(work.adapter, work.run, subject), encoding="utf-8")
    work.log.phase("upload", sum(path.stat().st_size for path in work.out.rglob("*") if path.is_file()), "bytes")
    try:
        found = publish(
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
            f"The repository {name} may be on the Hub by now, without files: delete it there, or allow an update."
        )
        raise
    seen = "only you and those you let in see it" if found.private else "everybody can see it"
    return Outcome(f"It is on the Hub as {found.repo}; {seen}.", link=found.link, tried=tried, same=same, notes=notes)


def _adapter(work: Work, base: str) -> tuple[str, bool | None]:
    """The adapter's files in `work.out`, tried."""
    texts = rewritten(work, base)
    copy_files(work, [path for path in carried(work.adapter) if path.name not in texts], work.out)
    for file, text in texts.items():
        (work.out / file).write_text(text, encoding="utf-8")
    return try_adapter(work, work.out)


def hub_data(work: Work) -> str:
    """The Hub's name of the training set, where it is one of the Hub."""
    if work.run is None or not work.run.config.is_file():
        return ""
    name = str(read_yaml(work.run.config).get("data", {}).get("train_file", ""))
    if not is_hub_name(name) or Path(name).exists():
        return ""
    return parse_name(name)[0] if name.startswith(PREFIX) else name
