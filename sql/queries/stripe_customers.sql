-- name: find_customer :optional
-- As Stripe was last seen to have it.
SELECT
    c.id,
    c.user_id,
    c.is_deleted,
    c.created_at,
    c.as_of,
    c.is_provisional
FROM app.stripe_customers AS c
WHERE c.id = :id;

-- name: lock_customers :many
-- Until the transaction ends, in the one order that all who take several follow.
WITH keys AS (
    SELECT DISTINCT hashtextextended(i.id, 0) AS key
    FROM unnest(:ids::text[]) AS i (id)
)

SELECT
    k.key,
    pg_advisory_xact_lock(k.key)::text AS lock
FROM keys AS k
ORDER BY k.key
LIMIT cardinality(:ids::text[]);

-- name: upsert_customers :many
-- The rule of order, for customers; `source` is event, page or object (fetched under
-- the lock, so that nothing is newer). Deleted is final. A row that never had a full
-- view, as after a checkout, takes any. The claimant is the user whom metadata names;
-- whoever is linked stays so until another is named, and e-mail links only if told so.
-- What the view cannot settle is left alone and called unclear, if `can_ask`.
WITH given AS (
    SELECT
        r.id,
        r.user_id,
        r.email,
        r.is_deleted,
        to_timestamp(r.created) AS created_at,
        date_trunc('second', :as_of::timestamptz) AS seen_at
    FROM jsonb_to_recordset(:rows::jsonb) AS r (
        id text, user_id uuid, email text, is_deleted boolean, created bigint
    )
),

compared AS (
    SELECT
        g.id,
        g.seen_at,
        c.is_deleted AS was_deleted,
        c.is_provisional AS was_provisional,
        claimant.id AS claimant_id,
        holder.id AS holder_id,
        namesake.id AS namesake_id,
        c.user_id AS linked_id,
        c.created_at AS known_created_at,
        date_trunc('second', c.as_of) AS known_at,
        c.id IS NULL AS is_new,
        c.created_at IS NULL AS is_name_only,
        g.is_deleted OR COALESCE(c.is_deleted, FALSE) AS is_deleted,
        COALESCE(g.created_at, c.created_at) AS created_at,
        COALESCE(claimant.id = c.user_id, claimant.id IS NULL) AS is_same
    FROM given AS g
    LEFT JOIN app.stripe_customers AS c ON g.id = c.id
    LEFT JOIN app.users AS claimant ON g.user_id = claimant.id
    LEFT JOIN app.users AS holder ON g.id = holder.stripe_customer_id
    LEFT JOIN app.users AS namesake
        ON
            lower(g.email) = lower(namesake.email)
            AND namesake.stripe_customer_id IS NULL
),

linked AS (
    SELECT
        c.id,
        COALESCE(
            c.claimant_id,
            c.linked_id,
            c.holder_id,
            CASE WHEN :match_email THEN c.namesake_id END
        ) AS user_id,
        c.is_same AND NOT (c.was_provisional AND :source = 'page') AS is_settled
    FROM compared AS c
),

judged AS (
    SELECT
        c.id,
        l.user_id,
        c.holder_id,
        c.namesake_id,
        c.is_deleted,
        c.created_at,
        CASE
            WHEN c.is_new OR c.is_name_only OR :source = 'object' THEN 'applied'
            WHEN c.is_deleted AND NOT c.was_deleted THEN 'applied'
            WHEN c.seen_at > c.known_at THEN 'applied'
            WHEN c.seen_at = c.known_at AND l.is_settled THEN 'applied'
            WHEN c.seen_at < c.known_at AND (:source = 'event' OR l.is_settled)
                THEN 'stale'
            WHEN :can_ask THEN 'unclear'
            ELSE 'applied'
        END AS verdict,
        NOT c.is_new
        AND NOT c.is_name_only
        AND :source = 'event'
        AND c.seen_at = c.known_at
        AND (c.was_provisional OR NOT c.is_same) AS is_provisional,
        array_remove(
            ARRAY[
                CASE WHEN c.is_new THEN 'missing_here' END,
                CASE WHEN c.is_deleted AND NOT c.was_deleted THEN 'missing_there' END,
                CASE
                    WHEN
                        NOT c.is_new
                        AND c.created_at IS DISTINCT FROM c.known_created_at
                        THEN 'created_at'
                END,
                CASE
                    WHEN c.is_deleted THEN NULL
                    WHEN
                        l.user_id IS NULL
                        OR (NOT c.is_new AND l.user_id IS DISTINCT FROM c.linked_id)
                        THEN 'unlinked'
                END
            ],
            NULL
        ) AS differences
    FROM compared AS c
    INNER JOIN linked AS l ON c.id = l.id
),

written AS (
    INSERT INTO app.stripe_customers AS c (
        id, user_id, is_deleted, created_at, as_of, is_provisional
    )
    SELECT
        j.id,
        j.user_id,
        j.is_deleted,
        j.created_at,
        :as_of::timestamptz,
        j.is_provisional
    FROM judged AS j
    WHERE j.verdict = 'applied' AND NOT :is_dry_run
    ON CONFLICT (id) DO UPDATE
    SET
        user_id = excluded.user_id,
        is_deleted = excluded.is_deleted,
        created_at = excluded.created_at,
        as_of = GREATEST(c.as_of, excluded.as_of),
        is_provisional = excluded.is_provisional
),

-- A customer has one user: he who loses it lets go before the other takes it.
released AS (
    UPDATE app.users AS u
    SET stripe_customer_id = NULL
    FROM judged AS j
    WHERE
        u.id = j.holder_id
        AND u.id <> j.user_id
        AND j.verdict = 'applied'
        AND NOT :is_dry_run
    RETURNING u.id, j.id AS customer_id
),

-- Two customers of one user have two locks; here their transactions queue up, so that
-- sync_users, a statement with a snapshot of its own, sees what the first one did.
locked AS (
    SELECT u.id
    FROM app.users AS u
    WHERE
        u.id IN (
            SELECT j.user_id
            FROM judged AS j
            WHERE j.verdict = 'applied'
        )
        AND NOT :is_dry_run
    ORDER BY u.id
    FOR NO KEY UPDATE
)

SELECT
    j.id,
    j.verdict,
    j.differences,
    r.id AS released_user_id,
    CASE WHEN j.user_id IS NULL THEN j.namesake_id END AS proposed_user_id,
    COALESCE(k.id, j.user_id) AS user_id
FROM judged AS j
LEFT JOIN locked AS k ON j.user_id = k.id
LEFT JOIN released AS r ON j.id = r.customer_id
ORDER BY j.id
LIMIT jsonb_array_length(:rows::jsonb);

-- name: link_customer :optional
-- A checkout names its user; whoever is linked already stays. No row: nothing to link.
INSERT INTO app.stripe_customers AS c (id, user_id, as_of)
SELECT
    :id::text,
    u.id,
    :as_of::timestamptz
FROM app.users AS u
WHERE
    u.id = :user_id
    AND NOT EXISTS (
        SELECT
        FROM app.users AS h
        WHERE h.stripe_customer_id = :id AND h.id <> u.id
    )
FOR NO KEY UPDATE
ON CONFLICT (id) DO UPDATE
SET user_id = excluded.user_id
WHERE c.user_id IS NULL
RETURNING c.id, c.user_id;

-- name: list_unlisted_customers :many
-- Live here, created in the span that a page covers, and not on it: deleted in Stripe,
-- unless the page was cut within a second. Newest first; `after_id` goes on.
SELECT
    c.id,
    c.id AS customer_id,
    c.created_at
FROM app.stripe_customers AS c
WHERE
    NOT c.is_deleted
    AND c.created_at <= :until
    AND (:since::timestamptz IS NULL OR c.created_at > :since)
    AND (:after_id::text IS NULL OR (c.created_at, c.id) < (:until, :after_id))
    AND NOT c.id IN (
        SELECT i.id
        FROM unnest(:listed_ids::text[]) AS i (id)
    )
ORDER BY c.created_at DESC, c.id DESC
LIMIT :limit;

-- name: list_name_only_customers :many
-- Known by a checkout only; a listing that had them would have filled them in.
SELECT
    c.id,
    c.id AS customer_id,
    c.created_at
FROM app.stripe_customers AS c
WHERE
    c.created_at IS NULL
    AND NOT c.is_deleted
    AND (:after_id::text IS NULL OR c.id > :after_id)
ORDER BY c.id
LIMIT :limit;
