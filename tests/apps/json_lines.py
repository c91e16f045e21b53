"""Structured logs: one JSON object per line, with every field of the record that is not logging's
own, as python-json-logger makes them."""

import json
import logging
from typing import Any

_OWN = set(vars(logging.makeLogRecord({}))) - {"worker_id", "worker_generation"}


class Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "pid": record.process,
        }
        extra = {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps({**fields, **extra}, default=str)
