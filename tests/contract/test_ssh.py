"""SSH to a real sshd: who answers, who is let in, and each way in which it goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime.errors import (
    AuthenticationFailed,
    HostKeyMismatch,
    MissingFeature,
    PeerError,
    ProtocolError,
    Unreachable,
    UsageError,
)
from pymigrate.transport import ssh
from pymigrate.transport.channel import Ended
from pymigrate.transport.destination import Destination
from pymigrate.transport.known_hosts import fingerprint
from pymigrate.transport.rpc import Client
from pymigrate.transport.ssh_settings import Timeouts
from tests.fakes.sshd import Sshd, make_key

WAIT = 10.0
QUICK = Timeouts(connect=0.5, banner=0.5, authentication=5, start=5)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide this person's own keys, agent and configuration."""
    directory = tmp_path / "home"
    (directory / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return directory


def connect(
    server: Sshd, *, identity: Path | None, known_hosts: Path | None = None
) -> ssh.Connection:
    return ssh.connect(
        Destination.parse(server.name),
        identity=identity,
        known_hosts=known_hosts or server.known_hosts,
    )


def agent(server: Sshd, script: str) -> BaseException:
    """Give what a receiver gets from a shell script in the agent's place."""
    with connect(server, identity=server.user_key) as connection:
        channel = connection.open_agent(["sh", "-c", script])
        try:
            with pytest.raises(Exception) as caught:  # noqa: PT011 - it is what we return
                channel.receive(timeout=WAIT)
        finally:
            channel.close()
    return caught.value


class TestHostKey:
    """Strict: known, or refused."""

    def test_a_known_host_is_accepted_with_the_cheapest_cipher(self, sshd: Sshd) -> None:
        with connect(sshd, identity=sshd.user_key) as connection:
            assert connection.cipher == "aes128-gcm@openssh.com"
            assert connection.alive
        assert not connection.alive

    def test_a_hashed_name_is_known(self, sshd: Sshd, tmp_path: Path) -> None:
        file = tmp_path / "hashed"
        file.write_text(sshd.host_key_line)
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True)
        assert "127.0.0.1" not in file.read_text()

        connect(sshd, identity=sshd.user_key, known_hosts=file).close()

    def test_an_unknown_host_is_refused_and_nothing_is_added(
        self, sshd: Sshd, tmp_path: Path
    ) -> None:
        file = tmp_path / "empty"
        file.touch()

        with pytest.raises(HostKeyMismatch, match="is not known") as caught:
            connect(sshd, identity=sshd.user_key, known_hosts=file)

        shown = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(sshd.directory / "host_key.pub")],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.split()[1]
        assert shown in caught.value.message
        assert f"ssh-keyscan -p {sshd.port} 127.0.0.1 >> {file}" in caught.value.hint
        assert file.read_text() == ""

    def test_a_changed_host_is_refused_with_both_fingerprints(
        self, sshd: Sshd, tmp_path: Path
    ) -> None:
        kind, blob = sshd.other_key.with_suffix(".pub").read_text().split()[:2]
        file = tmp_path / "changed"
        file.write_text(f"[127.0.0.1]:{sshd.port} {kind} {blob}\n")

        with pytest.raises(HostKeyMismatch, match="has changed") as caught:
            connect(sshd, identity=sshd.user_key, known_hosts=file)

        assert caught.value.message.count("SHA256:") == 2
        assert f"{file}:1" in caught.value.message

    def test_another_key_type_in_known_hosts_is_asked_for_first(
        self, sshd: Sshd, tmp_path: Path
    ) -> None:
        make_key(tmp_path / "ecdsa", kind="ecdsa")
        kind, blob = (tmp_path / "ecdsa.pub").read_text().split()[:2]
        file = tmp_path / "both"
        file.write_text(f"[127.0.0.1]:{sshd.port} {kind} {blob}\n{sshd.host_key_line}")

        connect(sshd, identity=sshd.user_key, known_hosts=file).close()


class TestLogin:
    """Keys from the option, the configuration, the agent, the usual places."""

    def test_a_refused_key_says_which_and_what_to_do(self, sshd: Sshd) -> None:
        with pytest.raises(AuthenticationFailed, match="authentication refused") as caught:
            connect(sshd, identity=sshd.other_key)

        assert str(sshd.other_key) in caught.value.message
        assert "authorized_keys" in caught.value.hint
        assert not caught.value.temporary

    def test_no_key_at_all(self, sshd: Sshd) -> None:
        with pytest.raises(AuthenticationFailed, match="there is no key to offer"):
            connect(sshd, identity=None)

    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
    def test_a_key_in_the_usual_place_of_any_kind(self, sshd: Sshd, home: Path, kind: str) -> None:
        make_key(home / ".ssh" / f"id_{kind}", kind=kind)
        allowed = sshd.directory / "authorized_keys"
        before = allowed.read_text()
        allowed.write_text(before + (home / ".ssh" / f"id_{kind}.pub").read_text())
        try:
            connect(sshd, identity=None).close()
        finally:
            allowed.write_text(before)

    def test_a_locked_key_without_agent_names_ssh_add(self, sshd: Sshd) -> None:
        with pytest.raises(AuthenticationFailed, match="has a passphrase") as caught:
            connect(sshd, identity=sshd.locked_key)

        assert f"ssh-add {sshd.locked_key}" in caught.value.hint

    def test_a_file_that_is_no_key(self, sshd: Sshd, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("not a key\n")

        with pytest.raises(UsageError, match="not a private key"):
            connect(sshd, identity=tmp_path / "text")

    @pytest.fixture
    def ssh_agent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """Run an agent of our own, without keys."""
        if shutil.which("ssh-agent") is None:
            pytest.skip("needs ssh-agent")
        path = tmp_path / "agent"
        process = subprocess.Popen(
            ["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()  # it has bound its socket
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        yield path
        process.terminate()
        process.communicate()

    def test_the_agents_keys_are_used(self, sshd: Sshd, ssh_agent: Path) -> None:
        subprocess.run(["ssh-add", "-q", str(sshd.user_key)], check=True)

        connect(sshd, identity=None).close()

    def test_a_locked_key_that_the_agent_holds(
        self, sshd: Sshd, ssh_agent: Path, tmp_path: Path
    ) -> None:
        answer = tmp_path / "askpass"
        answer.write_text("#!/bin/sh\necho secret\n")
        answer.chmod(0o700)
        environment = {**os.environ, "SSH_ASKPASS": str(answer), "SSH_ASKPASS_REQUIRE": "force"}
        subprocess.run(["ssh-add", "-q", str(sshd.locked_key)], check=True, env=environment)

        connect(sshd, identity=sshd.locked_key).close()


class TestReach:
    """Each way of not getting there has its sentence."""

    def test_nobody_listens(self, sshd: Sshd) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            with pytest.raises(Unreachable, match="connection refused") as caught:
                ssh.connect(Destination("127.0.0.1", "u", port))

        assert caught.value.temporary
        assert f"port {port}" in caught.value.hint

    def test_the_name_is_unknown(self) -> None:
        with pytest.raises(Unreachable, match=r"the name nowhere\.invalid is not known"):
            ssh.connect(Destination("nowhere.invalid"), timeouts=QUICK)

    def test_what_answers_is_not_ssh(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def answer() -> None:
                line, _ = listener.accept()
                with line:
                    line.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 200)
                    line.recv(1000)

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(ProtocolError, match="what answers is not SSH"):
                ssh.connect(Destination("127.0.0.1", "u", port), timeouts=QUICK)
            thread.join()

    def test_nothing_is_said_at_all(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with pytest.raises(ProtocolError, match="what answers is not SSH"):
                ssh.connect(Destination("127.0.0.1", "u", port), timeouts=QUICK)

    def test_through_a_proxy_command(self, sshd: Sshd, tmp_path: Path) -> None:
        relay = tmp_path / "relay.py"
        relay.write_text(
            "import os, socket, sys, threading\n"
            "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
            "def up():\n"
            "    while data := os.read(0, 65536): s.sendall(data)\n"
            "    s.shutdown(socket.SHUT_WR)\n"
            "threading.Thread(target=up, daemon=True).start()\n"
            "while data := s.recv(65536): os.write(1, data)\n"
        )
        config = tmp_path / "config"
        config.write_text(
            f"Host inside\n  HostName 127.0.0.1\n  Port {sshd.port}\n"
            f"  ProxyCommand {sys.executable} {relay} %h %p\n"
        )
        with ssh.connect(
            Destination("inside"),
            identity=sshd.user_key,
            known_hosts=sshd.known_hosts,
            ssh_config=config,
        ) as connection:
            assert connection.alive

    def test_through_another_host(self, sshd: Sshd, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text(
            f"Host *\n  UserKnownHostsFile {sshd.known_hosts}\n"
            f"Host inside\n  HostName 127.0.0.1\n  Port {sshd.port}\n"
            f"  ProxyJump 127.0.0.1:{sshd.port}\n"
        )
        with ssh.connect(
            Destination("inside"), identity=sshd.user_key, ssh_config=config
        ) as connection:
            channel = connection.open_agent(["true"])
            with pytest.raises(Ended):
                channel.receive(timeout=WAIT)
            channel.close()

    def test_a_proxy_command_that_does_not_exist(self, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text("Host x\n  ProxyCommand /does/not/exist %h\n")

        with pytest.raises(UsageError, match="ProxyCommand"):
            ssh.connect(Destination("x"), ssh_config=config)


class TestAgent:
    """No agent, another program, or one that dies."""

    def test_no_such_command_is_a_missing_feature_with_its_remedy(self, sshd: Sshd) -> None:
        with connect(sshd, identity=sshd.user_key) as connection:
            channel = connection.open_agent(["pymigrate-that-is-not-there", "agent"])
            with pytest.raises(MissingFeature, match="pymigrate-that-is-not-there") as caught:
                channel.receive(timeout=WAIT)
            channel.close()

        assert "not found" in caught.value.message
        assert "install pymigrate" in caught.value.hint
        assert "--remote-command" in caught.value.hint

    def test_arguments_are_quoted_for_the_remote_shell(self, sshd: Sshd, tmp_path: Path) -> None:
        canary = tmp_path / "canary"
        with connect(sshd, identity=sshd.user_key) as connection:
            channel = connection.open_agent(["true", f"; touch {canary}", f"$(touch {canary})"])
            with pytest.raises(Ended):
                channel.receive(timeout=WAIT)
            channel.close()

        assert not canary.exists()

    def test_the_error_of_an_agent_that_does_not_start_is_shown(self, sshd: Sshd) -> None:
        error = agent(sshd, "echo 'pymigrate: only root can do this\nhint: sudo' >&2; exit 23")

        assert isinstance(error, PeerError)
        assert "the agent did not start: only root can do this" in error.message
        assert (error.hint, error.peer_code) == ("sudo", 23)

    def test_a_talkative_shell_is_named_with_its_remedy(self, sshd: Sshd) -> None:
        error = agent(sshd, "echo Welcome to beta; cat >/dev/null")

        assert isinstance(error, ProtocolError)
        assert "'Welcome to beta'" in error.message
        assert "start-up file" in error.hint

    def test_a_talkative_shell_that_does_not_find_the_agent(self, sshd: Sshd) -> None:
        error = agent(sshd, "echo Welcome; exec /does/not/exist")

        assert isinstance(error, MissingFeature)

    def test_the_reason_reaches_who_called(self, sshd: Sshd) -> None:
        with (
            connect(sshd, identity=sshd.user_key) as connection,
            Client(connection.open_agent(["pymigrate-that-is-not-there"])) as client,
            pytest.raises(MissingFeature, match="pymigrate-that-is-not-there"),
        ):
            client.hello()

    @pytest.mark.skipif(os.geteuid() != 0, reason="the agent needs root")
    def test_a_key_with_a_forced_command_gets_the_agent_and_nothing_else(
        self, sshd: Sshd, tmp_path: Path
    ) -> None:
        """The line is that of docs/SECURITY.md, with the interpreter and root of this test."""
        allowed = sshd.directory / "authorized_keys"
        before = allowed.read_text()
        forced = f"{sys.executable} -I -m pymigrate.migrate --root {tmp_path / 'root'} agent"
        key = (sshd.directory / "user_key.pub").read_text()
        allowed.write_text(f'restrict,command="{forced}" {key}')
        evidence = tmp_path / "evidence"
        try:
            with (
                connect(sshd, identity=sshd.user_key) as connection,
                Client(connection.open_agent(["touch", str(evidence)])) as client,
            ):
                reply = client.hello("20260102-030405-web-a1b2c3")
                assert (tmp_path / "root/host-id").read_text().strip() == reply.host_id
        finally:
            allowed.write_text(before)
        assert not evidence.exists()

    def test_much_on_standard_error_does_not_stop_the_agent(self, sshd: Sshd) -> None:
        error = agent(sshd, "head -c 30000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo last >&2")

        assert isinstance(error, Ended)
        assert "(last)" in error.message

    def test_a_killed_agent_is_noticed_at_once(self, sshd: Sshd) -> None:
        error = agent(sshd, "kill -KILL $$")

        assert isinstance(error, Unreachable)

    def test_a_dead_sshd_is_noticed_at_once(self, sshd: Sshd) -> None:
        with connect(sshd, identity=sshd.user_key) as connection:
            # The parent of the agent's shell is the sshd of this one connection.
            channel = connection.open_agent(["sh", "-c", "echo $PPID >&2; cat >/dev/null"])
            while not channel.stderr.strip():
                threading.Event().wait(0.01)
            os.kill(int(channel.stderr), signal.SIGKILL)

            with pytest.raises(Unreachable, match="connection lost"):
                channel.receive(timeout=WAIT)
            channel.close()

    def test_a_cut_line_is_noticed_by_silence(self, sshd: Sshd) -> None:
        with (
            connect(sshd, identity=sshd.user_key) as connection,
            Client(connection.open_agent(["cat"]), interval=5, silence=0.5) as client,
            pytest.raises((Unreachable, ProtocolError)),
        ):
            client.hello()


def test_fingerprints_are_those_of_ssh_keygen() -> None:
    assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
