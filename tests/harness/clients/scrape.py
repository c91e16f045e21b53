"""Metrics as Prometheus reads them."""

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

#: A series: its name and its labels.
Series = tuple[str, frozenset[tuple[str, str]]]


class Scrape:
    """The samples in a text, which must be in Prometheus' format."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.samples: dict[Series, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __repr__(self) -> str:
        return f"<Scrape {self.samples}>"

    def get(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the values of a metric by the value of its only label."""
        found = {key: value for key, value in self.samples.items() if key[0] == name}
        return {dict(labels)[label]: value for (_, labels), value in found.items()}

    def total(self, name: str) -> float:
        return sum(value for key, value in self.samples.items() if key[0] == name)

    def counters(self) -> Iterator[Series]:
        for family in self.families:
            if family.type == "counter":
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        yield sample.name, frozenset(sample.labels.items())
