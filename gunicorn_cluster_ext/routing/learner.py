"""What responses teach: which process a client's later requests belong to. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from gunicorn_cluster_ext.routing.rules import bare


class Learner:
    """Hears the headers of this process's responses, for the learn rules ``rules``.

    ``learn`` is told the rule and the value when there is one (``Memory.learn``) and answers
    whether that is news; then ``begun`` is called.
    """

    def __init__(
        self,
        rules: Sequence[str],
        learn: Callable[[str, bytes], bool],
        begun: Callable[[], None],
    ) -> None:
        self._learn = learn
        self._begun = begun
        named = [(rule, *rule.split(":", 2)[1:]) for rule in rules]
        self._headers = {name.lower(): rule for rule, kind, name in named if kind == "header"}
        self._cookies = {name: rule for rule, kind, name in named if kind == "cookie"}

    def hear(self, headers: Iterable[tuple[str, str]]) -> None:
        """Called in any thread, before the response is sent: the client may ask again at once."""
        for rule, text in self._found(headers):
            value = bare(text.encode("latin-1", "replace"))
            # A cookie is deleted by setting it to nothing.
            if value and self._learn(rule, value):
                self._begun()

    def _found(self, headers: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Each rule that finds a value, with the value."""
        for name, value in headers:
            field = name.lower()
            if field in self._headers:
                yield self._headers[field], value
            elif field == "set-cookie" and self._cookies:
                name, _, value = value.partition(";")[0].partition("=")
                if name.strip() in self._cookies:
                    yield self._cookies[name.strip()], value
