"""Checkpoint folders in the form of Hugging Face: `config.json`, safetensors, tokenizer files."""
