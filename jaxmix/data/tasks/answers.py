r"""Answers from free text: the result that a completion gives, and whether it is the expected one.

Numbers are compared exactly, as fractions: `1,250`, `$1250.00`, `1.25e3`, `2500/2` and `\frac{2500}{2}` are one answer.
No function here raises, whatever the text is.
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
_UNITS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname)\s*\{[^{}]*\}|\\(?:,|;|!|:|quad|ldots|circ)")


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
    marked = _HASHES.findall(text)
    if marked and marked[-1].strip():
        return marked[-1].strip()
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    plain = _LATEX_FRACTION.sub(r" \1/\2 ", text.translate(_SIGNS))
    numbers = [match.group().strip() for match in _LAST.finditer(plain)]
    return numbers[-1] if numbers else None


def parse_number(text: str) -> Fraction | None:
    r"""The number that a text writes, exactly; `None` if it is not one number, with units and signs around it.

    Reads signs (also the typographic minus), thousands separators, decimals, powers of ten, and fractions: `3/4`,
    `1 1/2`, `\frac{3}{4}`. Currency, percent and unit words are dropped: `50%`, `50 percent` and `50`
    are the same number.

    Example:
        >>> parse_number("-$1,250.50"), parse_number(r"\dfrac{3}{4}"), parse_number("1 1/2 cups"), parse_number("x")
        (Fraction(-2501, 2), Fraction(3, 4), Fraction(3, 2), None)
    """
    text = _UNITS.sub(" ", text.translate(_SIGNS).strip())
    if len(text) > _LONGEST_NUMBER:
        return None
    text = _LATEX_FRACTION.sub(r" \1/\2 ", text)
    text = re.sub(r"\\[$%]|[$€£%]|\\left|\\right|[{}()]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\s*/\s*", "/", text).strip().rstrip(".").strip()
    text = re.sub(r"^(?:[A-Za-z]\w*\s*)?=\s*", "", text)  # x = 5
    text = re.sub(r"^([-+])\s+", r"\1", text)
    text = re.sub(r"\s+", " ", text)
    found = _WHOLE.match(text)
    if found is None or not _is_unit(text[found.end() :]):
        return None
    sign = -1 if found["sign"] == "-" else 1
    if found["whole"] is not None:
        return (
            None
            if int(found["of"]) == 0
            else sign * (int(found["whole"]) + Fraction(int(found["part"]), int(found["of"])))
        )
    exponent = int((found["exponent"] or "0")[:6])
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    value = Fraction(found["above"]) * Fraction(10) ** exponent
    if found["below"] is not None:
        below = Fraction(found["below"])
        return None if below == 0 else sign * value / below
    return sign * value


def is_same_answer(given: str | None, expected: str) -> bool:
    """Whether an extracted answer is the expected one: as numbers where both are, else as text without case and space.

    Example:
        >>> is_same_answer("1,250 dollars", "1250"), is_same_answer(" East ", "east"), is_same_answer(None, "3")
        (True, True, False)
    """
    if given is None:
        return False
    left, right = parse_number(given), parse_number(expected)
    if left is not None and right is not None:
        return left == right
    plain = lambda text: re.sub(r"\s+", " ", text).strip(" .$").casefold()
    return plain(given) == plain(expected)


def _is_unit(rest: str) -> bool:
    """Whether what follows a number is a unit: words, possibly with powers, and no further number."""
    return re.fullmatch(r"|[\s°²³]*|[\s-]?[^\W\d_][^\d=+*/^]*(?:\^?[23])?", rest) is not None


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
