"""Ollama's Modelfile: which weights, the template as Go reads it, where answers end, and how they are sampled.

What Ollama reads of a Modelfile was looked up in its sources: the quotes it knows, and the signs that it drops.
"""

from collections.abc import Iterable, Sequence

from lora_studio.config import Generation

READ_BY_OLLAMA = frozenset(
    (
        "LlamaForCausalLM",
        "MixtralForCausalLM",
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Olmo3ForCausalLM",
        "CohereForCausalLM",
        "GptOssForCausalLM",
        "DeepseekV3ForCausalLM",
        "Lfm2ForCausalLM",
    )
)
"""Architectures whose safetensors Ollama turns into its own form by itself; all others come to it as GGUF."""

ADAPTED_BY_OLLAMA = frozenset(
    ("LlamaForCausalLM", "MistralForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "MixtralForCausalLM")
)
"""Architectures on which Ollama puts a LoRA adapter by itself (ADAPTER)."""

_QUOTES = '"""'


def stop_texts(after_answer: str, end: str, tokens: Iterable[str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Where an answer ends: at the end-of-text token, and at the first special token that follows an answer.

    `tokens` are the tokenizer's special ones; `more` are texts that a person named.
    """
    found = [token for token in tokens if token and token in after_answer]
    first = sorted(found, key=lambda token: (after_answer.find(token), -len(token)))[:1]
    return tuple(dict.fromkeys(text for text in (*first, end, *more) if text))


def carried_by_quotes(text: str) -> bool:
    """Whether a Modelfile carries a text as it is: no three quotes in a row, and no sign that is not printed."""
    return _QUOTES not in text and all(sign.isprintable() or sign in "\n\r\t" for sign in text)


def modelfile(
    source: str,
    template: str,
    stops: Sequence[str],
    generation: Generation,
    *,
    system: str = "",
    adapter: str = "",
    notes: Sequence[str] = (),
) -> str:
    """The file's text; `source` is what FROM names, `notes` stand on top as comments.

    A system prompt that quotes do not carry is left out: say so in a note (`carried_by_quotes`).
    """
    lines = [f"# {' '.join(note.split())}" for note in notes]
    lines += [f"FROM {source}"]
    lines += [f"ADAPTER {adapter}"] if adapter else []
    lines += [f"TEMPLATE {_QUOTES}{template}{_QUOTES}"]
    if system and carried_by_quotes(system):
        lines += [f"SYSTEM {_QUOTES}{system}{_QUOTES}"]
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stops if carried_by_quotes(text)]
    lines += [
        f"PARAMETER temperature {generation.temperature:g}",
        f"PARAMETER top_p {generation.top_p:g}",
        f"PARAMETER top_k {generation.top_k}",
        f"PARAMETER min_p {generation.min_p:g}",
        f"PARAMETER repeat_penalty {generation.repetition_penalty:g}",
        f"PARAMETER seed {generation.seed}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text and "\n" not in text else f"{_QUOTES}{text}{_QUOTES}"
