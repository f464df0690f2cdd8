"""Verify and process webhook deliveries, without a web framework."""

from collections.abc import Sequence
from typing import Any

from psycopg import Connection
from stripe import SignatureVerificationError, StripeClient, WebhookSignature

from pyapp._core.validation import check_text, shown
from pyapp.errors import (
    ConfigError,
    InvalidPayloadError,
    InvalidSignatureError,
    InvalidValueError,
)
from pyapp.stripe_sync.apply import process_event
from pyapp.stripe_sync.objects import Event, read_event
from pyapp.stripe_sync.outcomes import Outcome

# Bytes; Stripe's events are far smaller.
MAX_BODY = 1 << 20
# Seconds for which a signature is valid.
TOLERANCE = 300


def handle_webhook(
    conn: Connection[Any],
    payload: bytes,
    signature: str | None,
    secrets: Sequence[str] | str,
    client: StripeClient | None = None,
    *,
    livemode: bool | None = None,
) -> Outcome:
    """Verify a delivery, apply its event in one transaction, and return the outcome.

    *payload* is the unchanged request body, *signature* the `Stripe-Signature` header.
    Several *secrets* may be valid during a rotation. With a *client*, objects that an
    event only names, or whose order is ambiguous, are fetched; without one, the next
    reconciliation does that. With *livemode*, an event of the other mode, test or live,
    is ignored. Respond with 2xx unless the result is `failed`. Respond with 400 to
    InvalidSignatureError and InvalidPayloadError, which store nothing.

    It returns within five seconds. If another transaction holds a lock for longer, or
    Stripe's API does not answer, the event has failed. The connection is in use all
    that time, so use a separate pool for deliveries, or fewer threads than connections.

    Raises:
        InvalidSignatureError: no secret matches, or the signature is too old.
        InvalidPayloadError: the payload is too large, or is not an event.
        OpenTransactionError: the connection is in a transaction.
        psycopg.OperationalError: the connection is lost; the event may be applied.
        ConfigError: there is no secret, or an empty one.
        InvalidValueError: the payload or the signature has the wrong type.
    """
    event = read_delivery(payload, signature, secrets, livemode)
    return process_event(conn, event, client)


def read_delivery(
    payload: bytes,
    signature: str | None,
    secrets: Sequence[str] | str,
    livemode: bool | None = None,
) -> Event:
    """Return the verified event of a delivery; parameters as in `handle_webhook`.

    Raises:
        InvalidSignatureError: no secret matches, or the signature is too old.
        InvalidPayloadError: the payload is too large, or is not an event.
        ConfigError: there is no secret, or an empty one.
        InvalidValueError: the payload or the signature has the wrong type.
    """
    if not isinstance(payload, bytes):
        raise InvalidValueError(
            f"payload must be the body's bytes, not {shown(payload)}"
        )
    if signature is not None:
        check_text("signature", signature)
    if len(payload) > MAX_BODY:
        raise InvalidPayloadError(f"the body has more than {MAX_BODY} bytes")
    return read_event(verify_signature(payload, signature, secrets), livemode)


def verify_signature(
    payload: bytes, signature: str | None, secrets: Sequence[str] | str
) -> str:
    """Return the text of *payload* if one of *secrets* signed it recently.

    A signature is valid for five minutes.

    Raises:
        InvalidSignatureError: no secret matches, or the signature is too old.
        ConfigError: there is no secret, or an empty one.
    """
    if isinstance(secrets, str):
        secrets = [secrets]
    # Anyone could sign with an empty secret.
    if not secrets or not all(secret.strip() for secret in secrets):
        raise ConfigError("STRIPE_WEBHOOK_SECRET is not set; Stripe shows it")
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise InvalidSignatureError("the body is not UTF-8") from None
    if signature is not None and not signature.isascii():
        raise InvalidSignatureError("the Stripe-Signature header is not ASCII")
    for secret in secrets:
        try:
            WebhookSignature.verify_header(text, signature, secret, TOLERANCE)
        except SignatureVerificationError as exc:
            reason = str(exc).splitlines()[0]
        else:
            return text
    raise InvalidSignatureError(reason)
