"""The session cookie: found in a request, and written into a response."""

from __future__ import annotations

import functools
import logging
import re
import secrets
from dataclasses import dataclass

from gunicorn_cluster_ext.logs import ThrottledLog
from gunicorn_cluster_ext.settings import SettingError, Settings

#: Logs a bad cookie, but not with each request: any client can send one.
complain_of_cookie = ThrottledLog(logging.INFO)

#: 256 random bits, in base64.
_ID = re.compile(r"[A-Za-z0-9_-]{43}")


def new_id() -> str:
    return secrets.token_urlsafe(32)


def is_id(value: str | None) -> bool:
    """Return whether ``value`` has the form of an id. Nothing else is ever looked up."""
    return value is not None and _ID.fullmatch(value) is not None


@dataclass(frozen=True)
class SessionCookie:
    """The attributes of the cookie. Raises SettingError for what browsers refuse.

    ``max_age`` is in seconds; with None the cookie ends with the browser.
    """

    name: str
    max_age: int | None
    domain: str | None = None
    path: str = "/"
    samesite: str = "Lax"
    always_secure: bool = False

    def __post_init__(self) -> None:
        if self.name.startswith("__Host-") and (self.domain or self.path != "/"):
            raise SettingError(
                f"The cookie {self.name}: browsers accept __Host- only with the path / and "
                "without a domain."
            )
        if self.samesite == "None" or self.name.startswith(("__Host-", "__Secure-")):
            object.__setattr__(self, "always_secure", True)

    @classmethod
    def of(cls, settings: Settings) -> SessionCookie:
        return cls(
            settings.session_cookie,
            int(settings.session_lifetime) or None,
            settings.session_domain,
            settings.session_path,
            settings.session_samesite,
            settings.session_secure == "always",
        )

    @functools.cached_property
    def _values(self) -> re.Pattern[str]:
        return re.compile(rf"(?:^|;)[ \t]*{re.escape(self.name)}[ \t]*=([^;]*)")

    def find(self, header: str) -> str | None:
        """Return the first session id in a ``Cookie`` header."""
        values: list[str] = self._values.findall(header)
        for value in values:
            if is_id(stripped := value.strip(" \t")):
                return stripped
        if values:
            size = len(values[0])
            complain_of_cookie(f"A session cookie is malformed: {size} characters")
        return None

    def put(self, sid: str, scheme: str) -> str:
        """Return the value of the ``Set-Cookie`` header that sets the cookie."""
        age = "" if self.max_age is None else f"; Max-Age={self.max_age}"
        return f"{self.name}={sid}{age}{self._attributes(scheme)}"

    def remove(self, scheme: str) -> str:
        """Return the value of the ``Set-Cookie`` header that deletes the cookie."""
        expired = "; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"
        return f"{self.name}={expired}{self._attributes(scheme)}"

    def _attributes(self, scheme: str) -> str:
        domain = f"; Domain={self.domain}" if self.domain else ""
        secure = "; Secure" if self.always_secure or scheme in ("https", "wss") else ""
        return f"; Path={self.path}{domain}; HttpOnly; SameSite={self.samesite}{secure}"
