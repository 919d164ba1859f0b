"""Tasks with programmatic verifiers, for reinforcement fine-tuning: suites by name, and adapters to other sources."""

from jaxmix.data.tasks.prompts import PromptSet

__all__ = ["PromptSet"]
