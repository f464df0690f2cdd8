-- Subscriptions of the Stripe mirror with all their items: compared and upserted.

-- The linter takes parameters for columns without a table.
-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05

CREATE OR REPLACE FUNCTION app.read_stripe_items(items jsonb)
RETURNS TABLE (
    id text,
    price_id text,
    unit_amount numeric,
    quantity bigint,
    current_period_start timestamptz,
    current_period_end timestamptz
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        i.id,
        i.price_id,
        i.unit_amount,
        i.quantity,
        i.current_period_start,
        i.current_period_end
    FROM jsonb_to_recordset(items) AS i (
        id text,
        price_id text,
        unit_amount numeric,
        quantity bigint,
        current_period_start timestamptz,
        current_period_end timestamptz
    );
END;

COMMENT ON FUNCTION app.read_stripe_items(jsonb) IS
    'The items of a subscription''s snapshot, as rows.';

CREATE OR REPLACE FUNCTION app.compare_stripe_items(subscription_id text, items jsonb)
RETURNS TABLE (has_new_prices boolean, has_new_periods boolean)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        COALESCE(
            bool_or(
                n.id IS DISTINCT FROM k.id
                OR n.price_id IS DISTINCT FROM k.price_id
                OR n.unit_amount IS DISTINCT FROM k.unit_amount
                OR n.quantity IS DISTINCT FROM k.quantity
            ),
            FALSE
        ) AS has_new_prices,
        COALESCE(
            bool_or(
                (n.current_period_start, n.current_period_end)
                    IS DISTINCT FROM (k.current_period_start, k.current_period_end)
            ),
            FALSE
        ) AS has_new_periods
    FROM app.read_stripe_items(items) AS n
    FULL JOIN (
        SELECT
            i.id,
            i.price_id,
            i.unit_amount,
            i.quantity,
            i.current_period_start,
            i.current_period_end
        FROM app.stripe_subscription_items AS i
        WHERE i.subscription_id = compare_stripe_items.subscription_id
    ) AS k ON n.id = k.id;
END;

COMMENT ON FUNCTION app.compare_stripe_items(text, jsonb) IS
    'Whether items of a snapshot differ from those stored: in price, in period.';

-- Those of snapshots that are not applied are left out.
CREATE OR REPLACE FUNCTION app.find_subscription_claims(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS jsonb LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT jsonb_agg(v.snapshot ORDER BY v.n)
    FROM jsonb_array_elements(snapshots) WITH ORDINALITY AS v (snapshot, n)
    WHERE (
            v.snapshot ->> 'claimed_user_id' IS NOT NULL
            -- Conditions of the WHERE clause could read the index of pending claims.
            OR (
                SELECT
                    c.claimed_user_id IS NOT NULL
                    AND (c.claimed_user_id = c.user_id) IS NOT TRUE
                FROM app.stripe_customers AS c
                WHERE c.id = v.snapshot ->> 'customer_id'
            )
        )
        AND (
            SELECT
                app.compare_stripe_snapshot(
                    (v.snapshot ->> 'as_of')::timestamptz,
                    s.as_of,
                    s.claimed_user_id
                    IS NOT DISTINCT FROM (v.snapshot ->> 'claimed_user_id')::uuid,
                    source,
                    can_fetch
                ) <> 'applied'
                AND (
                    date_trunc('second', s.as_of)
                    > date_trunc('second', (v.snapshot ->> 'as_of')::timestamptz)
                    OR s.claimed_user_id
                    IS DISTINCT FROM (v.snapshot ->> 'claimed_user_id')::uuid
                )
            FROM app.stripe_subscriptions AS s
            WHERE s.id = v.snapshot ->> 'id'
        ) IS NOT TRUE;
END;

COMMENT ON FUNCTION app.find_subscription_claims(jsonb, text, boolean) IS
    'The snapshots with a claim, or with one that waits for its user; NULL if none.';

CREATE OR REPLACE FUNCTION app.claim_subscription_customers(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS jsonb LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    given_claim uuid := snapshots -> 0 ->> 'claimed_user_id';
    claims jsonb;
BEGIN
    -- Most events are of a customer with a claim that is in effect, and agree with it.
    IF jsonb_array_length(snapshots) = 1 AND EXISTS (
        SELECT
        FROM app.stripe_customers AS c
        WHERE c.id = snapshots -> 0 ->> 'customer_id'
            AND (c.claimed_user_id IS NULL OR c.claimed_user_id = c.user_id)
            AND (
                given_claim IS NULL
                OR (
                    c.claimed_user_id = given_claim
                    AND app.get_claim_strength(c.claim_source, FALSE)
                    >= app.get_claim_strength('subscription', FALSE)
                )
            )
    )
    THEN
        RETURN NULL;
    END IF;
    -- An ambiguous event changes nothing: its object is fetched, and its claim with it.
    IF source = 'event' AND can_fetch AND (
        SELECT c.result
        FROM app.compare_stripe_subscriptions(snapshots, source, can_fetch) AS c
    ) = 'ambiguous'
    THEN
        RETURN NULL;
    END IF;
    PERFORM app.lock_snapshot_users(snapshots, FALSE);
    claims := app.find_subscription_claims(snapshots, source, can_fetch);
    RETURN CASE
        WHEN claims IS NOT NULL THEN (
            SELECT jsonb_object_agg(c.customer_id, c.released_user_id)
            FROM app.claim_stripe_customers(claims, 'subscription') AS c
            WHERE c.is_changed
        )
    END;
END;
$$;

COMMENT ON FUNCTION app.claim_subscription_customers(jsonb, text, boolean) IS
    'Stores the claims of subscriptions; returns the changed customers, each with the'
    ' released user.';

-- SECURITY DEFINER: DELETE would allow the caller LOCK TABLE in ACCESS EXCLUSIVE mode.
CREATE OR REPLACE FUNCTION app.replace_stripe_items(
    subscription_ids text[], items jsonb[]
)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    WITH given AS MATERIALIZED (
        SELECT
            s.id AS subscription_id,
            i.*
        FROM unnest(subscription_ids, items) AS s (id, items)
        CROSS JOIN LATERAL app.read_stripe_items(s.items) AS i
    ),

    removed AS (
        DELETE FROM app.stripe_subscription_items AS k
        WHERE k.subscription_id = ANY(subscription_ids)
            AND NOT EXISTS (
                SELECT
                FROM given AS g
                WHERE g.subscription_id = k.subscription_id AND g.id = k.id
            )
    )

    INSERT INTO app.stripe_subscription_items (
        subscription_id, id, price_id, unit_amount, quantity, current_period_start,
        current_period_end
    )
    SELECT
        g.subscription_id,
        g.id,
        g.price_id,
        g.unit_amount,
        g.quantity,
        g.current_period_start,
        g.current_period_end
    FROM given AS g
    ON CONFLICT (subscription_id, id) DO UPDATE
    SET
        price_id = excluded.price_id,
        unit_amount = excluded.unit_amount,
        quantity = excluded.quantity,
        current_period_start = excluded.current_period_start,
        current_period_end = excluded.current_period_end;
END;
$$;

COMMENT ON FUNCTION app.replace_stripe_items(text[], jsonb[]) IS
    'Replaces all items of each of the subscriptions.';

REVOKE EXECUTE ON FUNCTION app.replace_stripe_items(text[], jsonb[]) FROM public;

-- Called after the claims of the snapshots are stored: another claim is a conflict.
CREATE OR REPLACE FUNCTION app.compare_stripe_subscriptions(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS TABLE (
    snapshot app.stripe_subscriptions,
    items jsonb,
    has_new_items boolean,
    is_provisional boolean,
    result text,
    differences text[],
    user_id uuid,
    conflicting_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH compared AS (
        SELECT DISTINCT ON (s.id)
            s AS snapshot,
            v.snapshot -> 'items' AS items,
            k.known,
            i.has_new_prices OR i.has_new_periods AS has_new_items,
            array_remove(ARRAY[
                CASE
                    WHEN s.status IS DISTINCT FROM (k.known).status
                        OR s.canceled_at IS DISTINCT FROM (k.known).canceled_at
                        OR s.pause_behavior IS DISTINCT FROM (k.known).pause_behavior
                        OR s.pause_resumes_at
                        IS DISTINCT FROM (k.known).pause_resumes_at
                        THEN 'status'
                END,
                CASE WHEN i.has_new_prices THEN 'price' END,
                CASE
                    WHEN i.has_new_periods THEN 'period'
                    WHEN s.cancel_at IS DISTINCT FROM (k.known).cancel_at
                        OR s.cancel_at_period_end
                        IS DISTINCT FROM (k.known).cancel_at_period_end
                        OR s.billing_cycle_anchor
                        IS DISTINCT FROM (k.known).billing_cycle_anchor
                        OR s.trial_end IS DISTINCT FROM (k.known).trial_end
                        THEN 'period'
                END,
                CASE WHEN s.created_at <> (k.known).created_at THEN 'created_at' END,
                CASE
                    WHEN s.claimed_user_id IS DISTINCT FROM (k.known).claimed_user_id
                        THEN 'unlinked'
                END
            ], NULL) AS changes
        FROM jsonb_array_elements(snapshots) AS v (snapshot)
        CROSS JOIN LATERAL jsonb_populate_record(
            NULL::app.stripe_subscriptions, v.snapshot
        ) AS s
        LEFT JOIN LATERAL (
            SELECT t AS known
            FROM app.stripe_subscriptions AS t
            WHERE t.id = s.id
            LIMIT 1
        ) AS k ON TRUE
        CROSS JOIN LATERAL app.compare_stripe_items(s.id, v.snapshot -> 'items') AS i
        ORDER BY s.id
    )

    SELECT
        c.snapshot,
        c.items,
        c.has_new_items,
        COALESCE(
            source = 'event'
            AND date_trunc('second', (c.snapshot).as_of)
            = date_trunc('second', (c.known).as_of)
            AND ((c.known).is_provisional OR c.changes <> '{}'),
            FALSE
        ) AS is_provisional,
        app.compare_stripe_snapshot(
            (c.snapshot).as_of,
            (c.known).as_of,
            c.changes = '{}' AND NOT ((c.known).is_provisional AND source = 'page'),
            source,
            can_fetch
        ) AS result,
        CASE
            WHEN (c.known).id IS NULL THEN ARRAY['missing_here']
            ELSE c.changes
        END AS differences,
        COALESCE(o.user_id, o.holder_id) AS user_id,
        CASE
            WHEN (c.snapshot).claimed_user_id
                <> COALESCE(o.claimed_user_id, o.user_id, o.holder_id)
                THEN (c.snapshot).claimed_user_id
        END AS conflicting_user_id
    FROM compared AS c
    CROSS JOIN LATERAL app.find_customer_claim((c.snapshot).customer_id) AS o;
END;

COMMENT ON FUNCTION app.compare_stripe_subscriptions(jsonb, text, boolean) IS
    'Subscription rows as the snapshots would make them, each with its result.';

CREATE OR REPLACE FUNCTION app.upsert_stripe_subscriptions(
    snapshots jsonb, source text, can_fetch boolean
)
RETURNS TABLE (
    id text,
    result text,
    differences text[],
    user_id uuid,
    released_user_id uuid,
    conflicting_user_id uuid
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_memoize = off
AS $$
#variable_conflict use_column
DECLARE
    released jsonb := app.claim_subscription_customers(snapshots, source, can_fetch);
    new_items jsonb;
    changed_ids text[];
    changed_items jsonb[];
BEGIN
    FOR
        id, result, differences, user_id, released_user_id, conflicting_user_id,
        new_items
    IN
    WITH compared AS MATERIALIZED (
        SELECT c.*
        FROM app.compare_stripe_subscriptions(snapshots, source, can_fetch) AS c
    ),

    upserted AS (
        INSERT INTO app.stripe_subscriptions AS s (
            id, customer_id, status, billing_cycle_anchor, cancel_at,
            cancel_at_period_end, canceled_at, trial_end, pause_behavior,
            pause_resumes_at, created_at, as_of, is_provisional, claimed_user_id
        )
        SELECT
            (c.snapshot).id,
            (c.snapshot).customer_id,
            (c.snapshot).status,
            (c.snapshot).billing_cycle_anchor,
            (c.snapshot).cancel_at,
            (c.snapshot).cancel_at_period_end,
            (c.snapshot).canceled_at,
            (c.snapshot).trial_end,
            (c.snapshot).pause_behavior,
            (c.snapshot).pause_resumes_at,
            (c.snapshot).created_at,
            (c.snapshot).as_of,
            c.is_provisional,
            (c.snapshot).claimed_user_id
        FROM compared AS c
        WHERE c.result = 'applied'
        ON CONFLICT (id) DO UPDATE
        SET
            customer_id = excluded.customer_id,
            status = excluded.status,
            billing_cycle_anchor = excluded.billing_cycle_anchor,
            cancel_at = excluded.cancel_at,
            cancel_at_period_end = excluded.cancel_at_period_end,
            canceled_at = excluded.canceled_at,
            trial_end = excluded.trial_end,
            pause_behavior = excluded.pause_behavior,
            pause_resumes_at = excluded.pause_resumes_at,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, s.as_of),
            is_provisional = excluded.is_provisional,
            claimed_user_id = excluded.claimed_user_id
    )

    SELECT
        (c.snapshot).id,
        CASE
            WHEN c.result = 'stale' AND released ? (c.snapshot).customer_id
                THEN 'applied'
            ELSE c.result
        END AS result,
        c.differences,
        c.user_id,
        (released ->> (c.snapshot).customer_id)::uuid AS released_user_id,
        c.conflicting_user_id,
        CASE WHEN c.result = 'applied' AND c.has_new_items THEN c.items END AS new_items
    FROM compared AS c
    LOOP
        IF new_items IS NOT NULL THEN
            changed_ids := changed_ids || id;
            changed_items := changed_items || new_items;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF changed_ids IS NOT NULL THEN
        PERFORM app.replace_stripe_items(changed_ids, changed_items);
    END IF;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_subscriptions(jsonb, text, boolean) IS
    'Upserts subscription snapshots newer than the stored rows; a result for each.';
