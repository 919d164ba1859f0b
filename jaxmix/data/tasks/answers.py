r"""Answers from free text: the result that a completion gives, and whether it is the expected one.

Numbers are compared exactly, as fractions: `1,250`, `$1250.00`, `1.25e3`, `2500/2` and `\frac{2500}{2}` are one answer.
A unit counts where both answers have one. No function here raises, whatever the text is.
"""

from __future__ import annotations

import re
from fractions import Fraction

_LONGEST = 10_000
"""Characters of a completion that are looked at, from its end."""
_LONGEST_NUMBER = 400
_BOXES = 20
"""The number of `\\boxed` that are tried, last first, until one is complete."""
_LARGEST_EXPONENT = 400

_HASHES = re.compile(r"####[^\S\n]*([^\n]*)")
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_FRACTION = rf"(?:{_NUMBER})(?:\s*/\s*(?:{_NUMBER}))?"
_LAST = re.compile(
    rf"(?:(?<![\w)\].])[-+])?[$€£]?(?:(?<![\w)\].])-)?(?:\d+ +\d+\s*/\s*\d+|{_FRACTION})(?:[eE][-+]?\d+\b)?", re.ASCII
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_WHOLE = re.compile(
    r"(?P<sign>[-+]?)(?:(?P<whole>\d+) (?P<part>\d+)/(?P<of>\d+)"
    r"|(?P<above>(?:\d+(?:\.\d*)?|\.\d+))(?:[eE](?P<exponent>[-+]?\d+))?(?:/(?P<below>(?:\d+(?:\.\d*)?|\.\d+)))?)",
    re.ASCII,
)
_SIGNS = str.maketrans(
    dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014", "-") | dict.fromkeys("\u00a0\u202f\u2009", " ")
)
"""Minus, hyphens and dashes; spaces that do not break."""
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\(?:,|;|!|:|quad|ldots)")
_DEGREES = re.compile(r"\^?\s*\{?\s*\\circ\s*\}?|\u00b0")
_CURRENCIES = {"$": "dollar", "\u20ac": "euro", "\u00a3": "pound"}
_SCALES = {"k": 10**3, "thousand": 10**3, "m": 10**6, "million": 10**6, "b": 10**9, "bn": 10**9, "billion": 10**9}
_SCALES |= {"trillion": 10**12, "hundred": 100, "dozen": 12, "lakh": 10**5, "crore": 10**7, "mil": 10**6}
_NO_UNITS = {"and", "or", "minus", "plus", "times", "over", "divided", "squared", "cubed", "pi"}
_NO_UNITS |= {"half", "halves", "third", "thirds", "quarter", "quarters", *(word for word in _SCALES if len(word) > 2)}
"""Words that make another number of the one before them."""
_SHORT_UNITS = {"mm", "cm", "km", "kg", "mg", "ml", "hr", "ft", "in", "lb", "oz", "am", "pm", "kw", "mb", "gb"}
_ALIASES = {"feet": "foot", "hr": "hour", "min": "minute", "sec": "second", "inche": "inch"}
_ALIASES |= {"hrs": "hour", "mins": "minute", "secs": "second", "lb": "pound", "lbs": "pound"}
_ANSWER = re.compile(r"^(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:=]?\s*(?=\S)", re.IGNORECASE)
_HEADINGS = frozenset(("final", "answer", "final answer", "the answer", "result", "solution", "conclusion"))
_LETTERS = frozenset("mgslhLNJWVAKCF")
"""Units of one letter; any other single letter behind a number is a variable."""


def extract_answer(text: str) -> str | None:
    r"""The answer that a text gives, as text: after the last `####`, in the last `\boxed{…}`, else the last number.

    Args:
        text: a completion or a reference solution; of a very long one the end counts.

    Returns:
        The answer without surrounding space; `None` if there is neither mark nor number.

    Example:
        >>> extract_answer("5 * 3 = 15 so she pays $15.\n#### 15"), extract_answer(r"so \boxed{\frac{1}{2}}.")
        ('15', '\\frac{1}{2}')
        >>> extract_answer("He has 12 apples, then 1,200 apples."), extract_answer("none")
        ('1,200', None)
    """
    text = text[-_LONGEST:]
    marks = list(_HASHES.finditer(text))
    if marks and (marked := marks[-1][1].strip().strip("*_`").strip()):
        rest = text[marks[-1].end() :]
        is_heading = not any(c.isdigit() for c in marked)
        if rest.strip() and (is_heading or "\\boxed" in rest):
            return extract_answer(rest) or marked  # the answer stands below it
        if marked.casefold().rstrip(":") in _HEADINGS:
            return _last_boxed(text) or marked
        marked = _ANSWER.sub("", re.sub(r"(?:\s*<[^<>]*>)+$", "", marked)).rstrip(",; ").strip("*_`")
        return (_last_boxed(marked) if marked.startswith("\\boxed") else None) or marked
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    plain = _LATEX_FRACTION.sub(r" \1/\2 ", text.translate(_SIGNS).replace("{,}", ",").replace("\\$", "$"))
    numbers = [match.group().strip() for match in _LAST.finditer(plain)]
    return numbers[-1] if numbers else None


def parse_number(text: str) -> Fraction | None:
    r"""The number that a text writes, exactly; `None` if it is not one number, with units and signs around it.

    Reads signs (also the typographic minus), thousands separators, decimals, powers of ten, fractions (`3/4`,
    `1 1/2`, `\frac{3}{4}`) and scales (`3 million`, `$2.5M`). Currency, percent and a unit are dropped: `50%`,
    `50 percent` and `50` are the same number.

    Example:
        >>> parse_number("-$1,250.50"), parse_number(r"\dfrac{3}{4}"), parse_number("1 1/2 cups"), parse_number("x")
        (Fraction(-2501, 2), Fraction(3, 4), Fraction(3, 2), None)
    """
    found = _quantity(text)
    return None if found is None else found[0]


def _quantity(text: str) -> tuple[Fraction, str] | None:
    """The number and its unit, "" for none; None where the text is not one number with a unit."""
    if len(text) > _LONGEST_NUMBER:
        return None
    text = _SPACES.sub(" ", _WORDS.sub(r" \1 ", text.translate(_SIGNS).strip()))
    text = _DEGREES.sub(" degree ", text).replace("{,}", ",")
    if len(text) > _LONGEST_NUMBER:
        return None
    text = _LATEX_FRACTION.sub(r" \1/\2 ", text)
    text = _bare(re.sub(r"\\left|\\right|\\(?=[$%])", "", text))
    unit = next((name for sign, name in _CURRENCIES.items() if sign in text), "")
    text = re.sub(r"[$\u20ac\u00a3]", "", text).replace("%", " percent")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\s*/\s*", "/", text).strip().rstrip(".").strip()
    bare = re.sub(r"^(?:[A-Za-z]\w*\s*)?=\s*", "", text)  # x = 5
    bare = re.sub(r"^([-+])\s+", r"\1", re.sub(r"\s+", " ", bare))
    found = _WHOLE.match(bare)
    if found is None:
        return None
    behind = bare[found.end() :]
    if re.match(r"[ -]?[^\W\d_]|$", behind) is None:
        return None
    rest = behind.strip(" -")
    word, _, after = rest.partition(" ")
    scale = _SCALES.get(word if len(word) > 1 else word.lower() if unit or word == "k" else "", 1)
    rest = after if scale > 1 else rest
    if rest and not _is_unit(rest, is_apart=behind[:1] in (" ", "-")):
        return None
    value = _value(found)
    return None if value is None else (value * scale, unit or _singular(rest))


def _value(found: re.Match[str]) -> Fraction | None:
    sign = -1 if found["sign"] == "-" else 1
    if found["whole"] is not None:
        of = int(found["of"])
        return None if of == 0 else sign * (int(found["whole"]) + Fraction(int(found["part"]), of))
    exponent = int((found["exponent"] or "0")[:6])
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    value = Fraction(found["above"]) * Fraction(10) ** exponent
    if found["below"] is not None:
        below = Fraction(found["below"])
        return None if below == 0 else sign * value / below
    return sign * value


def _is_unit(text: str, *, is_apart: bool) -> bool:
    """Whether this is a unit: words, possibly with powers and `/`; no number, variable, or word of a number.

    Letters right behind a number (`2xy`) are a unit only where they are a known one, or a word.
    """
    if re.fullmatch(r"[^\W\d_][^\d=+*^(){}_-]*(?:-[^\W\d_]+)*(?:\^?[23²³])?", text) is None:
        return False
    words = re.findall(r"[^\W\d_]+", text)
    if any(word.casefold() in _NO_UNITS or (len(word) == 1 and word not in _LETTERS) for word in words):
        return False
    return is_apart or len(words[0]) != 2 or words[0].casefold() in _SHORT_UNITS


def _bare(text: str) -> str:
    """Text without marks of emphasis and brackets around all of it."""
    text = text.strip(" *_`")
    while len(text) > 1 and (text[0], text[-1]) in (("(", ")"), ("{", "}")) and not set(text[1:-1]) & set("(){},"):
        text = text[1:-1].strip(" *_`")
    return text


def _singular(unit: str) -> str:
    """A unit without case, and its words in one form: `dollars` is `dollar`, `hrs` is `hour`."""
    return " ".join(map(_in_one_form, unit.casefold().split()))


def _in_one_form(word: str) -> str:
    if word in _ALIASES:
        return _ALIASES[word]
    if word.endswith(("xes", "ches", "shes", "sses")):
        return word[:-2]
    word = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
    return _ALIASES.get(word, word)


def is_same_answer(given: str | None, expected: str) -> bool:
    """Whether an extracted answer is the expected one: as numbers where both are, else as text without case and space.

    Numbers with units are the same if the units are, or if only one of them has one: `7 hours` is `7` and not
    `7 minutes`. Where a sign or letter may be a variable (`5k-3`, `6z`) there is no number.

    Example:
        >>> is_same_answer("1,250 dollars", "1250"), is_same_answer(" East ", "east"), is_same_answer(None, "3")
        (True, True, False)
        >>> is_same_answer("7 minutes", "7 hours"), is_same_answer("3", "3 million"), is_same_answer("30 km/h", "30")
        (False, False, True)
    """
    if given is None:
        return False
    left, right = _quantity(given), _quantity(expected)
    if left is not None and right is not None:
        return left[0] == right[0] and (left[1] == right[1] or not (left[1] and right[1]))
    return _plain(given) == _plain(expected)


def _plain(text: str) -> str:
    """Words without case, emphasis, and space that does not matter."""
    words = re.sub(r"\s+", " ", _WORDS.sub(r"\1", text))
    return _bare(words.replace(", ", ",").strip(" .$")).casefold()


def _last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`, nested braces included."""
    start = text.rfind("\\boxed")
    for _ in range(_BOXES):
        if start < 0:
            break
        place = text.find("{", start)
        if place >= 0 and not text[start + len("\\boxed") : place].strip():
            depth = 0
            for end in range(place, len(text)):
                depth += (text[end] == "{") - (text[end] == "}")
                if depth == 0:
                    return text[place + 1 : end].strip()
        start = text.rfind("\\boxed", 0, start)
    return None
