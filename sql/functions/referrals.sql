-- Cancelling a referral, and totals of users that differ from their referrals.

-- SECURITY DEFINER, because the privilege DELETE would also allow callers to lock the
-- table in ACCESS EXCLUSIVE mode. Users are locked before referrals, as everywhere.
CREATE OR REPLACE FUNCTION app.cancel_referral(referred uuid)
RETURNS TABLE (
    referrer_id uuid,
    referred_id uuid,
    status text,
    credits numeric,
    created_at timestamptz,
    completed_at timestamptz
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM u.id
    FROM app.users AS u
    WHERE u.id = cancel_referral.referred
    FOR NO KEY UPDATE;
    RETURN QUERY
    DELETE FROM app.referrals AS r
    WHERE r.referred_id = cancel_referral.referred
        AND r.status = 'pending'
    RETURNING
        r.referrer_id,
        r.referred_id,
        r.status,
        r.credits,
        r.created_at,
        r.completed_at;
END;
$$;

COMMENT ON FUNCTION app.cancel_referral(uuid) IS
    'Deletes the pending referral of a referred user; no row if none is pending.';

REVOKE EXECUTE ON FUNCTION app.cancel_referral(uuid) FROM public;

CREATE OR REPLACE VIEW app.referral_drift WITH (security_invoker = TRUE) AS
WITH granted AS (
    SELECT
        party.user_id,
        sum(party.referrals) AS referrals,
        sum(r.credits) AS credits
    FROM app.referrals AS r
    CROSS JOIN LATERAL (
        VALUES (r.referrer_id, 1), (r.referred_id, 0)
    ) AS party (user_id, referrals)
    WHERE r.status = 'completed'
    GROUP BY 1
)

SELECT
    u.id AS user_id,
    u.referral_limit,
    u.referral_count AS kept_count,
    u.referral_credits AS kept_credits,
    COALESCE(g.referrals, 0) AS completed_count,
    COALESCE(g.credits, 0) AS granted_credits
FROM app.users AS u
LEFT JOIN granted AS g ON u.id = g.user_id
WHERE u.referral_count <> COALESCE(g.referrals, 0)
    OR u.referral_credits <> COALESCE(g.credits, 0);

COMMENT ON VIEW app.referral_drift IS
    'Users whose totals differ from referrals; extra credits may be manual grants.';
COMMENT ON COLUMN app.referral_drift.user_id IS
    'A user with different totals.';
COMMENT ON COLUMN app.referral_drift.referral_limit IS
    'Maximum of referral_count.';
COMMENT ON COLUMN app.referral_drift.kept_count IS
    'users.referral_count.';
COMMENT ON COLUMN app.referral_drift.completed_count IS
    'Number of completed referrals made by the user.';
COMMENT ON COLUMN app.referral_drift.kept_credits IS
    'users.referral_credits, in credits per period.';
COMMENT ON COLUMN app.referral_drift.granted_credits IS
    'Sum of the user''s completed referrals on either side, in credits per period.';

-- A writer of referrals locks both users until it commits, so that the statement after
-- the lock sees exactly the referrals that the totals should count.
CREATE OR REPLACE FUNCTION app.repair_referral_totals(repaired_id uuid)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a repair needs READ COMMITTED, to see concurrent commits'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM FROM app.users AS u
    WHERE u.id = repaired_id
    FOR NO KEY UPDATE;

    UPDATE app.users AS u
    SET
        referral_count = s.referrals,
        referral_credits = GREATEST(u.referral_credits, s.credits)
    FROM (
        SELECT
            count(*) FILTER (WHERE r.referrer_id = repaired_id) AS referrals,
            COALESCE(sum(r.credits), 0) AS credits
        FROM app.referrals AS r
        WHERE repaired_id IN (r.referrer_id, r.referred_id)
            AND r.status = 'completed'
    ) AS s
    WHERE u.id = repaired_id
        AND (u.referral_count <> s.referrals OR u.referral_credits < s.credits);
    RETURN FOUND;
END;
$$;

COMMENT ON FUNCTION app.repair_referral_totals(uuid) IS
    'Sets referral_count, raises referral_credits, by referrals; true if changed.';
