"""What looks wrong within one text: broken characters, HTML remains, headers and quotes of messages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

EXAMPLE_CHARACTERS = 80

# What the bytes 0x80 to 0xbf look like where UTF-8 was read as Windows-1252 or Latin-1.
_TRAIL = "\u0080-\u00bf" + "".join(sorted(set(bytes(range(0x80, 0xC0)).decode("cp1252", "ignore"))))
_MOJIBAKE = re.compile(
    rf"Ã[{_TRAIL}]|Â[\u0080-\u00bf]|â[\u0080€][{_TRAIL}]|ï»¿|ï¿½|ð[\u009fŸ][{_TRAIL}]|(?:[ÐÑ][{_TRAIL}]){{3,}}"
)
_NUL = re.compile("\0")
_REPLACEMENT = re.compile("\ufffd")
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_HTML = re.compile(
    r"</?(?:a|b|body|br|center|code|div|em|font|h[1-6]|head|hr|html|i|img|li|ol|p|pre|script|span|strong|style|table|"
    r"td|th|tr|u|ul)(?:\s[^<>\n]{0,300})?/?>|&(?:amp|lt|gt|quot|apos|nbsp|mdash|ndash|#\d{2,5}|#x[0-9a-f]{2,5});|(?<!\S)#\d{2,4};",
    re.IGNORECASE,
)
_MESSAGE = re.compile(r"\A\s*(?:[\w-]+: .*\n){0,20}(?:From|Subject|Message-ID|Organization): .*\n|(?:\A|\n)>(?!>>).*\n")


def defects(text: str) -> Iterator[tuple[str, int]]:
    """Yield each defect a text has, a key of `training.corpus.findings.FINDINGS`, and the position of the first."""
    patterns = {}
    if not text.isprintable():
        patterns = {"nul_characters": _NUL, "control_characters": _CONTROL}
    if not text.isascii():
        patterns |= {"half_characters": _SURROGATE, "replacement_characters": _REPLACEMENT, "mojibake": _MOJIBAKE}
    if "<" in text or ";" in text:
        patterns["html"] = _HTML
    if "\n" in text:
        patterns["message_parts"] = _MESSAGE
    for code, pattern in patterns.items():
        if match := pattern.search(text):
            yield code, match.start()


def normalized(text: str) -> str:
    """Return what texts are compared by: compatibility characters and case made one, runs of spaces single."""
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def shown(text: str, most: int = EXAMPLE_CHARACTERS, *, around: int = 0) -> str:
    """Return a text on one line, cut to the part around a position, what cannot be printed escaped.

    Safe in terminals, JSON and files.
    """
    begin = around - most // 2 if around >= most else 0
    cut = text[begin : begin + 4 * most]
    escaped = "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in re.sub(r"[^\S\x1c-\x1f]+", " ", cut)
    )
    escaped = ("…" if begin else "") + escaped
    return escaped if len(escaped) <= most else escaped[: most - 1] + "…"
