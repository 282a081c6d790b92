"""[USER@]HOST[:PORT], and what the SSH configuration adds to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymigrate.runtime.errors import UsageError
from pymigrate.transport import ssh
from pymigrate.transport.destination import Destination


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("beta", Destination("beta")),
        ("root@beta", Destination("beta", "root")),
        ("root@beta:2222", Destination("beta", "root", 2222)),
        ("10.0.0.1:22", Destination("10.0.0.1", None, 22)),
        ("[::1]:22", Destination("::1", None, 22)),
        ("root@[fe80::1%eth0]", Destination("fe80::1%eth0", "root")),
        ("::1", Destination("::1")),
        ("root@2001:db8::7", Destination("2001:db8::7", "root")),
    ],
)
def test_what_a_person_types(text: str, destination: Destination) -> None:
    assert Destination.parse(text) == destination
    assert Destination.parse(str(destination)) == destination


@pytest.mark.parametrize(
    "text",
    [
        *("", "@beta", "beta:", "beta:0", "beta:65536", "beta:ssh", "a b", "-oProxyCommand=x"),
        *("root@-x", "a@b@c", "[::1", "[beta]x:1", "beta/x", "[]:22"),
    ],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a host|there is no port"):
        Destination.parse(text)


class TestConfiguration:
    """What was typed comes first, then the file, then what is usual."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        file = tmp_path / "config"
        file.write_text(
            "Host beta\n  HostName 10.1.2.3\n  Port 2222\n  User admin\n"
            "  IdentityFile /keys/beta\n  IdentitiesOnly yes\n"
            "  UserKnownHostsFile /known/one /known/two\n"
            "Host far\n  ProxyJump root@near:2200,nearer\n"
            "Host wrapped\n  HostName inside\n  User u\n  ProxyCommand nc -x %h %p %r\n"
            "Host alias\n  HostKeyAlias beta-key\n"
        )
        return file

    def test_the_file_is_used(self, config: Path) -> None:
        settings = ssh.resolve(Destination.parse("beta"), ssh_config=config)

        assert (settings.host, settings.port, settings.user) == ("10.1.2.3", 2222, "admin")
        assert settings.identities == (Path("/keys/beta"),)
        assert settings.identities_only
        assert settings.known_hosts[:2] == (Path("/known/one"), Path("/known/two"))
        assert settings.host_key_name == "[10.1.2.3]:2222"
        assert settings.name == "beta"

    def test_what_was_typed_wins(self, config: Path, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.touch()

        settings = ssh.resolve(
            Destination.parse("me@beta:22"),
            ssh_config=config,
            identity=key,
            known_hosts=tmp_path / "known",
        )

        assert (settings.port, settings.user) == (22, "me")
        assert settings.identities == (key, Path("/keys/beta"))
        assert settings.known_hosts == (tmp_path / "known",)
        assert settings.host_key_name == "10.1.2.3"

    def test_jumps_and_proxies_with_what_was_typed_filled_in(self, config: Path) -> None:
        far = ssh.resolve(Destination.parse("far"), ssh_config=config)
        wrapped = ssh.resolve(Destination.parse("me@wrapped:99"), ssh_config=config)

        assert far.jumps == ("root@near:2200", "nearer")
        assert wrapped.proxy_command == "nc -x inside 99 me"

    def test_a_host_key_may_have_another_name(self, config: Path) -> None:
        settings = ssh.resolve(Destination.parse("alias:2200"), ssh_config=config)

        assert settings.host_key_name == "beta-key"

    def test_missing_files_are_named(self, config: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no SSH configuration"):
            ssh.resolve(Destination.parse("beta"), ssh_config=tmp_path / "none")
        with pytest.raises(UsageError, match="no key"):
            ssh.resolve(Destination.parse("beta"), ssh_config=config, identity=tmp_path / "none")
