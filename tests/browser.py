"""A real browser, Debian's Chromium, as the page's reader has one: the fixture `browser` and open_page()."""

import contextlib
import importlib
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

SCREENSHOTS = Path(os.environ.get("SCREENSHOTS") or Path(__file__).parent / "screenshots")  # build output, not committed
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
OFF = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = ["--no-first-run", *(f"--disable-{what}" for what in OFF)]


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, started for the first test that needs it. The test skips where it, or playwright, is missing."""
    pytest.importorskip("playwright.sync_api")
    if not any(map(shutil.which, CHROMIUM)):
        pytest.skip("no Chromium: apt-get install chromium")
    with launched() as started:
        yield started


@contextlib.contextmanager
def launched():
    """Headless Chromium."""
    program = next(filter(None, map(shutil.which, CHROMIUM)))
    flags = FLAGS + ["--no-sandbox"] * (os.getuid() == 0)  # Chromium refuses to sandbox itself as root
    with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=flags)
        yield started
        started.close()


@contextlib.contextmanager
def open_page(browser, url, width=1200, height=800, offline=False, **options):
    """A new page in a context of its own, without what earlier pages stored; `options` are those of new_context().

    `page.foreign` becomes the addresses that it asks other hosts for, `page.errors` the errors of its console and scripts.
    A test asserts that both are empty.
    """
    viewport = {"width": width, "height": height}
    with contextlib.closing(browser.new_context(viewport=viewport, offline=offline, **options)) as context:
        page = context.new_page()
        page.foreign, page.errors = [], []

        def note(address):
            remote = urlsplit(address).scheme in ("http", "https", "ws", "wss")
            if remote and urlsplit(address).netloc != urlsplit(str(url)).netloc:
                page.foreign.append(address)

        page.on("request", lambda request: note(request.url))
        page.on("websocket", lambda socket: note(socket.url))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(str(url))
        yield page


def screenshot(page, name):
    """Keep what the whole page looks like, in SCREENSHOTS/name.png."""
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def answers_of(page, files):
    """What an exported page shows of each file: its heading, the probabilities of the classes, and its sentences."""
    page.locator("#choose:enabled").wait_for()
    page.set_input_files("#choose", files)
    page.locator(f"#results li[data-done]:nth-child({len(files)})").wait_for()  # the newest is the first
    shown = {}
    for item in page.locator("#results li").all():
        item.locator("h2:not(:text('…'))").wait_for()
        classes = item.locator("th").all_text_contents()
        values = [meter.evaluate("meter => meter.value") for meter in item.locator("meter").all()]
        shown[item.locator(".path").first.text_content()] = (
            item.locator("h2").text_content(),
            dict(zip(classes, values, strict=True)),
            item.locator("p").all_text_contents(),
        )
    return shown
