-- Cancelling a referral.

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
