"""The text of a sticky rule, as the setting ``cluster_sticky`` has it -> Rule. No I/O.

engineio | cookie | hash:ip                  a name
hash:SOURCE:NAME | learn:SOURCE:NAME         a value in the request, by its source
module:function                              a function of the user's, Head -> bytes | None
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import NamedTuple

from gunicorn_cluster_ext.routing.head import Head, decode
from gunicorn_cluster_ext.routing.rules import Cookie, EngineIO, Hash, Key, Learned, Recall, Rule

ALLOWED = (
    "engineio, cookie, learn:header:NAME, learn:cookie:NAME, hash:ip, hash:header:NAME, "
    "hash:query:NAME, hash:cookie:NAME, hash:path:REGEX or module:function"
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
#: These begin rules, so they cannot be the name of a module.
_RESERVED = ("hash", "cookie", "engineio", "learn")


class RuleContext(NamedTuple):
    """What rules need of the worker that they are built for.

    ``cookie`` is the name of our cookie. ``failed`` is called with the text of a rule and what its
    function, the user's, has raised.
    """

    cookie: str
    client_ip: Key
    recall: Recall
    failed: Callable[[str, Exception], None]


def check_rule(text: str) -> None:
    """Raise ValueError unless ``text`` is a rule. A user's module is not imported."""
    if text in ("engineio", "cookie", "hash:ip") or _names_function(text):
        return
    kind, _, rest = text.partition(":")
    source, _, name = rest.partition(":")
    if source not in _SOURCES.get(kind, ()):
        raise ValueError(f"{text!r} is not a rule")
    if source == "path":
        try:
            re.compile(name.encode("latin-1"))
        except (re.error, OverflowError, UnicodeEncodeError) as error:
            raise ValueError(f"{text!r}: {name!r} is not a regular expression: {error}") from None
    if not name or (source != "path" and not _TOKEN.fullmatch(name)):
        raise ValueError(f"{text!r} names no {source}")


def learn_rules(rules: Iterable[str]) -> list[str]:
    """Return the learn rules among ``rules``."""
    return [text for text in rules if text.startswith("learn:")]


def build_rule(text: str, context: RuleContext) -> Rule:
    """Return the rule that ``text`` stands for, which ``check_rule`` has accepted.

    Called in the worker after the application is loaded, because a user's function is imported
    here. Raise ImportError or AttributeError if it does not exist.
    """
    if text == "engineio":
        return EngineIO()
    if text == "cookie":
        return Cookie(context.cookie.encode())
    if text == "hash:ip":
        return Hash(context.client_ip)
    if _names_function(text):
        return Hash(_function_key(text, context.failed))
    kind, source, name = text.split(":", 2)
    key = _KEYS[source](name)
    return Learned(text, key, context.recall) if kind == "learn" else Hash(key)


def _names_function(text: str) -> bool:
    return _FUNCTION.fullmatch(text) is not None and text.split(":")[0] not in _RESERVED


def _function_key(text: str, failed: Callable[[str, Exception], None]) -> Key:
    module, _, name = text.partition(":")
    function = getattr(import_module(module), name)

    def key(head: Head) -> bytes | None:
        try:
            result = function(head)
            if result is not None and not isinstance(result, bytes):
                raise TypeError(f"a rule returns bytes or None, not {type(result).__name__}")
            return result
        except Exception as error:
            failed(text, error)
            return None

    return key


def _header_key(name: str) -> Key:
    field = name.lower().encode()
    return lambda head: head.header(field)


def _query_key(name: str) -> Key:
    field = name.encode()

    def key(head: Head) -> bytes | None:
        value = head.query(field)
        return None if value is None else decode(value)

    return key


def _cookie_key(name: str) -> Key:
    field = name.encode()
    return lambda head: head.cookie(field)


def _path_key(expression: str) -> Key:
    """The key is the first group of ``expression``, or the whole match if it has no group."""
    pattern = re.compile(expression.encode("latin-1"))

    def key(head: Head) -> bytes | None:
        match = pattern.search(head.path)
        return None if match is None else match[1 if pattern.groups else 0]

    return key


_KEYS: dict[str, Callable[[str], Key]] = {
    "header": _header_key,
    "query": _query_key,
    "cookie": _cookie_key,
    "path": _path_key,
}
_SOURCES = {"hash": tuple(_KEYS), "learn": ("header", "cookie")}
