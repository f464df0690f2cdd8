-- Referrals and the credits that they grant to both users.

SET LOCAL lock_timeout = '5s';

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
