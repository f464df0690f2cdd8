"""The errors that pyapp raises."""

import re
from collections.abc import Sequence

import psycopg


class PyappError(Exception):
    """Base class of all pyapp exceptions; the message is one line with the remedy."""


class ConfigError(PyappError):
    """The configuration is missing or invalid; fix the variable in the message."""


class DatabaseUnavailableError(PyappError):
    """No database answers at the URL; start it, or fix the URL.

    `refused` is True if a server answered and refused the user or the database;
    `reason` is its message.
    """

    refused = False
    reason = ""


class PooledSessionError(PyappError):
    """A pooler in transaction mode answers; use the server's own host and port."""


class ForkedConnectionError(PyappError):
    """The connection or pool was opened before a fork; open one after the fork.

    Two processes with one connection would read each other's rows.
    """


class LocalServerError(PyappError):
    """The local server cannot do this; the message gives the remedy."""


class GenerateError(PyappError):
    """No migration was written.

    `left` has the objects to write by hand, and `draft` the migrations of the others.
    """

    def __init__(self, message: str, draft: str = "", left: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.draft = draft
        self.left = left


class MaintenanceError(PyappError):
    """Maintenance could not acquire its locks; run it again."""


class ArchiveError(PyappError):
    """An archive cannot be written; fix the folder, and run it again."""


class MigrationError(PyappError):
    """A migration cannot be read, applied or rolled back; the message says why."""


class MissingExtraError(PyappError):
    """An optional package is not installed; run the command in the message.

    `command` installs it with the program that installed pyapp: pip, uv, pipx.
    """

    def __init__(self, extra: str) -> None:
        super().__init__(extra)
        self.extra = extra

    @property
    def command(self) -> str:
        """The command that installs the extra."""
        # Imported here: only this error needs to read how pyapp was installed.
        from pyapp._core.extras import install_command

        return install_command(self.extra)

    def __str__(self) -> str:
        return f"the extra `{self.extra}` is missing: {self.command}"


class SchemaCheckError(PyappError):
    """Schemas differ or cannot be compared; the message names them or the remedy."""


class NotComparedError(SchemaCheckError):
    """The schemas were not compared; the message says what this needs."""


class MissingPrivilegeError(PyappError):
    """The role lacks a privilege; the message has the statement that grants it."""


class DataDriftError(PyappError):
    """A stored sum differs from its rows; repair it by the command in the message."""


class UnknownModelError(PyappError):
    """The call has no price, for the reason in the message.

    Give the cost, set an own price of the model, or correct its name.
    """


class InvalidValueError(PyappError):
    """Invalid argument; nothing was sent or stored. Correct the named value."""


class MessageNotFoundError(PyappError):
    """The payer has no message with this id; check both ids."""


class InvalidSignatureError(PyappError):
    """The webhook's signature is not valid; answer 400, store nothing."""


class InvalidPayloadError(PyappError):
    """A delivery is not an event, or too large; answer 400, or 413 if too large."""


class OpenTransactionError(PyappError):
    """The connection is in a transaction; commit it, or use another connection."""


class StripeRequestError(PyappError):
    """Stripe refused a request, or did not answer; the message says which."""


class OtherAccountError(PyappError):
    """The API key is of another Stripe account; use the key of the right one."""


class ReconcileRunningError(PyappError):
    """Another run of this kind is in progress; wait for it, or stop it."""


class QueryFileError(PyappError):
    """A file of named queries is not valid; fix the line in the message."""


class RuleError(PyappError):
    """A rule of the database refused the change; `constraint` names the rule.

    This class is raised for a rule that has no subclass: correct the value.
    """

    def __init__(self, message: str, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class UserNotFoundError(RuleError):
    """There is no such user, or it is anonymized; check the id."""


class FingerprintNotFoundError(RuleError):
    """There is no such fingerprint; call upsert_fingerprint first."""


class FingerprintIsUserError(RuleError):
    """The fingerprint's id is a user's; use another id."""


class EmailTakenError(RuleError):
    """Another user has this e-mail, ignoring case; use find_user_by_email."""


class PlanNotFoundError(RuleError):
    """There is no such plan; list_plans returns all plans."""


class PlanExistsError(RuleError):
    """There is such a plan already; set_plan_credits changes it."""


class PriceTakenError(RuleError):
    """Another plan has this price; a price buys one plan."""


class PriceNotFoundError(RuleError):
    """No plan has this price; list_plans returns the prices of each."""


class ModelPriceExistsError(RuleError):
    """The model has another price from this time; set one from a later time."""


class ModelPriceInForceError(RuleError):
    """The price is in force and is never deleted; set one from a later time."""


class ModelPriceNotFoundError(RuleError):
    """There is no such price; list_model_prices returns all of them."""


class ReferralError(RuleError):
    """The referral is not possible; the subclass gives the reason."""


class ReferralCodeNotFoundError(ReferralError):
    """No user has this code; check its spelling."""


class ReferralNotFoundError(ReferralError):
    """There is no such pending referral to complete or cancel."""


class SelfReferralError(ReferralError):
    """A user cannot redeem their own code."""


class AlreadyReferredError(ReferralError):
    """The user was referred before; a pending referral ends by cancel_referral."""


class MutualReferralError(ReferralError):
    """The user referred the referrer; a pending referral ends by cancel_referral."""


class ReferralLimitReachedError(ReferralError):
    """The referrer has reached referral_limit."""


_REFERRED_BEFORE = (
    "the user has been referred before; a referral that is still pending can be ended"
    " by cancel_referral"
)

# The names of constraints, unique indexes and refusing triggers are part of the API: a
# rule is recognised by its name, never by the text of its message.
_RULES: dict[str, tuple[type[RuleError], str]] = {
    "fingerprints_refuse_user_id": (
        FingerprintIsUserError,
        "the fingerprint's id is a user's: use another id",
    ),
    "messages_fingerprint_id_fkey": (FingerprintNotFoundError, "no such fingerprint"),
    "messages_finished_at_not_ahead_check": (
        RuleError,
        "finished_at is more than 24 hours after recorded_at"
        " (messages_finished_at_not_ahead_check)",
    ),
    "messages_user_id_fkey": (UserNotFoundError, "no such user"),
    "model_prices_cache_has_input_check": (
        RuleError,
        "prices of the cache need an input price (model_prices_cache_has_input_check)",
    ),
    "model_prices_input_has_output_check": (
        RuleError,
        "give both an input price and an output price, or neither"
        " (model_prices_input_has_output_check)",
    ),
    "model_prices_cache_creation_1h_has_default_check": (
        RuleError,
        "a price of 1-hour cache writes needs one of cache writes"
        " (model_prices_cache_creation_1h_has_default_check)",
    ),
    "model_prices_keep_in_force": (
        ModelPriceInForceError,
        "the price is in force: set one from a later time",
    ),
    "model_prices_model_valid_from_provider_key": (
        ModelPriceExistsError,
        "the model has another price from this time, and a price is never changed:"
        " set one from a later time",
    ),
    "plan_prices_pkey": (PriceTakenError, "another plan has this price"),
    "plan_prices_plan_id_fkey": (PlanNotFoundError, "no such plan"),
    "plans_pkey": (PlanExistsError, "there is such a plan already"),
    "referrals_not_self_check": (
        SelfReferralError,
        "users cannot redeem their own code",
    ),
    "referrals_referred_id_fkey": (UserNotFoundError, "no such user to be referred"),
    "referrals_referred_id_not_null": (
        UserNotFoundError,
        "no such user to be referred, or it is anonymized",
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
        "this is not a valid e-mail address (users_email_shape_check)",
    ),
    "users_lower_email_idx": (EmailTakenError, "another user has this e-mail"),
    "users_referral_count_within_limit_check": (
        ReferralLimitReachedError,
        "the referrer has reached the limit of referrals",
    ),
}


_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def translate(error: psycopg.IntegrityError) -> RuleError:
    """Return the domain error for the rule that was violated."""
    diag = error.diag
    rule = diag.constraint_name
    if rule is None and diag.column_name is not None:
        # NOT NULL violations do not report the constraint name.
        rule = f"{diag.table_name}_{diag.column_name}_not_null"
    if rule in _RULES:
        # The detail contains the id of the missing row, in any language.
        found = (
            _ID.search(diag.message_detail or "") if rule.endswith("_fkey") else None
        )
        return refusal(rule, found and found[0])
    return RuleError(diag.message_primary or str(error), rule)


def refusal(rule: str, id: str | None = None) -> RuleError:
    """Return the domain error for *rule*; the message ends in the invalid *id*."""
    kind, message = _RULES[rule]
    return kind(message if id is None else f"{message}: {id}", rule)
