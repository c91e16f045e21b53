"""Headless Chromium, driven by Selenium."""

from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.harness.process import find_program
from tests.harness.processes import describe, kill_session, session
from tests.harness.waiting import wait_until

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """`driver` is Selenium's; all its processes are gone after `stop`."""

    def __init__(self, directory: Path) -> None:
        options = ChromeOptions()
        options.binary_location = find_program("chromium")
        for flag in _FLAGS:
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={directory / 'chromium'}")
        # What the page logs and fetches is recorded, for tests of what it may fetch.
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self._service = ChromeService(
            find_program("chromedriver"),
            log_output=str(directory / "chromedriver.log"),
            popen_kw={"start_new_session": True},
        )
        self.driver = Chrome(options, self._service)
        self.pid = self._service.process.pid

    def stop(self) -> None:
        self.driver.quit()
        try:
            wait_until(lambda: not session(self.pid), 10, "the end of all processes of Chromium")
        except AssertionError:
            left = [describe(process) for process in session(self.pid)]
            kill_session(self.pid)
            raise AssertionError(f"Chromium left behind: {left}") from None
