"""Makes text of a model, a server or a data set safe to print: characters that hide or command become symbols."""

from __future__ import annotations

import re

# What is seen of scripts whose letters join, Arabic to Mongolian: there U+200C and U+200D are spelling. U+200D is
# spelling between emoji too.
LETTER = "[\\u0600-\\u061b\\u061d-\\u0dff\\u1000-\\u109f\\u1780-\\u180d\\u180f-\\u18af]"
EMOJI, EMOJI_END = "[\\u2190-\\u2bff\\U0001f000-\\U0001faff]", "[\\u2190-\\u2bff\\ufe0f\\U0001f000-\\U0001faff]"
SPELLING = f"(?<={LETTER}[\\u200c\\u200d]){LETTER}|(?<={EMOJI_END}\\u200d){EMOJI}"  # seen from behind the joiner
# Control characters except line breaks and tabs, direction controls, zero-width characters, tags, lone surrogates.
# The page has the same set (view/assets/dom.js); a test compares the two.
# The set comes first: `re` then skips quickly to it.
HIDDEN = re.compile(
    "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f"
    "\\ufeff\\ufff9-\\ufffb\\U000e0000-\\U000e007f\\ud800-\\udfff]"
    f"(?!{SPELLING})"
)


def printable(text: str) -> str:
    r"""`text` with a symbol for each character that a terminal would obey or hide.

    >>> printable("\x1b[31mred\x1b[0m \u202egnp.exe\r")
    '⟨U+001B⟩[31mred⟨U+001B⟩[0m ⟨U+202E⟩gnp.exe⟨U+000D⟩'
    """
    return HIDDEN.sub(_symbol, text)


def _symbol(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match[0]):04X}⟩"  # few fonts have the symbols of control characters
