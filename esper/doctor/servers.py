"""Checks of the servers and databases that a run uses: MLflow, W&B, Redis, the blueprint library, SLURM.

Each request has a timeout of `_TIMEOUT_S` and modifies nothing.
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

from esper.doctor.finding import Finding, PlannedRun, failed, failed_with, not_used, ok, warning
from esper.doctor.folders import sqlite_files
from esper.errors import one_line
from esper.redact import without_credentials

if TYPE_CHECKING:  # its import may fail with the installed package versions
    from esper.configs import DatabaseConfig

__all__ = ["check_library", "library", "mlflow", "redis", "slurm", "wandb"]

_TIMEOUT_S = 2.0
_OLDEST_REDIS = (6, 2)  # XAUTOCLAIM
_MAX_BYTES = 1_000_000


# --- trackers -----------------------------------------------------------------------------------------------------


def mlflow(run: PlannedRun) -> Finding:
    """The MLflow server responds, or the installed MLflow can use its database."""
    from esper.tracking import tracking_uri

    tracking = run.config.tracking
    if tracking.name not in ("mlflow", "both"):
        return not_used(f"tracking={tracking.name}")
    uri = tracking_uri(tracking, outputs_dir=run.outputs_dir)
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _mlflow_server(uri.rstrip("/"))
    if scheme in ("", "file"):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true":
            return ok(f"folder {uri}")
        return failed(f"{uri}: a folder, which MLflow 3 refuses", "set tracking.uri to sqlite:////FILE or a server")
    file = sqlite_files(run).get("mlflow.db")
    if file is not None and (not file.exists() or not file.stat().st_size):
        return ok(f"{file}: created by the first run")
    if file is None and not scheme.startswith(("postgresql", "mysql", "mssql")):
        return ok(f"{scheme}: not checked")
    if file is not None:
        return _mlflow_database(f"sqlite:///file:{quote(quote(str(file)))}?mode=ro&uri=true", str(file))
    return _mlflow_database(uri, without_credentials(uri))


def _mlflow_server(uri: str) -> Finding:
    shown = without_credentials(uri)
    remedy = "start the server or correct tracking.uri; runs work without it, and esper sync uploads them later"
    request = urllib.request.Request(f"{_without_login(uri)}/api/2.0/mlflow/experiments/search?max_results=1")
    if login := _mlflow_login(uri):
        request.add_unredirected_header("Authorization", login)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=_mlflow_tls()) as response:
            json.loads(response.read(_MAX_BYTES))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return failed(f"{shown}: request refused ({error.code} {error.reason})", remedy)
    except ValueError:
        return failed(f"{shown}: responds, but not like MLflow", "correct tracking.uri")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return failed(f"{shown}: no response within {_TIMEOUT_S:g} s", remedy)
        return failed(f"{shown}: {getattr(reason, 'strerror', None) or reason or type(error).__name__}", remedy)
    return ok(f"{shown} responds")


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
        return failed(f"{shown}: no driver ({type(error).__name__})", "install the database's driver")
    try:
        with engine.connect() as connection:
            query = text("SELECT version_num FROM alembic_version")
            schema = connection.execute(query).scalar() if inspect(connection).has_table("alembic_version") else None
    except SQLAlchemyError as error:
        reason = one_line(getattr(error, "orig", None) or error)
        return failed(f"{shown}: {reason}", "move it away and run esper sync outputs, or use another database")
    finally:
        engine.dispose()
    if schema is None:
        return ok(f"{shown}: its tables are created by the first run")
    known = _mlflow_schemas()
    if not known:
        return ok(f"{shown}: responds")
    if schema not in known:
        remedy = "pip install --upgrade mlflow, or set tracking.uri to another database"
        return failed(f"{shown}: of another MLflow (schema {schema})", remedy)
    if schema in known.values():  # some migration starts from it
        return failed(f"{shown}: of an older MLflow (schema {schema})", "copy it, then: mlflow db upgrade URI")
    return ok(f"{shown}: usable")


def _mlflow_schemas() -> dict[str, str]:
    """Schemas of the installed MLflow, each with its predecessor; from its source, since importing it is slow."""
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        return {}
    schemas = {}
    for file in (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py"):
        names = dict(re.findall(r"^(revision|down_revision)\s*=\s*[\"'](\w+)[\"']", file.read_text(), re.MULTILINE))
        if "revision" in names:
            schemas[names["revision"]] = names.get("down_revision", "")
    return schemas


def wandb(run: PlannedRun) -> Finding:
    """W&B has an API key, or works offline."""
    if run.config.tracking.name not in ("wandb", "both"):
        return not_used(f"tracking={run.config.tracking.name}")
    folders = Path("wandb"), Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    mode = os.environ.get("WANDB_MODE") or next(
        (mode for folder in folders if (mode := _setting(folder, "mode"))), "online"
    )
    if mode in ("offline", "dryrun", "disabled"):
        return ok(f"{mode}: runs stay local; upload them with wandb sync")
    url = os.environ.get("WANDB_BASE_URL") or next(
        (url for folder in folders if (url := _setting(folder, "base_url"))), ""
    )
    host = urlsplit(url or "https://api.wandb.ai").netloc.rpartition("@")[2]
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")) or _has_netrc(host):
        return ok(f"API key for {host} set")
    return failed(f"no API key for {host}", "wandb login, or WANDB_MODE=offline")


def _setting(folder: Path, name: str) -> str:
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


def redis(run: PlannedRun) -> Finding:
    """Redis responds, accepts the login and keeps messages."""
    if run.config.bus != "redis":
        return not_used(f"bus={run.config.bus}")
    from redis import exceptions

    from esper.oona.redis import address, client

    settings = dataclasses.replace(run.config.redis, timeout_s=min(_TIMEOUT_S, run.config.redis.timeout_s))
    url, server = address(settings), client(settings)
    try:
        info: Any = server.info()
        try:
            snapshots: Any = server.config_get("save").get("save")
        except exceptions.ResponseError:  # no permission
            snapshots = None
    except exceptions.AuthenticationError:
        return failed(f"{url}: wrong user or password", "set ESPER_REDIS_PASSWORD (and ESPER_REDIS_USERNAME)")
    except exceptions.NoPermissionError:
        return warning(f"{url}: responds, but this user has no permission for INFO", "ACL SETUSER … +info +config|get")
    except exceptions.TimeoutError:
        return failed(f"{url}: no response within {settings.timeout_s:g} s", "restart the server if it hangs")
    except (exceptions.RedisError, OSError) as error:
        reason = one_line(error, max_length=200)
        return failed(f"{url}: {reason}", "start the server, or correct redis.url")
    finally:
        server.close()
    return _redis_settings(url, info, snapshots)


def _redis_settings(url: str, info: dict[str, Any], snapshots: str | None) -> Finding:
    version = str(info.get("redis_version", "0"))
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
    found = f"{url}: {name}"
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _OLDEST_REDIS:
        return failed(found, f"upgrade: Esper requires at least {'.'.join(map(str, _OLDEST_REDIS))}")
    if info.get("role") == "slave":
        return failed(f"{found}, a read-only replica", "set redis.url to its primary")
    if "err" in (info.get("rdb_last_bgsave_status"), info.get("aof_last_write_status")):
        return failed(f"{found}, which cannot write to its disk", "check the server's log and free disk space")
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory") and policy != "noeviction":
        return warning(f"{found}, {policy}: it may evict messages", "CONFIG SET maxmemory-policy noeviction")
    if not info.get("aof_enabled") and snapshots == "":
        return warning(f"{found}, without persistence: messages are lost when it stops", "CONFIG SET appendonly yes")
    return ok(found)


def library(run: PlannedRun) -> Finding:
    """The blueprint library is usable; checked by the probe, as it imports torch."""
    probe = run.probe()
    return Finding(**probe["library"]) if "library" in probe else not_used("torch does not work")


def check_library(config: DatabaseConfig, *, outputs_dir: Path, is_needed: bool) -> Finding:
    """The blueprint library can be opened and has the schema version of this Esper.

    Args:
        config: its settings.
        outputs_dir: folder of the default library.
        is_needed: whether the run uses blueprints from it.
    """
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    from esper.errors import StoreError
    from esper.urza import tables
    from esper.urza.database import database_url, open_engine

    url = database_url(config, outputs_dir=outputs_dir)
    shown = without_credentials(url.render_as_string(hide_password=True))
    missing = f"{shown}: no library yet"
    remedy = "create it with: esper urza import FILE"
    file = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
    if file is not None and not file.exists():
        return failed(missing, remedy) if is_needed else not_used(missing)
    engine = open_engine(url, timeout_s=min(_TIMEOUT_S, config.timeout_s))
    try:
        with engine.connect() as connection, connection.begin():
            if not tables.exist(connection):
                return failed(missing, remedy) if is_needed else ok(f"{missing}; it can be created")
            tables.require_version(connection, where=shown)
    except StoreError as error:
        return failed_with(str(error))
    except SQLAlchemyError as error:
        reason = one_line(error.orig if isinstance(error, DBAPIError) else error)
        return failed(f"{shown}: {reason}", "check the server, the file and database.url")
    finally:
        engine.dispose()
    return ok(f"{shown}: schema {tables.VERSION}")


# --- the cluster --------------------------------------------------------------------------------------------------


def slurm(run: PlannedRun) -> Finding:
    """SLURM responds."""
    is_required, job = run.launcher == "slurm", os.environ.get("SLURM_JOB_ID")
    prefix = f"inside job {job}; " if job else ""
    if shutil.which("sbatch") is None:
        if is_required:
            return failed(f"{prefix}no sbatch", "start the sweep on a login node, or use hydra/launcher=local")
        return ok(f"{prefix}no sbatch, and not required") if job else not_used("not installed")
    partitions, error = _output("sinfo", "--noheader", "--format=%R")
    if error:
        report = failed if is_required else warning
        return report(f"{prefix}sinfo: {error}", "ask the cluster's administrator, or use hydra/launcher=local")
    _, error = _output("sacct", "--noheader", "--allocations", "--format=JobID")
    accounting = f"; no accounting (sacct: {error}), not required" if error else ""
    return ok(f"{prefix}partitions {', '.join(dict.fromkeys(partitions.split()))}{accounting}")


def _output(*command: str) -> tuple[str, str]:
    """(stdout, "") of a command, or ("", reason) if it fails."""
    try:
        process = subprocess.run(command, check=False, timeout=_TIMEOUT_S, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return "", f"no response within {_TIMEOUT_S:g} s"
    except OSError as error:
        return "", error.strerror or str(error)
    if process.returncode:
        return "", " ".join(process.stderr.split())[:160] or f"exit code {process.returncode}"
    return process.stdout, ""


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
