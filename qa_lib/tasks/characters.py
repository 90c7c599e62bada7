"""Visible and invisible characters, and characters as a reader counts them, in any script.

A tokenizer drops some characters: blanks, control and zero-width characters, combining marks. A
span that is cut at the borders of tokens may therefore lose the accent of its last letter. For the
same reason an answer may begin or end with characters that no token holds.
"""

import re
import unicodedata
from functools import cache

import regex

CHARACTER = regex.compile(r"\X")  # an extended grapheme cluster (Unicode Standard Annex 29)
# A visible character is no separator, no control character, no mark, and not the replacement
# character, which stands for a lost one.
VISIBLE = regex.compile(r"[^\p{Z}\p{C}\p{M}\ufffd]")
LAST_VISIBLE = regex.compile(r"(?r)[^\p{Z}\p{C}\p{M}\ufffd]")  # searched from the end


def widen_to_characters(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the smallest span around text[start:end] that cuts no character.

    The span "cafe" of a text with a combining accent grows to "café".
    start, end: offsets in code points, 0 <= start <= end <= len(text). An empty span stays as it
    is.
    """
    borders = text[max(0, start - 1) : start + 1] + text[max(0, end - 1) : end + 1]
    if start == end or borders.isascii():  # two ASCII letters are always two characters
        return start, end
    for character in CHARACTER.finditer(text):
        if character.start() < start < character.end():
            start = character.start()
        if character.end() >= end:
            return start, character.end()
    return start, end


def find_places(text: str, context: str, ignore_case: bool = False) -> list[tuple[int, int]]:
    """Return the places of a text in a context, (start, end), from the first on.

    A part of a longer word counts only where the text stands nowhere else: "10" is not in "2010" of
    a context that also has "10 berths".
    """
    if not text:
        return []
    flags = re.IGNORECASE if ignore_case else 0
    before = r"(?<!\w)" if re.match(r"\w", text[0]) else ""
    behind = r"(?!\w)" if re.match(r"\w", text[-1]) else ""
    for pattern in (before + re.escape(text) + behind, re.escape(text)):
        places = [match.span() for match in re.finditer(pattern, context, flags)]
        if places:
            return places
    return []


@cache
def normalise_text(text: str) -> str:
    """Return the case-folded letters and digits of a text, the same for all copies of it."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def text_error(field: str, text: str) -> str:
    """Return what is wrong with the characters of a text; empty where nothing is."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        return (
            f"field '{field}' holds what is no UTF-8 text at character {e.start + 1} "
            "(half a character, or another encoding: save the file as UTF-8)"
        )
    return ""


def is_visible(text: str) -> bool:
    """Return whether a reader sees anything of a text."""
    return VISIBLE.search(text) is not None


def trim_invisible(text: str) -> str:
    """Return a text without the invisible characters at its ends.

    These are blanks, zero-width and control characters, and marks that no letter carries.
    Invisible characters between visible ones stay.
    """
    first = VISIBLE.search(text)
    if first is None:
        return ""
    last = LAST_VISIBLE.search(text)
    start, end = widen_to_characters(text, first.start(), last.end())
    return text[start:end]
