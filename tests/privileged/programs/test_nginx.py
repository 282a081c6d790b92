"""nginx with a download in progress."""

from __future__ import annotations

import pytest

from tests.lab import Client, Lab
from tests.privileged.programs.conftest import Relocate, by_mode, move_and_back

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

ADDRESS = "10.88.0.23"
MIB = 24
GIB = 1024
SERVER = """
set -eu
dd if=/dev/urandom of=/var/www/html/big bs=1M count=$0 status=none
echo ready
echo small > /var/www/html/small
cat > /tmp/nginx.conf << .
daemon off;
worker_processes 2;
events {}
http {
  sendfile on;
  access_log off;
  server {
    listen 80;
    root /var/www/html;
    location /big { limit_rate 16m; }
  }
}
.
exec nginx -c /tmp/nginx.conf
"""


def test_nginx_finishes_the_download_that_it_began(lab: Lab, relocate: Relocate) -> None:
    run = ("run", "-d", "--name", "nginx", "--ip", ADDRESS)
    lab["alpha"].pymigrate(*run, "programs", "sh", "-c", SERVER, str(MIB))
    options = ("--path", "/big", "--rate", "100")  # 1.6 MiB/s: the move has 15 s
    with Client(lab.client, "download", ADDRESS, 80, *options) as download:
        begun = download.ask("begun")["received"]

        host = relocate("nginx")

        assert begun < download.ask("faster")["received"] < MIB << 20
        said = download.finish()
        digest = host.pymigrate("exec", "nginx", "sha256sum", "/var/www/html/big").stdout
        with Client(lab.client, "download", ADDRESS, 80, "--path", "/small") as another:
            assert another.finish()["received"] == len("small\n")

    assert MIB << 20 == said["received"]
    assert digest.split()[0] == said["sha256"]


@by_mode()
@pytest.mark.requires("userfaultfd")
@pytest.mark.usefixtures("containers")
def test_a_download_of_a_gibibyte_goes_on_while_nginx_moves_twice(lab: Lab, mode: str) -> None:
    run = ("run", "-d", "--name", "nginx", "--ip", ADDRESS)
    lab["alpha"].pymigrate(*run, "programs", "sh", "-c", SERVER, str(GIB))
    lab["alpha"].sh("until pymigrate logs nginx | grep -q ready; do sleep 0.1; done", timeout=120)
    options = ("--path", "/big", "--rate", "100")  # 1.6 MiB/s: it lasts longer than both moves
    with Client(lab.client, "download", ADDRESS, 80, *options) as download:
        received = [int(download.ask("begun")["received"])]

        def used() -> None:
            received.append(int(download.ask("moved")["received"]))

        move_and_back(lab, "nginx", mode, used)

        received.append(int(download.ask("faster")["received"]))
        said = download.finish(patience=280)
    digest = lab["alpha"].pymigrate("exec", "nginx", "sha256sum", "/var/www/html/big").stdout

    assert sorted(set(received)) == received
    assert received[-1] < GIB << 20 == said["received"]
    assert digest.split()[0] == said["sha256"]
