"""The examples: a login and counters on four workers, whatever the framework."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.harness.clients.connection import Answer
from tests.harness.servers.gunicorn import Gunicorn
from tests.harness.servers.store_site import STICKY, StoreSite

pytestmark = pytest.mark.one_gunicorn


EXAMPLES = {
    "flask": ("login_flask:app", STICKY),
    "fastapi": ("login_fastapi:app", "asgi"),
    "django": ("login_django:application", STICKY),
}


class Browser:
    """Keeps cookies, sends forms, reads the page."""

    def __init__(self, server: Gunicorn) -> None:
        self.server = server
        self.jar: dict[str, str] = {}
        self.token = ""

    def page(self) -> dict[str, str]:
        answer = self._ask("GET", "/")
        assert answer.status == 200, answer.body
        text = answer.body.decode()
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', text)
        self.token = token[1] if token else ""
        return dict(re.findall(r'<b id="(\w+)">(.*?)</b>', text))

    def post(self, path: str, **form: str) -> None:
        answer = self._ask("POST", path, {**form, "csrfmiddlewaretoken": self.token})
        assert answer.status == 302, answer.body

    def _ask(self, method: str, path: str, form: dict[str, str] | None = None) -> Answer:
        headers = {
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.jar.items()) or "a=b",
            "Connection": "close",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        with self.server.connect() as connection:
            answer = connection.request(method, path, headers, urlencode(form or {}).encode())
        for line in answer.headers.get_all("Set-Cookie", []):
            for name, morsel in SimpleCookie(line).items():
                # The sticky cookie is left alone, so that requests go everywhere.
                if name != "gunicorn_worker":
                    self.jar[name] = morsel.value
        return answer


@pytest.fixture(params=EXAMPLES)
def server(request: Any, shared_store_site: StoreSite) -> Gunicorn:
    app, kind = EXAMPLES[request.param]
    threads = [] if kind == "asgi" else ["--threads", "8"]
    return shared_store_site.start(app, "-k", kind, *threads)


def at_once(times: int, ask: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(times) as crowd:
        return list(crowd.map(lambda _: ask(), range(times)))


def test_a_login_and_counters(server: Gunicorn) -> None:
    browser = Browser(server)
    first = browser.page()
    assert (first["user"], first["mine"]) == ("nobody", "1")
    before = dict(browser.jar)
    browser.post("/login", user="<Ada>")
    assert {**before, **browser.jar} != before  # a new id
    for number in range(2, 8):
        page = browser.page()
        assert (page["user"], page["mine"]) == ("&lt;Ada&gt;", str(number))
    browser.post("/logout")
    page = browser.page()
    assert (page["user"], page["mine"]) == ("nobody", "1")


def test_the_right_counter_is_right_and_the_wrong_one_is_wrong(server: Gunicorn) -> None:
    asked = 1 + int(Browser(server).page()["right"])  # and what the harness has asked before
    pages = [page for _ in range(6) for page in at_once(16, Browser(server).page)]
    assert sorted(int(page["right"]) for page in pages) == list(range(asked, asked + len(pages)))
    assert len({page["worker"] for page in pages}) > 1
    assert max(int(page["wrong"]) for page in pages) < asked + len(pages) - 1
