"""Messages: packing, versions, and values that must not reach a file name."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime.errors import NoSpace, ProtocolError
from pymigrate.transport import messages as m
from pymigrate.transport import messages_pb2

REPOSITORY = Path(__file__).parents[2]
DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    "request_",
    [
        m.hello("mig-1"),
        m.Reserve(migration_id="a", name="web.1", layers=[DIGEST], spec_json=b"{}"),
        m.PutLayer(migration_id="a", digest="0a" * 32),
        m.PutFiles(migration_id="a", tree="upper"),
        m.PutFiles(migration_id="a", tree="/var/lib/data"),
        m.Resume(migration_id="a"),
    ],
    ids=lambda body: type(body).__name__,
)
def test_a_request_arrives_as_it_was_sent(request_: m.Message) -> None:
    assert m.unpack_request(m.pack_request(7, request_)) == (7, request_)


def test_a_reply_arrives_as_it_was_sent() -> None:
    reply = m.Restored(pid=4711, seconds=0.25)

    assert m.unpack_reply(m.pack_reply(8, reply)) == (8, reply)


def test_an_error_keeps_message_hint_and_exit_code() -> None:
    identity, error = m.unpack_error(m.pack_error(9, NoSpace("beta: disk full", hint="clear it")))

    assert identity == 9
    assert (error.message, error.hint, error.peer_code) == ("beta: disk full", "clear it", 24)


def test_an_error_of_a_peer_cannot_steer_our_terminal() -> None:
    hostile = m.Error(id=1, code=99999, message="\x1b]0;owned\x07bad\r" + "x" * 100_000)

    _, error = m.unpack_error(hostile.SerializeToString())

    assert "\x1b" not in error.message
    assert "\r" not in error.message
    assert len(error.message) <= m.MAX_TEXT
    assert error.peer_code == 1


@pytest.mark.parametrize(
    "hostile",
    [
        m.Resume(),
        m.Resume(migration_id="../../etc"),
        m.Resume(migration_id="a/b"),
        m.Resume(migration_id="a" * 65),
        m.Resume(migration_id="a\n"),
        m.Hello(migration_id="."),
        m.Reserve(migration_id="a", name=""),
        m.Reserve(migration_id="a", name=".."),
        m.Reserve(migration_id="a", name="a/b"),
        m.Reserve(migration_id="a", name="ok", layers=["../x"]),
        m.PutLayer(migration_id="a", digest="sha256:../../x"),
        m.PutFiles(migration_id="a", tree=""),
        m.PutFiles(migration_id="a", tree="relative"),
        m.PutFiles(migration_id="a", tree="/data/../../etc"),
        m.PutFiles(migration_id="a", tree="/data\0"),
        *(
            m.PutImageFiles(migration_id="a", files=[m.PutImageFiles.File(name=name)])
            for name in ("", ".", "..", "a/b", "/etc/x", "a\0", "-x\n", ".hidden", "a" * 252)
        ),
    ],
)
def test_values_that_would_be_dangerous_in_a_file_name_are_refused(hostile: m.Message) -> None:
    with pytest.raises(ProtocolError, match="impossible"):
        m.unpack_request(m.pack_request(1, hostile))


def test_a_file_that_is_named_twice_is_refused() -> None:
    files = [m.PutImageFiles.File(name=name, size=1) for name in ("a.img", "b.img", "a.img")]

    with pytest.raises(ProtocolError, match="twice"):
        m.unpack_request(m.pack_request(1, m.PutImageFiles(migration_id="a", files=files)))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_a_protocol_error(noise: bytes) -> None:
    for unpack in (m.unpack_request, m.unpack_reply, m.unpack_error):
        try:
            unpack(noise)
        except ProtocolError:
            continue
    m.request_id(noise)


def test_a_request_of_a_newer_version_is_a_clean_protocol_error() -> None:
    newer = b"\x08\x05" + b"\xfa\x06\x00"  # id 5, and field 111, which nobody has defined yet

    with pytest.raises(ProtocolError, match="does not know") as caught:
        m.unpack_request(newer)

    assert "same version" in caught.value.hint
    assert m.request_id(newer) == 5


class TestVersions:
    """The highest that both speak, or a sentence with both sides' versions."""

    @pytest.mark.parametrize(
        ("theirs", "ours", "chosen"),
        [((1, 1), (1, 1), 1), ((1, 5), (2, 3), 3), ((3, 3), (1, 9), 3)],
    )
    def test_the_highest_common_version_is_chosen(
        self, theirs: tuple[int, int], ours: tuple[int, int], chosen: int
    ) -> None:
        peer = m.Hello(protocol_min=theirs[0], protocol_max=theirs[1])

        assert m.negotiate(peer, lowest=ours[0], highest=ours[1]) == chosen

    @pytest.mark.parametrize(
        ("theirs", "older"), [((1, 1), "the source's"), ((4, 5), "the target's")]
    )
    def test_no_common_version_names_both_and_says_who_is_older(
        self, theirs: tuple[int, int], older: str
    ) -> None:
        peer = m.Hello(protocol_min=theirs[0], protocol_max=theirs[1], software="pymigrate 9.9")

        with pytest.raises(
            ProtocolError, match=r"pymigrate 9\.9 with protocol .* with 2 to 3"
        ) as e:
            m.negotiate(peer, lowest=2, highest=3)

        assert older in e.value.hint

    @pytest.mark.parametrize("span", [(0, 0), (3, 1)])
    def test_an_impossible_span_is_refused(self, span: tuple[int, int]) -> None:
        with pytest.raises(ProtocolError, match="impossible"):
            m.negotiate(m.Hello(protocol_min=span[0], protocol_max=span[1]))

    def test_a_target_that_chose_what_we_did_not_offer_is_refused(self) -> None:
        with pytest.raises(ProtocolError, match="chose protocol 77"):
            m.accept(m.HelloReply(protocol=77))


def every(
    messages: Iterable[descriptor_pb2.DescriptorProto],
) -> Iterator[descriptor_pb2.DescriptorProto]:
    """Yield messages and those within them."""
    for message in messages:
        yield message
        yield from every(message.nested_type)


def test_generated_code_is_that_of_the_proto_file(tmp_path: Path) -> None:
    if shutil.which("protoc") is None:
        pytest.skip("protoc is not installed")
    compiled = tmp_path / "set"
    source = "pymigrate/transport/messages.proto"
    subprocess.run(
        ["protoc", "-I", "tests/typing", f"--descriptor_set_out={compiled}", source],
        cwd=REPOSITORY,
        check=True,
    )
    (expected,) = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file
    for message in every(expected.message_type):
        for field in message.field:
            field.ClearField("json_name")  # generated code leaves it out
    actual = descriptor_pb2.FileDescriptorProto()
    messages_pb2.DESCRIPTOR.CopyToProto(actual)
    for message in every(actual.message_type):
        for field in message.field:
            field.ClearField("json_name")

    assert actual == expected
