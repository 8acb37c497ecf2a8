"""One request to EventBridge, without credentials: does it answer, and what time is it there?"""

from __future__ import annotations

import email.utils
import time

from botocore.awsrequest import AWSRequest
from botocore.httpsession import URLLib3Session

from tattle.aws.errors import translate_errors
from tattle.aws.eventbridge import Publisher, proxies


def seconds_ahead(publisher: Publisher, timeout: float) -> float | None:
    """Connect as the publisher does and return how far this clock is ahead of EventBridge's.

    timeout in seconds. None if the answer has no date. Raises TattleError if there is no answer.
    """
    config = publisher.config
    verify = config.ca_bundle or publisher.aws.get_config_variable("ca_bundle") or True
    http = URLLib3Session(verify=verify, proxies=proxies(config), timeout=timeout)
    with translate_errors():
        answer = http.send(AWSRequest("GET", publisher.client.meta.endpoint_url).prepare())
    date = answer.headers.get("Date")
    return time.time() - email.utils.parsedate_to_datetime(date).timestamp() if date else None
