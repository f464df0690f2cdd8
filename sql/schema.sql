-- Tables, indexes, checks and triggers, and the functions that they call. All other
-- functions and the views are in sql/functions; load those files after this one, in the
-- order of their names. A change here comes with a migration, in the same commit.

CREATE SCHEMA app;

COMMENT ON SCHEMA app IS
    'Metering of paid AI usage: accounts, messages, quota, referrals, Stripe.';

-- Rules for all function bodies, here and in sql/functions:
--
-- - SQL-standard bodies (RETURN, BEGIN ATOMIC) are parsed when the function is created.
--   search_path cannot affect them, and the planner can inline them.
-- - All other bodies look names up when they run, and set search_path to pg_catalog,
--   pg_temp. If pg_temp is not listed, it is searched first for tables and types, and
--   any caller can create both.
-- - UTC is written as interval '0'. PostgreSQL 18 looks a zone's name up among the
--   abbreviations of the session's TimeZone first, and TimeZone 'UTC-14' redefines UTC.
-- - SECURITY DEFINER functions are revoked from PUBLIC, because any caller could use a
--   trigger function on its own table.

-- ---------------------------------------------------------------------------
-- Quota periods
-- ---------------------------------------------------------------------------

CREATE FUNCTION app.add_months(anchor timestamptz, months integer)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN
    ((anchor AT TIME ZONE interval '0') + make_interval(months => months))
    AT TIME ZONE interval '0';

COMMENT ON FUNCTION app.add_months(timestamptz, integer) IS
    'Adds months to the anchor in UTC; 31 January plus 1 is the last day of February.';

CREATE FUNCTION app.count_months(anchor timestamptz, moment timestamptz)
RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN
    (date_part('year', moment AT TIME ZONE interval '0')::integer
        - date_part('year', anchor AT TIME ZONE interval '0')::integer) * 12
    + date_part('month', moment AT TIME ZONE interval '0')::integer
    - date_part('month', anchor AT TIME ZONE interval '0')::integer
    - (app.add_months(
        anchor,
        (date_part('year', moment AT TIME ZONE interval '0')::integer
            - date_part('year', anchor AT TIME ZONE interval '0')::integer) * 12
        + date_part('month', moment AT TIME ZONE interval '0')::integer
        - date_part('month', anchor AT TIME ZONE interval '0')::integer
    ) > moment)::integer;

COMMENT ON FUNCTION app.count_months(timestamptz, timestamptz) IS
    'Whole months from the anchor to the moment, in UTC.';

-- PL/pgSQL prevents inlining: quota queries rarely evaluate this arithmetic.
CREATE FUNCTION app.get_period_start(anchor timestamptz, moment timestamptz)
RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN app.add_months(anchor, app.count_months(anchor, moment));
END;
$$;

COMMENT ON FUNCTION app.get_period_start(timestamptz, timestamptz) IS
    'Last period boundary at or before the moment; boundaries are anchor + n months.';

CREATE FUNCTION app.get_quota_period_start(anchor timestamptz, reset timestamptz)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN COALESCE(
    app.get_period_start(
        anchor,
        (reset AT TIME ZONE interval '0' - interval '1 microsecond')
        AT TIME ZONE interval '0'
    ),
    anchor
);

COMMENT ON FUNCTION app.get_quota_period_start(timestamptz, timestamptz) IS
    'Last period boundary before the reset; the anchor if the reset is NULL.';

-- ---------------------------------------------------------------------------
-- Trigger functions of several tables
-- ---------------------------------------------------------------------------

CREATE FUNCTION app.set_updated_at()
RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION app.set_updated_at() IS
    'Trigger: sets updated_at to the start of the transaction.';

CREATE FUNCTION app.refuse_change()
RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '% on %.% is refused: %',
        TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0]
        USING ERRCODE = 'restrict_violation',
            SCHEMA = TG_TABLE_SCHEMA,
            TABLE = TG_TABLE_NAME,
            CONSTRAINT = TG_NAME;
END;
$$;

COMMENT ON FUNCTION app.refuse_change() IS
    'Trigger: raises restrict_violation; reports the trigger''s name as constraint.';

-- ---------------------------------------------------------------------------
-- plans
-- ---------------------------------------------------------------------------

CREATE TABLE app.plans (
    id              text NOT NULL,
    monthly_credits numeric NOT NULL,

    CONSTRAINT plans_pkey PRIMARY KEY (id),
    CONSTRAINT plans_id_not_empty_check CHECK (id <> ''),
    CONSTRAINT plans_monthly_credits_is_amount_check
        CHECK (monthly_credits >= 0 AND monthly_credits < 'Infinity')
);

COMMENT ON TABLE app.plans IS
    'Plans. anonymous and free apply without a paid subscription.';
COMMENT ON COLUMN app.plans.monthly_credits IS
    'Credits per month without referral credits; one credit is one US cent of usage.';

INSERT INTO app.plans (id, monthly_credits) VALUES
    ('anonymous', 1000),
    ('free', 2500),
    ('paid', 50000);

CREATE TABLE app.plan_prices (
    stripe_price_id text NOT NULL,
    plan_id         text NOT NULL,

    CONSTRAINT plan_prices_pkey PRIMARY KEY (stripe_price_id),
    CONSTRAINT plan_prices_plan_id_fkey FOREIGN KEY (plan_id)
        REFERENCES app.plans (id) ON DELETE RESTRICT,
    CONSTRAINT plan_prices_stripe_price_id_length_check
        CHECK (length(stripe_price_id) BETWEEN 1 AND 255)
);

COMMENT ON TABLE app.plan_prices IS
    'Stripe prices that buy a plan: monthly, yearly, old ones. Set by the operator.';
COMMENT ON COLUMN app.plan_prices.stripe_price_id IS
    'Stripe''s id of the price, or of a legacy plan.';
COMMENT ON COLUMN app.plan_prices.plan_id IS
    'Plan that the price buys.';

-- For plan_prices_plan_id_fkey, list_plans and get_plan.
CREATE INDEX plan_prices_plan_id_idx ON app.plan_prices (plan_id);

CREATE FUNCTION app.get_monthly_credits(plan_id text)
RETURNS numeric LANGUAGE sql STABLE PARALLEL SAFE
RETURN (
    SELECT p.monthly_credits
    FROM app.plans AS p
    WHERE p.id = get_monthly_credits.plan_id
);

COMMENT ON FUNCTION app.get_monthly_credits(text) IS
    'Monthly credits of a plan; NULL for an unknown plan.';

-- ---------------------------------------------------------------------------
-- users
-- ---------------------------------------------------------------------------

CREATE FUNCTION app.is_active_status(status text)
RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN COALESCE(status IN ('active', 'trialing', 'past_due'), FALSE);

COMMENT ON FUNCTION app.is_active_status(text) IS
    'Whether a subscription with this status entitles; NULL and unknown ones do not.';

CREATE TABLE app.users (
    id                     uuid NOT NULL DEFAULT gen_random_uuid(),
    email                  text,
    name                   text,
    email_verified_at      timestamptz,
    image_url              text,
    base_quota             numeric NOT NULL DEFAULT app.get_monthly_credits('free'),
    referral_credits       numeric NOT NULL DEFAULT 0,
    quota                  numeric NOT NULL
    GENERATED ALWAYS AS (base_quota + referral_credits) STORED,
    quota_anchor           timestamptz NOT NULL DEFAULT now(),
    next_quota_reset       timestamptz DEFAULT app.add_months(now(), 1),
    quota_period_start     timestamptz NOT NULL
    GENERATED ALWAYS AS (
        app.get_quota_period_start(quota_anchor, next_quota_reset)
    ) STORED,
    referral_code          text NOT NULL DEFAULT 'ref-' || gen_random_uuid(),
    referral_limit         integer NOT NULL DEFAULT 5,
    referral_count         integer NOT NULL DEFAULT 0,
    stripe_customer_id     text,
    stripe_subscription_id text,
    stripe_price_id        text,
    subscription_status    text,
    subscription_active    boolean NOT NULL
    GENERATED ALWAYS AS (
        app.is_active_status(subscription_status)
    ) STORED,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now(),
    anonymized_at          timestamptz,

    CONSTRAINT users_pkey PRIMARY KEY (id),
    CONSTRAINT users_referral_code_key UNIQUE (referral_code)
);

COMMENT ON TABLE app.users IS
    'Accounts. Only the Stripe sync writes stripe_* and subscription_*.';
COMMENT ON COLUMN app.users.email IS
    'E-mail address as entered; unique ignoring case; NULL if anonymized.';
COMMENT ON COLUMN app.users.name IS
    'Display name; NULL if not given or anonymized.';
COMMENT ON COLUMN app.users.email_verified_at IS
    'When the e-mail address was verified; NULL if it is not, or anonymized.';
COMMENT ON COLUMN app.users.image_url IS
    'Address of the avatar; NULL if there is none, or anonymized.';
COMMENT ON COLUMN app.users.base_quota IS
    'Credits per period from the plan; the Stripe sync updates it with the plan.';
COMMENT ON COLUMN app.users.referral_credits IS
    'Credits per period from completed referrals; written by the trigger of referrals.';
COMMENT ON COLUMN app.users.quota IS
    'Credits per period: base_quota + referral_credits.';
COMMENT ON COLUMN app.users.quota_anchor IS
    'Period boundaries are this time + n months in UTC; from Stripe''s billing anchor.';
COMMENT ON COLUMN app.users.next_quota_reset IS
    'When the period ends; if past, the next boundary counts; NULL if it never resets.';
COMMENT ON COLUMN app.users.quota_period_start IS
    'Last period boundary before next_quota_reset; quota_anchor if that is NULL.';
COMMENT ON COLUMN app.users.referral_code IS
    'Code with which this user refers others: ref-<uuid>.';
COMMENT ON COLUMN app.users.referral_limit IS
    'Maximum of referral_count.';
COMMENT ON COLUMN app.users.referral_count IS
    'Completed referrals made by this user; written by the trigger of referrals.';
COMMENT ON COLUMN app.users.stripe_customer_id IS
    'Stripe customer that the entitlement comes from; NULL if none.';
COMMENT ON COLUMN app.users.stripe_subscription_id IS
    'Stripe subscription of the best item (stripe_entitlements); NULL if none.';
COMMENT ON COLUMN app.users.stripe_price_id IS
    'Stripe price of the best item; NULL if there is none, or without price.';
COMMENT ON COLUMN app.users.subscription_status IS
    'Status of that subscription as reported by Stripe; NULL if there is none.';
COMMENT ON COLUMN app.users.subscription_active IS
    'Whether subscription_status is active, trialing or past_due.';
COMMENT ON COLUMN app.users.created_at IS
    'When the Stripe customer was created; without one, when the row was inserted.';
COMMENT ON COLUMN app.users.anonymized_at IS
    'When personal data was erased; NULL for an active account.';

-- Checks are added separately to keep the column list on one screen.
ALTER TABLE app.users
    ADD CONSTRAINT users_email_shape_check
        CHECK (email ~ '^[^@\s]+@[^@\s]+$' AND length(email) <= 320),
    ADD CONSTRAINT users_anonymized_is_empty_check CHECK (
        CASE
            WHEN anonymized_at IS NULL THEN email IS NOT NULL
            ELSE num_nonnulls(email, name, email_verified_at, image_url) = 0
        END
    ),
    ADD CONSTRAINT users_base_quota_is_amount_check
        CHECK (base_quota >= 0 AND base_quota < 'Infinity'),
    ADD CONSTRAINT users_referral_credits_is_amount_check
        CHECK (referral_credits >= 0 AND referral_credits < 'Infinity'),
    ADD CONSTRAINT users_referral_code_shape_check CHECK (
        referral_code ~ '^ref-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
    ),
    ADD CONSTRAINT users_referral_count_within_limit_check
        CHECK (referral_count BETWEEN 0 AND referral_limit),
    ADD CONSTRAINT users_stripe_customer_id_length_check
        CHECK (length(stripe_customer_id) BETWEEN 1 AND 255),
    ADD CONSTRAINT users_stripe_subscription_id_length_check
        CHECK (length(stripe_subscription_id) BETWEEN 1 AND 255),
    ADD CONSTRAINT users_stripe_price_id_length_check
        CHECK (length(stripe_price_id) BETWEEN 1 AND 255),
    ADD CONSTRAINT users_subscription_has_status_check
        CHECK ((stripe_subscription_id IS NULL) = (subscription_status IS NULL));

-- For find_user_by_email. Makes addresses unique ignoring case.
CREATE UNIQUE INDEX users_lower_email_idx ON app.users (lower(email));

-- For upsert_customers, upsert_subscriptions, claim_customer and
-- list_unseen_customers. The functions lock_snapshot_users, find_customer_owners and
-- find_customer_claim read it. Makes a customer's user unique. Partial, because an
-- UPDATE of a column with a full unique index waits for transactions that
-- inserted rows which reference the user.
CREATE UNIQUE INDEX users_stripe_customer_id_idx ON app.users (stripe_customer_id)
WHERE stripe_customer_id IS NOT NULL;

CREATE TRIGGER users_set_updated_at BEFORE UPDATE ON app.users
FOR EACH ROW EXECUTE FUNCTION app.set_updated_at();

-- ---------------------------------------------------------------------------
-- fingerprints
-- ---------------------------------------------------------------------------

CREATE TABLE app.fingerprints (
    id                 uuid NOT NULL DEFAULT gen_random_uuid(),
    sig_hash           text,
    base_quota         numeric NOT NULL DEFAULT app.get_monthly_credits('anonymous'),
    quota_anchor       timestamptz NOT NULL DEFAULT now(),
    next_quota_reset   timestamptz DEFAULT app.add_months(now(), 1),
    quota_period_start timestamptz NOT NULL
    GENERATED ALWAYS AS (
        app.get_quota_period_start(quota_anchor, next_quota_reset)
    ) STORED,
    created_at         timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT fingerprints_pkey PRIMARY KEY (id),
    CONSTRAINT fingerprints_base_quota_is_amount_check
        CHECK (base_quota >= 0 AND base_quota < 'Infinity')
);

COMMENT ON TABLE app.fingerprints IS
    'Fingerprints of anonymous clients. Each has its own quota.';
COMMENT ON COLUMN app.fingerprints.sig_hash IS
    'Hash of the client''s signature; NULL if not given.';
COMMENT ON COLUMN app.fingerprints.base_quota IS
    'Credits per period for messages without a user.';
COMMENT ON COLUMN app.fingerprints.quota_anchor IS
    'Period boundaries are this time + n months in UTC.';
COMMENT ON COLUMN app.fingerprints.next_quota_reset IS
    'When the period ends; if past, the next boundary counts; NULL if it never resets.';
COMMENT ON COLUMN app.fingerprints.quota_period_start IS
    'Last period boundary before next_quota_reset; quota_anchor if that is NULL.';

-- The client chooses the id of its fingerprint, and messages are billed to an id of
-- either kind: a fingerprint with the id of a user would spend that user's quota.
CREATE FUNCTION app.refuse_user_id()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM app.users AS u WHERE u.id = NEW.id) THEN
        RAISE EXCEPTION 'fingerprint % has the id of a user', NEW.id
            USING ERRCODE = 'check_violation',
                SCHEMA = TG_TABLE_SCHEMA,
                TABLE = TG_TABLE_NAME,
                CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION app.refuse_user_id() IS
    'Trigger: refuses a fingerprint that has the id of a user.';

REVOKE EXECUTE ON FUNCTION app.refuse_user_id() FROM public;

CREATE TRIGGER fingerprints_refuse_user_id BEFORE INSERT OR UPDATE OF id
ON app.fingerprints FOR EACH ROW EXECUTE FUNCTION app.refuse_user_id();

-- ---------------------------------------------------------------------------
-- sessions
-- ---------------------------------------------------------------------------

CREATE TABLE app.sessions (
    token_hash     bytea NOT NULL,
    user_id        uuid NOT NULL,
    fingerprint_id uuid,
    created_at     timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz NOT NULL,

    CONSTRAINT sessions_pkey PRIMARY KEY (token_hash),
    CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE CASCADE,
    CONSTRAINT sessions_fingerprint_id_fkey FOREIGN KEY (fingerprint_id)
        REFERENCES app.fingerprints (id) ON DELETE RESTRICT,
    CONSTRAINT sessions_token_hash_is_sha256_check CHECK (length(token_hash) = 32),
    CONSTRAINT sessions_expires_after_created_check CHECK (expires_at > created_at)
);

COMMENT ON TABLE app.sessions IS
    'Sign-ins. A session is valid before expires_at, and not at it.';
COMMENT ON COLUMN app.sessions.token_hash IS
    'SHA-256 of the token; the token itself is never stored.';
COMMENT ON COLUMN app.sessions.user_id IS
    'The user that is signed in.';
COMMENT ON COLUMN app.sessions.fingerprint_id IS
    'The fingerprint that signed in; NULL if unknown.';
COMMENT ON COLUMN app.sessions.expires_at IS
    'First instant at which the session is no longer valid.';

-- For delete_user_sessions and sessions_user_id_fkey.
CREATE INDEX sessions_user_id_idx ON app.sessions (user_id);

-- For sessions_fingerprint_id_fkey.
CREATE INDEX sessions_fingerprint_id_idx ON app.sessions (fingerprint_id);

-- For delete_expired_sessions, which deletes the oldest first.
CREATE INDEX sessions_expires_at_idx ON app.sessions (expires_at);

-- Anyone can sign up with an address before its owner does: a session that is older
-- than the first verification of the address may belong to another person.
CREATE FUNCTION app.end_unverified_sessions()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Above READ COMMITTED, a session committed during the wait below is not visible.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'verifying an e-mail address needs READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- The update does not conflict with the lock of create_session; FOR UPDATE does.
    -- It waits until a session that is being created is committed.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = NEW.id
    FOR UPDATE;
    DELETE FROM app.sessions AS s
    WHERE s.user_id = NEW.id;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.end_unverified_sessions() IS
    'Trigger: deletes a user''s sessions when the address is first verified.';

REVOKE EXECUTE ON FUNCTION app.end_unverified_sessions() FROM public;

CREATE TRIGGER users_end_unverified_sessions
AFTER UPDATE OF email, email_verified_at ON app.users
FOR EACH ROW WHEN (
    NEW.email_verified_at IS NOT NULL
    AND (
        OLD.email_verified_at IS NULL
        OR lower(NEW.email) IS DISTINCT FROM lower(OLD.email)
    )
)
EXECUTE FUNCTION app.end_unverified_sessions();

-- ---------------------------------------------------------------------------
-- model_prices
-- ---------------------------------------------------------------------------

CREATE TABLE app.model_prices (
    id                      bigint GENERATED ALWAYS AS IDENTITY,
    provider                text,
    model                   text NOT NULL,
    valid_from              timestamptz NOT NULL,
    input_price             numeric,
    cache_creation_price    numeric,
    cache_creation_1h_price numeric,
    cache_read_price        numeric,
    output_price            numeric,
    created_at              timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT model_prices_pkey PRIMARY KEY (id),
    -- valid_from before provider: find_own_cost reads the latest price first, and NULL
    -- is a provider like the others.
    CONSTRAINT model_prices_model_valid_from_provider_key
        UNIQUE NULLS NOT DISTINCT (model, valid_from, provider)
);

COMMENT ON TABLE app.model_prices IS
    'The operator''s own prices, in US dollars per million tokens. A row holds from'
    ' valid_from until the next one of its provider and model.';
COMMENT ON COLUMN app.model_prices.provider IS
    'messages.provider to which the price applies; NULL is for messages without one.';
COMMENT ON COLUMN app.model_prices.model IS
    'messages.model to which the price applies.';
COMMENT ON COLUMN app.model_prices.valid_from IS
    'Applies to messages that finished at this time or later.';
COMMENT ON COLUMN app.model_prices.input_price IS
    'Of input_tokens. NULL ends the own prices: the published price applies again.';
COMMENT ON COLUMN app.model_prices.cache_creation_price IS
    'Of cache_creation_input_tokens; NULL if calls that write to the cache have no'
    ' price.';
COMMENT ON COLUMN app.model_prices.cache_creation_1h_price IS
    'Of cache writes kept for an hour; NULL if it is cache_creation_price.';
COMMENT ON COLUMN app.model_prices.cache_read_price IS
    'Of cache_read_input_tokens; NULL if calls that read from the cache have no price.';
COMMENT ON COLUMN app.model_prices.output_price IS
    'Of output_tokens; NULL if input_price is.';

-- Checks are added separately to keep the column list on one screen.
ALTER TABLE app.model_prices
    ADD CONSTRAINT model_prices_provider_length_check
        CHECK (length(provider) BETWEEN 1 AND 255),
    ADD CONSTRAINT model_prices_model_length_check
        CHECK (length(model) BETWEEN 1 AND 255),
    ADD CONSTRAINT model_prices_valid_from_is_finite_check CHECK (isfinite(valid_from)),
    ADD CONSTRAINT model_prices_price_is_amount_check CHECK (
        LEAST(
            input_price, cache_creation_price, cache_creation_1h_price,
            cache_read_price, output_price
        ) >= 0
        AND GREATEST(
            input_price, cache_creation_price, cache_creation_1h_price,
            cache_read_price, output_price
        ) < 'Infinity'
    ),
    ADD CONSTRAINT model_prices_input_has_output_check
        CHECK ((input_price IS NULL) = (output_price IS NULL)),
    ADD CONSTRAINT model_prices_cache_has_input_check CHECK (
        input_price IS NOT NULL
        OR num_nonnulls(
            cache_creation_price, cache_creation_1h_price, cache_read_price
        ) = 0
    ),
    ADD CONSTRAINT model_prices_cache_creation_1h_has_default_check
        CHECK (cache_creation_1h_price IS NULL OR cache_creation_price IS NOT NULL);

-- A change would give a message another cost than the same message recorded before.
CREATE TRIGGER model_prices_never_change BEFORE UPDATE ON app.model_prices
FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
EXECUTE FUNCTION app.refuse_change('set a price from a later time');

CREATE TRIGGER model_prices_keep_in_force BEFORE DELETE ON app.model_prices
FOR EACH ROW WHEN (OLD.valid_from <= clock_timestamp())
EXECUTE FUNCTION app.refuse_change('set a price from a later time');

CREATE TRIGGER model_prices_no_truncate BEFORE TRUNCATE ON app.model_prices
FOR EACH STATEMENT
EXECUTE FUNCTION app.refuse_change('prices in force are kept');

-- ---------------------------------------------------------------------------
-- messages
-- ---------------------------------------------------------------------------

-- The largest table: columns are ordered by alignment, widest first, to avoid padding.
CREATE TABLE app.messages (
    subject_id                  uuid NOT NULL,
    id                          uuid NOT NULL,
    user_id                     uuid,
    fingerprint_id              uuid,
    finished_at                 timestamptz NOT NULL,
    recorded_at                 timestamptz NOT NULL DEFAULT now(),
    total_tokens                bigint NOT NULL
    GENERATED ALWAYS AS (
        input_tokens::bigint + cache_creation_input_tokens
        + cache_read_input_tokens + output_tokens
    ) STORED,
    input_tokens                integer NOT NULL,
    cache_creation_input_tokens integer NOT NULL,
    cache_read_input_tokens     integer NOT NULL,
    output_tokens               integer NOT NULL,
    latency_ms                  integer,
    model                       text NOT NULL,
    client_id                   text,
    client_request_id           text,
    cost                        numeric NOT NULL,
    credits                     numeric NOT NULL,
    provider                    text,

    CONSTRAINT messages_pkey PRIMARY KEY (subject_id, id),
    CONSTRAINT messages_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE RESTRICT,
    CONSTRAINT messages_fingerprint_id_fkey FOREIGN KEY (fingerprint_id)
        REFERENCES app.fingerprints (id) ON DELETE RESTRICT
) WITH (
    -- Index-only scans of the quota check need pages that VACUUM has marked.
    autovacuum_vacuum_insert_scale_factor = 0.02
);

COMMENT ON TABLE app.messages IS
    'Calls to models, one row each, append-only. The bill is their sum.';
COMMENT ON COLUMN app.messages.subject_id IS
    'Payer: the user, else the fingerprint. Not generated, to allow sharding by it.';
COMMENT ON COLUMN app.messages.id IS
    'Idempotency key given by the caller; unique per payer and per fingerprint.';
COMMENT ON COLUMN app.messages.user_id IS
    'The user; NULL for an anonymous message.';
COMMENT ON COLUMN app.messages.fingerprint_id IS
    'The fingerprint; NULL if unknown.';
COMMENT ON COLUMN app.messages.finished_at IS
    'When the model finished; decides the period and the prices.';
COMMENT ON COLUMN app.messages.recorded_at IS
    'When the row was inserted; finished_at is at most 24 hours later.';
COMMENT ON COLUMN app.messages.total_tokens IS
    'Sum of the four token counts, which are disjoint.';
COMMENT ON COLUMN app.messages.input_tokens IS
    'Input tokens at the full price: neither written to nor read from the cache.';
COMMENT ON COLUMN app.messages.cache_creation_input_tokens IS
    'Input tokens written to the cache.';
COMMENT ON COLUMN app.messages.cache_read_input_tokens IS
    'Input tokens read from the cache.';
COMMENT ON COLUMN app.messages.output_tokens IS
    'Output tokens, including reasoning.';
COMMENT ON COLUMN app.messages.latency_ms IS
    'Milliseconds from the request to the last byte; NULL if not measured.';
COMMENT ON COLUMN app.messages.model IS
    'Model name as used by its provider.';
COMMENT ON COLUMN app.messages.client_id IS
    'The client''s run, such as one session of a tool; NULL if not given.';
COMMENT ON COLUMN app.messages.client_request_id IS
    'The client''s request, which may need several calls; NULL if not given.';
COMMENT ON COLUMN app.messages.cost IS
    'Cost of the call in US dollars.';
COMMENT ON COLUMN app.messages.credits IS
    'Credits billed for the call.';
COMMENT ON COLUMN app.messages.provider IS
    'Host that served the model, such as aws; NULL if not given.';

-- Checks are added separately to keep the column list on one screen.
ALTER TABLE app.messages
    ADD CONSTRAINT messages_subject_is_payer_check
        CHECK (subject_id IS NOT DISTINCT FROM COALESCE(user_id, fingerprint_id)),
    ADD CONSTRAINT messages_finished_at_is_finite_check CHECK (isfinite(finished_at)),
    -- In UTC, because timestamptz + interval depends on the session's TimeZone. Not a
    -- subtraction, because times that are far apart overflow an interval.
    ADD CONSTRAINT messages_finished_at_not_ahead_check CHECK (
        finished_at AT TIME ZONE interval '0'
        <= recorded_at AT TIME ZONE interval '0' + interval '24 hours'
    ),
    ADD CONSTRAINT messages_tokens_not_negative_check CHECK (
        LEAST(
            input_tokens, cache_creation_input_tokens,
            cache_read_input_tokens, output_tokens
        ) >= 0
    ),
    ADD CONSTRAINT messages_latency_not_negative_check CHECK (latency_ms >= 0),
    ADD CONSTRAINT messages_model_not_empty_check CHECK (model <> ''),
    ADD CONSTRAINT messages_client_ids_length_check
        CHECK (length(client_id) <= 255 AND length(client_request_id) <= 255),
    ADD CONSTRAINT messages_cost_is_amount_check
        CHECK (cost >= 0 AND cost < 'Infinity'),
    ADD CONSTRAINT messages_credits_is_amount_check
        CHECK (credits >= 0 AND credits < 'Infinity'),
    ADD CONSTRAINT messages_provider_length_check
        CHECK (length(provider) BETWEEN 1 AND 255);

-- For get_user_quota and list_messages. INCLUDE (credits) allows index-only scans of
-- the messages that the quota check subtracts where a row lies across a boundary.
CREATE INDEX messages_subject_id_finished_at_idx
ON app.messages (subject_id, finished_at) INCLUDE (credits);

-- For messages_user_id_fkey.
CREATE INDEX messages_user_id_idx ON app.messages (user_id);

-- For messages_fingerprint_id_fkey. Unique, because a call that is recorded again after
-- a sign-in has the same fingerprint and id, and another payer. Partial, because most
-- messages of users have no fingerprint.
CREATE UNIQUE INDEX messages_fingerprint_id_id_idx
ON app.messages (fingerprint_id, id)
WHERE fingerprint_id IS NOT NULL;

-- For get_client_usage. Partial, because imported and anonymous calls often have none.
CREATE INDEX messages_client_id_idx ON app.messages (client_id)
WHERE client_id IS NOT NULL;

-- For get_request_usage. Partial for the same reason.
CREATE INDEX messages_client_request_id_idx ON app.messages (client_request_id)
WHERE client_request_id IS NOT NULL;

-- For get_message_rates. Rows are inserted in the order of recorded_at, so that BRIN
-- finds the pages of the last hour, and costs writers next to nothing.
CREATE INDEX messages_recorded_at_idx ON app.messages
USING brin (recorded_at) WITH (autosummarize = on);

-- For list_usage over all payers. Rows are inserted nearly in the order of finished_at,
-- so that BRIN finds the pages of a month. Small ranges and minmax_multi, because a few
-- messages that are recorded late or by a wrong clock would widen a plain range.
CREATE INDEX messages_finished_at_idx ON app.messages
USING brin (finished_at timestamptz_minmax_multi_ops) WITH (pages_per_range = 32);

CREATE TRIGGER messages_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON app.messages
FOR EACH STATEMENT EXECUTE FUNCTION app.refuse_change('messages are append-only');

-- ---------------------------------------------------------------------------
-- message_payloads
-- ---------------------------------------------------------------------------

CREATE TABLE app.message_payloads (
    subject_id   uuid NOT NULL,
    message_id   uuid NOT NULL,
    finished_at  timestamptz NOT NULL,
    request      jsonb,
    response     jsonb,
    last_message jsonb GENERATED ALWAYS AS (request -> -1) STORED,

    CONSTRAINT message_payloads_pkey
        PRIMARY KEY (subject_id, message_id, finished_at),
    CONSTRAINT message_payloads_message_id_fkey FOREIGN KEY (subject_id, message_id)
        REFERENCES app.messages (subject_id, id) ON DELETE RESTRICT,
    CONSTRAINT message_payloads_not_empty_check
        CHECK (num_nonnulls(request, response) > 0)
) PARTITION BY RANGE (finished_at);

COMMENT ON TABLE app.message_payloads IS
    'Request and response bodies, partitioned by month; dropped without the messages.';
COMMENT ON COLUMN app.message_payloads.subject_id IS
    'Payer of the message.';
COMMENT ON COLUMN app.message_payloads.message_id IS
    'The message, unique per payer.';
COMMENT ON COLUMN app.message_payloads.finished_at IS
    'finished_at of the message; decides the partition.';
COMMENT ON COLUMN app.message_payloads.request IS
    'Request body, usually an array of messages; NULL if not kept.';
COMMENT ON COLUMN app.message_payloads.response IS
    'Response body; NULL if not kept.';
COMMENT ON COLUMN app.message_payloads.last_message IS
    'Last element of request, or the value if scalar; NULL if empty or an object.';

-- Takes months without a partition, so that inserts never fail.
CREATE TABLE app.message_payloads_default
PARTITION OF app.message_payloads DEFAULT;

COMMENT ON TABLE app.message_payloads_default IS
    'Payloads of months without a partition.';

-- ---------------------------------------------------------------------------
-- usage_slots
-- ---------------------------------------------------------------------------

-- The first and the last year have no boundary, because it could be out of range.
-- LIMIT ALL is an optimization fence: the boundary is computed once.
CREATE FUNCTION app.get_usage_span(anchor timestamptz, moment timestamptz)
RETURNS TABLE (starts_at timestamptz, ends_at timestamptz)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        CASE
            WHEN b.boundary <= b.moment THEN GREATEST(b.midnight, b.boundary)
            ELSE b.midnight
        END AT TIME ZONE interval '0' AS starts_at,
        CASE
            WHEN b.boundary > b.moment THEN LEAST(b.next_midnight, b.boundary)
            ELSE b.next_midnight
        END AT TIME ZONE interval '0' AS ends_at
    FROM (
        SELECT
            u.moment,
            date_trunc('day', u.moment) AS midnight,
            CASE
                WHEN u.moment < '294276-12-31'
                    THEN date_trunc('day', u.moment) + interval '24 hours'
                ELSE '294276-12-31 23:59:59.999999'
            END AS next_midnight,
            CASE
                WHEN u.moment > '4712-01-01 BC' AND u.moment < '294276-01-01'
                    THEN u.anchor + make_interval(
                        months => (
                            date_part('year', u.moment) * 12
                            + date_part('month', u.moment)
                            - date_part('year', u.anchor) * 12
                            - date_part('month', u.anchor)
                        )::integer
                    )
            END AS boundary
        FROM (
            SELECT
                get_usage_span.anchor AT TIME ZONE interval '0' AS anchor,
                get_usage_span.moment AT TIME ZONE interval '0' AS moment
        ) AS u
        LIMIT ALL -- noqa: AM09
    ) AS b;
END;

COMMENT ON FUNCTION app.get_usage_span(timestamptz, timestamptz) IS
    'The UTC day of the moment, or its part before or after the day''s boundary.';

CREATE TABLE app.usage_slots (
    subject_id                  uuid NOT NULL,
    starts_at                   timestamptz NOT NULL,
    ends_at                     timestamptz NOT NULL,
    messages                    bigint NOT NULL,
    input_tokens                bigint NOT NULL,
    cache_creation_input_tokens bigint NOT NULL,
    cache_read_input_tokens     bigint NOT NULL,
    output_tokens               bigint NOT NULL,
    slot                        smallint NOT NULL,
    cost                        numeric NOT NULL,
    credits                     numeric NOT NULL,

    -- Without INCLUDE (credits): updates then change no indexed column (HOT). With it,
    -- a message writes 17 % more WAL, and the index grows to twice its size.
    CONSTRAINT usage_slots_pkey PRIMARY KEY (subject_id, starts_at, ends_at, slot),
    -- In one UTC day.
    CONSTRAINT usage_slots_span_in_day_check CHECK (
        starts_at < ends_at
        AND ends_at - interval '24 hours' <= date_trunc('day', starts_at, '+00')
    ),
    -- No more checks: every statement parses the checks of its table again, and each
    -- costs a writer 2 to 4 %. usage_drift compares all sums with messages.
    CONSTRAINT usage_slots_messages_positive_check CHECK (messages > 0)
) WITH (
    -- Rows of the current day are updated by every message. Room for new versions on
    -- the same page keeps 99.7 % of the updates HOT (96 to 99 % without), and vacuum
    -- starts early.
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.02
);

COMMENT ON TABLE app.usage_slots IS
    'Sums of a payer''s messages in a span; written by the trigger of messages.';
COMMENT ON COLUMN app.usage_slots.subject_id IS
    'Payer: the user, else the fingerprint.';
COMMENT ON COLUMN app.usage_slots.starts_at IS
    'Start of the span, inclusive: midnight UTC, or a boundary of the payer.';
COMMENT ON COLUMN app.usage_slots.ends_at IS
    'End of the span, exclusive: midnight UTC, or a boundary of the payer.';
COMMENT ON COLUMN app.usage_slots.slot IS
    '0; 1 to 31 for writers that found the other rows locked; 32 from a cut or repair.';
COMMENT ON COLUMN app.usage_slots.messages IS
    'Number of messages; each message is counted in one row.';
COMMENT ON COLUMN app.usage_slots.input_tokens IS
    'Sum of messages.input_tokens.';
COMMENT ON COLUMN app.usage_slots.cache_creation_input_tokens IS
    'Sum of messages.cache_creation_input_tokens.';
COMMENT ON COLUMN app.usage_slots.cache_read_input_tokens IS
    'Sum of messages.cache_read_input_tokens.';
COMMENT ON COLUMN app.usage_slots.output_tokens IS
    'Sum of messages.output_tokens.';
COMMENT ON COLUMN app.usage_slots.cost IS
    'Sum of messages.cost, in US dollars.';
COMMENT ON COLUMN app.usage_slots.credits IS
    'Sum of messages.credits.';

-- For list_unfolded_usage. Partial: folded days and quiet payers have only slot 0.
CREATE INDEX usage_slots_starts_at_idx ON app.usage_slots (starts_at)
WHERE slot > 0;

-- A single message goes into a row that no other session has locked, so that writers
-- of one payer do not wait for each other's commits. One statement locks the row and
-- the next updates it. A join that did both could execute the subquery for each row of
-- the payer, find another free row each time, and add the message to two rows. The
-- ctid stays valid because the row is locked. A session keeps the plans that it made
-- for its first statements: all are the same for any number of rows in inserted, and
-- without sequential scans also for an empty usage_slots. LIMIT 1 and count(*) prevent
-- joins and hashes, which read all users or all sums.
--
-- All other messages go into slot 0, in key order, so that concurrent writers of
-- several rows do not deadlock. A single message that found all rows locked opens one
-- for its process, or waits for that one.
CREATE FUNCTION app.add_usage()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    message record;
    is_single boolean;
BEGIN
    SELECT
        i.input_tokens, i.cache_creation_input_tokens, i.cache_read_input_tokens,
        i.output_tokens, i.cost, i.credits,
        (
            SELECT s.ctid
            FROM app.usage_slots AS s
            WHERE s.subject_id = i.subject_id
                AND s.starts_at >= date_trunc('day', i.finished_at, '+00')
                AND s.starts_at <= i.finished_at
                AND s.ends_at > i.finished_at
            ORDER BY s.starts_at DESC, s.ends_at DESC, s.slot DESC
            LIMIT 1
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS free_row
    INTO message FROM inserted AS i
    WHERE NOT EXISTS (SELECT FROM inserted OFFSET 1);
    is_single := FOUND;
    IF message.free_row IS NOT NULL THEN
        UPDATE app.usage_slots AS s
        SET
            messages = s.messages + 1,
            input_tokens = s.input_tokens + message.input_tokens,
            cache_creation_input_tokens
                = s.cache_creation_input_tokens + message.cache_creation_input_tokens,
            cache_read_input_tokens
                = s.cache_read_input_tokens + message.cache_read_input_tokens,
            output_tokens = s.output_tokens + message.output_tokens,
            cost = s.cost + message.cost,
            credits = s.credits + message.credits
        WHERE s.ctid = message.free_row;
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;

    INSERT INTO app.usage_slots AS s (
        subject_id, starts_at, ends_at, slot, messages, input_tokens,
        cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost,
        credits
    )
    SELECT i.subject_id, p.starts_at, p.ends_at,
        CASE
            WHEN is_single AND (
                SELECT count(*) FROM app.usage_slots AS o
                WHERE o.subject_id = i.subject_id
                    AND o.starts_at = p.starts_at
                    AND o.ends_at = p.ends_at
            ) > 0 THEN 1 + pg_backend_pid() % 31
            ELSE 0
        END,
        count(*), sum(i.input_tokens), sum(i.cache_creation_input_tokens),
        sum(i.cache_read_input_tokens), sum(i.output_tokens), sum(i.cost),
        sum(i.credits)
    FROM inserted AS i
    LEFT JOIN LATERAL (
        SELECT u.quota_anchor FROM app.users AS u WHERE u.id = i.user_id
        UNION ALL
        SELECT f.quota_anchor FROM app.fingerprints AS f
        WHERE f.id = i.fingerprint_id AND i.user_id IS NULL
        LIMIT 1
    ) AS a ON TRUE
    CROSS JOIN LATERAL app.get_usage_span(a.quota_anchor, i.finished_at) AS p
    GROUP BY 1, 2, 3
    ORDER BY 1, 2, 3
    ON CONFLICT ON CONSTRAINT usage_slots_pkey DO UPDATE SET
        messages = s.messages + excluded.messages,
        input_tokens = s.input_tokens + excluded.input_tokens,
        cache_creation_input_tokens
            = s.cache_creation_input_tokens + excluded.cache_creation_input_tokens,
        cache_read_input_tokens
            = s.cache_read_input_tokens + excluded.cache_read_input_tokens,
        output_tokens = s.output_tokens + excluded.output_tokens,
        cost = s.cost + excluded.cost,
        credits = s.credits + excluded.credits;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.add_usage() IS
    'Trigger: adds the messages that a statement inserts to usage_slots.';

REVOKE EXECUTE ON FUNCTION app.add_usage() FROM public;

CREATE TRIGGER messages_add_usage AFTER INSERT ON app.messages
REFERENCING NEW TABLE AS inserted
FOR EACH STATEMENT EXECUTE FUNCTION app.add_usage();

-- The functions that fold, cut and repair set app.is_repairing. Any session can set it:
-- this trigger prevents mistakes, and privileges protect the table.
CREATE FUNCTION app.refuse_usage_change()
RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('app.is_repairing', TRUE) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION '% on %.% is refused: only the trigger of messages writes it',
            TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation',
                SCHEMA = TG_TABLE_SCHEMA,
                TABLE = TG_TABLE_NAME,
                CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.refuse_usage_change() IS
    'Trigger: refuses changes of usage_slots that no function of its upkeep makes.';

-- The condition is short because every statement parses it again.
CREATE TRIGGER usage_slots_kept_by_trigger
BEFORE INSERT OR UPDATE OR DELETE ON app.usage_slots
FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)
EXECUTE FUNCTION app.refuse_usage_change();

CREATE TRIGGER usage_slots_no_truncate BEFORE TRUNCATE ON app.usage_slots
FOR EACH STATEMENT
EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes it');

-- ---------------------------------------------------------------------------
-- referrals
-- ---------------------------------------------------------------------------

CREATE TABLE app.referrals (
    referrer_id  uuid NOT NULL,
    referred_id  uuid NOT NULL,
    status       text NOT NULL DEFAULT 'pending',
    credits      numeric NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,

    CONSTRAINT referrals_pkey PRIMARY KEY (referrer_id, referred_id),
    CONSTRAINT referrals_referred_id_key UNIQUE (referred_id),
    CONSTRAINT referrals_referrer_id_fkey FOREIGN KEY (referrer_id)
        REFERENCES app.users (id) ON DELETE RESTRICT,
    CONSTRAINT referrals_referred_id_fkey FOREIGN KEY (referred_id)
        REFERENCES app.users (id) ON DELETE RESTRICT,
    CONSTRAINT referrals_not_self_check CHECK (referrer_id <> referred_id),
    CONSTRAINT referrals_status_known_check CHECK (status IN ('pending', 'completed')),
    CONSTRAINT referrals_completed_has_time_check
        CHECK ((status = 'completed') = (completed_at IS NOT NULL)),
    CONSTRAINT referrals_credits_is_amount_check
        CHECK (credits BETWEEN 0 AND 1000000)
);

COMMENT ON TABLE app.referrals IS
    'Referrals. Completing one counts it and grants its credits to both users.';
COMMENT ON COLUMN app.referrals.referrer_id IS
    'The user whose code was redeemed.';
COMMENT ON COLUMN app.referrals.referred_id IS
    'The user who redeemed the code; referred at most once.';
COMMENT ON COLUMN app.referrals.status IS
    'pending or completed. completed is final; a cancelled referral is deleted.';
COMMENT ON COLUMN app.referrals.credits IS
    'Credits granted to each user on completion; at most 1000000, worth 10000 USD.';
COMMENT ON COLUMN app.referrals.completed_at IS
    'When it was completed; set by a trigger; NULL while pending.';

-- For redeem_referral and create_referral: at most one referral per pair of users.
CREATE UNIQUE INDEX referrals_unordered_pair_idx
ON app.referrals (LEAST(referrer_id, referred_id), GREATEST(referrer_id, referred_id));

CREATE FUNCTION app.set_completed_at()
RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.completed_at := now();
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION app.set_completed_at() IS
    'Trigger: sets completed_at to the start of the transaction.';

CREATE TRIGGER referrals_set_completed_at BEFORE INSERT OR UPDATE ON app.referrals
FOR EACH ROW WHEN (NEW.status = 'completed' AND NEW.completed_at IS NULL)
EXECUTE FUNCTION app.set_completed_at();

CREATE FUNCTION app.grant_referral_credits()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    missing_id uuid;
BEGIN
    -- Lock all users in id order before changing any, so that concurrent redemptions
    -- queue up instead of deadlocking.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id IN (
        SELECT unnest(ARRAY[c.referrer_id, c.referred_id])
        FROM changed AS c
        WHERE c.status = 'completed'
    )
    ORDER BY u.id
    FOR NO KEY UPDATE;

    UPDATE app.users AS u
    SET
        referral_count = u.referral_count + granted.referrals,
        referral_credits = u.referral_credits + granted.credits
    FROM (
        SELECT
            party.user_id,
            sum(party.referrals) AS referrals,
            sum(c.credits) AS credits
        FROM changed AS c
        CROSS JOIN LATERAL (
            VALUES (c.referrer_id, 1), (c.referred_id, 0)
        ) AS party (user_id, referrals)
        WHERE c.status = 'completed' AND c.completed_at = now()
        GROUP BY party.user_id
    ) AS granted
    WHERE u.id = granted.user_id;

    -- A row with another completed_at is restored from a dump, and its credits were
    -- granted at that time: the users' totals must include it. A restore inserts rows
    -- in several statements, so the totals may exceed the sum of the rows so far.
    SELECT restored.user_id INTO missing_id
    FROM (
        SELECT DISTINCT unnest(ARRAY[c.referrer_id, c.referred_id]) AS user_id
        FROM changed AS c
        WHERE c.status = 'completed' AND c.completed_at <> now()
    ) AS restored
    LEFT JOIN app.users AS u ON restored.user_id = u.id
    CROSS JOIN LATERAL (
        SELECT
            count(*) FILTER (WHERE r.referrer_id = restored.user_id) AS referrals,
            sum(r.credits) AS credits
        FROM app.referrals AS r
        WHERE restored.user_id IN (r.referrer_id, r.referred_id)
            AND r.status = 'completed'
    ) AS completed
    WHERE (
            u.referral_count >= completed.referrals
            AND u.referral_credits >= completed.credits
        ) IS NOT TRUE
        -- The snapshot may be older than the commit of a concurrent restore. Of two
        -- concurrent SERIALIZABLE restores, PostgreSQL aborts one.
        OR current_setting('transaction_isolation') = 'repeatable read'
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'a referral of user % was completed earlier and is missing in'
            ' the user''s totals: restore users before referrals, under READ COMMITTED;'
            ' to complete it now, leave completed_at NULL', missing_id
            USING ERRCODE = 'restrict_violation',
                SCHEMA = TG_TABLE_SCHEMA,
                TABLE = TG_TABLE_NAME,
                CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.grant_referral_credits() IS
    'Trigger: grants credits of referrals completed now; checks restored ones.';

REVOKE EXECUTE ON FUNCTION app.grant_referral_credits() FROM public;

CREATE TRIGGER referrals_grant_on_insert AFTER INSERT ON app.referrals
REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION app.grant_referral_credits();

-- referrals_completed_is_final refuses updates of completed rows: every row that an
-- UPDATE leaves completed was pending before.
CREATE TRIGGER referrals_grant_on_update AFTER UPDATE ON app.referrals
REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION app.grant_referral_credits();

CREATE TRIGGER referrals_completed_is_final BEFORE UPDATE OR DELETE ON app.referrals
FOR EACH ROW WHEN (OLD.status = 'completed')
EXECUTE FUNCTION app.refuse_change('a completed referral is final');

CREATE TRIGGER referrals_no_truncate BEFORE TRUNCATE ON app.referrals
FOR EACH STATEMENT
EXECUTE FUNCTION app.refuse_change('a completed referral is final');

-- ---------------------------------------------------------------------------
-- stripe_events
-- ---------------------------------------------------------------------------

CREATE TABLE app.stripe_events (
    id               text NOT NULL,
    type             text NOT NULL,
    api_version      text,
    event_created_at timestamptz NOT NULL,
    payload          jsonb,
    status           text NOT NULL,
    attempts         integer NOT NULL DEFAULT 0,
    last_error       text,
    received_at      timestamptz NOT NULL DEFAULT now(),
    processed_at     timestamptz,

    CONSTRAINT stripe_events_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_events_status_known_check
        CHECK (status IN ('applied', 'stale', 'ignored', 'failed')),
    CONSTRAINT stripe_events_attempts_not_negative_check CHECK (attempts >= 0),
    CONSTRAINT stripe_events_done_has_time_check CHECK (
        (status IN ('applied', 'stale', 'ignored')) = (processed_at IS NOT NULL)
    ),
    CONSTRAINT stripe_events_failed_has_error_check
        CHECK (status <> 'failed' OR last_error IS NOT NULL),
    CONSTRAINT stripe_events_failed_has_payload_check
        CHECK (payload IS NOT NULL OR processed_at IS NOT NULL)
);

COMMENT ON TABLE app.stripe_events IS
    'Inbox of verified Stripe events, one row each, with the result of each.';
COMMENT ON COLUMN app.stripe_events.id IS
    'Stripe''s id.';
COMMENT ON COLUMN app.stripe_events.type IS
    'Event type, such as customer.subscription.updated.';
COMMENT ON COLUMN app.stripe_events.api_version IS
    'Stripe API version of the payload; NULL if the event has none.';
COMMENT ON COLUMN app.stripe_events.event_created_at IS
    'When Stripe created the event, in whole seconds.';
COMMENT ON COLUMN app.stripe_events.payload IS
    'The event as delivered; NULL after its retention period.';
COMMENT ON COLUMN app.stripe_events.status IS
    'applied, stale (older than the stored row), ignored or failed.';
COMMENT ON COLUMN app.stripe_events.attempts IS
    'Number of attempts to apply it.';
COMMENT ON COLUMN app.stripe_events.last_error IS
    'Error of the last failed attempt, or why it is ignored; NULL if neither.';
COMMENT ON COLUMN app.stripe_events.received_at IS
    'When the first delivery arrived.';
COMMENT ON COLUMN app.stripe_events.processed_at IS
    'When it became applied, stale or ignored; NULL until then.';

-- For list_failed_events. Partial, because few events fail.
CREATE INDEX stripe_events_failed_idx ON app.stripe_events (event_created_at, id)
WHERE status = 'failed';

-- For delete_event_payloads. Partial, because most payloads are deleted.
CREATE INDEX stripe_events_payload_idx ON app.stripe_events (processed_at)
WHERE payload IS NOT NULL;

-- For list_events, newest first. Without the id: on an empty table, a plan that looks
-- an event up by its id would take this index instead of the key, and read all of it.
CREATE INDEX stripe_events_received_at_idx ON app.stripe_events (received_at);

-- ---------------------------------------------------------------------------
-- stripe_customers
-- ---------------------------------------------------------------------------

CREATE TABLE app.stripe_customers (
    id              text NOT NULL,
    user_id         uuid,
    is_deleted      boolean NOT NULL DEFAULT FALSE,
    created_at      timestamptz,
    as_of           timestamptz NOT NULL,
    is_provisional  boolean NOT NULL DEFAULT FALSE,
    claimed_user_id uuid,
    claim_source    text,

    CONSTRAINT stripe_customers_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_customers_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE RESTRICT,
    CONSTRAINT stripe_customers_id_length_check CHECK (length(id) BETWEEN 1 AND 255),
    CONSTRAINT stripe_customers_claim_source_known_check CHECK (
        claim_source IN ('customer', 'subscription', 'checkout', 'reference', 'email')
    ),
    CONSTRAINT stripe_customers_claim_has_source_check
        CHECK ((claimed_user_id IS NULL) = (claim_source IS NULL))
);

COMMENT ON TABLE app.stripe_customers IS
    'Stripe customers as last seen. A deleted customer keeps its row.';
COMMENT ON COLUMN app.stripe_customers.id IS
    'Stripe''s id; the integration may have chosen it.';
COMMENT ON COLUMN app.stripe_customers.user_id IS
    'User that the customer belongs to; NULL if none.';
COMMENT ON COLUMN app.stripe_customers.is_deleted IS
    'Whether the customer was deleted at Stripe.';
COMMENT ON COLUMN app.stripe_customers.created_at IS
    'When Stripe created it; NULL if only the id is known.';
COMMENT ON COLUMN app.stripe_customers.as_of IS
    'Stripe''s time of the snapshot stored in this row; 1970 if only the id is known.';
COMMENT ON COLUMN app.stripe_customers.is_provisional IS
    'Whether events of the same second were applied in order of arrival, which may be'
    ' wrong; the next reconciliation corrects it.';
COMMENT ON COLUMN app.stripe_customers.claimed_user_id IS
    'User that the strongest claim names, once it exists; NULL without a claim.';
COMMENT ON COLUMN app.stripe_customers.claim_source IS
    'Where the claim is, strongest first: customer, subscription, checkout (metadata),'
    ' reference (client_reference_id), email; NULL without a claim.';

-- For stripe_customers_user_id_fkey and sync_users. The function find_best_item reads
-- it.
CREATE INDEX stripe_customers_user_id_idx ON app.stripe_customers (user_id);

-- For create_user: the function take_stripe_claims reads the claims on a new user.
-- Partial, because nearly all claims are in effect.
CREATE INDEX stripe_customers_pending_claim_idx
ON app.stripe_customers (claimed_user_id)
WHERE claimed_user_id IS DISTINCT FROM user_id AND claimed_user_id IS NOT NULL;

-- For list_unlisted_customers, newest first as in Stripe's lists, and
-- list_name_only_customers. Without the id, as stripe_events_received_at_idx.
CREATE INDEX stripe_customers_created_at_idx ON app.stripe_customers (created_at);

-- An older snapshot never overwrites a newer one, even by a statement in psql.
CREATE TRIGGER stripe_customers_newer_wins BEFORE UPDATE ON app.stripe_customers
FOR EACH ROW WHEN (NEW.as_of < OLD.as_of)
EXECUTE FUNCTION app.refuse_change('a newer state is known');

-- SECURITY DEFINER: the role that inserts users may not write the mirror.
CREATE FUNCTION app.take_stripe_claims()
RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    customer_ids text[];
    claims jsonb;
BEGIN
    -- The statements below must see what the last holder of the lock committed.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN NULL;
    END IF;
    -- The lock of a customer belongs to a delivery, which may wait for a row that this
    -- transaction has locked: the delivery, or the next one, takes the claim then.
    -- MATERIALIZED, because the planner may evaluate the lock of a join first, for all
    -- customers with a claim. The server has room for some thousand locks: of users that
    -- are loaded in bulk, a reconciliation takes the other claims.
    WITH claimed AS MATERIALIZED (
        SELECT k.id
        FROM new_users AS u
        CROSS JOIN LATERAL (
            SELECT c.id
            FROM app.stripe_customers AS c
            WHERE c.claimed_user_id = u.id
                AND c.claimed_user_id IS NOT NULL
                AND c.claimed_user_id IS DISTINCT FROM c.user_id
            LIMIT ALL
        ) AS k
        LIMIT 1000
    )

    SELECT array_agg(c.id) INTO customer_ids
    FROM claimed AS c
    WHERE (
            SELECT count(*)
            FROM pg_locks AS l
            WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory'
        ) < 1000
        AND pg_try_advisory_xact_lock(hashtextextended(c.id, 0));
    IF customer_ids IS NULL THEN
        RETURN NULL;
    END IF;
    -- The same holds for the users that lose a customer. They are locked, because a sync
    -- of another customer of theirs could return to this one.
    SELECT jsonb_agg(jsonb_build_object('customer_id', c.id)) INTO claims
    FROM app.stripe_customers AS c
    WHERE c.id = ANY(customer_ids)
        AND NOT EXISTS (
            SELECT
            FROM unnest(
                ARRAY[
                    c.user_id,
                    (SELECT h.id FROM app.users AS h WHERE h.stripe_customer_id = c.id)
                ]
            ) AS o (id)
            WHERE o.id IS NOT NULL
                AND (
                    SELECT u.id
                    FROM app.users AS u
                    WHERE u.id = o.id
                    FOR NO KEY UPDATE SKIP LOCKED
                ) IS NULL
        );
    IF claims IS NOT NULL THEN
        PERFORM app.sync_stripe_users(array_agg(o.id))
        FROM app.claim_stripe_customers(claims, NULL) AS c
        CROSS JOIN LATERAL (VALUES (c.user_id), (c.released_user_id)) AS o (id);
    END IF;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.take_stripe_claims() IS
    'Trigger: links new users to the Stripe customers that claim them.';

REVOKE EXECUTE ON FUNCTION app.take_stripe_claims() FROM public;

CREATE TRIGGER users_take_stripe_claims AFTER INSERT ON app.users
REFERENCING NEW TABLE AS new_users
FOR EACH STATEMENT EXECUTE FUNCTION app.take_stripe_claims();

-- ---------------------------------------------------------------------------
-- stripe_subscriptions
-- ---------------------------------------------------------------------------

CREATE TABLE app.stripe_subscriptions (
    id                   text NOT NULL,
    customer_id          text NOT NULL,
    status               text NOT NULL,
    billing_cycle_anchor timestamptz,
    cancel_at_period_end boolean NOT NULL DEFAULT FALSE,
    canceled_at          timestamptz,
    created_at           timestamptz NOT NULL,
    as_of                timestamptz NOT NULL,
    is_provisional       boolean NOT NULL DEFAULT FALSE,
    cancel_at            timestamptz,
    trial_end            timestamptz,
    pause_behavior       text,
    pause_resumes_at     timestamptz,
    claimed_user_id      uuid,

    CONSTRAINT stripe_subscriptions_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_subscriptions_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255),
    CONSTRAINT stripe_subscriptions_customer_id_length_check
        CHECK (length(customer_id) BETWEEN 1 AND 255)
);

COMMENT ON TABLE app.stripe_subscriptions IS
    'Stripe subscriptions as last seen. A canceled subscription keeps its row.';
COMMENT ON COLUMN app.stripe_subscriptions.id IS
    'Stripe''s id.';
COMMENT ON COLUMN app.stripe_subscriptions.customer_id IS
    'Stripe customer. Not a foreign key: the subscription may arrive first.';
COMMENT ON COLUMN app.stripe_subscriptions.status IS
    'Status as reported by Stripe; an open set.';
COMMENT ON COLUMN app.stripe_subscriptions.billing_cycle_anchor IS
    'Start of Stripe''s billing cycles; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscriptions.cancel_at_period_end IS
    'Whether the subscription ends with the paid period.';
COMMENT ON COLUMN app.stripe_subscriptions.canceled_at IS
    'When the subscription was canceled; NULL if it was not.';
COMMENT ON COLUMN app.stripe_subscriptions.created_at IS
    'When Stripe created it.';
COMMENT ON COLUMN app.stripe_subscriptions.as_of IS
    'Stripe''s time of the snapshot stored in this row.';
COMMENT ON COLUMN app.stripe_subscriptions.is_provisional IS
    'Whether events of the same second were applied in order of arrival, which may be'
    ' wrong; the next reconciliation corrects it.';
COMMENT ON COLUMN app.stripe_subscriptions.cancel_at IS
    'When the subscription will end; NULL if no time is set.';
COMMENT ON COLUMN app.stripe_subscriptions.trial_end IS
    'When the trial ends or ended; NULL if there was none.';
COMMENT ON COLUMN app.stripe_subscriptions.pause_behavior IS
    'What Stripe does with invoices while collection is paused: keep_as_draft,'
    ' mark_uncollectible or void; NULL if it is not paused.';
COMMENT ON COLUMN app.stripe_subscriptions.pause_resumes_at IS
    'When paused collection resumes; NULL if no time is set.';
COMMENT ON COLUMN app.stripe_subscriptions.claimed_user_id IS
    'User that its metadata claims for its customer; NULL if none.';

-- For sync_users. The function find_best_item reads all subscriptions of a customer.
CREATE INDEX stripe_subscriptions_customer_id_idx
ON app.stripe_subscriptions (customer_id);

-- For list_unlisted_subscriptions, newest first as in Stripe's lists. Without the id,
-- as stripe_events_received_at_idx.
CREATE INDEX stripe_subscriptions_created_at_idx
ON app.stripe_subscriptions (created_at);

-- As stripe_customers_newer_wins.
CREATE TRIGGER stripe_subscriptions_newer_wins BEFORE UPDATE ON app.stripe_subscriptions
FOR EACH ROW WHEN (NEW.as_of < OLD.as_of)
EXECUTE FUNCTION app.refuse_change('a newer state is known');

-- ---------------------------------------------------------------------------
-- stripe_subscription_items
-- ---------------------------------------------------------------------------

CREATE TABLE app.stripe_subscription_items (
    subscription_id      text NOT NULL,
    id                   text NOT NULL,
    price_id             text,
    unit_amount          numeric,
    quantity             bigint,
    current_period_start timestamptz,
    current_period_end   timestamptz,

    CONSTRAINT stripe_subscription_items_pkey PRIMARY KEY (subscription_id, id),
    CONSTRAINT stripe_subscription_items_subscription_id_fkey
        FOREIGN KEY (subscription_id)
        REFERENCES app.stripe_subscriptions (id) ON DELETE CASCADE,
    CONSTRAINT stripe_subscription_items_id_length_check
        CHECK (length(id) BETWEEN 1 AND 255),
    CONSTRAINT stripe_subscription_items_price_id_length_check
        CHECK (length(price_id) BETWEEN 1 AND 255),
    CONSTRAINT stripe_subscription_items_unit_amount_is_finite_check
        CHECK (unit_amount > '-Infinity' AND unit_amount < 'Infinity'),
    CONSTRAINT stripe_subscription_items_quantity_not_negative_check
        CHECK (quantity >= 0)
);

COMMENT ON TABLE app.stripe_subscription_items IS
    'All items of each Stripe subscription, as in the subscription''s snapshot.';
COMMENT ON COLUMN app.stripe_subscription_items.subscription_id IS
    'Subscription that has the item.';
COMMENT ON COLUMN app.stripe_subscription_items.id IS
    'Stripe''s id; the subscription''s, if Stripe gives the item none.';
COMMENT ON COLUMN app.stripe_subscription_items.price_id IS
    'Stripe price, or legacy plan; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscription_items.unit_amount IS
    'Price of one unit in the currency''s smallest unit; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscription_items.quantity IS
    'Units; NULL if metered, which counts as 1. With 0 the item buys no plan.';
COMMENT ON COLUMN app.stripe_subscription_items.current_period_start IS
    'Start of the item''s paid period; NULL if Stripe gives none.';
COMMENT ON COLUMN app.stripe_subscription_items.current_period_end IS
    'End of the item''s paid period; NULL if Stripe gives none.';

-- ---------------------------------------------------------------------------
-- stripe_sync_runs
-- ---------------------------------------------------------------------------

CREATE TABLE app.stripe_sync_runs (
    id          bigint GENERATED ALWAYS AS IDENTITY,
    kind        text NOT NULL,
    is_dry_run  boolean NOT NULL DEFAULT FALSE,
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    cursor      text,
    counts      jsonb NOT NULL DEFAULT '{}',
    outcome     text NOT NULL DEFAULT 'running',
    last_error  text,

    CONSTRAINT stripe_sync_runs_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_sync_runs_kind_known_check
        CHECK (kind IN ('reconcile', 'replay')),
    CONSTRAINT stripe_sync_runs_outcome_known_check
        CHECK (outcome IN ('running', 'completed', 'failed')),
    CONSTRAINT stripe_sync_runs_ended_has_time_check
        CHECK ((outcome = 'running') = (finished_at IS NULL))
);

COMMENT ON TABLE app.stripe_sync_runs IS
    'Reconciliations and replays, with progress, counts and outcome.';
COMMENT ON COLUMN app.stripe_sync_runs.kind IS
    'reconcile or replay.';
COMMENT ON COLUMN app.stripe_sync_runs.is_dry_run IS
    'Whether the run only reported differences.';
COMMENT ON COLUMN app.stripe_sync_runs.started_at IS
    'When the run started.';
COMMENT ON COLUMN app.stripe_sync_runs.finished_at IS
    'When the run ended; NULL while it runs, or if it was killed.';
COMMENT ON COLUMN app.stripe_sync_runs.cursor IS
    'Where a killed run is resumed; NULL before the first page.';
COMMENT ON COLUMN app.stripe_sync_runs.counts IS
    'Objects seen and differences found so far, by kind.';
COMMENT ON COLUMN app.stripe_sync_runs.outcome IS
    'running, completed or failed.';
COMMENT ON COLUMN app.stripe_sync_runs.last_error IS
    'Why the run failed; NULL if it did not.';

-- For find_resumable_run, which reads the newest run of a kind.
CREATE INDEX stripe_sync_runs_kind_idx ON app.stripe_sync_runs (kind, id);
