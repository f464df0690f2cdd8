CREATE OR REPLACE FUNCTION app.lock_stripe_customer(customer_id text)
RETURNS void LANGUAGE sql
RETURN pg_advisory_xact_lock(hashtextextended(customer_id, 0));

COMMENT ON FUNCTION app.lock_stripe_customer(text) IS
    'Until the transaction ends nobody else changes what is known of the customer.';

CREATE OR REPLACE FUNCTION app.compare_stripe_snapshot(
    seen_at timestamptz,
    known_at timestamptz,
    is_settled boolean,
    source text,
    can_fetch boolean
)
RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN known_at IS NULL OR source = 'object' THEN 'applied'
    -- What was fetched is known since the request, and was told up to a second later.
    WHEN date_trunc('second', seen_at) >= known_at + interval '1 second' THEN 'applied'
    WHEN is_settled AND date_trunc('second', seen_at) >= date_trunc('second', known_at)
        THEN 'applied'
    WHEN date_trunc('second', seen_at) < date_trunc('second', known_at)
        AND (is_settled OR source = 'event')
        THEN 'stale'
    WHEN can_fetch THEN 'ambiguous'
    ELSE 'applied'
END;

COMMENT ON FUNCTION app.compare_stripe_snapshot(
    timestamptz, timestamptz, boolean, text, boolean
) IS
    'applied, stale or ambiguous: newer counts, and in the same second what is the same.';

-- What follows keeps its plans, also those made while the tables were empty: it goes by
-- the indexes, and what it joins is looked up row by row, LIMIT 1, whatever their size.
-- Without hash joins users are written in the order of their ids.

CREATE OR REPLACE FUNCTION app.sync_stripe_users(
    user_ids uuid[], is_dry_run boolean DEFAULT FALSE
)
RETURNS TABLE (
    id uuid,
    customer_id text,
    subscription_id text,
    differences text[],
    has_unknown_price boolean
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
AS $$
#variable_conflict use_column
BEGIN
    -- Two customers of one user have two locks; here their transactions queue up, and
    -- the statement below sees what the first one did.
    IF NOT is_dry_run THEN
        PERFORM u.id
        FROM app.users AS u
        WHERE u.id = ANY(user_ids)
        ORDER BY u.id
        FOR NO KEY UPDATE;
    END IF;

    RETURN QUERY
    WITH mirrored AS (
        SELECT
            held.id,
            held,
            COALESCE(customer.id, held.stripe_customer_id) AS customer_id,
            COALESCE(customer.created_at, held.created_at) AS created_at,
            best.id AS subscription_id,
            best.price_id,
            -- Deleting a customer cancels what it has, if the news of it came or not.
            CASE
                WHEN customer.is_deleted AND best.status <> 'incomplete_expired'
                    THEN 'canceled'
                ELSE best.status
            END AS status,
            best.billing_cycle_anchor AS anchor,
            best.current_period_start AS period_start,
            best.current_period_end AS period_end
        FROM app.users AS held
        -- A live customer, of those one with an active subscription, for a checkout may
        -- have made another one; then the one that he has, else the first.
        LEFT JOIN LATERAL (
            SELECT
                c.id,
                c.is_deleted,
                c.created_at
            FROM (
                SELECT
                    k.id,
                    k.is_deleted,
                    k.created_at
                FROM app.stripe_customers AS k
                WHERE k.user_id = held.id
                UNION ALL
                -- The one that he has may not have been seen yet.
                SELECT
                    held.stripe_customer_id AS id,
                    FALSE AS is_deleted,
                    NULL AS created_at
                WHERE held.stripe_customer_id IS NOT NULL
                    AND NOT EXISTS (
                        SELECT
                        FROM app.stripe_customers AS k
                        WHERE k.id = held.stripe_customer_id
                    )
            ) AS c
            ORDER BY
                c.is_deleted,
                EXISTS (
                    SELECT
                    FROM app.stripe_subscriptions AS s
                    WHERE s.customer_id = c.id AND app.is_active_status(s.status)
                ) DESC,
                c.id = held.stripe_customer_id DESC NULLS LAST,
                c.created_at,
                c.id
            LIMIT 1
        ) AS customer ON TRUE
        -- An active subscription, and of those the one that is paid longest.
        LEFT JOIN LATERAL (
            SELECT s.*
            FROM app.stripe_subscriptions AS s
            WHERE s.customer_id = COALESCE(customer.id, held.stripe_customer_id)
            ORDER BY
                app.is_active_status(s.status) DESC,
                s.current_period_end DESC NULLS LAST,
                s.created_at DESC,
                s.id
            LIMIT 1
        ) AS best ON TRUE
        WHERE held.id = ANY(user_ids)
    ),

    priced AS (
        SELECT
            m.*,
            plan.monthly_credits AS plan_credits,
            app.is_active_status(m.status) AS is_active,
            CASE
                WHEN NOT app.is_active_status(m.status) THEN 'kept'
                -- Paid up to the next boundary of Stripe's anchor: the quota's month.
                WHEN m.period_end = app.get_period_end(m.anchor, m.period_start)
                    THEN 'anchored'
                WHEN m.period_end - m.period_start
                    BETWEEN interval '28 days' AND interval '31 days'
                    THEN 'paid'
                -- More than a month is paid, or less: the quota resets monthly.
                ELSE 'monthly'
            END AS cycle
        FROM mirrored AS m
        LEFT JOIN app.plans AS plan ON m.price_id = plan.stripe_price_id
    ),

    anchored AS (
        SELECT
            p.*,
            CASE p.cycle
                WHEN 'kept' THEN (p.held).quota_anchor
                WHEN 'anchored' THEN p.anchor
                WHEN 'paid' THEN p.period_end
                ELSE COALESCE(p.anchor, p.period_end, (p.held).quota_anchor)
            END AS new_anchor
        FROM priced AS p
    ),

    wanted AS MATERIALIZED (
        SELECT
            a.id,
            a.held,
            a.customer_id,
            a.created_at,
            a.subscription_id,
            a.price_id,
            a.status,
            COALESCE(
                CASE WHEN a.is_active THEN a.plan_credits END,
                (SELECT p.monthly_credits FROM app.plans AS p WHERE p.id = 'free'),
                (a.held).base_quota
            ) AS base_quota,
            a.new_anchor AS quota_anchor,
            CASE
                WHEN a.cycle IN ('anchored', 'paid') THEN a.period_end
                -- A lapsed reset on the same boundaries means the next one already.
                WHEN a.cycle = 'monthly'
                    AND (
                        a.new_anchor <> (a.held).quota_anchor
                        OR (a.held).next_quota_reset > now()
                    )
                    THEN app.get_period_end(a.new_anchor, now())
                ELSE (a.held).next_quota_reset
            END AS next_quota_reset,
            a.is_active AND a.plan_credits IS NULL AS has_unknown_price
        FROM anchored AS a
    ),

    compared AS MATERIALIZED (
        SELECT
            w.*,
            array_remove(ARRAY[
                CASE
                    WHEN w.customer_id IS DISTINCT FROM (w.held).stripe_customer_id
                        THEN 'unlinked'
                END,
                CASE WHEN w.created_at <> (w.held).created_at THEN 'created_at' END,
                CASE
                    WHEN (w.subscription_id, w.status)
                        IS DISTINCT FROM (
                            (w.held).stripe_subscription_id,
                            (w.held).subscription_status
                        )
                        THEN 'status'
                END,
                CASE
                    WHEN (w.price_id, w.base_quota)
                        IS DISTINCT FROM (
                            (w.held).stripe_price_id, (w.held).base_quota
                        )
                        THEN 'price'
                END,
                CASE
                    WHEN (w.quota_anchor, w.next_quota_reset)
                        IS DISTINCT FROM (
                            (w.held).quota_anchor, (w.held).next_quota_reset
                        )
                        THEN 'period'
                END
            ], NULL) AS differences
        FROM wanted AS w
        -- A changed key is a stronger lock, which is taken in the order of ids as well.
        ORDER BY w.id
    ),

    synced AS (
        UPDATE app.users AS u
        SET
            stripe_customer_id = c.customer_id,
            created_at = c.created_at,
            stripe_subscription_id = c.subscription_id,
            stripe_price_id = c.price_id,
            subscription_status = c.status,
            base_quota = c.base_quota,
            quota_anchor = c.quota_anchor,
            next_quota_reset = c.next_quota_reset
        FROM compared AS c
        WHERE u.id = c.id AND c.differences <> '{}' AND NOT is_dry_run
    )

    SELECT
        c.id,
        c.customer_id,
        c.subscription_id,
        c.differences,
        COALESCE(c.has_unknown_price, FALSE)
    FROM compared AS c
    ORDER BY c.id;
END;
$$;

COMMENT ON FUNCTION app.sync_stripe_users(uuid[], boolean) IS
    'Gives users what their customers and the best subscriptions say, and tells it.';

CREATE OR REPLACE FUNCTION app.upsert_stripe_customers(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean,
    is_dry_run boolean
)
RETURNS TABLE (
    id text,
    result text,
    differences text[],
    user_id uuid,
    released_user_id uuid,
    proposed_user_id uuid
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH given AS (
        SELECT DISTINCT ON (v.id) v.*
        FROM jsonb_to_recordset(snapshots) AS v (
            id text,
            user_id uuid,
            email text,
            is_deleted boolean,
            created_at timestamptz,
            as_of timestamptz
        )
        ORDER BY v.id
    ),

    -- Whoever is linked stays so until another is named.
    claimed AS MATERIALIZED (
        SELECT
            g.id,
            g.email,
            known.id IS NOT NULL AS is_known,
            g.is_deleted,
            -- No event revives a customer; what Stripe lists is not deleted.
            g.is_deleted
            OR (known.is_deleted IS TRUE AND source = 'event') AS is_gone,
            known.is_deleted AS was_deleted,
            COALESCE(g.created_at, known.created_at) AS created_at,
            known.created_at AS known_created_at,
            g.as_of,
            known.as_of AS known_as_of,
            known.is_provisional AS was_provisional,
            known.user_id AS known_user_id,
            holder.id AS holder_id,
            COALESCE(claimant.id, known.user_id, holder.id) AS owner_id,
            claimant.id IS NULL
            OR claimant.id IS NOT DISTINCT FROM known.user_id AS is_same
        FROM given AS g
        LEFT JOIN LATERAL (
            SELECT c.*
            FROM app.stripe_customers AS c
            WHERE c.id = g.id
            LIMIT 1
        ) AS known ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.id = g.user_id
            LIMIT 1
        ) AS claimant ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.stripe_customer_id = g.id
            LIMIT 1
        ) AS holder ON TRUE
    ),

    -- E-mail links only if told so, and nobody who has a customer or is named by one.
    owned AS (
        SELECT
            c.*,
            c.was_deleted IS TRUE AND NOT c.is_gone AS is_revived,
            proposed.id AS proposed_user_id,
            COALESCE(
                c.owner_id, CASE WHEN match_email THEN proposed.id END
            ) AS user_id
        FROM claimed AS c
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE c.owner_id IS NULL
                AND lower(u.email) = lower(c.email)
                AND u.stripe_customer_id IS NULL
                AND NOT u.id IN (
                    SELECT o.owner_id
                    FROM claimed AS o
                    WHERE o.owner_id IS NOT NULL
                )
            LIMIT 1
        ) AS proposed ON TRUE
    ),

    judged AS MATERIALIZED (
        SELECT
            o.*,
            -- What is known by name only takes any snapshot, and a deletion always counts.
            CASE
                WHEN o.known_created_at IS NULL THEN 'applied'
                WHEN o.is_deleted AND NOT o.was_deleted THEN 'applied'
                ELSE app.compare_stripe_snapshot(
                    o.as_of,
                    o.known_as_of,
                    o.is_same
                    AND NOT o.is_revived
                    AND NOT (o.was_provisional AND source = 'page'),
                    source,
                    can_fetch
                )
            END AS result,
            COALESCE(
                source = 'event'
                AND o.known_created_at IS NOT NULL
                AND date_trunc('second', o.as_of) = date_trunc('second', o.known_as_of)
                AND (o.was_provisional OR NOT o.is_same),
                FALSE
            ) AS is_provisional,
            array_remove(ARRAY[
                CASE WHEN NOT o.is_known OR o.is_revived THEN 'missing_here' END,
                CASE WHEN o.is_gone AND NOT o.was_deleted THEN 'missing_there' END,
                CASE
                    WHEN o.is_known
                        AND o.created_at IS DISTINCT FROM o.known_created_at
                        THEN 'created_at'
                END,
                CASE
                    WHEN NOT o.is_gone AND o.user_id IS NULL THEN 'unlinked'
                    WHEN o.is_known AND o.user_id IS DISTINCT FROM o.known_user_id
                        THEN 'unlinked'
                END
            ], NULL) AS differences
        FROM owned AS o
    ),

    kept AS MATERIALIZED (
        SELECT
            j.*,
            CASE WHEN j.holder_id <> j.user_id THEN j.holder_id END AS released_user_id
        FROM judged AS j
        WHERE j.result = 'applied' AND NOT is_dry_run
    ),

    put AS (
        INSERT INTO app.stripe_customers AS c (
            id, user_id, is_deleted, created_at, as_of, is_provisional
        )
        SELECT
            k.id,
            k.user_id,
            k.is_gone,
            k.created_at,
            k.as_of,
            k.is_provisional
        FROM kept AS k
        ON CONFLICT (id) DO UPDATE
        SET
            user_id = excluded.user_id,
            is_deleted = excluded.is_deleted,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, c.as_of),
            is_provisional = excluded.is_provisional
    ),

    moved AS (
        UPDATE app.stripe_subscriptions AS s
        SET user_id = k.user_id
        FROM kept AS k
        WHERE s.customer_id = k.id AND s.user_id IS DISTINCT FROM k.user_id
    ),

    -- A customer has one user: he who loses it lets go before the other takes it.
    released AS (
        UPDATE app.users AS u
        SET stripe_customer_id = NULL
        FROM (
            SELECT k.released_user_id AS id
            FROM kept AS k
            ORDER BY k.released_user_id
        ) AS r
        WHERE u.id = r.id
    )

    SELECT
        j.id,
        j.result,
        j.differences,
        j.user_id,
        k.released_user_id,
        j.proposed_user_id
    FROM judged AS j
    LEFT JOIN kept AS k ON j.id = k.id
    ORDER BY j.id;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_customers(jsonb, text, boolean, boolean, boolean) IS
    'Judges snapshots of customers, their user_id a claim, and keeps those that count.';

CREATE OR REPLACE FUNCTION app.upsert_stripe_subscriptions(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    is_dry_run boolean
)
RETURNS TABLE (id text, result text, differences text[], user_id uuid)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH given AS (
        SELECT DISTINCT ON (v.id) v.*
        FROM jsonb_populate_recordset(NULL::app.stripe_subscriptions, snapshots) AS v
        ORDER BY v.id
    ),

    compared AS MATERIALIZED (
        SELECT
            g.*,
            known.as_of AS known_as_of,
            known.is_provisional AS was_provisional,
            COALESCE(customer.user_id, holder.id) AS owner_id,
            CASE
                WHEN known.id IS NULL THEN ARRAY['missing_here']
                ELSE array_remove(ARRAY[
                    CASE
                        WHEN (g.status, g.canceled_at)
                            IS DISTINCT FROM (known.status, known.canceled_at)
                            THEN 'status'
                    END,
                    CASE
                        WHEN g.price_id IS DISTINCT FROM known.price_id THEN 'price'
                    END,
                    CASE
                        WHEN (
                            g.current_period_start, g.current_period_end,
                            g.billing_cycle_anchor, g.cancel_at_period_end
                        ) IS DISTINCT FROM (
                            known.current_period_start, known.current_period_end,
                            known.billing_cycle_anchor, known.cancel_at_period_end
                        )
                            THEN 'period'
                    END,
                    CASE WHEN g.created_at <> known.created_at THEN 'created_at' END
                ], NULL)
            END AS differences
        FROM given AS g
        LEFT JOIN LATERAL (
            SELECT s.*
            FROM app.stripe_subscriptions AS s
            WHERE s.id = g.id
            LIMIT 1
        ) AS known ON TRUE
        LEFT JOIN LATERAL (
            SELECT c.user_id
            FROM app.stripe_customers AS c
            WHERE c.id = g.customer_id
            LIMIT 1
        ) AS customer ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.stripe_customer_id = g.customer_id
            LIMIT 1
        ) AS holder ON TRUE
    ),

    judged AS MATERIALIZED (
        SELECT
            c.*,
            app.compare_stripe_snapshot(
                c.as_of,
                c.known_as_of,
                c.differences = '{}' AND NOT (c.was_provisional AND source = 'page'),
                source,
                can_fetch
            ) AS result
        FROM compared AS c
    ),

    put AS (
        INSERT INTO app.stripe_subscriptions AS s (
            id, customer_id, user_id, status, price_id, current_period_start,
            current_period_end, billing_cycle_anchor, cancel_at_period_end, canceled_at,
            created_at, as_of, is_provisional
        )
        SELECT
            j.id,
            j.customer_id,
            j.owner_id,
            j.status,
            j.price_id,
            j.current_period_start,
            j.current_period_end,
            j.billing_cycle_anchor,
            j.cancel_at_period_end,
            j.canceled_at,
            j.created_at,
            j.as_of,
            COALESCE(
                source = 'event'
                AND date_trunc('second', j.as_of) = date_trunc('second', j.known_as_of)
                AND (j.was_provisional OR j.differences <> '{}'),
                FALSE
            ) AS is_provisional
        FROM judged AS j
        WHERE j.result = 'applied' AND NOT is_dry_run
        ON CONFLICT (id) DO UPDATE
        SET
            customer_id = excluded.customer_id,
            user_id = excluded.user_id,
            status = excluded.status,
            price_id = excluded.price_id,
            current_period_start = excluded.current_period_start,
            current_period_end = excluded.current_period_end,
            billing_cycle_anchor = excluded.billing_cycle_anchor,
            cancel_at_period_end = excluded.cancel_at_period_end,
            canceled_at = excluded.canceled_at,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, s.as_of),
            is_provisional = excluded.is_provisional
    )

    SELECT
        j.id,
        j.result,
        j.differences,
        j.owner_id AS user_id
    FROM judged AS j
    ORDER BY j.id;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_subscriptions(jsonb, text, boolean, boolean) IS
    'Judges snapshots of subscriptions, and keeps those that count.';

CREATE OR REPLACE FUNCTION app.upsert_stripe_snapshots(
    object_type text,
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean DEFAULT FALSE,
    is_dry_run boolean DEFAULT FALSE
)
RETURNS TABLE (
    id text,
    result text,
    differences text[],
    user_id uuid,
    released_user_id uuid,
    proposed_user_id uuid
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
BEGIN
    -- Those whom the customers belong to, did, or may: in one order, before a row that
    -- refers to them is written, whose foreign key would share their lock otherwise.
    IF NOT is_dry_run THEN
        PERFORM u.id
        FROM app.users AS u
        WHERE u.id = ANY(ARRAY(
            SELECT unnest(ARRAY[
                (v.snapshot ->> 'user_id')::uuid,
                (SELECT c.user_id FROM app.stripe_customers AS c WHERE c.id = n.id),
                (SELECT h.id FROM app.users AS h WHERE h.stripe_customer_id = n.id),
                (
                    SELECT p.id
                    FROM app.users AS p
                    WHERE match_email AND lower(p.email) = lower(v.snapshot ->> 'email')
                )
            ])
            FROM jsonb_array_elements(snapshots) AS v (snapshot)
            CROSS JOIN LATERAL (
                SELECT COALESCE(v.snapshot ->> 'customer_id', v.snapshot ->> 'id') AS id
            ) AS n
        ))
        ORDER BY u.id
        FOR NO KEY UPDATE;
    END IF;
    IF object_type = 'customers' THEN
        RETURN QUERY
        SELECT p.*
        FROM app.upsert_stripe_customers(
            snapshots, source, can_fetch, match_email, is_dry_run
        ) AS p;
    ELSIF object_type = 'subscriptions' THEN
        RETURN QUERY
        SELECT
            p.*,
            NULL::uuid,
            NULL::uuid
        FROM app.upsert_stripe_subscriptions(snapshots, source, can_fetch, is_dry_run) AS p;
    END IF;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_snapshots(
    text, jsonb, text, boolean, boolean, boolean
) IS
    'Judges snapshots of customers or of subscriptions, and keeps those that count.';

CREATE OR REPLACE FUNCTION app.apply_stripe_event(
    id text,
    type text,
    api_version text,
    event_created_at timestamptz,
    payload jsonb,
    lock_key text,
    object_type text,
    snapshot jsonb,
    can_fetch boolean
)
RETURNS text LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    result text := 'ignored';
    judged record;
BEGIN
    -- What the lock waits for must be seen after it.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'app.apply_stripe_event needs READ COMMITTED'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM app.lock_stripe_customer(lock_key);
    IF EXISTS (
        SELECT FROM app.stripe_events AS e
        WHERE e.id = apply_stripe_event.id
            AND e.status IN ('applied', 'stale', 'ignored')
    ) THEN
        RETURN 'duplicate';
    END IF;

    IF object_type IS NOT NULL THEN
        SELECT p.* INTO judged
        FROM app.upsert_stripe_snapshots(
            object_type, jsonb_build_array(snapshot), 'event', can_fetch
        ) AS p;
        result := judged.result;
        IF result = 'ambiguous' THEN
            RETURN result;
        END IF;
        IF result = 'applied' THEN
            PERFORM u.id
            FROM app.sync_stripe_users(
                ARRAY[judged.released_user_id, judged.user_id]
            ) AS u;
        END IF;
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
    WHERE e.status IN ('received', 'failed');
    RETURN result;
END;
$$;

COMMENT ON FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, jsonb, boolean
) IS
    'Enters an event once, with the snapshot it gives; of an ambiguous one it says so only.';
