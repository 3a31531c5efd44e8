"""What `esper doctor` checks of the services that a run uses: MLflow, W&B, Redis, the library, SLURM.

Each asks with a deadline of `_DEADLINE_S`, and changes nothing where it asks.
"""

from __future__ import annotations

import base64
import configparser
import dataclasses
import http.client
import json
import netrc
import os
import re
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from esper.doctor.finding import Finding, Subject, failed, not_used, ok, warning
from esper.doctor.folders import sqlite_files
from esper.errors import one_line

if TYPE_CHECKING:  # the versions may be such that it cannot be imported
    from esper.configs import DatabaseConfig

__all__ = ["library", "look_into_library", "mlflow", "redis", "slurm", "wandb"]

_DEADLINE_S = 2.0
_OLDEST_REDIS = (6, 2)  # XAUTOCLAIM
_MAX_BYTES = 1_000_000


# --- trackers -----------------------------------------------------------------------------------------------------


def mlflow(subject: Subject) -> Finding:
    """Whether MLflow's server answers, or its database is one that the installed MLflow can use."""
    from esper.tracking import tracking_uri

    tracking = subject.config.tracking
    if tracking.name not in ("mlflow", "both"):
        return not_used(f"tracking={tracking.name}")
    uri = tracking_uri(tracking, outputs_dir=subject.outputs_dir)
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _mlflow_server(uri.rstrip("/"))
    if scheme in ("", "file"):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true":
            return ok(f"folder {uri}")
        return failed(f"{uri}: a folder, which MLflow 3 refuses", "tracking.uri=sqlite:////FILE, or a server")
    file = sqlite_files(subject).get("mlflow.db")
    if file is not None and (not file.exists() or not file.stat().st_size):
        return ok(f"{file}: the first run makes it")
    if file is None and not scheme.startswith(("postgresql", "mysql", "mssql")):
        return ok(f"{scheme}: not looked at")
    return _mlflow_database(
        f"sqlite:///file:{quote(str(file))}?mode=ro&uri=true" if file else uri, str(file or _shown(uri))
    )


def _mlflow_server(uri: str) -> Finding:
    shown = _shown(uri)
    remedy = "start the server or correct tracking.uri; a run goes on without it, and esper sync reports it later"
    request = urllib.request.Request(f"{_without_login(uri)}/api/2.0/mlflow/experiments/search?max_results=1")
    if login := _mlflow_login(uri):
        request.add_unredirected_header("Authorization", login)
    try:
        with urllib.request.urlopen(request, timeout=_DEADLINE_S, context=_mlflow_tls()) as answer:
            json.loads(answer.read(_MAX_BYTES))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return failed(f"{shown}: refuses ({error.code} {error.reason})", remedy)
    except ValueError:
        return failed(f"{shown}: answers, but not as MLflow does", "correct tracking.uri")
    except TimeoutError:
        return failed(f"{shown}: no answer within {_DEADLINE_S:g} s", remedy)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return failed(f"{shown}: no answer within {_DEADLINE_S:g} s", remedy)
        return failed(f"{shown}: {getattr(reason, 'strerror', None) or reason or type(error).__name__}", remedy)
    return ok(f"{shown} answers")


def _mlflow_login(uri: str) -> str:
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    user = user or urlsplit(uri).username or ""
    if user:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else ""


def _mlflow_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _mlflow_database(url: str, shown: str) -> Finding:
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(url)
    except (ImportError, SQLAlchemyError) as error:
        return failed(f"{shown}: {type(error).__name__}: no driver for it", "install the database's driver")
    try:
        with engine.connect() as connection:
            has_tables = inspect(connection).has_table("alembic_version")
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if has_tables else None
    except SQLAlchemyError as error:
        told = one_line(getattr(error, "orig", None) or error)
        return failed(f"{shown}: {told}", "move it away and esper sync outputs makes it anew, or name another database")
    finally:
        engine.dispose()
    known = _mlflow_schemas()
    if found is None or not known:
        return ok(f"{shown}: {'the first run makes its tables' if found is None else 'answers'}")
    if found not in known:
        remedy = "pip install --upgrade mlflow, or name another database in tracking.uri"
        return failed(f"{shown}: of another MLflow than the one here (schema {found})", remedy)
    if found in known.values():  # another schema follows on it
        return failed(f"{shown}: of an older MLflow (schema {found})", "copy it, then: mlflow db upgrade URI")
    return ok(f"{shown}: usable")


def _mlflow_schemas() -> dict[str, str]:
    """The schemas that the installed MLflow knows, each with the one before; from its text, as importing it is slow."""
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        return {}
    found = {}
    for file in (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py"):
        names = dict(re.findall(r"^(revision|down_revision)\s*=\s*[\"'](\w+)[\"']", file.read_text(), re.MULTILINE))
        if "revision" in names:
            found[names["revision"]] = names.get("down_revision", "")
    return found


def wandb(subject: Subject) -> Finding:
    """Whether W&B has a key, or works offline."""
    if subject.config.tracking.name not in ("wandb", "both"):
        return not_used(f"tracking={subject.config.tracking.name}")
    folders = Path("wandb"), Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    mode = os.environ.get("WANDB_MODE") or next((mode for one in folders if (mode := _ini(one, "mode"))), "online")
    if mode in ("offline", "dryrun", "disabled"):
        return ok(f"{mode}: runs are kept in their folders; wandb sync uploads them")
    url = os.environ.get("WANDB_BASE_URL") or next((url for one in folders if (url := _ini(one, "base_url"))), "")
    host = urlsplit(url or "https://api.wandb.ai").netloc.rpartition("@")[2]
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")) or _has_netrc(host):
        return ok(f"a key for {host} is there")
    return failed(f"no key for {host}", "wandb login, or WANDB_MODE=offline")


def _ini(folder: Path, name: str) -> str:
    settings = configparser.ConfigParser()
    try:
        settings.read(folder / "settings")
    except (OSError, configparser.Error):
        return ""
    return settings.get("default", name, fallback="", raw=True)


def _has_netrc(host: str) -> bool:
    try:
        file = netrc.netrc(Path(os.environ.get("NETRC", "~/.netrc")).expanduser())
    except (OSError, netrc.NetrcParseError):
        return False
    return file.authenticators(host) is not None


# --- the bus and the library --------------------------------------------------------------------------------------


def redis(subject: Subject) -> Finding:
    """Whether Redis answers, lets us in, and keeps what it is given."""
    if subject.config.bus != "redis":
        return not_used(f"bus={subject.config.bus}")
    from redis import exceptions

    from esper.oona.redis import address, client

    settings = dataclasses.replace(subject.config.redis, timeout_s=min(_DEADLINE_S, subject.config.redis.timeout_s))
    place, server = address(settings), client(settings)
    try:
        info: Any = server.info()
        try:
            snapshots: Any = server.config_get("save").get("save")
        except exceptions.ResponseError:  # not everybody may ask that
            snapshots = None
    except exceptions.AuthenticationError:
        return failed(
            f"{place}: asks for another user or password", "set ESPER_REDIS_PASSWORD (and ESPER_REDIS_USERNAME)"
        )
    except exceptions.NoPermissionError:
        return warning(
            f"{place}: answers, but this user may not ask INFO", "ACL SETUSER … +info +config|get, to see more"
        )
    except exceptions.TimeoutError:
        return failed(f"{place}: no answer within {settings.timeout_s:g} s", "see whether the server hangs; restart it")
    except (exceptions.RedisError, OSError) as error:
        told = one_line(error, max_length=200)
        return failed(f"{place}: {told}", "start the server, or correct redis.url")
    finally:
        server.close()
    return _judged(place, info, snapshots)


def _judged(place: str, info: dict[str, Any], snapshots: str | None) -> Finding:
    version = str(info.get("redis_version", "0"))
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
    found = f"{place}: {name}"
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _OLDEST_REDIS:
        return failed(found, f"Esper needs at least {'.'.join(map(str, _OLDEST_REDIS))}")
    if info.get("role") == "slave":
        return failed(f"{found}, a replica, which takes no messages", "name its master in redis.url")
    if "err" in (info.get("rdb_last_bgsave_status"), info.get("aof_last_write_status")):
        return failed(f"{found}, which cannot write to its disk", "look into the server's log and at its disk")
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory") and policy != "noeviction":
        return warning(f"{found}, maxmemory-policy {policy}: loses messages", "CONFIG SET maxmemory-policy noeviction")
    if not info.get("aof_enabled") and snapshots == "":
        return warning(f"{found}, keeps nothing on disk: its messages go when it ends", "CONFIG SET appendonly yes")
    return ok(found)


def library(subject: Subject) -> Finding:
    """Whether the blueprint library can be used, as the process that imports torch found: its builders need that."""
    probe = subject.probe()
    return Finding(**probe["library"]) if "library" in probe else not_used("torch does not work")


def look_into_library(config: DatabaseConfig, *, outputs_dir: Path, is_needed: bool) -> Finding:
    """Whether the blueprint library answers, and is of the version that Esper knows.

    Args:
        config: which one.
        outputs_dir: where the default one lies.
        is_needed: whether the run grows from it.
    """
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    from esper.errors import StoreError
    from esper.urza import tables
    from esper.urza.database import database_url, open_engine

    url = database_url(config, outputs_dir=outputs_dir)
    shown = url.set(query={}).render_as_string(hide_password=True)
    missing = f"{shown}: no library yet"
    make = "make it with: esper urza import FILE"
    file = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
    if file is not None and not file.exists():
        return failed(missing, make) if is_needed else not_used(missing)
    engine = open_engine(url, timeout_s=min(_DEADLINE_S, config.timeout_s))
    try:
        with engine.connect() as connection, connection.begin():
            if not tables.exist(connection):
                return failed(missing, make) if is_needed else ok(f"{missing}; it can be made there")
            tables.require_version(connection, where=shown)
    except StoreError as error:
        found, _, remedy = str(error).rpartition("; ")
        return failed(found, remedy)
    except SQLAlchemyError as error:
        told = one_line(error.orig if isinstance(error, DBAPIError) else error)
        return failed(f"{shown}: {told}", "check the server, the file and database.url")
    finally:
        engine.dispose()
    return ok(f"{shown}: schema {tables.VERSION}")


# --- the cluster --------------------------------------------------------------------------------------------------


def slurm(subject: Subject) -> Finding:
    """Whether SLURM answers here, and what of it there is."""
    is_asked, job = subject.launcher == "slurm", os.environ.get("SLURM_JOB_ID")
    inside = f"inside job {job}; " if job else ""
    if shutil.which("sbatch") is None:
        if is_asked:
            return failed(f"{inside}no sbatch here", "start the sweep on a login node; or hydra/launcher=local")
        return ok(f"{inside}no sbatch here, and none needed") if job else not_used("not installed")
    partitions = _asked("sinfo", "--noheader", "--format=%R")
    if isinstance(partitions, str):
        report = failed if is_asked else warning
        return report(f"{inside}sinfo: {partitions}", "ask whoever runs the cluster; or hydra/launcher=local")
    accounting = _asked("sacct", "--noheader", "--allocations", "--format=JobID")
    without = f"; no accounting (sacct: {accounting}), nor needed" if isinstance(accounting, str) else ""
    return ok(f"{inside}partitions {', '.join(dict.fromkeys(partitions))}{without}")


def _asked(*command: str) -> list[str] | str:
    """The words that a command prints; where it fails, why."""
    try:
        done = subprocess.run(command, check=False, timeout=_DEADLINE_S, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return f"no answer within {_DEADLINE_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return (
        (" ".join(done.stderr.split())[:160] or f"exit code {done.returncode}")
        if done.returncode
        else done.stdout.split()
    )


def _shown(uri: str) -> str:
    """A URI without what may be secret in it."""
    return urlsplit(_without_login(uri))._replace(query="", fragment="").geturl()


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
