-- name: find_customer :optional
-- The mirrored customer, deleted or not.
SELECT
    c.id,
    c.user_id,
    c.is_deleted,
    c.created_at,
    c.as_of,
    c.is_provisional,
    c.claimed_user_id,
    c.claim_source
FROM app.stripe_customers AS c
WHERE c.id = :id;

-- name: lock_customers :rowcount
-- Until the transaction ends; in id order, so that two transactions do not deadlock.
WITH ordered AS (
    SELECT DISTINCT i.id
    FROM unnest(:ids::text[]) AS i (id)
    ORDER BY i.id
)

SELECT app.lock_stripe_customer(o.id) AS lock
FROM ordered AS o;

-- name: upsert_customers :many
-- The caller holds the customers' locks, and calls sync_users afterwards.
SELECT
    c.id,
    c.result,
    c.differences,
    c.user_id,
    c.released_user_id,
    c.proposed_user_id,
    NULL::uuid AS conflicting_user_id
FROM app.upsert_stripe_customers(
    :snapshots::jsonb, :source, :can_fetch, :match_email
) AS c
ORDER BY c.id
LIMIT jsonb_array_length(:snapshots::jsonb);

-- name: lock_users :rowcount
-- Locks all users that the customers and subscriptions in snapshots have, had or may
-- get, in id order, until the transaction ends.
SELECT app.lock_snapshot_users(:snapshots::jsonb, FALSE) AS lock;

-- name: claim_customer :one
-- Stores the claim of a checkout if it wins, and links the customer if the user exists.
-- The caller holds the customer's lock and has called lock_users.
SELECT
    c.customer_id AS id,
    c.user_id,
    c.released_user_id,
    c.conflicting_user_id,
    c.is_changed
FROM app.claim_stripe_customers(
    jsonb_build_array(
        jsonb_build_object(
            'customer_id', :id::text,
            'claimed_user_id', :user_id::uuid
        )
    ),
    :source
) AS c;

-- name: list_unlisted_customers :many
-- Live customers created in a page's time span and not listed on the page: deleted in
-- Stripe, unless the page ends within a second. Newest first; the next page starts at
-- `until` and `after_id` of the last row.
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
-- Customers known only by a checkout. A listed customer has a creation time.
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
-- Customers that users are linked to and that are not mirrored.
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
