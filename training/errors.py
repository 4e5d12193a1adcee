"""What can go wrong, as one small tree.

ShoalError
|-- UserError          the input is at fault; the message says the fact, then the fix; exit status 2
|-- VerificationError  Shoal's own check of what it wrote failed; the job fails, nothing is reported as good
|-- OutOfMemory        memory ran out (training.memory); inside a job only
`-- RetryWith          ... and a smaller plan may do (training.plan)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_STOPPED = 143
MAX_LISTED = 20
"""Names that a message shows; a hostile file may have thousands of columns."""


class ShoalError(Exception):
    """Anything Shoal raises on purpose."""


class UserError(ShoalError):
    """Input that cannot be used. The message names the file, the key or row, the value and the mend."""


class VerificationError(ShoalError):
    """A saved artefact that does not read back as what was saved."""


def describe_os_error(error: OSError) -> str:
    """Return what a file or folder refused, and what to look at."""
    return f"{error.filename}: {error.strerror}. Check that the path exists, may be written to and has room."


def listed(names: Sequence[str]) -> str:
    """Return names in quotes, the first of them where they are many."""
    shown = ", ".join(f"{name!r:.100}" for name in names[:MAX_LISTED])
    return shown + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
