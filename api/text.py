"""Text from a log as people see it: whatever was written into it, it is text and nothing else."""

import unicodedata
from html import escape

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode's categories of characters that steer a terminal or the direction of writing, or show as nothing."""
TEXT_MAX = 2_000


def printable(text: str) -> str:
    """The text with nothing in it that steers a terminal or hides what follows; a very long one is cut, and says so."""
    if len(text) > TEXT_MAX:
        text = f"{text[:TEXT_MAX]}… ({len(text):,} characters)"
    if text.isascii() and text.isprintable():
        return text
    return "".join(REPLACEMENT if unicodedata.category(one) in INVISIBLE else one for one in text)


def as_html(text: str) -> str:
    """The text for HTML, as content or as an attribute's value in double quotes."""
    return escape(printable(text), quote=True)
