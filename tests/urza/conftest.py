"""A real PostgreSQL: a cluster of its own in a temporary folder, reached through a socket there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.configs import DatabaseConfig


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: float(file.parts[-3]))
    own = shutil.which("initdb")
    return found[-1].parent if found else Path(own).parent if own else None


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a running server's database."""
    programs, is_root = _programs(), os.getuid() == 0
    why = "PostgreSQL is not installed (apt-get install postgresql)" if programs is None else ""
    if is_root and not why and shutil.which("runuser") is None:
        why = "PostgreSQL does not run as root, and there is no runuser"
    if why and os.environ.get("ESPER_REQUIRE_POSTGRES"):
        pytest.fail(f"PostgreSQL is required here: {why}")
    if why:
        pytest.skip(why)
    folder = Path(
        subprocess.check_output(["mktemp", "-d", "-t", "esper-pg-XXXXXX"], text=True).strip()
    )  # short: a socket
    as_user = ["runuser", "-u", "nobody", "--"] if is_root else []
    if is_root:
        shutil.chown(folder, "nobody")

    def do(program: str, *arguments: str) -> None:
        subprocess.run([*as_user, str(programs / program), *arguments], check=True, capture_output=True, cwd=folder)

    settings = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    try:
        do("initdb", "-D", f"{folder}/data", "-U", "esper", "--auth=trust", "--no-sync")
        do("pg_ctl", "-D", f"{folder}/data", "-l", f"{folder}/log", "-w", "-o", settings, "start")
        try:
            yield f"postgresql://esper@/postgres?host={folder}"
        finally:
            do("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseConfig:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return DatabaseConfig(url=f"sqlite:///{tmp_path}/library.db")
    server: str = request.getfixturevalue("postgres")
    name = f"t{os.urandom(6).hex()}"
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return DatabaseConfig(url=server.replace("/postgres?", f"/{name}?"))
