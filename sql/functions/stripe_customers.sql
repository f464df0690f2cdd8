-- Customers of the Stripe mirror: snapshots compared with the stored rows, and stored.

-- The linter takes parameters for columns without a table.
-- noqa: disable=RF02,RF03,AM03,AM06,AM09,ST05

CREATE OR REPLACE FUNCTION app.list_user_customers(user_id uuid, linked_id text)
RETURNS TABLE (
    id text, is_deleted boolean, created_at timestamptz, claim_source text
)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        m.id,
        m.is_deleted,
        m.created_at,
        m.claim_source
    FROM app.stripe_customers AS m
    WHERE m.user_id = list_user_customers.user_id
    UNION ALL
    -- The linked customer may not be in the mirror yet.
    SELECT
        linked_id AS id,
        FALSE AS is_deleted,
        NULL AS created_at,
        NULL AS claim_source
    WHERE linked_id IS NOT NULL
        AND NOT EXISTS (
            SELECT
            FROM app.stripe_customers AS m
            WHERE m.id = linked_id
        );
END;

COMMENT ON FUNCTION app.list_user_customers(uuid, text) IS
    'The customers of a user, with the linked one.';

-- A claim in the metadata of a customer ends when a snapshot is without it. The link
-- stays until another user is claimed. An e-mail address proposes a user that has
-- verified it, and has no customer, stored or in the snapshots, but by its address.
CREATE OR REPLACE FUNCTION app.find_customer_owners(snapshots jsonb)
RETURNS TABLE (
    id text,
    email text,
    is_deleted boolean,
    created_at timestamptz,
    as_of timestamptz,
    known app.stripe_customers,
    claimed_user_id uuid,
    claim_source text,
    holder_id uuid,
    owner_id uuid,
    proposed_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH owned AS MATERIALIZED (
        SELECT DISTINCT ON (g.id)
            g.id,
            g.email,
            g.is_deleted,
            COALESCE(g.created_at, (k.known).created_at) AS created_at,
            g.as_of,
            k.known,
            claim.user_id AS claimed_user_id,
            claim.source AS claim_source,
            holder.id AS holder_id,
            COALESCE(claimant.id, (k.known).user_id, holder.id) AS owner_id
        FROM jsonb_to_recordset(snapshots) AS g (
            id text,
            claimed_user_id uuid,
            email text,
            is_deleted boolean,
            created_at timestamptz,
            as_of timestamptz
        )
        LEFT JOIN LATERAL (
            SELECT c AS known
            FROM app.stripe_customers AS c
            WHERE c.id = g.id
            LIMIT 1
        ) AS k ON TRUE
        CROSS JOIN LATERAL (
            SELECT
                COALESCE(g.claimed_user_id, s.user_id) AS user_id,
                CASE
                    WHEN g.claimed_user_id IS NOT NULL THEN 'customer'
                    WHEN s.user_id IS NOT NULL THEN (k.known).claim_source
                END AS source
            FROM (
                SELECT
                    CASE
                        WHEN g.is_deleted OR (k.known).claim_source <> 'customer'
                            THEN (k.known).claimed_user_id
                    END AS user_id
            ) AS s
        ) AS claim
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.id = claim.user_id
            LIMIT 1
        ) AS claimant ON TRUE
        LEFT JOIN LATERAL (
            SELECT u.id
            FROM app.users AS u
            WHERE u.stripe_customer_id = g.id
            LIMIT 1
        ) AS holder ON TRUE
        ORDER BY g.id
    )

    SELECT
        o.*,
        (
            SELECT u.id
            FROM app.users AS u
            WHERE COALESCE(o.owner_id, o.claimed_user_id) IS NULL
                AND lower(u.email) = lower(o.email)
                AND u.email_verified_at IS NOT NULL
                AND NOT EXISTS (
                    SELECT
                    FROM app.list_user_customers(u.id, u.stripe_customer_id) AS l
                    WHERE l.claim_source IS DISTINCT FROM 'email'
                )
                AND NOT EXISTS (
                    SELECT
                    FROM owned AS other
                    WHERE other.owner_id = u.id
                        AND other.claim_source IS DISTINCT FROM 'email'
                )
        ) AS proposed_user_id
    FROM owned AS o;
END;

COMMENT ON FUNCTION app.find_customer_owners(jsonb) IS
    'Customer snapshots, their stored rows, their claims, and the users they have.';

CREATE OR REPLACE FUNCTION app.resolve_stripe_customers(
    snapshots jsonb, source text, match_email boolean
)
RETURNS TABLE (
    id text,
    known app.stripe_customers,
    is_deleted boolean,
    created_at timestamptz,
    as_of timestamptz,
    user_id uuid,
    claimed_user_id uuid,
    claim_source text,
    is_claim_new boolean,
    is_gone boolean,
    is_revived boolean,
    holder_id uuid,
    proposed_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        o.id,
        o.known,
        o.is_deleted,
        o.created_at,
        o.as_of,
        c.user_id,
        c.claimed_user_id,
        c.claim_source,
        -- The link of a customer without a claim is not part of its snapshot.
        (
            c.claimed_user_id IS DISTINCT FROM (o.known).claimed_user_id
            OR c.claim_source IS DISTINCT FROM (o.known).claim_source
            OR (
                c.claimed_user_id IS NOT DISTINCT FROM c.user_id
                AND c.user_id IS DISTINCT FROM (o.known).user_id
            )
        ) AS is_claim_new,
        -- A page or a fetched object revives a deleted customer; an event does not.
        o.is_deleted OR ((o.known).is_deleted IS TRUE AND source = 'event') AS is_gone,
        (o.known).is_deleted IS TRUE AND NOT o.is_deleted AND source <> 'event'
            AS is_revived,
        o.holder_id,
        o.proposed_user_id
    FROM app.find_customer_owners(snapshots) AS o
    CROSS JOIN LATERAL (
        SELECT CASE WHEN match_email THEN o.proposed_user_id END AS user_id
    ) AS e
    CROSS JOIN LATERAL (
        SELECT
            COALESCE(o.owner_id, e.user_id) AS user_id,
            COALESCE(o.claimed_user_id, e.user_id) AS claimed_user_id,
            COALESCE(
                o.claim_source, CASE WHEN e.user_id IS NOT NULL THEN 'email' END
            ) AS claim_source
    ) AS c;
END;

COMMENT ON FUNCTION app.resolve_stripe_customers(jsonb, text, boolean) IS
    'Customer snapshots with the users and claims that they would have.';

CREATE OR REPLACE FUNCTION app.compare_stripe_customers(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean
)
RETURNS TABLE (
    id text,
    user_id uuid,
    claimed_user_id uuid,
    claim_source text,
    is_deleted boolean,
    created_at timestamptz,
    as_of timestamptz,
    is_provisional boolean,
    result text,
    differences text[],
    released_user_id uuid,
    proposed_user_id uuid
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        r.id,
        r.user_id,
        r.claimed_user_id,
        r.claim_source,
        r.is_gone AS is_deleted,
        r.created_at,
        r.as_of,
        COALESCE(
            source = 'event'
            AND (r.known).created_at IS NOT NULL
            AND date_trunc('second', r.as_of) = date_trunc('second', (r.known).as_of)
            AND ((r.known).is_provisional OR r.is_claim_new),
            FALSE
        ) AS is_provisional,
        CASE
            -- Only the id is known, from a claim: any snapshot is newer.
            WHEN (r.known).created_at IS NULL THEN 'applied'
            -- A deletion is final.
            WHEN r.is_deleted AND NOT (r.known).is_deleted THEN 'applied'
            WHEN r.is_gone AND NOT r.is_deleted THEN 'stale'
            ELSE app.compare_stripe_snapshot(
                r.as_of,
                (r.known).as_of,
                NOT r.is_claim_new
                AND NOT r.is_revived
                AND NOT ((r.known).is_provisional AND source = 'page'),
                source,
                can_fetch
            )
        END AS result,
        array_remove(ARRAY[
            CASE WHEN (r.known).id IS NULL OR r.is_revived THEN 'missing_here' END,
            CASE
                WHEN r.is_gone AND NOT (r.known).is_deleted THEN 'missing_there'
            END,
            CASE
                WHEN r.created_at IS DISTINCT FROM (r.known).created_at
                    AND (r.known).id IS NOT NULL
                    THEN 'created_at'
            END,
            CASE
                WHEN NOT r.is_gone AND r.user_id IS NULL THEN 'unlinked'
                WHEN (r.known).id IS NULL THEN NULL
                WHEN r.is_claim_new OR r.user_id IS DISTINCT FROM (r.known).user_id
                    THEN 'unlinked'
            END
        ], NULL) AS differences,
        CASE WHEN r.holder_id <> r.user_id THEN r.holder_id END AS released_user_id,
        r.proposed_user_id
    FROM app.resolve_stripe_customers(snapshots, source, match_email) AS r;
END;

COMMENT ON FUNCTION app.compare_stripe_customers(jsonb, text, boolean, boolean) IS
    'Customer rows as the snapshots would make them, each with its result.';

CREATE OR REPLACE FUNCTION app.upsert_stripe_customers(
    snapshots jsonb,
    source text,
    can_fetch boolean,
    match_email boolean
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
    PERFORM app.lock_snapshot_users(snapshots, match_email);

    RETURN QUERY
    WITH compared AS MATERIALIZED (
        SELECT c.*
        FROM app.compare_stripe_customers(
            snapshots, source, can_fetch, match_email
        ) AS c
    ),

    newer AS MATERIALIZED (
        SELECT c.*
        FROM compared AS c
        WHERE c.result = 'applied'
    ),

    upserted AS (
        INSERT INTO app.stripe_customers AS c (
            id, user_id, claimed_user_id, claim_source, is_deleted, created_at, as_of,
            is_provisional
        )
        SELECT
            n.id,
            n.user_id,
            n.claimed_user_id,
            n.claim_source,
            n.is_deleted,
            n.created_at,
            n.as_of,
            n.is_provisional
        FROM newer AS n
        ON CONFLICT (id) DO UPDATE
        SET
            user_id = excluded.user_id,
            claimed_user_id = excluded.claimed_user_id,
            claim_source = excluded.claim_source,
            is_deleted = excluded.is_deleted,
            created_at = excluded.created_at,
            as_of = GREATEST(excluded.as_of, c.as_of),
            is_provisional = excluded.is_provisional
    ),

    -- A customer has one user: clear the old link before sync_stripe_users sets the new.
    released AS (
        UPDATE app.users AS u
        SET stripe_customer_id = NULL
        WHERE u.id = ANY(ARRAY(SELECT n.released_user_id FROM newer AS n))
    )

    SELECT
        c.id,
        c.result,
        c.differences,
        c.user_id,
        n.released_user_id,
        c.proposed_user_id
    FROM compared AS c
    LEFT JOIN newer AS n ON c.id = n.id
    ORDER BY c.id;
END;
$$;

COMMENT ON FUNCTION app.upsert_stripe_customers(jsonb, text, boolean, boolean) IS
    'Upserts customer snapshots newer than the stored rows; returns a result for each.';
