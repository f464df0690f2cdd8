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

-- name: lock_customers :rowcount
-- Until the transaction ends, in one order, so that nobody waits the other way round.
WITH ordered AS (
    SELECT DISTINCT i.id
    FROM unnest(:ids::text[]) AS i (id)
    ORDER BY i.id
)

SELECT app.lock_stripe_customer(o.id) AS lock
FROM ordered AS o;

-- name: link_customer :optional
-- A checkout names its user; whoever is linked already stays. No row: nothing to link,
-- and nobody is locked: who stays may be, and a page locks both in the order of ids.
WITH named AS MATERIALIZED (
    SELECT u.id
    FROM app.users AS u
    WHERE
        u.id = :user_id
        AND NOT EXISTS (
            SELECT
            FROM app.stripe_customers AS k
            WHERE k.id = :id AND k.user_id IS NOT NULL
        )
        AND NOT EXISTS (
            SELECT
            FROM app.users AS h
            WHERE h.stripe_customer_id = :id AND h.id <> u.id
        )
    FOR NO KEY UPDATE
),

linked AS (
    INSERT INTO app.stripe_customers AS c (id, user_id, as_of)
    SELECT
        :id::text,
        u.id,
        :as_of::timestamptz
    FROM named AS u
    ON CONFLICT (id) DO UPDATE
    SET user_id = excluded.user_id
    WHERE c.user_id IS NULL
    RETURNING c.id, c.user_id
),

joined AS (
    UPDATE app.stripe_subscriptions AS s
    SET user_id = l.user_id
    FROM linked AS l
    WHERE s.customer_id = l.id
)

SELECT
    l.id,
    l.user_id
FROM linked AS l;

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

-- name: list_unseen_customers :many
-- Held by a user, as from before there was a mirror, and in no listing since.
SELECT
    u.stripe_customer_id AS id,
    u.stripe_customer_id AS customer_id,
    NULL::timestamptz AS created_at
FROM app.users AS u
WHERE
    u.stripe_customer_id > COALESCE(:after_id::text, '')
    AND NOT EXISTS (
        SELECT
        FROM app.stripe_customers AS c
        WHERE c.id = u.stripe_customer_id
    )
ORDER BY u.stripe_customer_id
LIMIT :limit;
