"""Sticky rules as a user writes them, beside the application that they are for."""

from whoami import app

from gunicorn_cluster_ext.routing.head import Head

__all__ = ["app", "method", "tenant"]


def tenant(head: Head) -> bytes | None:
    """The first part of the path; some tenants are known for the trouble they make."""
    name = head.path.split(b"/")[1]
    if name == b"raise":
        raise RuntimeError("no such tenant")
    if name == b"text":
        return "text"  # type: ignore[return-value]
    return name or None


def method(head: Head) -> bytes:
    return head.method
