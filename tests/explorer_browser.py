"""A browser for the tests of the explorer, and what both of them need."""

import contextlib
import dataclasses
import shutil

import pytest

from distcam_jax.localization import PROTOCOLS

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def protocol(size):
    return dataclasses.replace(PROTOCOLS["ilsvrc"], input_size=size)


@contextlib.contextmanager
def open_browser():
    """Starts the system's Chromium without a window; skips the test where it or playwright is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs a Chromium browser: apt install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
