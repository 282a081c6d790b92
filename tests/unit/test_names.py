"""What is written into /etc/hosts and /etc/resolv.conf of a container."""

from __future__ import annotations

import argparse
import json

import pytest

from pymigrate.migrate import network_options
from pymigrate.runtime import names, state
from pymigrate.runtime.errors import ContainerError, UsageError
from pymigrate.runtime.state import Names, NetworkSettings
from pymigrate.runtime.values import replace

OF_HOST = "# by hand\nnameserver 10.0.0.53\nsearch example.org\noptions ndots:2\nsortlist 10/8\n"


def test_of_the_hosts_resolv_conf_that_is_replaced_which_was_given() -> None:
    assert OF_HOST == names.resolv_conf(OF_HOST, Names())
    given = Names(servers=("1.1.1.1", "::1"))
    assert names.resolv_conf(OF_HOST, given).splitlines() == [
        "nameserver 1.1.1.1",
        "nameserver ::1",
        "# by hand",
        "search example.org",
        "options ndots:2",
        "sortlist 10/8",
    ]
    given = Names(search=("a.org", "b.org"), options=("timeout:1", "edns0"))
    assert names.resolv_conf("domain c.org\n" + OF_HOST, given).splitlines() == [
        "search a.org b.org",
        "options timeout:1 edns0",
        "# by hand",
        "nameserver 10.0.0.53",
        "sortlist 10/8",
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            NetworkSettings(address="10.88.0.5/16", address6="fd00::5/64", gateway="10.88.0.1"),
            ["10.88.0.1 host", "10.88.0.9 db", "10.88.0.5 h web", "fd00::5 h web"],
        ),
        (NetworkSettings("host"), ["127.0.0.1 host", "10.88.0.9 db", "127.0.1.1 h web"]),
    ],
)
def test_hosts_are_what_was_asked_for_and_the_container(
    settings: NetworkSettings, expected: list[str]
) -> None:
    asked = Names(hosts=("host-gateway host", "10.88.0.9 db"))
    text = names.hosts(replace(settings, names=asked), "h", "web")

    assert text.replace("\t", " ").splitlines() == [
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
        *expected,
    ]


def options(**given: list[str]) -> argparse.Namespace:
    none: dict[str, list[str]] = {
        name: [] for name in ("dns", "dns_search", "dns_option", "add_host")
    }
    return argparse.Namespace(**{**none, **given})


def test_options_become_names() -> None:
    given = options(
        dns=["1.1.1.1"], dns_search=["a.org"], dns_option=["ndots:1"], add_host=["v6:fe80::1"]
    )

    assert network_options.names(given) == Names(
        ("1.1.1.1",), ("a.org",), ("ndots:1",), ("fe80::1 v6",)
    )


@pytest.mark.parametrize(
    "given",
    [
        {"dns": ["example.org"]},
        {"dns": [""]},
        {"dns_search": ["a b"]},
        {"dns_option": ["x\ny"]},
        {"add_host": ["db"]},
        {"add_host": ["db:"]},
        {"add_host": ["d b:1.1.1.1"]},
        {"add_host": [":1.1.1.1"]},
    ],
)
def test_what_is_no_name_and_no_address_is_refused(given: dict[str, list[str]]) -> None:
    with pytest.raises(UsageError, match="nothing was made"):
        network_options.names(options(**given))


def test_a_record_of_another_host_writes_no_lines_of_its_own() -> None:
    record = state.Record("", "web", None, None, (), "", NetworkSettings())
    document = json.loads(json.dumps(state.record_to_document(record)))
    document["network"]["names"]["hosts"] = ["1.1.1.1 a\n2.2.2.2 b"]

    with pytest.raises(ContainerError, match="cannot be written"):
        state.record_from_document(document)
