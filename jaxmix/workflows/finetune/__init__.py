"""`jaxmix finetune`."""
