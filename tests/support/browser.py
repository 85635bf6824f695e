"""A real browser, Chromium, that shows pages without a window."""

import contextlib
import os
import shutil

import pytest

# Selenium would report on its use, and look for browsers on the network.
os.environ["SE_AVOID_STATS"] = "true"
os.environ["SE_OFFLINE"] = "true"


@contextlib.contextmanager
def open_browser(*, width=1300, height=1000):
    """Gives a Selenium driver of Chromium; skips the test where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium: tools/test.sh --system-packages installs it")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # which root cannot have
    options.add_argument("--disable-dev-shm-usage")  # small in a container
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(executable_path=driver))
    try:
        yield browser
    finally:
        browser.quit()


def prefer_colors(browser, scheme):
    """Shows pages as to a person who prefers `light` or `dark`."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
