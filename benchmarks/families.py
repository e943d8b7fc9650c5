"""What an adapter trains on every causal family of the installed transformers, beside plain peft.

    python -m benchmarks.families [--only FAMILY ...] [--train] [--write]

Each family is built with small numbers: on the meta device to count, with `--train` in memory to see that a step gives
every trained matrix a gradient. A family is "ok" with the number of trained parameters, which the estimate, the run and
the saved file have in common with plain peft; "refused" with the studio's words; "not built" where transformers makes
no model of the small numbers; or FAILED. `--write` keeps the list in
`benchmarks/families.json`, which a test compares with a sample of it. The last line is one JSON object.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.utils import transformers_weight_conversion as peft_conversion
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from lora_studio.engine.models.adapter import add_adapter
from lora_studio.engine.models.layout import layout_of, linear_modules, text_part
from lora_studio.engine.models.source import auto_class
from lora_studio.errors import StudioError
from lora_studio.models.targets import EXPERT_NAMES, adapter, cannot_learn

KEPT = Path(__file__).with_name("families.json")
FAMILIES: Sequence[str] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
RANK, LAYERS, VOCABULARY = 6, 4, 90
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "is_decoder": True,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "dim", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("embedding_size",), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "shared_intermediate_size", "d_inner", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "mamba_n_heads", "mamba_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "index_n_heads", "expand", "mamba_expand"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "kv_channels", "v_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "mamba_d_state", "ssm_state_size", "state_size", "index_head_dim"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "index_topk", "rotary_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("encoder_layers", "mamba_n_groups", "n_groups", "num_hidden_groups"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "chunk_size", "mamba_chunk_size", "global_head_dim"), 16),
    "mamba_d_ssm": 64, "time_step_rank": 4, "sliding_window": 32, "query_pre_attn_scalar": 16,
    "vocab_size_per_layer_input": VOCABULARY, "scale_embedding": False,
}  # fmt: skip
LATENT = (
    "deepseek",
    "dots3_note_text",
    "axk",
    "bailing",
    "kimi",
    "glm_moe",
    "glm4_moe_lite",
    "longcat",
    "youtu",
    "minicpm3",
)
"""Families with one key and value for each head, whatever their config says."""
PER_LAYER = ("layer_types", "mlp_layer_types")
OVER: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16, "num_heads": 4},
    "reformer": {"axial_pos_embds": False},
    "zaya": {"num_experts_per_tok": 1},
}
"""Numbers of single families whose configs check more than others."""


class NotBuiltError(Exception):
    """transformers makes no model of these small numbers."""


def tiny_config(family: str) -> Any:
    """The family's config with small numbers, where it has their names."""
    kind = CONFIG_MAPPING[family]
    usual = kind()
    values = {name: value for name, value in SMALL.items() if _has(usual, name)}
    if family.startswith(LATENT):
        values |= {"num_key_value_heads": 4}
    of_their_own = isinstance(getattr(kind, "layers_block_type", None), property)  # derived from other numbers
    for name in () if of_their_own else PER_LAYER:
        if kinds := list(dict.fromkeys(getattr(usual, name, None) or ())):
            values[name] = [kinds[layer % len(kinds)] for layer in range(LAYERS)]
    values = {name: value for name, value in values.items() if not isinstance(getattr(kind, name, None), property)}
    return kind(**{**values, **OVER.get(family, {})})


def _has(config: Any, name: str) -> bool:
    """Whether a config has a number, be it one for each layer, which transformers does not give as one."""
    try:
        return hasattr(config, name)
    except Exception as error:  # of the heterogeneity integration, which has no public class for it
        return "per-layer" in str(error)


def by_peft(model: Any) -> int:
    """What plain peft trains where each linear module and each stack of experts is named by its whole path."""
    renamed = peft_conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type) in ("mixtral", "qwen2_moe")
    linear = [path for path in linear_modules(model) if not cannot_learn(model.config.model_type, path)]
    weights = [path for path in linear if renamed and path.rpartition(".")[2] in EXPERT_NAMES]
    stacks = {
        path: len(tensor)
        for part, module in model.named_modules()
        for path, tensor in module.named_parameters(part, recurse=False)
        if path.startswith(text_part(model))
        if tensor.ndim == 3 and ("experts" in path or "Experts" in type(module).__name__)
    }
    lora = LoraConfig(
        r=RANK,
        target_modules=[path for path in linear if path not in weights],
        target_parameters=[*stacks, *(f"{path}.weight" for path in weights)] or None,
        rank_pattern={path: max(1, RANK // experts) for path, experts in stacks.items()},
        task_type="CAUSAL_LM",
    )
    return int(get_peft_model(model, lora).get_nb_trainable_parameters()[0])


def count(family: str) -> int:
    """The trained parameters of all-linear, which all who count agree on. Raises `StudioError` for a refusal."""
    try:
        config = tiny_config(family)
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]]
        with torch.device("meta"):
            model = auto_class(family, config).from_config(config)
    except StudioError:
        raise
    except Exception as error:
        raise NotBuiltError(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from error
    with torch.device("meta"):
        layout = layout_of(model)
        whole = sum(weight.numel() for weight in model.parameters())
        adapted = add_adapter(
            model, base=family, revision=None, target="all-linear", seed=0, r=RANK, lora_alpha=RANK, lora_dropout=0.0
        )
        trains = adapted.get_nb_trainable_parameters()[0]
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        numbers = {
            "estimate": adapter(layout, r=RANK).trainable,
            "run": trains,
            "file": sum(tensor.numel() for tensor in state.values()),
            "peft": by_peft(auto_class(family, config).from_config(config)),
        }
    if layout.parameters != whole:
        raise ArithmeticError(f"{layout.parameters} parameters of {whole}")
    if len(set(numbers.values())) > 1:
        raise ArithmeticError(str(numbers))
    return int(trains)


def without_gradient(family: str) -> list[str]:
    """Trained matrices that one step gives no gradient."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family)).float()
    adapted: Any = add_adapter(
        model, base=family, revision=None, target="all-linear", seed=0, r=RANK, lora_alpha=RANK, lora_dropout=0.0
    )
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    for name, weight in trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.randint(2, VOCABULARY, (4, 16))
    adapted.train()(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    return [name for name, weight in trained.items() if weight.grad is None or not weight.grad.any()]


def cell(family: str, *, train: bool = False) -> str:
    """What a family came to."""
    try:
        words = f"ok, {count(family):,}"
        if train and (dead := without_gradient(family)):
            return f"FAILED: {len(dead)} trained matrices get no gradient, such as {dead[0]}"
    except StudioError as error:
        return f"refused: {error.message}"
    except NotBuiltError as error:
        return f"not built: {error}"
    except Exception as error:  # anything may happen with a family, and the others have their turn
        return f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return words


def walk(families: Iterable[str], *, train: bool = False) -> dict[str, str]:
    """The cell of each family."""
    results = {}
    for family in families:
        results[family] = cell(family, train=train)
        print(f"{family}: {results[family]}", flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for; 1 where a family is FAILED."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, metavar="FAMILY")
    parser.add_argument("--train", action="store_true", help="also take a step, and look for gradients")
    parser.add_argument("--write", action="store_true", help=f"keep the list in {KEPT.name}")
    args = parser.parse_args(arguments)
    results = walk(args.only or FAMILIES, train=args.train)
    if args.write:
        known = json.loads(KEPT.read_text(encoding="utf-8")) if args.only else {}
        KEPT.write_text(json.dumps({**known, **results}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    failed = sorted(family for family, words in results.items() if words.startswith("FAILED"))
    print(json.dumps({"families": len(results), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    sys.exit(main())
