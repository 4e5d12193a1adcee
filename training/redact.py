"""Secrets kept out of what Shoal writes and says: messages of libraries may quote the environment or a URL.

What is hidden is the value of each environment variable that is named like a secret, the tokens of the Hugging Face
hub and of Ray in the files where they are kept, and what looks like a hub token, a private key, or the user and
password of a URL. In its place stands what it was, e.g. [HF_TOKEN].
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

SECRET_NAMES = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY)$", re.IGNORECASE)
MIN_CHARACTERS = 8
"""Of a secret's value; a shorter one would be found in words that hide nothing."""
LINES_BYTES = 4 << 20
"""Of a file read at a time, about."""
PATTERNS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"), "[hub token]"),
    (re.compile(r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)"), "[user:password]"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
     "[private key]"),
)  # fmt: skip


def redact(text: str) -> str:
    """Return a text with each secret replaced by its name in brackets."""
    return _redact(text, _secrets())


def redact_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return JSON values with the secrets in their texts replaced; keys stay."""
    secrets = _secrets()

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return _redact(value, secrets)
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return type(value)(clean(item) for item in value) if isinstance(value, list | tuple) else value

    return {key: clean(item) for key, item in values.items()}


def redact_file(path: Path) -> None:
    """Replace the secrets in a text file, such as a log; a part of it is in memory at a time."""
    secrets = _secrets()
    temporary = path.with_name(f".{path.name}.tmp")
    # newline="": what a progress bar wrote stays as it is; so do bytes that are no UTF-8.
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with path.open(**options) as source, temporary.open("w", **options) as target:
        while lines := source.readlines(LINES_BYTES):
            target.write(_redact("".join(lines), secrets))
    temporary.replace(path)


def _redact(text: str, secrets: dict[str, str]) -> str:
    for value, name in secrets.items():
        text = text.replace(value, f"[{name}]")
    for pattern, name in PATTERNS:
        text = pattern.sub(name, text)
    return text


def _secrets() -> dict[str, str]:
    """Return value -> name of the secrets this process can know, the longest first: one may hold another."""
    found = {value: name for name, value in os.environ.items() if SECRET_NAMES.search(name)}
    for name, path in _token_files().items():
        with suppress(OSError, ValueError):
            found.setdefault(path.expanduser().read_text(encoding="utf-8").strip(), name)
    return {value: found[value] for value in sorted(found, key=len, reverse=True) if len(value) >= MIN_CHARACTERS}


def _token_files() -> dict[str, Path]:
    """Return where the hub's and Ray's token lie, as huggingface_hub and Ray look for them."""
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "token"
    return {
        "HF_TOKEN": Path(os.environ.get("HF_TOKEN_PATH", hub)),
        "RAY_AUTH_TOKEN": Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")),
    }
