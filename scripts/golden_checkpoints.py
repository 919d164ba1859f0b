"""Writes tiny random checkpoints of published architectures with `transformers`, and what it computes with them.

    pip install transformers torch && python scripts/golden_checkpoints.py tests/models/checkpoints/golden

The tests read them without `transformers`. Every weight is random, norms and biases too, so that a part that is left
out changes the logits.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500.0,
}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}

MODELS = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama_scaled": transformers.LlamaConfig(
        **GROUPED, head_dim=8, rope_parameters=SCALED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=5),
    "smollm3": transformers.SmolLM3Config(**GROUPED, no_rope_layer_interval=2),
    "qwen2": transformers.Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=6),
    "olmo2": transformers.Olmo2Config(**GROUPED),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES, rotary_pct=0.5),
    "gpt_neox_serial": transformers.GPTNeoXConfig(
        **SIZES, rotary_pct=0.5, use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new"
    ),
    "gpt2": transformers.GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2),
}
IN_FLOAT32 = ("llama_scaled", "gpt2")  # the others are stored in bfloat16
LENGTH = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    transformers.logging.set_verbosity_error()
    for name, config in MODELS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                is_gain = "norm" in key or "ln_" in key
                parameter.normal_(1.0 if is_gain and key.endswith("weight") else 0.0, 0.3)
        model = model if name in IN_FLOAT32 else model.to(torch.bfloat16)
        model.save_pretrained(folder / name)
        # Read anew: a model turned into bfloat16 has rounded its rotary frequencies too.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder / name, dtype=torch.float32, attn_implementation="eager"
        ).to(torch.float64)
        tokens = torch.randint(0, config.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            logits = model(tokens).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        np.savez_compressed(
            folder / name / "expected.npz",
            tokens=tokens.numpy().astype(np.int32),
            logits=logits.numpy().astype(np.float32),
            loss=loss.numpy(),
        )
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        stored = json.loads((folder / name / "config.json").read_text())
        print(name, stored["architectures"], sum(file.stat().st_size for file in (folder / name).iterdir()), "bytes")


if __name__ == "__main__":
    main()
