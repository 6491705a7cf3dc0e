"""A headless browser for tests, if there is one: pages are loaded from the disk, without network."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str:
    """The path of a Chromium; the test is skipped where there is none."""
    given = os.environ.get("HF_NAS_TEST_BROWSER")
    found = given or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("There is no Chromium to look at the page with; install one, or name it in HF_NAS_TEST_BROWSER.")
    return found


def open_page(page: str, folder: Path, *options: str) -> str:
    """The document as it is after its scripts have run, as text.

    Args:
        page: the HTML.
        folder: where it may be written.
        options: of the browser.
    """
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            f"--user-data-dir={profile}", "--window-size=1000,900", "--virtual-time-budget=2000", *options,
            "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
