-- The sync cuts the sums of a day in which a period begins that it has moved.

SET LOCAL lock_timeout = '5s';

-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05,LT01
-- squawk-ignore-file renaming-object

-- A result with another column is another function. The roles keep their privilege.
ALTER FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, boolean, jsonb
) RENAME TO former_apply_stripe_event;

CREATE FUNCTION app.apply_stripe_event(
    id text,
    type text,
    api_version text,
    event_created_at timestamptz,
    payload jsonb,
    lock_key text,
    object_type text,
    can_fetch boolean,
    snapshot jsonb,
    OUT result text,
    OUT user_ids uuid[],
    OUT conflicting_user_id uuid,
    OUT moved_user_ids uuid[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    snapshots jsonb := jsonb_build_array(snapshot);
    owner_ids uuid[];
BEGIN
    result := 'ignored';
    -- Statements after the lock must see what its last holder committed.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'app.apply_stripe_event needs READ COMMITTED'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM app.lock_stripe_customer(lock_key);
    IF EXISTS (
        SELECT FROM app.stripe_events AS e
        WHERE e.id = apply_stripe_event.id AND e.status <> 'failed'
    ) THEN
        result := 'duplicate';
        RETURN;
    END IF;

    IF object_type = 'customers' THEN
        SELECT c.result, ARRAY[c.released_user_id, c.user_id] INTO result, owner_ids
        FROM app.upsert_stripe_customers(snapshots, 'event', can_fetch, FALSE) AS c;
    ELSIF object_type IS NOT NULL THEN
        SELECT s.result, ARRAY[s.released_user_id, s.user_id], s.conflicting_user_id
        INTO result, owner_ids, conflicting_user_id
        FROM app.upsert_stripe_subscriptions(snapshots, 'event', can_fetch) AS s;
    END IF;
    IF result = 'ambiguous' THEN
        RETURN;
    END IF;
    IF result = 'applied' THEN
        SELECT
            array_agg(u.id),
            array_agg(u.id) FILTER (WHERE 'period' = ANY(u.differences))
        INTO user_ids, moved_user_ids
        FROM app.sync_stripe_users(owner_ids) AS u
        -- The released user has lost the customer before.
        WHERE u.differences <> '{}' OR u.id = owner_ids[1];
    END IF;

    INSERT INTO app.stripe_events AS e (
        id, type, api_version, event_created_at, payload, status, attempts, processed_at
    )
    VALUES (
        apply_stripe_event.id, apply_stripe_event.type, apply_stripe_event.api_version,
        apply_stripe_event.event_created_at, apply_stripe_event.payload, result, 1, now()
    )
    ON CONFLICT (id) DO UPDATE
    SET
        status = excluded.status,
        payload = excluded.payload,
        attempts = e.attempts + 1,
        processed_at = excluded.processed_at
    WHERE e.status = 'failed';
END;
$$;

COMMENT ON FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, boolean, jsonb
) IS
    'Records and applies an event once; ambiguous, with nothing recorded, if its object'
    ' must be fetched. user_ids: the users that changed; moved_user_ids: those whose'
    ' period moved.';

DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT
            format(
                'GRANT EXECUTE ON FUNCTION %s TO %I',
                p.oid::regprocedure,
                pg_get_userbyid(a.grantee)
            ) AS text
        FROM pg_catalog.pg_proc AS f
        CROSS JOIN aclexplode(f.proacl) AS a
        INNER JOIN pg_catalog.pg_proc AS p ON f.pronamespace = p.pronamespace
        WHERE f.pronamespace = 'app'::regnamespace
            AND f.proname = 'former_apply_stripe_event'
            AND p.proname = 'apply_stripe_event'
            AND a.grantee NOT IN (0, f.proowner)
    LOOP
        EXECUTE statement;
    END LOOP;
END;
$$;

-- squawk-ignore ban-drop-function
DROP FUNCTION app.former_apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, boolean, jsonb
);
