"""A real browser, headless: Debian's Chromium, driven by its command line alone."""

import os
import subprocess
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM.exists(), reason="needs Debian's chromium: `make browser` as root, or apt-get install chromium"
)

# No --no-sandbox but for root, whom Chromium refuses otherwise. The rest keeps it from asking the network for itself.
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """Each call starts a browser with an empty profile in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = 0

    def dom(self, url: str, *, flags: tuple[str, ...] = ()) -> tuple[str, str]:
        """The page after 4 s of its own time, as markup, and what the browser said on standard error (its console)."""
        ran = self._run("--dump-dom", "--enable-logging=stderr", *flags, url)
        return ran.stdout, ran.stderr

    def screenshot(self, url: str, file: Path, *, width: int, height: int, dark: bool = False) -> None:
        scheme = ("--blink-settings=preferredColorScheme=0",) if dark else ()
        self._run(f"--screenshot={file}", f"--window-size={width},{height}", *scheme, url)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self._runs += 1
        profile = f"--user-data-dir={self._folder / str(self._runs)}"
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()
        command = [str(CHROMIUM), *_FLAGS, *root, profile, "--virtual-time-budget=4000", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
