"""PostgreSQL: a tree of processes with shared memory, a client amid a transaction."""

from __future__ import annotations

import pytest

from tests.lab import Client, Lab
from tests.lab.services import POSTGRES
from tests.privileged.programs.conftest import Relocate

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

ADDRESS = "10.88.0.22"
START = "select pg_postmaster_start_time()::text"


def test_postgres_commits_after_it_what_was_begun_before(lab: Lab, relocate: Relocate) -> None:
    run = ("run", "-d", "--name", "postgres", "--ip", ADDRESS, "-u", "postgres")
    lab["alpha"].pymigrate(*run, "programs", "sh", "-c", POSTGRES)
    with (
        Client(lab.client, "sql", ADDRESS, 5432) as writer,
        Client(lab.client, "sql", ADDRESS, 5432) as reader,
    ):
        started = writer.ask(START)["rows"]
        writer.ask("create table t as select 1 as n")
        writer.ask("create table big as select n, md5(n::text) from generate_series(1, 20000) n")
        writer.ask("begin")
        writer.ask("insert into t values (2)")
        writer.ask("select pg_advisory_lock(7)")

        host = relocate("postgres")

        assert "T" == writer.ask("insert into t values (3)")["status"]
        assert [["1"]] == reader.ask("select count(*) from t")["rows"]
        assert [["f"]] == reader.ask("select pg_try_advisory_lock(7)")["rows"]
        assert "I" == writer.ask("commit")["status"]
        assert [["3"]] == reader.ask("select count(*) from t")["rows"]
        assert started == reader.ask(START)["rows"]
        pid = str(writer.ready["backend_pid"])
        assert [[pid]] == writer.ask("select pg_backend_pid()")["rows"]
        assert [] == writer.ask("checkpoint")["rows"]
        with Client(lab.client, "sql", ADDRESS, 5432) as late:
            assert [["20000"]] == late.ask("select count(distinct md5) from big")["rows"]
        assert "postgres: " in host.pymigrate("exec", "postgres", "sh", "-c", LIST).stdout


LIST = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
