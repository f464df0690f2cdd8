-- Loses nothing.

SET LOCAL lock_timeout = '5s';

CREATE OR REPLACE FUNCTION app.grant_referral_credits()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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

DROP TRIGGER referrals_set_completed_at ON app.referrals;
DROP FUNCTION app.set_completed_at();

COMMENT ON COLUMN app.referrals.completed_at IS
    'When it was completed; NULL while pending.';
