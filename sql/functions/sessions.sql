-- Deleting sessions. SECURITY DEFINER, because the privilege DELETE would also allow
-- callers to lock the table in ACCESS EXCLUSIVE mode.

CREATE OR REPLACE FUNCTION app.delete_session(token_hash bytea)
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
    'Deletes a session by the hash of its token; returns the user''s id, or no row.';

REVOKE EXECUTE ON FUNCTION app.delete_session(bytea) FROM public;

CREATE OR REPLACE FUNCTION app.delete_user_sessions(user_id uuid)
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
    'Deletes all sessions of a user; returns the user''s id once per session.';

REVOKE EXECUTE ON FUNCTION app.delete_user_sessions(uuid) FROM public;

CREATE OR REPLACE FUNCTION app.delete_expired_sessions(row_limit bigint)
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
    'Deletes up to row_limit expired sessions, oldest first; returns users'' ids.';

REVOKE EXECUTE ON FUNCTION app.delete_expired_sessions(bigint) FROM public;
