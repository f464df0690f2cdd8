"""One violation, in plain SQL, of each named rule of the schema.

They need the rows of SETUP. Of several statements, the last one is refused.
"""

from psycopg import errors

ADA = "00000000-0000-4000-8000-00000000000a"
BOB = "00000000-0000-4000-8000-00000000000b"
EVE = "00000000-0000-4000-8000-00000000000e"
FINGERPRINT = "00000000-0000-4000-8000-0000000000fd"
MESSAGE = "00000000-0000-4000-8000-000000000001"
UNKNOWN = "00000000-0000-4000-8000-0000000000ff"

SETUP = f"""
    INSERT INTO app.users (id, email, stripe_customer_id) VALUES
        ('{ADA}', 'ada@example.com', 'cus_ada'),
        ('{BOB}', 'bob@example.com', NULL),
        ('{EVE}', 'eve@example.com', NULL);
    INSERT INTO app.fingerprints (id) VALUES ('{FINGERPRINT}');
    INSERT INTO app.messages (
        subject_id, id, user_id, finished_at, input_tokens,
        cache_creation_input_tokens, cache_read_input_tokens, output_tokens,
        model, cost, credits
    ) VALUES ('{ADA}', '{MESSAGE}', '{ADA}', now(), 1, 2, 3, 4, 'a-model', 0.01, 1.2);
    INSERT INTO app.message_payloads (subject_id, message_id, finished_at, request)
    VALUES ('{ADA}', '{MESSAGE}', now(), '[]');
    INSERT INTO app.referrals (referrer_id, referred_id, status, credits, completed_at)
    VALUES ('{ADA}', '{BOB}', 'completed', 500, now());
    INSERT INTO app.sessions (token_hash, user_id, expires_at)
    VALUES (sha256('token'), '{ADA}', 'infinity');
    INSERT INTO app.stripe_events (
        id, type, event_created_at, payload, status, last_error
    ) VALUES ('evt_1', 'invoice.paid', now(), '{{}}', 'failed', 'a reason');
    INSERT INTO app.stripe_customers (id, as_of) VALUES ('cus_1', now());
    INSERT INTO app.stripe_subscriptions (id, customer_id, status, created_at, as_of)
    VALUES ('sub_1', 'cus_1', 'active', now(), now());
    INSERT INTO app.stripe_subscription_items (subscription_id, id)
    VALUES ('sub_1', 'si_1');
    INSERT INTO app.plan_prices (stripe_price_id, plan_id) VALUES ('price_1', 'paid');
    INSERT INTO app.model_prices (model, valid_from, input_price, output_price)
    VALUES ('a-model', '2026-01-01Z', 3, 15);
"""

ERRORS = {
    "_check": errors.CheckViolation,
    "_fkey": errors.ForeignKeyViolation,
    "_idx": errors.UniqueViolation,
    "_key": errors.UniqueViolation,
    "_pkey": errors.UniqueViolation,
    "fingerprints_refuse_user_id": errors.CheckViolation,
}


def expected_error(rule: str) -> type[errors.IntegrityError]:
    """Return the error of *rule*, which the suffix of its name decides."""
    for ending, error in ERRORS.items():
        if rule.endswith(ending):
            return error
    return errors.RestrictViolation


def message(**values: str) -> str:
    """Return an INSERT of a message by Bob; *values* are SQL expressions."""
    columns = {
        "subject_id": f"'{BOB}'",
        "id": f"'{MESSAGE}'",
        "user_id": f"'{BOB}'",
        "finished_at": "now()",
        "input_tokens": "1",
        "cache_creation_input_tokens": "2",
        "cache_read_input_tokens": "3",
        "output_tokens": "4",
        "model": "'a-model'",
        "cost": "0.01",
        "credits": "1.2",
        **values,
    }
    return insert("messages", **columns)


def insert(table: str, **values: str) -> str:
    """Return an INSERT; *values* are SQL expressions."""
    return (
        f"INSERT INTO app.{table} ({', '.join(values)})"
        f" VALUES ({', '.join(values.values())})"
    )


def user(assignment: str) -> str:
    """Return an UPDATE of Bob."""
    return f"UPDATE app.users SET {assignment} WHERE id = '{BOB}'"


def usage(assignment: str) -> str:
    """Return an UPDATE of usage_slots with its trigger disabled."""
    return f"""
        ALTER TABLE app.usage_slots DISABLE TRIGGER usage_slots_kept_by_trigger;
        UPDATE app.usage_slots SET {assignment}
    """


def referral(referrer: str, referred: str, **values: str) -> str:
    """Return an INSERT of a referral."""
    columns = {
        "referrer_id": f"'{referrer}'",
        "referred_id": f"'{referred}'",
        "credits": "500",
        **values,
    }
    return insert("referrals", **columns)


def session(**values: str) -> str:
    """Return an INSERT of a session of Bob."""
    columns = {
        "token_hash": "sha256('other')",
        "user_id": f"'{BOB}'",
        "expires_at": "'infinity'",
        **values,
    }
    return insert("sessions", **columns)


def event(**values: str) -> str:
    """Return an INSERT of a second Stripe event."""
    columns = {
        "id": "'evt_2'",
        "type": "'invoice.paid'",
        "event_created_at": "now()",
        "payload": "'{}'",
        "status": "'failed'",
        "last_error": "'a reason'",
        **values,
    }
    return insert("stripe_events", **columns)


def subscription(**values: str) -> str:
    """Return an INSERT of a second Stripe subscription."""
    columns = {
        "id": "'sub_2'",
        "customer_id": "'cus_1'",
        "status": "'active'",
        "created_at": "now()",
        "as_of": "now()",
        **values,
    }
    return insert("stripe_subscriptions", **columns)


def item(**values: str) -> str:
    """Return an INSERT of a second item of a Stripe subscription."""
    columns = {"subscription_id": "'sub_1'", "id": "'si_2'", **values}
    return insert("stripe_subscription_items", **columns)


def price(**values: str) -> str:
    """Return an INSERT of another own price of the model."""
    columns = {
        "model": "'a-model'",
        "valid_from": "'2026-02-01Z'",
        "input_price": "3",
        "output_price": "15",
        **values,
    }
    return insert("model_prices", **columns)


# By the name of the constraint, unique index or trigger that refuses.
VIOLATIONS = {
    "plans_pkey": insert("plans", id="'free'", monthly_credits="1"),
    "plans_id_not_empty_check": insert("plans", id="''", monthly_credits="1"),
    "plans_monthly_credits_is_amount_check": (
        "UPDATE app.plans SET monthly_credits = -1"
    ),
    "plan_prices_pkey": insert(
        "plan_prices", stripe_price_id="'price_1'", plan_id="'free'"
    ),
    "plan_prices_plan_id_fkey": insert(
        "plan_prices", stripe_price_id="'price_2'", plan_id="'unknown'"
    ),
    "plan_prices_stripe_price_id_length_check": insert(
        "plan_prices", stripe_price_id="''", plan_id="'paid'"
    ),
    "model_prices_pkey": """
        INSERT INTO app.model_prices (id, model, valid_from) OVERRIDING SYSTEM VALUE
        VALUES (1, 'b', '2026-01-01Z'), (1, 'c', '2026-01-01Z')
    """,
    "model_prices_model_valid_from_provider_key": price(valid_from="'2026-01-01Z'"),
    "model_prices_provider_length_check": price(provider="''"),
    "model_prices_model_length_check": price(model="repeat('x', 256)"),
    "model_prices_valid_from_is_finite_check": price(valid_from="'infinity'"),
    "model_prices_price_is_amount_check": price(cache_read_price="-1"),
    "model_prices_input_has_output_check": price(output_price="NULL"),
    "model_prices_cache_has_input_check": price(
        input_price="NULL", output_price="NULL", cache_read_price="1"
    ),
    "model_prices_cache_creation_1h_has_default_check": price(
        cache_creation_1h_price="1"
    ),
    "model_prices_never_change": "UPDATE app.model_prices SET input_price = 2",
    "model_prices_keep_in_force": "DELETE FROM app.model_prices",
    "model_prices_no_truncate": "TRUNCATE app.model_prices",
    "users_pkey": insert("users", id=f"'{ADA}'", email="'new@example.com'"),
    "users_referral_code_key": f"""
        UPDATE app.users AS u SET referral_code = a.referral_code
        FROM app.users AS a WHERE a.id = '{ADA}' AND u.id = '{BOB}'
    """,
    "users_stripe_customer_id_idx": user("stripe_customer_id = 'cus_ada'"),
    "users_lower_email_idx": user("email = 'ADA@example.com'"),
    "users_email_shape_check": user("email = 'bob at example.com'"),
    "users_anonymized_is_empty_check": user("anonymized_at = now()"),
    "users_base_quota_is_amount_check": user("base_quota = -1"),
    "users_referral_credits_is_amount_check": user("referral_credits = -1"),
    "users_referral_code_shape_check": user("referral_code = 'ref-bob'"),
    "users_referral_count_within_limit_check": user("referral_count = 6"),
    "users_stripe_customer_id_length_check": user("stripe_customer_id = ''"),
    "users_stripe_subscription_id_length_check": user(
        "stripe_subscription_id = repeat('x', 256), subscription_status = 'active'"
    ),
    "users_stripe_price_id_length_check": user("stripe_price_id = ''"),
    "users_subscription_has_status_check": user("subscription_status = 'active'"),
    "fingerprints_pkey": insert("fingerprints", id=f"'{FINGERPRINT}'"),
    "fingerprints_base_quota_is_amount_check": (
        "UPDATE app.fingerprints SET base_quota = -1"
    ),
    "fingerprints_refuse_user_id": insert("fingerprints", id=f"'{ADA}'"),
    "sessions_pkey": session(token_hash="sha256('token')"),
    "sessions_user_id_fkey": session(user_id=f"'{UNKNOWN}'"),
    "sessions_fingerprint_id_fkey": session(fingerprint_id=f"'{UNKNOWN}'"),
    "sessions_token_hash_is_sha256_check": session(token_hash="'token'"),
    "sessions_expires_after_created_check": session(expires_at="now()"),
    "messages_pkey": message(subject_id=f"'{ADA}'", user_id=f"'{ADA}'"),
    "messages_fingerprint_id_id_idx": (
        message(fingerprint_id=f"'{FINGERPRINT}'")
        + ";"
        + message(
            subject_id=f"'{FINGERPRINT}'",
            user_id="NULL",
            fingerprint_id=f"'{FINGERPRINT}'",
        )
    ),
    "messages_user_id_fkey": message(subject_id=f"'{UNKNOWN}'", user_id=f"'{UNKNOWN}'"),
    "messages_fingerprint_id_fkey": message(fingerprint_id=f"'{UNKNOWN}'"),
    "messages_subject_is_payer_check": message(subject_id=f"'{ADA}'"),
    "messages_finished_at_is_finite_check": message(finished_at="'infinity'"),
    "messages_finished_at_not_ahead_check": message(
        finished_at="now() + interval '24 hours 1 microsecond'"
    ),
    "messages_tokens_not_negative_check": message(cache_read_input_tokens="-1"),
    "messages_latency_not_negative_check": message(latency_ms="-1"),
    "messages_model_not_empty_check": message(model="''"),
    "messages_client_ids_length_check": message(client_id="repeat('x', 256)"),
    "messages_cost_is_amount_check": message(cost="-1"),
    "messages_credits_is_amount_check": message(credits="-1"),
    "messages_provider_length_check": message(provider="repeat('x', 256)"),
    "messages_append_only": "UPDATE app.messages SET credits = 0",
    # PostgreSQL reports the primary key of the partition.
    "message_payloads_default_pkey": """
        INSERT INTO app.message_payloads (subject_id, message_id, finished_at, request)
        SELECT p.subject_id, p.message_id, p.finished_at, p.request
        FROM app.message_payloads AS p
    """,
    "message_payloads_message_id_fkey": insert(
        "message_payloads",
        subject_id=f"'{BOB}'",
        message_id=f"'{MESSAGE}'",
        finished_at="now()",
        request="'[]'",
    ),
    "message_payloads_not_empty_check": (
        "UPDATE app.message_payloads SET request = NULL"
    ),
    "usage_slots_pkey": """
        ALTER TABLE app.usage_slots DISABLE TRIGGER usage_slots_kept_by_trigger;
        INSERT INTO app.usage_slots SELECT * FROM app.usage_slots
    """,
    "usage_slots_span_in_day_check": usage("ends_at = ends_at + interval '1 second'"),
    "usage_slots_messages_positive_check": usage("messages = 0"),
    "usage_slots_kept_by_trigger": "UPDATE app.usage_slots SET credits = 0",
    "usage_slots_no_truncate": "TRUNCATE app.usage_slots",
    "referrals_pkey": referral(ADA, BOB),
    "referrals_referred_id_key": referral(EVE, BOB),
    "referrals_unordered_pair_idx": referral(BOB, ADA),
    "referrals_referrer_id_fkey": referral(UNKNOWN, EVE),
    "referrals_referred_id_fkey": referral(EVE, UNKNOWN),
    "referrals_not_self_check": referral(EVE, EVE),
    "referrals_status_known_check": referral(BOB, EVE, status="'done'"),
    "referrals_completed_has_time_check": referral(BOB, EVE, completed_at="now()"),
    "referrals_credits_is_amount_check": referral(BOB, EVE, credits="-1"),
    "referrals_grant_on_insert": referral(
        BOB, EVE, status="'completed'", completed_at="'2026-01-01Z'"
    ),
    "referrals_grant_on_update": f"""
        {referral(BOB, EVE)};
        UPDATE app.referrals SET status = 'completed', completed_at = '2026-01-01Z'
        WHERE referrer_id = '{BOB}'
    """,
    "referrals_completed_is_final": "DELETE FROM app.referrals",
    "referrals_no_truncate": "TRUNCATE app.referrals",
    "stripe_events_pkey": event(id="'evt_1'"),
    "stripe_events_status_known_check": event(status="'done'"),
    "stripe_events_attempts_not_negative_check": event(attempts="-1"),
    "stripe_events_done_has_time_check": event(status="'applied'"),
    "stripe_events_failed_has_error_check": event(last_error="NULL"),
    "stripe_events_failed_has_payload_check": event(payload="NULL"),
    "stripe_customers_pkey": insert("stripe_customers", id="'cus_1'", as_of="now()"),
    "stripe_customers_user_id_fkey": insert(
        "stripe_customers", id="'cus_2'", as_of="now()", user_id=f"'{UNKNOWN}'"
    ),
    "stripe_customers_id_length_check": insert(
        "stripe_customers", id="repeat('x', 256)", as_of="now()"
    ),
    "stripe_customers_claim_source_known_check": """
        UPDATE app.stripe_customers
        SET claimed_user_id = gen_random_uuid(), claim_source = 'invoice'
    """,
    "stripe_customers_claim_has_source_check": """
        UPDATE app.stripe_customers SET claimed_user_id = gen_random_uuid()
    """,
    "stripe_customers_newer_wins": """
        UPDATE app.stripe_customers
        SET is_deleted = TRUE, as_of = as_of - interval '1 second'
    """,
    "stripe_subscriptions_pkey": subscription(id="'sub_1'"),
    "stripe_subscriptions_id_length_check": subscription(id="repeat('x', 256)"),
    "stripe_subscriptions_customer_id_length_check": subscription(customer_id="''"),
    "stripe_subscriptions_newer_wins": """
        UPDATE app.stripe_subscriptions
        SET status = 'canceled', as_of = as_of - interval '1 second'
    """,
    "stripe_subscription_items_pkey": item(id="'si_1'"),
    "stripe_subscription_items_subscription_id_fkey": item(subscription_id="'sub_2'"),
    "stripe_subscription_items_id_length_check": item(id="''"),
    "stripe_subscription_items_price_id_length_check": item(
        price_id="repeat('x', 256)"
    ),
    "stripe_subscription_items_unit_amount_is_finite_check": item(unit_amount="'NaN'"),
    "stripe_subscription_items_quantity_not_negative_check": item(quantity="-1"),
    "stripe_sync_runs_pkey": """
        INSERT INTO app.stripe_sync_runs (id, kind) OVERRIDING SYSTEM VALUE
        VALUES (1, 'replay'), (1, 'replay')
    """,
    "stripe_sync_runs_kind_known_check": insert("stripe_sync_runs", kind="'import'"),
    "stripe_sync_runs_outcome_known_check": insert(
        "stripe_sync_runs", kind="'replay'", outcome="'done'", finished_at="now()"
    ),
    "stripe_sync_runs_ended_has_time_check": insert(
        "stripe_sync_runs", kind="'replay'", outcome="'completed'"
    ),
}
