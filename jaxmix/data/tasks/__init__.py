"""Tasks with programmatic verifiers, for reinforcement fine-tuning: suites by name, and adapters to other sources."""

from jaxmix.data.tasks.answers import extract_answer, is_same_answer
from jaxmix.data.tasks.digit_suite import digits
from jaxmix.data.tasks.gsm8k import gsm8k
from jaxmix.data.tasks.prompts import PromptSet, exact_match
from jaxmix.data.tasks.reasoning_gym import reasoning_gym
from jaxmix.data.tasks.suites import Family, build_suite, make, registry, suite
from jaxmix.data.tasks.symbol_suite import symbols
from jaxmix.data.tasks.text import Question, text_prompts

__all__ = [
    "Family",
    "PromptSet",
    "Question",
    "build_suite",
    "digits",
    "exact_match",
    "extract_answer",
    "gsm8k",
    "is_same_answer",
    "make",
    "reasoning_gym",
    "registry",
    "suite",
    "symbols",
    "text_prompts",
]
