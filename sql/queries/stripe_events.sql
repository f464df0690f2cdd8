-- name: apply_event :one
-- One statement, which is a transaction by itself. An ambiguous event is not recorded:
-- its object has to be fetched under the customer's lock. lock_timeout is set in the
-- same statement, because another statement would cost a round trip.
WITH limited AS MATERIALIZED (
    SELECT
        set_config(
            'lock_timeout', (:lock_milliseconds::integer)::text, TRUE
        ) AS lock_timeout
)

SELECT
    a.result,
    a.user_ids,
    a.conflicting_user_id,
    a.moved_user_ids
FROM limited
CROSS JOIN LATERAL app.apply_stripe_event(
    :id,
    :type,
    :api_version,
    :event_created_at,
    :payload::jsonb,
    :lock_key,
    :object_type,
    :can_fetch,
    :snapshot::jsonb
) AS a;

-- name: set_timeouts :one
-- Sets the transaction's statement_timeout and lock_timeout; NULL keeps the limit.
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
-- Locks the event's customer, then records the event as applied; a later failure rolls
-- the row back. No row: the event was processed before. The customer is always locked
-- before the event's row, so that two deliveries do not deadlock.
WITH locked AS MATERIALIZED (
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
FROM locked
ON CONFLICT (id) DO UPDATE
SET
    status = excluded.status,
    payload = excluded.payload,
    attempts = e.attempts + 1,
    processed_at = excluded.processed_at
WHERE e.status = 'failed'
RETURNING e.id, e.attempts;

-- name: mark_event :rowcount
-- Sets the status of an event that turned out to be stale, or not needed. NULL keeps
-- the error.
UPDATE app.stripe_events AS e
SET status = :status, last_error = COALESCE(:last_error::text, e.last_error)
WHERE e.id = :id;

-- name: discard_event :optional
-- The error says why. No row: there is no such event, or it has not failed.
UPDATE app.stripe_events AS e
SET
    status = 'ignored',
    last_error = 'discarded: ' || e.last_error,
    processed_at = now()
WHERE e.id = :id AND e.status = 'failed'
RETURNING e.id, e.type, e.last_error;

-- name: upsert_failed_event :optional
-- No row: another delivery of the event was applied since this one was rolled back.
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
WHERE e.status = 'failed'
RETURNING e.id, e.attempts;

-- name: list_events :many
-- Newest first; `before` and `before_id` are of the previous page's last row.
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
-- Oldest first: the order of retries.
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
-- NULL after the retention period of payloads.
SELECT e.payload::text AS payload
FROM app.stripe_events AS e
WHERE e.id = :id;

-- name: list_done_events :many
-- The events that are already processed, of those given.
SELECT e.id
FROM app.stripe_events AS e
INNER JOIN unnest(:ids::text[]) AS i (id) ON e.id = i.id
WHERE e.status IN ('applied', 'stale', 'ignored')
ORDER BY e.id
LIMIT cardinality(:ids::text[]);

-- name: delete_event_payloads :rowcount
-- The event's row is kept, so that a repeated delivery has no effect.
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
