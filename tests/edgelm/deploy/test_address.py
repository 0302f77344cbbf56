"""How devices are named."""

from __future__ import annotations

import pytest

from edgelm.deploy import Address, parse_address
from edgelm.errors import InputError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("pi@raspberrypi.local", Address("ssh", "pi@raspberrypi.local", None, ".")),
        ("board", Address("ssh", "board", None, ".")),
        ("pi@board:models/new", Address("ssh", "pi@board", None, "models/new")),
        ("board:/srv/models", Address("ssh", "board", None, "/srv/models")),
        ("board:~/models", Address("ssh", "board", None, "models")),
        ("board:-x", Address("ssh", "board", None, "./-x")),
        ("pi@[fe80::1]:models", Address("ssh", "pi@fe80::1", None, "models")),
        ("ssh://pi@board:2222", Address("ssh", "pi@board", 2222, ".")),
        ("ssh://board/models", Address("ssh", "board", None, "models")),
        ("ssh://board//srv", Address("ssh", "board", None, "/srv")),
        ("ssh://pi@[::1]:22/x", Address("ssh", "pi@::1", 22, "x")),
        ("adb:", Address("adb", "", None, "/data/local/tmp/edgelm")),
        ("adb:R58M", Address("adb", "R58M", None, "/data/local/tmp/edgelm")),
        ("adb:192.168.1.20:5555", Address("adb", "192.168.1.20:5555", None, "/data/local/tmp/edgelm")),
        ("adb:R58M:/sdcard/x", Address("adb", "R58M", None, "/sdcard/x")),
    ],
)
def test_addresses(text: str, wanted: Address) -> None:
    assert parse_address(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=id",
        "pi@-oProxyCommand=id",
        "-l@x",
        "a b",
        "pi@",
        ":x",
        "ssh://",
        "ssh://-x",
        "adb:-x",
        "a\nb",
    ],
)
def test_what_is_no_device_or_would_be_an_option_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no device"):
        parse_address(text)


def test_an_impossible_port() -> None:
    with pytest.raises(InputError, match="70000 is no port"):
        parse_address("ssh://board:70000")
