"""What a reader sees as one character, and what shows nothing: for spans of text in any script.

A tokenizer drops some characters: blanks, control and zero-width characters, combining marks. A span that is cut at the borders of
tokens may therefore lose the accent of its last letter, and an answer may begin or end with characters that no token holds.
"""

import regex

CHARACTER = regex.compile(r"\X")  # an extended grapheme cluster (Unicode Standard Annex 29)
# What a reader sees: no separator, control character or mark alone, nor the sign for a lost character.
VISIBLE = regex.compile(r"[^\p{Z}\p{C}\p{M}\ufffd]")
LAST_VISIBLE = regex.compile(r"(?r)[^\p{Z}\p{C}\p{M}\ufffd]")  # searched from the end


def widen_to_characters(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the smallest span around text[start:end] that cuts no character: "cafe" grows to "café" with its accent.

    start, end: offsets in code points, 0 <= start <= end <= len(text). An empty span stays as it is.
    """
    borders = text[max(0, start - 1) : start + 1] + text[max(0, end - 1) : end + 1]
    if start == end or borders.isascii():  # ASCII letters never grow together
        return start, end
    for character in CHARACTER.finditer(text):
        if character.start() < start < character.end():
            start = character.start()
        if character.end() >= end:
            return start, character.end()
    return start, end


def is_visible(text: str) -> bool:
    """Whether a reader sees anything of a text."""
    return VISIBLE.search(text) is not None


def trim_invisible(text: str) -> str:
    """Return a text without what shows nothing at its ends: blanks, zero-width and control characters.

    Marks go with them where no letter carries them. What stands between visible characters stays.
    """
    first = VISIBLE.search(text)
    if first is None:
        return ""
    last = LAST_VISIBLE.search(text)
    start, end = widen_to_characters(text, first.start(), last.end())
    return text[start:end]
