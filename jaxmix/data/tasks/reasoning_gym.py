"""Procedural tasks of the package reasoning-gym, with its own verifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxmix.core.errors import ConfigError, EnvironmentProblem
from jaxmix.core.validate import check_choice, check_count
from jaxmix.data.tasks.prompts import PromptSet
from jaxmix.data.tasks.suites import PARTS, is_held_out
from jaxmix.data.tasks.text import Question, text_prompts
from jaxmix.data.tokenizers import Tokenizer, byte_tokenizer

_TRIES = {"train": 2, "held_out": 8}
"""Instances that are looked at for every prompt wanted: three in four are for training, and some come twice."""


def reasoning_gym(
    datasets: Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[str],
    tokenizer: Tokenizer | None = None,
    *,
    part: str = "train",
    per_arm: int = 200,
    seed: int = 0,
    completion_length: int = 64,
    prompt_length: int | None = None,
    template: str = "{question}\n",
    package: Any = None,
) -> PromptSet:
    """Prompts of reasoning-gym's generators, one arm for each configuration of each.

    Args:
        datasets: names of generators, or name → configurations from easy to hard, each the keyword arguments of
            `reasoning_gym.create_dataset`: these are the levels.
        tokenizer: `None`: bytes.
        part: "train", or "held_out": one question in four, by its hash, so that the parts never overlap.
        per_arm: prompts per arm, all different; fewer where the generator repeats itself much.
        seed: of the generators.
        completion_length, prompt_length, template: see `text_prompts`.
        package: the module, or one with the same `create_dataset`; `None`: imported.

    Returns:
        Prompts whose reward is the generator's `score_answer` of the completion, in [0, 1].

    Raises:
        EnvironmentProblem: the package is not installed.
        ConfigError: unknown generator, or arguments that it refuses.

    References:
        Stojanovski et al., arXiv 2505.24760.
    """
    check_count("reasoning_gym", "per_arm", per_arm)
    check_count("reasoning_gym", "seed", seed, 0)
    check_choice("reasoning_gym", "part", part, PARTS)
    package = _import() if package is None else package
    levels = datasets if isinstance(datasets, Mapping) else {name: ({},) for name in datasets}
    if not levels:
        raise ConfigError("there are no datasets", where="reasoning_gym(datasets)")
    questions: list[Question] = []
    sources: list[tuple[Any, Any]] = []
    for name, configurations in levels.items():
        for level, configuration in enumerate(configurations):
            made = _create(package, name, configuration, seed, _TRIES[part] * per_arm)
            taken: set[str] = set()
            for entry in made:
                text = entry["question"]
                if text in taken or is_held_out(text) != (part == "held_out"):
                    continue
                taken.add(text)
                questions.append(Question(text, None if entry["answer"] is None else str(entry["answer"]), name, level))
                sources.append((made, entry))
                if len(taken) == per_arm:
                    break
    tokenizer = tokenizer or byte_tokenizer()
    lengths = tokenizer.encode_batch([q.answer or "" for q in questions])
    if any(len(ids) + 1 > completion_length for ids in lengths):  # reference answers that no completion can be
        questions = [q._replace(answer=None) for q in questions]

    def score(row: int, completion: str) -> float:
        dataset, entry = sources[row]
        return dataset.score_answer(answer=completion.strip(), entry=entry)

    return text_prompts(
        questions,
        score,
        tokenizer,
        completion_length=completion_length,
        prompt_length=prompt_length,
        template=template,
        references=[str(entry["answer"]) for _, entry in sources],
    )


def _import() -> Any:
    try:
        import reasoning_gym as package
    except ImportError as error:
        raise EnvironmentProblem(
            "the package reasoning-gym is not installed", fix="Install it: pip install 'jaxmix[reasoning-gym]'."
        ) from error
    return package


def _create(package: Any, name: str, options: Mapping[str, Any], seed: int, size: int) -> Any:
    try:
        return package.create_dataset(name, seed=seed, size=size, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"reasoning-gym does not make {name!r}: {str(error) or type(error).__name__}",
            where=f"reasoning_gym(datasets), {name}",
        ) from error
