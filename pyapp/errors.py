"""Every error that pyapp raises for a caller to act on."""

import re

import psycopg


class PyappError(Exception):
    """Base of all of them; the message is one line that says what to do."""


class ConfigError(PyappError):
    """The configuration is missing or wrong; mend the variable that it names."""


class DatabaseUnavailableError(PyappError):
    """No database answers at the URL; start it, or mend the URL.

    `refused` says that a server answered and turned the URL's user or database down;
    `reason` is what it said.
    """

    refused = False
    reason = ""


class ForkedConnectionError(PyappError):
    """The process that opened the connection or pool forked; open one after the fork.

    Two processes on one connection would read each other's answers.
    """


class LocalServerError(PyappError):
    """The local server cannot do what was asked; the message says what to do."""


class GenerateError(PyappError):
    """No migration was written; the message says why, `draft` how far it came."""

    def __init__(self, message: str, draft: str = "") -> None:
        super().__init__(message)
        self.draft = draft


class MaintenanceError(PyappError):
    """Upkeep did not get its turn; run it again, as the message says."""


class ArchiveError(PyappError):
    """An archive cannot be written; free or open the folder, and run it again."""


class MigrationError(PyappError):
    """A migration cannot be read, applied or rolled back; mend what it names."""


class MissingExtraError(PyappError):
    """An optional part is not installed; install the extra that it names."""

    def __init__(self, extra: str) -> None:
        super().__init__(extra)
        self.extra = extra

    def __str__(self) -> str:
        return f"an optional part is missing: pip install 'pyapp[{self.extra}]'"


class SchemaCheckError(PyappError):
    """Schemas cannot be compared or differ; the message names which, or what to do."""


class DataDriftError(PyappError):
    """A sum that is kept differs from its rows; repair it by the command it names."""


class UnknownModelError(PyappError):
    """No published price for this model; give the cost, or mend the model's name."""


class InvalidValueError(PyappError):
    """A value that cannot be meant, and was not stored; correct what is named."""


class MessageNotFoundError(PyappError):
    """The payer has no message with this id; check both ids."""


class InvalidSignatureError(PyappError):
    """Nobody who knows the webhook's secret sent this; answer 400, store nothing."""


class InvalidPayloadError(PyappError):
    """A delivery is too large, or not an event; answer 400, or 413 if too large."""


class OpenTransactionError(PyappError):
    """The connection is in a transaction; commit it, or give another connection."""


class StripeRequestError(PyappError):
    """Stripe refused a request, or did not answer for long; the message says which."""


class ReconcileRunningError(PyappError):
    """Another run of this kind is under way; wait for it, or stop it."""


class QueryFileError(PyappError):
    """A file of named queries cannot be read; mend the line that it names."""


class RuleError(PyappError):
    """A rule of the database refused the change; `constraint` names the rule.

    Raised as itself for a rule without a subclass of its own: correct the value.
    """

    def __init__(self, message: str, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class UserNotFoundError(RuleError):
    """No such user, or the person has been erased; check the id."""


class FingerprintNotFoundError(RuleError):
    """No such fingerprint; call upsert_fingerprint first."""


class FingerprintIsUserError(RuleError):
    """The fingerprint's id is a user's; give the device an id of its own."""


class EmailTakenError(RuleError):
    """Another user has this e-mail, whatever its case; find him by it."""


class PlanNotFoundError(RuleError):
    """No such plan; list_plans names them."""


class PriceTakenError(RuleError):
    """Another plan has this price; a price buys one plan."""


class ReferralError(RuleError):
    """A referral that cannot be made; the subclass says why."""


class ReferralCodeNotFoundError(ReferralError):
    """No user has this code; check how it was typed."""


class ReferralNotFoundError(ReferralError):
    """There is no such pending referral to complete or cancel."""


class SelfReferralError(ReferralError):
    """Nobody can use his own code."""


class AlreadyReferredError(ReferralError):
    """The user was referred before; a pending referral ends by cancel_referral."""


class MutualReferralError(ReferralError):
    """The user referred the referrer; a pending referral ends by cancel_referral."""


class ReferralLimitReachedError(ReferralError):
    """The referrer has completed as many referrals as he may."""


_REFERRED_BEFORE = (
    "the user has been referred before; a referral that is still pending can be ended"
    " by cancel_referral"
)

# The names of constraints, indexes and refusing triggers are part of the schema's
# contract: a rule is recognised by its name, never by the text of its message.
_RULES: dict[str, tuple[type[RuleError], str]] = {
    "fingerprints_refuse_user_id": (
        FingerprintIsUserError,
        "the fingerprint's id is a user's: give the device an id of its own",
    ),
    "messages_fingerprint_id_fkey": (FingerprintNotFoundError, "no such fingerprint"),
    "messages_finished_at_not_ahead_check": (
        RuleError,
        "finished_at is more than 24 hours after recorded_at"
        " (messages_finished_at_not_ahead_check)",
    ),
    "messages_user_id_fkey": (UserNotFoundError, "no such user"),
    "plans_stripe_price_id_key": (PriceTakenError, "another plan has this price"),
    "referrals_not_self_check": (SelfReferralError, "nobody can use his own code"),
    "referrals_referred_id_fkey": (UserNotFoundError, "no such user to be referred"),
    "referrals_referred_id_not_null": (
        UserNotFoundError,
        "no such user to be referred, or the person has been erased",
    ),
    "referrals_referred_id_key": (AlreadyReferredError, _REFERRED_BEFORE),
    "referrals_pkey": (AlreadyReferredError, _REFERRED_BEFORE),
    "referrals_referrer_id_fkey": (UserNotFoundError, "no such user to refer"),
    "referrals_unordered_pair_idx": (
        MutualReferralError,
        "the two users cannot refer each other; a referral that is still pending can be"
        " ended by cancel_referral",
    ),
    "sessions_expires_after_created_check": (
        RuleError,
        "give a ttl above 0 (sessions_expires_after_created_check)",
    ),
    "sessions_fingerprint_id_fkey": (FingerprintNotFoundError, "no such fingerprint"),
    "sessions_user_id_fkey": (UserNotFoundError, "no such user"),
    "users_email_shape_check": (
        RuleError,
        "this is not an e-mail address (users_email_shape_check)",
    ),
    "users_lower_email_idx": (EmailTakenError, "another user has this e-mail"),
    "users_referral_count_within_limit_check": (
        ReferralLimitReachedError,
        "the referrer has reached the limit of referrals",
    ),
}


_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def translate(error: psycopg.IntegrityError) -> RuleError:
    """Return the domain error for the rule that *error* says was violated."""
    diag = error.diag
    rule = diag.constraint_name
    if rule is None and diag.column_name is not None:
        # NOT NULL has had a name since PostgreSQL 18 only, and reports it never.
        rule = f"{diag.table_name}_{diag.column_name}_not_null"
    if rule in _RULES:
        # Of a missing row the detail holds the id, in whatever language.
        found = (
            _ID.search(diag.message_detail or "") if rule.endswith("_fkey") else None
        )
        return refusal(rule, found and found[0])
    return RuleError(diag.message_primary or str(error), rule)


def refusal(rule: str, id: str | None = None) -> RuleError:
    """Return the domain error for a *rule* that has one, and the *id* at fault."""
    kind, message = _RULES[rule]
    return kind(message if id is None else f"{message}: {id}", rule)
