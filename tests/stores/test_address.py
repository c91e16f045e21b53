import pytest

from gunicorn_cluster_ext.stores.redis.url import Topology, parse


@pytest.mark.parametrize(
    ("url", "shown", "options"),
    [
        ("redis://h", "redis://h:6379", {"host": "h"}),
        ("redis://u:p%40@h:1/2", "redis://h:1", {"username": "u", "password": "p@", "db": 2}),
        ("unix:///a/b.sock?db=3", "unix:///a/b.sock", {"path": "/a/b.sock", "db": 3}),
    ],
)
def test_one_server(url: str, shown: str, options: dict[str, object]) -> None:
    address = parse(url)
    assert (address.topology, str(address)) == (Topology.SINGLE, shown)
    assert address.options().items() >= options.items()


def test_sentinels() -> None:
    address = parse("redis+sentinel://:secret@a:1,[::1]:2,c/main%20one/4?sentinel_password=x")
    assert address.topology is Topology.SENTINEL
    assert address.nodes == (("a", 1), ("::1", 2), ("c", 26379))
    assert address.service == "main one"
    options = address.options()
    assert (options["password"], options["db"]) == ("secret", 4)
    assert options["sentinel_password"] == "x"
    assert str(address) == "redis+sentinel://a:1,::1:2,c:26379/main one"


def test_cluster() -> None:
    address = parse("rediss+cluster://u:secret@a:1,b")
    assert (address.topology, address.nodes) == (Topology.CLUSTER, (("a", 1), ("b", 6379)))
    assert address.options()["connection_class"].__name__ == "SSLConnection"
    assert "secret" not in str(address)


@pytest.mark.parametrize("url", ["redis+cluster://", "redis+cluster://a:x", "redis+sentinel:///s"])
def test_no_address(url: str) -> None:
    with pytest.raises(ValueError):
        parse(url)
