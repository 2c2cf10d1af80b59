"""Writes tests/golden/models/*.gguf and *.npz: tiny random models, and what transformers computes with them.

Needs torch and transformers, so it runs in an environment of its own (`make oracle`), and its outputs are
committed. Every model has odd corners on purpose: heads that do not fill the width, a vocabulary that is no
multiple of 16, windows shorter than the text, every kind of rope scaling that is supported.

    python tests/oracle/make_model_goldens.py [FOLDER]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

TOKENS = 27  # more than one block of 16, more than three windows of 8
VOCABULARY = 131  # prime: the last panel of 16 rows has 3
VOCABULARY_OF_SOFTCAP = 144  # native element-wise ops, of which the final softcap is one, want whole 16s
CONTEXT = 64


@dataclass(frozen=True)
class Case:
    """One tiny model: how transformers builds it and which metadata says the same in GGUF."""

    name: str
    architecture: str  # GGUF's name
    config: transformers.PretrainedConfig
    model: Callable[[Any], torch.nn.Module]
    metadata: dict[str, int | float | str] = field(default_factory=dict)  # beyond what every model has
    forward: dict[str, float] = field(default_factory=dict)  # arguments of the model's call


def cases() -> list[Case]:
    """All models. Heads are multiples of 16 and columns of 32, so that native kernels run them too."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
        "pad_token_id": None,
    }
    factors = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT // 2,
    }
    llama, mistral = transformers.LlamaForCausalLM, transformers.MistralForCausalLM
    return [
        Case("llama-tied", "llama", transformers.LlamaConfig(**common), llama),
        Case(
            "llama-factors",
            "llama",
            transformers.LlamaConfig(
                **{**common, "num_key_value_heads": 1, "num_attention_heads": 2, "head_dim": 32}
                | {"intermediate_size": 64, "tie_word_embeddings": False, "rope_parameters": factors}
            ),
            llama,
        ),
        Case(
            "llama-linear-biases",
            "llama",
            transformers.LlamaConfig(
                **{**common, "num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 96}
                | {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 1}
                | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}
            ),
            llama,
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        ),
        Case(
            "mistral-window",
            "llama",
            transformers.MistralConfig(**common, sliding_window=8),
            mistral,
            {"attention.sliding_window": 8},
        ),
        Case("qwen2", "qwen2", transformers.Qwen2Config(**common), transformers.Qwen2ForCausalLM),
        Case(
            "qwen3",
            "qwen3",
            transformers.Qwen3Config(**{**common, "head_dim": 32, "intermediate_size": 32}),
            transformers.Qwen3ForCausalLM,
        ),
        *gemma3_cases(common),
    ]


def gemma3_cases(common: dict[str, Any]) -> list[Case]:
    """Seven layers, so that the sixth is global, by default; and a given pattern with both softcaps."""

    def rope(factor: float) -> dict[str, Any]:
        scaling = {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
        return {
            "full_attention": {**scaling, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }

    small = {**common, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 1, "query_pre_attn_scalar": 16, "sliding_window": 8}
    gemma3 = transformers.Gemma3ForCausalLM
    return [
        Case(
            "gemma3-linear",
            "gemma3",
            transformers.Gemma3TextConfig(**small | {"num_hidden_layers": 7, "rope_parameters": rope(8.0)}),
            gemma3,
            {
                "attention.sliding_window": 8,
                "rope.scaling.type": "linear",
                "rope.scaling.factor": 8.0,
            },
        ),
        Case(
            "gemma3-pattern-softcaps",
            "gemma3",
            transformers.Gemma3TextConfig(
                **small
                | {"num_hidden_layers": 3, "rope_parameters": rope(1.0), "head_dim": 32}
                | {"vocab_size": VOCABULARY_OF_SOFTCAP}
                | {"query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0}
                | {"final_logit_softcapping": 5.0}
                | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
            ),
            gemma3,
            {
                "attention.sliding_window": 8,
                "attention.sliding_window_pattern": 2,
                "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 5.0,
            },
            {"softcap": 2.0},  # the config's number does not reach transformers' attention by itself
        ),
    ]


def fill(model: torch.nn.Module, generator: np.random.Generator) -> None:
    """Random weights of a size that makes attention choose and logits differ; norms away from 1."""
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        values = generator.standard_normal(shape)
        if len(shape) == 2:
            spread = 1.0 if "embed_tokens" in name else 1.5 * shape[1] ** -0.5
        else:
            spread = 0.3
            values += 0.0 if name.endswith(".bias") or "gemma3" in type(model).__name__.lower() else 3.0
        parameter.data = torch.tensor(values * spread, dtype=torch.float32)


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (0, 1, .. | h/2, ..) to pairs (0, h/2, 1, ..), as in GGUF's llama."""
    size = weight.shape[0] // heads
    halves = weight.reshape(heads, 2, size // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def tensors(case: Case, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The model's weights under GGUF's names, in GGUF's arrangement."""
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[case.architecture]
    names = gguf.get_tensor_name_map(architecture, case.config.num_hidden_layers)
    result: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():  # a tied output is listed once
        values = parameter.detach().numpy()
        if case.architecture == "llama" and ".q_proj." in name:
            values = interleave(values, case.config.num_attention_heads)
        if case.architecture == "llama" and ".k_proj." in name:
            values = interleave(values, case.config.num_key_value_heads)
        if case.architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + np.float32(1)
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:
            raise SystemExit(f"{case.name}: GGUF has no name for {name}")
        result[renamed] = values
    if getattr(case.config, "rope_parameters", {}).get("rope_type") == "llama3":
        plain = case.config.rope_parameters["rope_theta"] ** (
            -2.0 * np.arange(case.config.head_dim // 2) / case.config.head_dim
        )
        stretched = model.model.rotary_emb.inv_freq.double().numpy()
        result["rope_freqs.weight"] = (plain / stretched).astype(np.float32)
    return result


def rope_base(config: transformers.PretrainedConfig) -> float:
    """The base that GGUF's rope.freq_base means: Gemma's is that of its global layers."""
    parameters = config.rope_parameters
    return float(parameters.get("full_attention", parameters)["rope_theta"])


def write_model(case: Case, model: torch.nn.Module, path: Path) -> None:
    """The model as a GGUF file in F32, without a tokenizer."""
    config = case.config
    writer = gguf.GGUFWriter(path, case.architecture)
    writer.add_name(case.name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope_base(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key, value in case.metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{case.architecture}.{key}", value)
    for name, values in tensors(case, model).items():
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(folder: Path) -> None:
    """Write one .gguf and one .npz (token_ids int32 [T], logits float32 [T, vocabulary]) per case."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases()):
        generator = np.random.default_rng(number)
        torch.manual_seed(number)
        model = case.model(case.config).eval()
        fill(model, generator)
        token_ids = generator.integers(0, case.config.vocab_size, TOKENS).astype(np.int32)
        with torch.no_grad():
            ids = torch.from_numpy(token_ids.astype(np.int64))[None]
            logits = model(ids, **case.forward).logits[0].float().numpy()
        write_model(case, model, folder / f"{case.name}.gguf")
        np.savez_compressed(folder / f"{case.name}.npz", token_ids=token_ids, logits=logits)
        size = (folder / f"{case.name}.gguf").stat().st_size
        print(f"{case.name}: {size} bytes, logits {logits.min():.2f} to {logits.max():.2f}")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "golden" / "models")
