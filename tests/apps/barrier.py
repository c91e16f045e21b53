"""Requests that wait in their middle until the test lets them go on."""

import time
from collections.abc import Mapping

from gunicorn_cluster_ext import cache


def wait(query: Mapping[str, str]) -> None:
    if "meet" in query:
        cache.incr("met")
        while not cache.get("go on"):
            time.sleep(0.01)
    time.sleep(float(query.get("sleep", 0)))


async def await_(query: Mapping[str, str]) -> None:
    import asyncio  # as in wsgi_and_asgi

    if "meet" in query:
        await cache.aincr("met")
        while not await cache.aget("go on"):
            await asyncio.sleep(0.01)
    await asyncio.sleep(float(query.get("sleep", 0)))
