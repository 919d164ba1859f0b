"""Tasks with programmatic verifiers, for reinforcement fine-tuning: suites by name, and adapters to other sources."""

from jaxmix.data.tasks.answers import extract_answer as extract_answer, is_same_answer as is_same_answer
from jaxmix.data.tasks.digit_suite import digits as digits
from jaxmix.data.tasks.gsm8k import gsm8k as gsm8k
from jaxmix.data.tasks.prompts import PromptSet as PromptSet, exact_match as exact_match
from jaxmix.data.tasks.reasoning_gym import reasoning_gym as reasoning_gym
from jaxmix.data.tasks.suites import (
    Family as Family,
    build_suite as build_suite,
    make as make,
    registry as registry,
    suite as suite,
)
from jaxmix.data.tasks.symbol_suite import symbols as symbols
from jaxmix.data.tasks.text import Question as Question, text_prompts as text_prompts
