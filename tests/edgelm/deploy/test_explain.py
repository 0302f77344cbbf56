"""ssh's words, as OpenSSH 9 prints them, and edgelm's."""

from __future__ import annotations

import pytest

from edgelm.deploy.ssh import explain

_CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (_CHANGED, "ssh-keygen -R board"),
        ("No ED25519 host key is known for board and you have requested strict checking.\nHost key verification failed.\n",
         "Connect once by hand and compare the fingerprint: ssh pi@board"),
        ("pi@board: Permission denied (publickey,password).\n", "ssh-copy-id pi@board"),
        ("ssh: connect to host board port 22: Connection timed out\n", "gave no answer in time"),
        ("ssh: connect to host board port 22: No route to host\n", "off, or in another network"),
        ("ssh: connect to host board port 22: Network is unreachable\n", "no network that leads to board"),
        ("Timeout, server board not responding.\n", "was lost (Timeout, server board not responding.)"),
        ("Connection to board closed by remote host.\n", "was lost (Connection to board closed by remote host.)"),
        ("", "was lost (ssh said nothing)"),
    ],
)  # fmt: skip
def test_each_failure_has_a_line_of_its_own(said: str, told: str) -> None:
    message = explain(f"Warning: Permanently added 'board' (ED25519) to the list of known hosts.\n{said}", "pi@board")
    assert told in message
    assert "\n" not in message
