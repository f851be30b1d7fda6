"""Did you mean …?"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def near(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known words that look most like ``word``, best first. Case does not count; a right last part does."""
    pool = {name.lower(): name for name in known}
    word = word.lower()
    alike = {name: difflib.SequenceMatcher(None, word, name).ratio() for name in pool}
    best = max(alike.values(), default=0.0)
    found = sorted((name for name in pool if alike[name] >= max(0.6, best - 0.1)), key=lambda name: -alike[name])
    found += [name for name in pool if name not in found and name.rpartition("/")[2] == word.rpartition("/")[2]]
    return [pool[name] for name in found[:count]]


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``did you mean 'a' or 'b'?``, or an empty string."""
    found = [f"'{prefix}{name}'" for name in near(word, known)]
    return f"did you mean {listed(found, 'or')}?" if found else ""


def listed(words: Sequence[str], conjunction: str = "and") -> str:
    """``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"
