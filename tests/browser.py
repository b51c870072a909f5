"""A person's eyes: Debian's Chromium without a window, as `ops/dev/setup.sh browser` fetches it, driven by Selenium.

What a page shows is read from its text and its elements, and kept as a picture. Nothing is installed: program and
libraries may lie in the cache.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from .services import DEBIAN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver.remote.webelement import WebElement

PATIENCE = 120.0
"""Seconds that a page on a busy machine may take to show something."""
LARGEST = 250_000
"""Bytes that a picture may have: it is a part of the repository."""
SPINNERS = "[class*=spinner i], [class*=loading i]"
TOPS = """
const tops = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  for (const wanted of arguments[0]) {
    const at = texts.currentNode.data.indexOf(wanted), range = document.createRange();
    if (at < 0) continue;
    range.setStart(texts.currentNode, at);
    range.setEnd(texts.currentNode, at + wanted.length);
    const {left, top} = range.getBoundingClientRect(), parent = texts.currentNode.parentElement;
    const seen = document.elementFromPoint(left + 2, top + 5);  // null outside of the window, another one if covered
    if (seen && parent.contains(seen)) tops.push(top);
  }
}
return tops;
"""
"""Where the lines on the page begin that have one of the texts, in pixels from the top."""
LOWEST = 300
"""Pixels that a picture has at least."""
STILL = 6
"""Looks in a row, a tenth of a second apart, that must be the same for a page to be at rest."""


def chromium() -> tuple[Path | str, Path | str, dict[str, str]]:
    """Browser, driver and their environment; without them the test is skipped."""
    unpacked = DEBIAN / "lib" / "chromium" / "chromium"
    browser = unpacked if unpacked.exists() else shutil.which("chromium")
    driver = shutil.which("chromedriver", path=f"{os.environ['PATH']}{os.pathsep}{DEBIAN / 'bin'}")
    if browser is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed: run `ops/dev/setup.sh browser`")
    libraries = sorted({str(library.parent) for library in (DEBIAN / "lib").glob("*-linux-gnu*/**/lib*.so*")})
    # Fonts are looked for below the first, and the second has the rules where the machine has none of its own.
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "XDG_DATA_HOME": str(DEBIAN / "share")}
    rules = DEBIAN.parent / "etc" / "fonts" / "fonts.conf"
    if rules.exists():
        environment["FONTCONFIG_FILE"] = str(rules)
    return browser, driver, {**os.environ, **environment, "TZ": "UTC"}


class Browser:
    """One window."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str, *, width: int = 1400, height: int = 900) -> None:
        """Opens a page in a window of that size."""
        self.driver.set_window_size(width, height)
        self.driver.get(address)

    def text(self) -> str:
        """What the page shows, as text."""
        return str(self.driver.execute_script("return document.body.innerText"))

    def wait_for(self, *texts: str) -> str:
        """Waits until the page shows all of the texts; returns all that it shows."""
        until(lambda: all(text in self.text() for text in texts), lambda: f"not all of {texts} in:\n{self.text()}")
        return self.text()

    def elements(self, selector: str, text: str = "") -> list[WebElement]:
        """The visible elements that a CSS selector finds, and that contain a text."""
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return [one for one in found if text in one.text and one.is_displayed()]

    def element(self, selector: str, text: str = "") -> WebElement:
        """The first of them, once it is there."""
        until(lambda: self.elements(selector, text), lambda: f"no {selector} with {text!r} in:\n{self.text()}")
        return self.elements(selector, text)[0]

    def click(self, selector: str, text: str = "") -> None:
        """Clicks it, once it is there and can be clicked."""
        self.element(selector, text).click()

    def show_markdown(self, name: str) -> None:
        """Opens the dialog with what a Markdown entry of a table of metadata says."""
        row = self.element("tr", name)
        row.find_element(By.XPATH, ".//*[text()='[Show Markdown]']").click()

    def picture_size(self) -> tuple[int, int]:
        """Width and height of the picture in the dialog, once it is there; 0 if its data cannot be read."""
        image = self.element("[role=dialog] img, .bp4-dialog img, .bp5-dialog img")
        size = self.driver.execute_script("return [arguments[0].naturalWidth, arguments[0].naturalHeight]", image)
        return int(size[0]), int(size[1])

    def keep(self, path: Path, *, moving: bool = False, above: tuple[str, ...] = ()) -> None:
        """Writes what the page shows into a PNG file, once it is at rest, or has loaded if it is one that moves.

        The picture ends above the first line that has one of the texts of `above`.
        """
        if moving:
            until(lambda: not self.elements(SPINNERS), lambda: "the page goes on loading")
        else:
            self.rest()
        png, tops = self.driver.get_screenshot_as_png(), self.driver.execute_script(TOPS, list(above))
        path.write_bytes(small(png, int(min(tops)) if tops else None))

    def rest(self) -> None:
        """Waits until nothing on the page moves and no spinner turns."""
        same, last = 0, b""

        def is_still() -> bool:
            nonlocal same, last
            now = self.driver.get_screenshot_as_png()
            same, last = (same + 1 if now == last else 0), now
            return same >= STILL

        until(is_still, lambda: "the page does not come to rest")


def until(condition: Callable[[], object], what: Callable[[], str]) -> None:
    """Waits for a condition of the page, whose elements come and go; fails with `what` when it does not come."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if condition():
                return
        except StaleElementReferenceException:
            pass
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def small(png: bytes, height: int | None) -> bytes:
    """The picture down to that height, without what is not seen, and with 256 colours at most: pages have few."""
    assert height is None or height >= LOWEST, "what may not be in the picture is too far up"
    picture, packed = Image.open(BytesIO(png)).convert("RGB"), BytesIO()
    picture = picture.crop((0, 0, picture.width, height or picture.height))
    picture.quantize(256, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    assert len(packed.getvalue()) <= LARGEST, f"{len(packed.getvalue())} bytes are too many for a picture in docs"
    return packed.getvalue()


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in a folder."""
    program, driver, environment = chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = str(program)
    options.add_argument("--headless=new")
    options.add_argument("--hide-scrollbars")
    options.add_argument("--disable-dev-shm-usage")  # containers have little of it
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    if os.geteuid() == 0:  # Chromium refuses to run its sandbox as root
        options.add_argument("--no-sandbox")
    service = Service(str(driver), env=environment, log_output=str(folder / "chromedriver.log"))
    window = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(window)
    finally:
        window.quit()
