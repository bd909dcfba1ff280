"""Parsing of ``%bridge`` lines.

Rule: text becomes words, names and expressions. This file knows no bridge and no shell.
"""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections.abc import Sequence

from IPython.core.error import UsageError
from IPython.utils.process import arg_split  # type: ignore[attr-defined]

_AS = re.compile(r"(.*\S)\s+as\s+(\S+)", re.DOTALL)
_BEFORE = re.compile(r"^\s*(--on)[=\s]\s*(\S+)(?:\s+|$)")
_BEHIND = re.compile(r"(?:^|\s+)(--on)[=\s]\s*(\S+)\s*$")


def words_of(text: str, *, whole: bool = False) -> list[str]:
    """Split text into words for argparse; ``whole`` keeps all but the options as one word."""
    if not whole:
        try:
            return [_unquoted(word) for word in arg_split(text)]
        except ValueError as error:  # a quote that is not closed
            raise UsageError(f"{error}: {text.strip()}") from None
    words: list[str] = []
    for option in (_BEFORE, _BEHIND):
        found = option.search(text)
        if found:
            words += found.groups()
            text = text[: found.start()] + text[found.end() :]
    text = text.strip()
    return [*words, "--", text] if text else words


def joined(words: Sequence[str]) -> list[str]:
    """Join the words of a list that has spaces behind its commas: ``--pull a, b``."""
    found: list[str] = []
    for word in words:
        if found and found[-1].endswith(",") and not word.startswith("-"):
            found[-1] += word
        else:
            found.append(word)
    return found


def names_in(*texts: str) -> list[str]:
    """Return the names in texts, separated by commas or spaces; each name once."""
    return list(dict.fromkeys(re.findall(r"[^\s,]+", " ".join(texts))))


def wanted(text: str) -> dict[str, str]:
    """Return the expressions of a pull, by the names that they are bound to.

    Examples: ``x``, ``x y``, ``x as y``, ``df.describe() as d``, ``x as a, f(y) as b``.

    Raises:
        UsageError: the text has another form, or binds a name twice.
    """
    found: dict[str, str] = {}
    for item in _split_items(text):
        for expression, name in _expressions_of(item):
            if name in found:
                raise UsageError(f"{name} would be bound twice")
            found[name] = expression
    if not found:
        raise UsageError("%bridge pull needs a NAME, or EXPRESSION as NAME")
    return found


def _expressions_of(item: str) -> list[tuple[str, str]]:
    """Return the expressions of one item, each with its name."""
    words = item.split()
    if all(map(_is_name, words)):
        return [(word, word) for word in words]
    found = _AS.fullmatch(item)
    expression, name = found.groups() if found else (item, "")
    if not _is_expression(expression):
        raise UsageError(f"{expression} is not an expression; separate several with commas")
    if not _is_name(name):
        raise UsageError(f"the value needs a name; use %bridge pull {expression} as NAME")
    return [(expression, name)]


def _split_items(text: str) -> list[str]:
    """Split text at commas, except inside brackets and strings."""
    depth, start, parts = 0, 0, []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
            if token.type != tokenize.OP:  # Python 3.12 also gives tokens inside f-strings
                continue
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.string == "," and depth == 0:
                parts.append(text.strip()[start : token.start[1]])
                start = token.end[1]
    except (tokenize.TokenError, SyntaxError):
        pass  # the parser of the items reports the error
    parts.append(text.strip()[start:])
    return [part.strip() for part in parts if part.strip()]


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    return True


def _unquoted(word: str) -> str:
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "'\""
    return word[1:-1] if quoted else word
