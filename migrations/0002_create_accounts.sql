-- Users, fingerprints and sessions.

SET LOCAL lock_timeout = '5s';

CREATE FUNCTION app.is_active_status(status text)
RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN COALESCE(status IN ('active', 'trialing', 'past_due'), FALSE);

COMMENT ON FUNCTION app.is_active_status(text) IS
    'Whether a subscription in this state entitles; unknown states and NULL do not.';

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
    CONSTRAINT users_referral_code_key UNIQUE (referral_code),
    CONSTRAINT users_stripe_customer_id_key UNIQUE (stripe_customer_id)
);

COMMENT ON TABLE app.users IS
    'Accounts. The stripe_ and subscription_ columns are written by the sync only.';
COMMENT ON COLUMN app.users.email IS
    'As the user wrote it, unique regardless of case; NULL once anonymized.';
COMMENT ON COLUMN app.users.name IS
    'For display; NULL if never given or anonymized.';
COMMENT ON COLUMN app.users.email_verified_at IS
    'When the user proved to own the e-mail; NULL until then and once anonymized.';
COMMENT ON COLUMN app.users.image_url IS
    'Avatar; NULL if there is none or once anonymized.';
COMMENT ON COLUMN app.users.base_quota IS
    'Credits a period from the plan; written when the plan changes.';
COMMENT ON COLUMN app.users.referral_credits IS
    'Credits a period earned by completed referrals; written by their trigger.';
COMMENT ON COLUMN app.users.quota IS
    'Credits a period in all: base_quota and referral_credits.';
COMMENT ON COLUMN app.users.quota_anchor IS
    'Periods begin at the anchor plus whole months in UTC; Stripe''s billing anchor.';
COMMENT ON COLUMN app.users.next_quota_reset IS
    'When the period ends; once lapsed, the next boundary; NULL if it never resets.';
COMMENT ON COLUMN app.users.quota_period_start IS
    'The boundary before next_quota_reset; the anchor where nothing resets.';
COMMENT ON COLUMN app.users.referral_code IS
    'What the user gives to those he refers: ref- and a UUID.';
COMMENT ON COLUMN app.users.referral_limit IS
    'How many completed referrals the user may have.';
COMMENT ON COLUMN app.users.referral_count IS
    'Completed referrals by this user; written by the trigger of referrals.';
COMMENT ON COLUMN app.users.stripe_customer_id IS
    'cus_...; NULL until a customer is linked.';
COMMENT ON COLUMN app.users.stripe_subscription_id IS
    'sub_... of the best subscription: active first, then latest end; NULL if none.';
COMMENT ON COLUMN app.users.stripe_price_id IS
    'Price of the best subscription; NULL if there is none or it has no price.';
COMMENT ON COLUMN app.users.subscription_status IS
    'Stripe''s word for the best subscription; NULL if there is none.';
COMMENT ON COLUMN app.users.subscription_active IS
    'Whether the status entitles: active, trialing or past_due.';
COMMENT ON COLUMN app.users.created_at IS
    'When Stripe''s customer was created; now() until there is one.';
COMMENT ON COLUMN app.users.anonymized_at IS
    'When the person was erased and the bill kept; NULL while the account lives.';

-- Its checks stand apart, so that the columns fit on one screen.
ALTER TABLE app.users
    ADD CONSTRAINT users_email_shape_check
        CHECK (email ~ '^[^@\s]+@[^@\s]+$' AND length(email) <= 320),
    ADD CONSTRAINT users_anonymized_is_nobody_check CHECK (
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

-- For find_user_by_email, and keeps an address unique regardless of case.
CREATE UNIQUE INDEX users_lower_email_idx ON app.users (lower(email));

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
    'Anonymous devices, each with a quota of its own.';
COMMENT ON COLUMN app.fingerprints.sig_hash IS
    'Hash of the device''s signature; NULL if it gave none.';
COMMENT ON COLUMN app.fingerprints.base_quota IS
    'Credits a period while nobody is signed in.';
COMMENT ON COLUMN app.fingerprints.quota_anchor IS
    'Periods begin at the anchor plus whole months in UTC.';
COMMENT ON COLUMN app.fingerprints.next_quota_reset IS
    'When the period ends; once lapsed, the next boundary; NULL if it never resets.';
COMMENT ON COLUMN app.fingerprints.quota_period_start IS
    'The boundary before next_quota_reset; the anchor where nothing resets.';

-- A device names its own id, and messages are billed by id alone: one that names a
-- user's id would spend that user's quota.
CREATE FUNCTION app.refuse_user_id()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM app.users AS u WHERE u.id = NEW.id) THEN
        RAISE EXCEPTION 'fingerprint % is the id of a user', NEW.id
            USING ERRCODE = 'check_violation',
                SCHEMA = TG_TABLE_SCHEMA,
                TABLE = TG_TABLE_NAME,
                CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END;
$$;

COMMENT ON FUNCTION app.refuse_user_id() IS
    'Trigger: refuses a fingerprint whose id is a user''s.';

-- PUBLIC may not call a function that runs as its owner.
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
    'Who is signed in; a session is valid before expires_at and never at it.';
COMMENT ON COLUMN app.sessions.token_hash IS
    'SHA-256 of the token; the token itself is never stored.';
COMMENT ON COLUMN app.sessions.user_id IS
    'Who is signed in.';
COMMENT ON COLUMN app.sessions.fingerprint_id IS
    'The device that signed in; NULL if it is not known.';
COMMENT ON COLUMN app.sessions.expires_at IS
    'The first instant at which the session is no longer valid.';

-- For delete_user_sessions and sessions_user_id_fkey.
CREATE INDEX sessions_user_id_idx ON app.sessions (user_id);

-- For sessions_fingerprint_id_fkey.
CREATE INDEX sessions_fingerprint_id_idx ON app.sessions (fingerprint_id);

-- For delete_expired_sessions, which takes the oldest first.
CREATE INDEX sessions_expires_at_idx ON app.sessions (expires_at);

-- Anyone can sign up with an address before its owner does: a session that is older
-- than the first proof of the address may be another person's.
CREATE FUNCTION app.end_unproved_sessions()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The snapshot of another level would hide a session that is committed during the
    -- wait below.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the first proof of an e-mail address needs READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- The update does not conflict with the lock that create_session takes; this lock
    -- does. So a session that is being created is committed before the deletion.
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = NEW.id
    FOR UPDATE;
    DELETE FROM app.sessions AS s
    WHERE s.user_id = NEW.id;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.end_unproved_sessions() IS
    'Trigger: deletes the sessions of a user whose address is proved the first time.';

REVOKE EXECUTE ON FUNCTION app.end_unproved_sessions() FROM public;

CREATE TRIGGER users_end_unproved_sessions
AFTER UPDATE OF email, email_verified_at ON app.users
FOR EACH ROW WHEN (
    NEW.email_verified_at IS NOT NULL
    AND (
        OLD.email_verified_at IS NULL
        OR lower(NEW.email) IS DISTINCT FROM lower(OLD.email)
    )
)
EXECUTE FUNCTION app.end_unproved_sessions();
