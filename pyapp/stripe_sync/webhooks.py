"""Webhooks: verified bytes in, an outcome out. No framework is needed."""

from collections.abc import Sequence
from typing import Any

import stripe
from psycopg import Connection

from pyapp._core.validation import check_text, shown
from pyapp.errors import (
    ConfigError,
    InvalidPayloadError,
    InvalidSignatureError,
    InvalidValueError,
)
from pyapp.stripe_sync.envelope import Event, read_event
from pyapp.stripe_sync.inbox import Outcome, take_in

# Stripe's own events stay well under it.
MAX_BODY = 1 << 20
# Seconds for which a signature is good.
TOLERANCE = 300


def handle_webhook(
    conn: Connection[Any],
    payload: bytes,
    signature: str | None,
    secrets: Sequence[str] | str,
    client: stripe.StripeClient | None = None,
    *,
    livemode: bool | None = None,
) -> Outcome:
    """Verify a delivery, apply it in one transaction, and return what became of it.

    *payload* is the body as it came, *signature* the `Stripe-Signature` header; several
    *secrets* are for the time of a rotation. With a *client*, what events leave open is
    fetched; without one, reconciliation settles it. With *livemode*, an event of the
    other mode, test or live, is ignored: its objects are not ours. Answer 2xx unless
    the result is `failed`, and 400 to the errors below, which store nothing.

    It returns within five seconds: if another transaction holds a lock for longer, or
    Stripe's API does not answer, the event has failed. The connection is in use until
    then, so give deliveries a pool of their own, or few enough threads.

    Raises:
        InvalidSignatureError: no secret matches, or the signature is too old.
        InvalidPayloadError: it is too large, or no event.
        OpenTransactionError: the connection is in a transaction.
        ConfigError: there is no secret, or an empty one.
        InvalidValueError: the payload or the signature has another type.
    """
    event = read_delivery(payload, signature, secrets, livemode)
    return take_in(conn, event, client)


def read_delivery(
    payload: bytes,
    signature: str | None,
    secrets: Sequence[str] | str,
    livemode: bool | None = None,
) -> Event:
    """Return the event of a delivery, verified; the parameters are handle_webhook's.

    Raises:
        InvalidSignatureError: no secret matches, or the signature is too old.
        InvalidPayloadError: it is too large, or no event.
        ConfigError: there is no secret, or an empty one.
        InvalidValueError: the payload or the signature has another type.
    """
    if not isinstance(payload, bytes):
        raise InvalidValueError(
            f"payload must be the body's bytes, not {shown(payload)}"
        )
    if signature is not None:
        check_text("signature", signature)
    if len(payload) > MAX_BODY:
        raise InvalidPayloadError(f"the body has more than {MAX_BODY} bytes")
    verify_signature(payload, signature, secrets)
    return read_event(payload.decode(), livemode)


def verify_signature(
    payload: bytes, signature: str | None, secrets: Sequence[str] | str
) -> None:
    """Return if one of *secrets* signed *payload* within the last five minutes.

    Raises:
        InvalidSignatureError: none did.
        ConfigError: there is no secret.
    """
    if isinstance(secrets, str):
        secrets = [secrets]
    # With an empty one anybody could sign.
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
            stripe.WebhookSignature.verify_header(text, signature, secret, TOLERANCE)
        except stripe.SignatureVerificationError as exc:
            reason = str(exc).splitlines()[0]
        else:
            return
    raise InvalidSignatureError(reason)
