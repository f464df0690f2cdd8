-- Who referred whom, and the credits that both are granted for it.

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
        CHECK (credits >= 0 AND credits < 'Infinity')
);

COMMENT ON TABLE app.referrals IS
    'Who referred whom; completing one counts it and grants its credits to both.';
COMMENT ON COLUMN app.referrals.referrer_id IS
    'Whose code was used.';
COMMENT ON COLUMN app.referrals.referred_id IS
    'Who used it; nobody is referred twice.';
COMMENT ON COLUMN app.referrals.status IS
    'pending, then completed, which is final.';
COMMENT ON COLUMN app.referrals.credits IS
    'Credits that each of the two is granted on completion.';
COMMENT ON COLUMN app.referrals.completed_at IS
    'When it was completed; NULL while pending.';

-- For redeem_referral and create_referral: two users do not refer each other.
CREATE UNIQUE INDEX referrals_unordered_pair_idx
ON app.referrals (LEAST(referrer_id, referred_id), GREATEST(referrer_id, referred_id));

CREATE FUNCTION app.grant_referral_credits()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
BEGIN
    -- Both sides of every row are locked in id order before any is changed, so that
    -- crossing redemptions queue up instead of deadlocking.
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
        referral_count = u.referral_count + side.referrals,
        referral_credits = u.referral_credits + side.credits
    FROM (
        SELECT
            s.user_id,
            sum(s.referrals) AS referrals,
            sum(c.credits) AS credits
        FROM changed AS c
        CROSS JOIN LATERAL (
            VALUES (c.referrer_id, 1), (c.referred_id, 0)
        ) AS s (user_id, referrals)
        WHERE c.status = 'completed'
        GROUP BY s.user_id
    ) AS side
    WHERE u.id = side.user_id;
    RETURN NULL;
END;
$$;

COMMENT ON FUNCTION app.grant_referral_credits() IS
    'Trigger: counts the referrals newly completed and grants their credits.';

CREATE TRIGGER referrals_grant_on_insert AFTER INSERT ON app.referrals
REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION app.grant_referral_credits();

-- referrals_completed_is_final lets no completed row through, so whatever an UPDATE
-- leaves completed has just become so.
CREATE TRIGGER referrals_grant_on_update AFTER UPDATE ON app.referrals
REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION app.grant_referral_credits();

CREATE TRIGGER referrals_completed_is_final BEFORE UPDATE OR DELETE ON app.referrals
FOR EACH ROW WHEN (OLD.status = 'completed')
EXECUTE FUNCTION app.refuse_change('a completed referral is final');

CREATE TRIGGER referrals_no_truncate BEFORE TRUNCATE ON app.referrals
FOR EACH STATEMENT
EXECUTE FUNCTION app.refuse_change('a completed referral is final');
