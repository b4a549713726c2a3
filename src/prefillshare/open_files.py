"""How many files this process may have open; each connection is one."""

import errno
import resource
from contextlib import suppress


def raise_limit() -> None:
    """To the hard limit, which is what an administrator allows; the soft one is 1,024 by custom, for old programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # the system may allow no process that many: then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def ran_out(error: BaseException) -> bool:
    """Whether it failed for want of another file, here or in the whole system: not by whom it was to connect to."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
