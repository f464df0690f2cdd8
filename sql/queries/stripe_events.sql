-- name: apply_event :one
-- All of it in one statement: that is a transaction too. If it is ambiguous, nothing is
-- done, for Stripe has to be asked while the customer is locked. The limit of each wait
-- for a lock is set in the same statement, because another one would cost a round trip.
WITH limited AS MATERIALIZED (
    SELECT
        set_config(
            'lock_timeout', (:lock_milliseconds::integer)::text, TRUE
        ) AS lock_timeout
)

SELECT
    app.apply_stripe_event(
        :id,
        :type,
        :api_version,
        :event_created_at,
        :payload::jsonb,
        :lock_key,
        :object_type,
        :snapshot::jsonb,
        :can_fetch
    ) AS result
FROM limited;

-- name: limit_statements :one
-- Until the transaction ends: the time of each of its statements, and the time that one
-- waits for a lock. NULL leaves the limit as it is.
SELECT
    set_config(
        'statement_timeout',
        COALESCE(
            (:statement_milliseconds::integer)::text,
            current_setting('statement_timeout')
        ),
        TRUE
    ) AS statement_timeout,
    set_config(
        'lock_timeout',
        COALESCE(
            (:lock_milliseconds::integer)::text, current_setting('lock_timeout')
        ),
        TRUE
    ) AS lock_timeout;

-- name: insert_event :optional
-- Takes the lock on the event's customer until the transaction ends, then the event,
-- as if it were applied already: whatever fails afterwards takes this row with it.
-- No row: it is done. The lock is taken before the row, so nobody waits the other way.
WITH held AS MATERIALIZED (
    SELECT
        app.lock_stripe_customer(:lock_key) AS lock,
        set_config('TimeZone', 'UTC', TRUE) AS time_zone
)

INSERT INTO app.stripe_events AS e (
    id, type, api_version, event_created_at, payload, status, attempts, processed_at
)
SELECT
    :id::text,
    :type::text,
    :api_version::text,
    :event_created_at::timestamptz,
    :payload::jsonb,
    'applied' AS status,
    1 AS attempts,
    now() AS processed_at
FROM held
ON CONFLICT (id) DO UPDATE
SET
    status = excluded.status,
    payload = excluded.payload,
    attempts = e.attempts + 1,
    processed_at = excluded.processed_at
WHERE e.status IN ('received', 'failed')
RETURNING e.id, e.attempts;

-- name: mark_event :rowcount
-- When applying it has shown that it was stale, or not needed.
UPDATE app.stripe_events AS e
SET status = :status
WHERE e.id = :id;

-- name: upsert_failed_event :optional
-- Another delivery of it may have succeeded since this one was rolled back: no row.
INSERT INTO app.stripe_events AS e (
    id, type, api_version, event_created_at, payload, status, attempts, last_error
)
VALUES (
    :id,
    :type,
    :api_version,
    :event_created_at,
    :payload::jsonb,
    'failed',
    1,
    :last_error
)
ON CONFLICT (id) DO UPDATE
SET
    status = 'failed',
    attempts = e.attempts + 1,
    last_error = excluded.last_error
WHERE e.status IN ('received', 'failed')
RETURNING e.id, e.attempts;

-- name: list_events :many
-- Newest first; `before` and `before_id` are the last row of the page before.
SELECT
    e.id,
    e.type,
    e.api_version,
    e.event_created_at,
    e.status,
    e.attempts,
    e.last_error,
    e.received_at,
    e.processed_at
FROM app.stripe_events AS e
WHERE :before::timestamptz IS NULL OR (e.received_at, e.id) < (:before, :before_id)
ORDER BY e.received_at DESC, e.id DESC
LIMIT :limit;

-- name: list_failed_events :many
-- Oldest first, the order in which they are tried again.
SELECT
    e.id,
    e.type,
    e.api_version,
    e.event_created_at,
    e.status,
    e.attempts,
    e.last_error,
    e.received_at,
    e.processed_at
FROM app.stripe_events AS e
WHERE
    e.status = 'failed'
    AND (
        :after::timestamptz IS NULL OR (e.event_created_at, e.id) > (:after, :after_id)
    )
ORDER BY e.event_created_at, e.id
LIMIT :limit;

-- name: find_event_payload :optional
-- NULL once the retention of payloads has ended.
SELECT e.payload::text AS payload
FROM app.stripe_events AS e
WHERE e.id = :id;

-- name: list_done_events :many
-- Which of these need not be looked at again.
SELECT e.id
FROM app.stripe_events AS e
INNER JOIN unnest(:ids::text[]) AS i (id) ON e.id = i.id
WHERE e.status IN ('applied', 'stale', 'ignored')
ORDER BY e.id
LIMIT cardinality(:ids::text[]);

-- name: delete_event_payloads :rowcount
-- The event itself stays, so that it takes effect once for ever.
UPDATE app.stripe_events AS e
SET payload = NULL
WHERE
    e.id IN (
        SELECT d.id
        FROM app.stripe_events AS d
        WHERE d.payload IS NOT NULL AND d.processed_at < :before
        ORDER BY d.processed_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    );
