"""The chat page in a real browser."""

import json
from typing import Any

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.conftest import StartBrowser, StartGunicorn
from tests.harness.waiting import wait_until


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


def test_the_chat_page(gunicorn: StartGunicorn, browser: StartBrowser) -> None:
    server = gunicorn("chat:app", "-k", "gunicorn_cluster_ext.Sticky", "-w", "4", serving=4)
    driver = browser().driver
    driver.get(server.url)
    state = element(driver, "#state")
    wait_until(
        lambda: state.get_attribute("data-transport") == "websocket", 20, "the page's WebSocket"
    )
    worker = state.get_attribute("data-worker")
    assert worker in {"0", "1", "2", "3"}
    assert state.text == f"This page is connected to worker {worker} by websocket."

    for number in range(5):
        element(driver, "#text").send_keys(f"message {number} <b>")
        element(driver, "#send").click()
    expected = [(f"message {number} <b>", f"worker {worker}") for number in range(5)]
    wait_until(lambda: lines(driver) == expected, 20, "the five messages on the page")

    assert hosts_asked(driver) == {f"127.0.0.1:{server.port}"}
    assert log(driver, "browser") == []
