import pytest

from gunicorn_cluster_ext.routing.rule_syntax import check_rule


@pytest.mark.parametrize(
    "words",
    [
        "engineio",
        "cookie",
        "hash:ip",
        "hash:header:X-Key",
        "hash:query:user",
        "hash:cookie:session",
        "hash:path:^/rooms/([^/]+)",
        "hash:path:/a:b",
        "hash:path:\xe9",
        "learn:header:Mcp-Session-Id",
        "learn:cookie:JSESSIONID",
        "package.module:function",
        "_m:_f",
    ],
)
def test_a_rule_is_accepted(words: str) -> None:
    check_rule(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "is not a rule"),
        ("engine.io", "is not a rule"),
        ("cookies", "is not a rule"),
        ("cookie:name", "is not a rule"),
        ("learn:mcp", "is not a rule"),
        ("learn:", "is not a rule"),
        ("learn:ip", "is not a rule"),
        ("learn:query:sid", "is not a rule"),
        ("learn:path:x", "is not a rule"),
        ("learn:header", "names no header"),
        ("learn:header:Set Cookie", "names no header"),
        ("learn:cookie:", "names no cookie"),
        ("learn:cookie:a=b", "names no cookie"),
        ("hash", "is not a rule"),
        ("hash:", "is not a rule"),
        ("hash:host", "is not a rule"),
        ("hash:ip:4", "is not a rule"),
        ("header:X-Key", "is not a rule"),
        ("hash:header", "names no header"),
        ("hash:header:", "names no header"),
        ("hash:header:X Key", "names no header"),
        ("hash:query:", "names no query"),
        ("hash:cookie:a;b", "names no cookie"),
        ("hash:path:", "names no path"),
        ("hash:path:(", "is not a regular expression"),
        ("hash:path:\u20ac", "is not a regular expression"),
        ("hash:path:a{9999999999999999999}", "is not a regular expression"),
        ("module:", "is not a rule"),
        (":function", "is not a rule"),
        ("module:function()", "is not a rule"),
        ("a b:c", "is not a rule"),
    ],
)
def test_a_rule_is_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rule(words)


def test_checking_a_rule_imports_nothing() -> None:
    check_rule("tests.unit.absent:function")
