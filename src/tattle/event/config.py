"""/etc/tattle.conf: overrides the defaults. Absent is fine; the hook never reads it."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tattle.errors import TattleError
from tattle.event.fields import DEFAULT, FROM_INSTANCE, FROM_SESSION, FROM_SSHD
from tattle.event.identity import REGION
from tattle.trust import trusted

PATH = "/etc/tattle.conf"
SOURCE = r"(?i)(?!aws\.).+"
BUS = r"(arn:aws[\w-]*:events:[\w-]+:[0-9]{12}:event-bus/)?[/.\-_A-Za-z0-9]+"
A_BUS = "a name or arn:aws:events:REGION:ACCOUNT:event-bus/NAME"
URL = r"https?://[^\s/]+\S*"
A_URL = "a URL: https://HOST or http://HOST:PORT"


class Config(NamedTuple):
    """The settings by their names in the file, with `_` for `-`. None: botocore decides."""

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
    services: Mapping[str, Config] = MappingProxyType({})

    def of(self, service: str | None) -> Config:
        """Return what holds for a PAM service."""
        return self.services.get(service or "", self)

    def buses(self) -> list[str]:
        """Return the event buses that events go to, each once; "" for the default one."""
        everywhere = [self, *self.services.values()]
        return list(dict.fromkeys(config.event_bus or "" for config in everywhere))


def is_default(bus: str) -> bool:
    """Tell whether this is the name or ARN of an account's default event bus, which always exists.

    "" is the own account's.
    """
    return bus in ("", "default") or bus.endswith(":event-bus/default")


def load(path: str = PATH) -> Config:
    """Read the file, if there is one. Raises TattleError."""
    try:
        trusted(path)
        data = Path(path).read_bytes()
        return parse(data.decode("utf-8-sig"), path)
    except FileNotFoundError:
        return Config()
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise _error_at(path, number, "not UTF-8") from None
    except OSError as error:
        raise TattleError(f"{path}: {error.strerror}", os.EX_CONFIG, f"ls -l {path}") from error
    except TattleError as error:  # trusted() may name a directory or a link's target
        raise TattleError(str(error), os.EX_CONFIG, error.advice) from error


def parse(text: str, path: str = PATH) -> Config:
    """Return the settings that a text makes. Raises TattleError with file and line number."""
    parser = configparser.RawConfigParser(default_section="", interpolation=None)
    try:
        parser.read_string(text, path)
    except configparser.Error as error:
        number, reason = _unparsable(error)
        raise _error_at(path, number, reason) from None
    config = Config()
    for section in sorted(parser.sections(), key=lambda name: name != "tattle"):
        of_service = re.fullmatch(r"service\s+(\S+)\s*", section)
        if section != "tattle" and not of_service:
            raise _error_in(text, path, section, None, "expected [tattle] or [service NAME]")
        known = PER_SERVICE if of_service else tuple(KEYS)
        settings: dict[str, Any] = {}
        for key, value in parser.items(section):
            try:
                if key not in known:
                    raise ValueError(f"unknown key; known keys: {', '.join(known)}")
                if "\n" in value and key != "fields":
                    raise ValueError("goes on in the next line: is that one indented by mistake?")
                settings[key.replace("-", "_")] = KEYS[key](value)
            except ValueError as error:
                raise _error_in(text, path, section, key, str(error)) from None
        if not of_service:
            config = config._replace(**settings)
        elif of_service[1] in config.services:
            raise _error_in(text, path, section, None, f"[service {of_service[1]}] is set twice")
        else:
            service = config._replace(services={}, **settings)
            config = config._replace(services={**config.services, of_service[1]: service})
    return config


def _unparsable(error: configparser.Error) -> tuple[int, str]:
    """Return the line's number and what is wrong with it."""
    if isinstance(error, configparser.MissingSectionHeaderError):
        return error.lineno, "expected [tattle] or [service NAME] first"
    if isinstance(error, configparser.DuplicateOptionError):
        return error.lineno or 1, f"[{error.section}] {error.option}: is set twice"
    if isinstance(error, configparser.DuplicateSectionError):
        return error.lineno or 1, f"[{error.section}] is set twice"
    number, line = getattr(error, "errors", [(1, "")])[0]
    return number, f"not understood: {line}"


def _error_in(text: str, path: str, section: str, key: str | None, reason: str) -> TattleError:
    within, where = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        header = configparser.RawConfigParser.SECTCRE.match(line.strip())
        if header:
            within = header["header"]
        name = re.split("[=:]", line, maxsplit=1)[0].strip().lower()
        if within == section and (header if key is None else name == key and not header):
            where = number
            break
    return _error_at(path, where, f"[{section}]{f' {key}' if key else ''}: {reason}")


def _error_at(path: str, number: int, reason: str) -> TattleError:
    advice = f"fix that line: sudoedit +{number} {path}"
    return TattleError(f"{path}, line {number}: {reason}", os.EX_CONFIG, advice)


def _text(
    longest: int, pattern: str = ".+", expected: str = "printable characters"
) -> Callable[[str], str]:
    """Return the check for a text that a pattern matches, of so many characters at most."""

    def check(value: str) -> str:
        if not value.isprintable() or not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}")
        if len(value) > longest:
            raise ValueError(f"has {len(value)} characters, more than {longest}")
        return value

    return check


def _fields(value: str) -> tuple[str, ...]:
    fields = tuple(re.split(r"[,\s]+", value.strip()))
    known = {**FROM_SESSION, **FROM_SSHD, **FROM_INSTANCE}
    for field in fields:
        if field not in known and not re.fullmatch(r"tag:[^\x00-\x1f\x7f]+", field):
            raise ValueError(f"unknown field {field!r}; known fields: {', '.join(known)}, tag:NAME")
    return fields


def _file(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("expected a path from /")
    try:
        return trusted(value)
    except OSError as error:
        raise ValueError(f"{value}: {error.strerror}") from None
    except TattleError as error:
        raise ValueError(str(error)) from error


def _bool(value: str) -> bool:
    try:
        return configparser.RawConfigParser.BOOLEAN_STATES[value.lower()]
    except KeyError:
        raise ValueError("expected true or false") from None


# What turns a key's text into the setting; a ValueError says what EventBridge or the instance would
# not take: https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEventsRequestEntry.html
KEYS: dict[str, Callable[[str], Any]] = {
    "source": _text(256, SOURCE, "printable characters that do not begin with aws."),
    "detail-type": _text(128),
    "event-bus": _text(1600, BUS, A_BUS),
    "fields": _fields,
    "region": _text(64, REGION, "a region such as us-east-1"),
    "resource": _text(2048),
    "endpoint-url": _text(2048, URL, A_URL),
    "proxy": _text(2048, URL, A_URL),
    "ca-bundle": _file,
    "use-fips": _bool,
    "use-dualstack": _bool,
}
PER_SERVICE = ("source", "detail-type", "event-bus", "fields")
