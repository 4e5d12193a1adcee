"""The token Ray asks of whoever connects: always asked for where Shoal starts Ray, and its file its owner's alone.

Whoever has it can run programs as the account Ray runs under, on every node.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from training.errors import UserError

TOKEN_BYTES = 32
"""As many as Ray's own tokens have."""


def token_file() -> Path:
    """Return where this machine keeps the token of its Ray clusters."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()


def require_token_auth() -> None:
    """Raise UserError where the environment has Ray let everyone in; left alone, it asks for the token."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise UserError(
            f"RAY_AUTH_MODE is {mode!r}: every program on this machine could have Ray run what it likes. Unset it."
        )


def make_token() -> None:
    """Make the token where there is none. Ray would make the file readable for everyone."""
    path = token_file()
    if "RAY_AUTH_TOKEN" in os.environ or path.exists():
        return
    if "RAY_AUTH_TOKEN_PATH" in os.environ:
        raise UserError(f"RAY_AUTH_TOKEN_PATH names {path}, which does not exist. Unset it, or put Ray's token there.")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # its owner's alone from the start
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(TOKEN_BYTES))
        with suppress(FileExistsError):  # another study was faster: its token is the one
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()


def protect_token() -> None:
    """Take the rights of others off the token file and say so. Raises UserError where the file is another account's."""
    path = token_file()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & 0o077:
            return
        path.chmod(0o600)
    except FileNotFoundError:
        return
    except PermissionError:
        raise UserError(f"Ray's token {path} is open to other accounts. Have its owner run: chmod 600 {path}") from None
    print(
        f"shoal: Ray's token {path} was open to other accounts (mode {mode:04o}); it is 0600 now. If one of them "
        "is not to be trusted, delete the file: a new token is made.",
        file=sys.stderr,
    )
