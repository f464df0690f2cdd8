-- A session from before the first proof of an address stayed valid, a pending referral
-- could not be ended, and who may delete sessions may lock their table.

SET LOCAL lock_timeout = '5s';

-- Sessions are deleted by functions that run as their owner: the privilege DELETE on
-- the table would also allow an ACCESS EXCLUSIVE lock on it.
CREATE FUNCTION app.delete_session(token_hash bytea)
RETURNS SETOF uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    DELETE FROM app.sessions AS s
    WHERE s.token_hash = delete_session.token_hash
    RETURNING s.user_id;
END;
$$;

COMMENT ON FUNCTION app.delete_session(bytea) IS
    'Deletes one session by the hash of its token; returns its user, or no row.';

CREATE FUNCTION app.delete_user_sessions(user_id uuid)
RETURNS SETOF uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    DELETE FROM app.sessions AS s
    WHERE s.user_id = delete_user_sessions.user_id
    RETURNING s.user_id;
END;
$$;

COMMENT ON FUNCTION app.delete_user_sessions(uuid) IS
    'Deletes all sessions of a user; returns one row for each.';

CREATE FUNCTION app.delete_expired_sessions(row_limit bigint)
RETURNS SETOF uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    WITH expired AS (
        SELECT s.token_hash
        FROM app.sessions AS s
        WHERE s.expires_at <= statement_timestamp()
        ORDER BY s.expires_at
        LIMIT row_limit
        FOR UPDATE SKIP LOCKED
    )

    DELETE FROM app.sessions AS s
    USING expired AS e
    WHERE s.token_hash = e.token_hash
    RETURNING s.user_id;
END;
$$;

COMMENT ON FUNCTION app.delete_expired_sessions(bigint) IS
    'Deletes at most row_limit expired sessions, oldest first; one row for each.';

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

-- As its owner, because the privilege DELETE on the table would also allow an ACCESS
-- EXCLUSIVE lock on it. The user is locked before the referral, as everywhere.
CREATE FUNCTION app.cancel_referral(referred uuid)
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
    'Deletes the pending referral of a user and returns it; no row if none is pending.';

COMMENT ON COLUMN app.referrals.status IS
    'pending, then completed, which is final; a cancelled one is deleted.';

-- PUBLIC may not call a function that runs as its owner.
REVOKE EXECUTE ON FUNCTION
app.delete_session(bytea), app.delete_user_sessions(uuid),
app.delete_expired_sessions(bigint), app.end_unproved_sessions(),
app.cancel_referral(uuid)
FROM public;

-- Programs of this version call them; pyapp db roles may come later.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pyapp_app') THEN
        GRANT EXECUTE ON FUNCTION
        app.delete_session(bytea), app.delete_user_sessions(uuid),
        app.delete_expired_sessions(bigint), app.cancel_referral(uuid)
        TO pyapp_app;
    END IF;
END;
$$;
