"""The chat page in a real browser."""

import json
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.harness.programs import StartBrowser, StartGunicorn, StartRedis
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.one_gunicorn

EXAMPLES = {
    "chat:app": "gunicorn_cluster_ext.Sticky",
    "chat_fastapi:app": "gunicorn_cluster_ext.StickyASGI",
}


def element(driver: Chrome, css: str) -> WebElement:
    return driver.find_element(By.CSS_SELECTOR, css)


def lines(driver: Chrome) -> list[tuple[str, str]]:
    """(text, worker label) of each message on the page."""
    return [
        (
            line.find_element(By.CSS_SELECTOR, ".text").text,
            line.find_element(By.CSS_SELECTOR, ".worker").text,
        )
        for line in driver.find_elements(By.CSS_SELECTOR, "#messages li")
    ]


def log(driver: Chrome, kind: str) -> list[dict[str, Any]]:
    return list(driver.get_log(kind))  # type: ignore[no-untyped-call]


def hosts_asked(driver: Chrome) -> set[str]:
    """Every host that the page has fetched anything from."""
    events = [json.loads(entry["message"])["message"] for entry in log(driver, "performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return {url.split("/")[2] for url in asked if url.startswith("http")}


class Tab:
    """A tab with the chat page, connected to a worker by WebSocket."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self._driver = driver
        driver.switch_to.new_window("tab")
        self._handle = driver.current_window_handle
        driver.get(url)
        self.state = element(driver, "#state")
        wait_until(self._has_websocket, 20, "the page's WebSocket")
        self.worker = str(self.state.get_attribute("data-worker"))

    def _has_websocket(self) -> bool:
        return self.state.get_attribute("data-transport") == "websocket"

    def show(self) -> Chrome:
        self._driver.switch_to.window(self._handle)
        return self._driver

    def say(self, text: str) -> None:
        driver = self.show()
        element(driver, "#text").send_keys(text)
        element(driver, "#send").click()

    def wait_lines(self, expected: list[tuple[str, str]]) -> None:
        driver = self.show()
        wait_until(lambda: lines(driver) == expected, 20, f"{expected} on the page")


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_chat_page(example: str, gunicorn: StartGunicorn, browser: StartBrowser) -> None:
    # Without the cookie's rule: the tabs of a browser share their cookies.
    env = {"GUNICORN_CLUSTER_STICKY": "engineio"}
    server = gunicorn(example, "-k", EXAMPLES[example], "-w", "4", serving=4, env=env)
    driver = browser().driver
    first = Tab(driver, server.url)
    assert first.worker in {"0", "1", "2", "3"}
    text = f"This page is connected to worker {first.worker} by websocket."
    assert first.state.text == text

    second = Tab(driver, server.url)
    while second.worker == first.worker:
        assert len(driver.window_handles) < 20
        second = Tab(driver, server.url)

    expected = []
    for number, tab in enumerate([first, second, first, second, second]):
        tab.say(f"message {number} <b>")
        expected.append((f"message {number} <b>", f"worker {tab.worker}"))
        second.wait_lines(expected)
    first.wait_lines(expected)

    assert hosts_asked(driver) == {f"127.0.0.1:{server.port}"}
    assert log(driver, "browser") == []


def test_the_chat_of_two_servers(
    gunicorn: StartGunicorn, redis: StartRedis, browser: StartBrowser
) -> None:
    """With a Redis between them, and nothing else changed."""
    queue = redis()
    env = {"GUNICORN_CLUSTER_STORE": queue.url}
    start = ("-k", EXAMPLES["chat:app"], "-w", "2")
    servers = [gunicorn("chat:app", *start, serving=2, env=env) for _ in range(2)]
    driver = browser().driver
    first, second = (Tab(driver, server.url) for server in servers)
    wait_until(lambda: queue.subscribers("socketio") == 2, 20, "both tabs' workers to listen")
    expected = []
    for number, tab in enumerate([first, second]):
        tab.say(f"message {number}")
        expected.append((f"message {number}", f"worker {tab.worker}"))
        for each in (first, second):
            each.wait_lines(expected)
