-- Users, fingerprints and sessions.

SET LOCAL lock_timeout = '5s';

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
    'Linked Stripe customer, cus_...; NULL if none.';
COMMENT ON COLUMN app.users.stripe_subscription_id IS
    'Best Stripe subscription, sub_...: active first, then latest end; NULL if none.';
COMMENT ON COLUMN app.users.stripe_price_id IS
    'Stripe price of the best subscription; NULL if there is none, or without price.';
COMMENT ON COLUMN app.users.subscription_status IS
    'Status of the best subscription as reported by Stripe; NULL if there is none.';
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
    ADD CONSTRAINT users_stripe_customer_id_shape_check
        CHECK (stripe_customer_id ~ '^cus_.'),
    ADD CONSTRAINT users_stripe_subscription_id_shape_check
        CHECK (stripe_subscription_id ~ '^sub_.'),
    ADD CONSTRAINT users_subscription_has_status_check
        CHECK ((stripe_subscription_id IS NULL) = (subscription_status IS NULL));

-- For find_user_by_email. Makes addresses unique ignoring case.
CREATE UNIQUE INDEX users_lower_email_idx ON app.users (lower(email));

-- For upsert_customers, upsert_subscriptions, link_customer and list_unseen_customers.
-- The functions lock_snapshot_users, find_customer_owners and
-- compare_stripe_subscriptions read it. Makes a customer's user unique. Partial,
-- because an UPDATE of a column with a full unique index waits for transactions that
-- inserted rows which reference the user.
CREATE UNIQUE INDEX users_stripe_customer_id_idx ON app.users (stripe_customer_id)
WHERE stripe_customer_id IS NOT NULL;

CREATE TRIGGER users_set_updated_at BEFORE UPDATE ON app.users
FOR EACH ROW EXECUTE FUNCTION app.set_updated_at();

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
