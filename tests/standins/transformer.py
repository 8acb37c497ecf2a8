"""EventBridge's input transformer: what a target gets of an event.

moto's own leaves an empty value's placeholder in place and quotes nothing. This one does what AWS
documents, and refuses what AWS documents no result for:
https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-transform-target-input.html
- A placeholder that stands alone in a template becomes the value as JSON.
- A placeholder inside quotes becomes the bare text, and "EventBridge doesn't escape values".
  An object loses its quotes there.
- A path that is not in the event has no value: inside quotes nothing appears.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

PATHS_LIMIT = 100
TEMPLATE_LIMIT = 8192  # characters, https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_InputTransformer.html
_NAME = re.compile(r"[A-Za-z0-9_-]{1,256}")
_PATH = re.compile(r"\$((\.[\w/-]+)|(\[\d+\]))+")
_MISSING = object()


class NotDeliveredError(Exception):
    """The result is no JSON: it is not defined what the target would get."""


def transform(transformer: Mapping[str, Any], event: Mapping[str, Any]) -> str:
    """Return what the target gets. ValueError if PutTargets would refuse the transformer;
    NotDeliveredError if this event's values break the message."""
    paths, template = transformer["InputPathsMap"], transformer["InputTemplate"]
    if len(paths) > PATHS_LIMIT or len(template) > TEMPLATE_LIMIT:
        raise ValueError("too large")
    for name, path in paths.items():
        if (
            not _NAME.fullmatch(name)
            or name.lower().startswith("aws.")
            or not _PATH.fullmatch(path)
        ):
            raise ValueError(f"{name}: {path}")
    message = _filled(template, {name: _value(event, path) for name, path in paths.items()})
    try:
        json.loads(message)
    except ValueError as error:
        raise NotDeliveredError(message) from error
    return message


def _filled(template: str, values: Mapping[str, Any]) -> str:
    made, quoted, at = "", False, 0
    for found in re.finditer(r'\\.|"|<([^<>]*)>', template, re.DOTALL):
        made += template[at : found.start()]
        at = found.end()
        if found[1] is not None:
            made += _text(values[found[1]], quoted)  # KeyError: a placeholder without a path
        else:
            made += found[0]
            quoted ^= found[0] == '"'
    return made + template[at:]


def _text(value: Any, quoted: bool) -> str:
    if value is _MISSING:
        return ""
    if not quoted:
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def _value(event: Mapping[str, Any], path: str) -> Any:
    value: Any = event
    for key, index in re.findall(r"\.([\w/-]+)|\[(\d+)\]", path):
        try:
            value = value[key] if key else value[int(index)]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return value
