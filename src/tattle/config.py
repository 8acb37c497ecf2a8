"""/etc/tattle.conf: what a site wants otherwise. Absent is fine; the hook never reads it."""

from __future__ import annotations

import configparser
import dataclasses
import re
from pathlib import Path
from typing import Any

from tattle import EX_CONFIG, TattleError
from tattle.detail import DEFAULT, FROM_INSTANCE, FROM_SESSION, FROM_SSHD
from tattle.spool import trusted

PATH = "/etc/tattle.conf"
SERVICE = "service "  # [service sudo]
PER_SERVICE = ("source", "detail-type", "event-bus", "fields")
DETAIL_TYPE_LIMIT = 128  # characters, PutEventsRequestEntry


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings by their names in the file, with `_` for `-`. None: as AWS's files say."""

    source: str = "com.unbounce.tattle"
    detail_type: str = "SSH connection event detected"
    event_bus: str | None = None
    fields: tuple[str, ...] = DEFAULT
    region: str | None = None
    resource: str | None = None
    endpoint_url: str | None = None
    proxy: str | None = None
    ca_bundle: str | None = None
    use_fips: bool | None = None
    use_dualstack: bool | None = None
    services: dict[str, Config] = dataclasses.field(default_factory=dict)

    def of(self, service: str | None) -> Config:
        """Return what holds for a PAM service."""
        return self.services.get(service or "", self)


def load(path: str = PATH) -> Config:
    """Read the file, if there is one. Raises TattleError."""
    try:
        trusted(path)
        return parse(Path(path).read_text("utf-8"), path)
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise TattleError(f"{path}: {error}", EX_CONFIG) from error


def parse(text: str, path: str = PATH) -> Config:
    """Return the settings that a text makes. Raises TattleError with file and line number."""
    parser = configparser.RawConfigParser(default_section="", interpolation=None)
    try:
        parser.read_string(text, path)
    except configparser.Error as error:
        number = getattr(error, "lineno", None) or getattr(error, "errors", [[1]])[0][0]
        reason = str(error).split("\n")[0]
        raise TattleError(f"{path}, line {number}: {reason}", EX_CONFIG) from error
    config = Config()
    for section in sorted(parser.sections(), key=lambda name: name != "tattle"):
        if section != "tattle" and not (section.startswith(SERVICE) and section[len(SERVICE) :]):
            raise _fault(text, path, section, None, "expected [tattle] or [service NAME]")
        known = PER_SERVICE if section != "tattle" else tuple(_READERS)
        settings: dict[str, Any] = {}
        for key, value in parser.items(section):
            if key not in known:
                raise _fault(text, path, section, key, f"known here: {', '.join(known)}")
            try:
                settings[key.replace("-", "_")] = _READERS[key](value)
            except ValueError as error:
                raise _fault(text, path, section, key, str(error)) from None
        if section == "tattle":
            config = dataclasses.replace(config, **settings)
        else:
            name = section[len(SERVICE) :].strip()
            service = dataclasses.replace(config, services={}, **settings)
            config = dataclasses.replace(config, services={**config.services, name: service})
    return config


def _fault(text: str, path: str, section: str, key: str | None, reason: str) -> TattleError:
    within = ""
    number = 0
    for number, line in enumerate(text.splitlines(), 1):  # noqa: B007
        header = re.match(r"\s*\[(.+)\]", line)
        within = header[1] if header else within
        name = re.split("[=:]", line, maxsplit=1)[0].strip().lower()
        if within == section and name == (key or f"[{section}]".lower()):
            break
    where = f"[{section}] {key or ''}".strip()
    return TattleError(f"{path}, line {number}: {where}: {reason}", EX_CONFIG)


def _text(value: str) -> str:
    if not value:
        raise ValueError("needs a value")
    return value


def _source(value: str) -> str:
    if value.lower().startswith("aws."):
        raise ValueError("a source may not begin with aws., EventBridge refuses it")
    return _text(value)


def _detail_type(value: str) -> str:
    if len(value) > DETAIL_TYPE_LIMIT:
        raise ValueError(f"a detail-type has at most {DETAIL_TYPE_LIMIT} characters")
    return _text(value)


def _fields(value: str) -> tuple[str, ...]:
    fields = tuple(re.split(r"[,\s]+", value.strip()))
    known = {**FROM_SESSION, **FROM_SSHD, **FROM_INSTANCE}
    for field in fields:
        if field not in known and not re.fullmatch(r"tag:.+", field):
            raise ValueError(f"no field {field!r}; there are: {', '.join(known)}, tag:NAME")
    return fields


def _region(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", value):
        raise ValueError("a region looks like us-east-1")
    return value


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+\S*", value):
        raise ValueError("expected a URL: https://…")
    return value


def _file(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("expected a path from /")
    try:
        return trusted(value)
    except (OSError, TattleError) as error:
        raise ValueError(str(error)) from None


def _bool(value: str) -> bool:
    try:
        return configparser.RawConfigParser.BOOLEAN_STATES[value.lower()]
    except KeyError:
        raise ValueError("expected true or false") from None


_READERS = {
    "source": _source,
    "detail-type": _detail_type,
    "event-bus": _text,
    "fields": _fields,
    "region": _region,
    "resource": _text,
    "endpoint-url": _url,
    "proxy": _url,
    "ca-bundle": _file,
    "use-fips": _bool,
    "use-dualstack": _bool,
}
