-- name: list_uncut_usage :many
-- Reads all users and fingerprints, and as a whole usage_slots or a part of its key.
SELECT
    v.subject_id,
    v.day
FROM app.uncut_usage AS v
ORDER BY v.subject_id, v.day;

-- name: cut_usage_day :one
-- One statement, which is a transaction by itself. A lost cut is repeated by the next
-- run, so the commit does not wait for the disk.
WITH limited AS MATERIALIZED (
    SELECT
        set_config(
            'lock_timeout', (:lock_milliseconds::integer)::text, TRUE
        ) AS lock_timeout,
        set_config('synchronous_commit', 'off', TRUE) AS synchronous_commit
)

SELECT app.cut_usage_day(:subject_id, :day) AS is_cut
FROM limited;

-- name: list_unfolded_usage :many
-- Spans of past days, from the oldest on.
SELECT
    v.subject_id,
    v.starts_at,
    v.ends_at
FROM app.unfolded_usage AS v
ORDER BY v.starts_at, v.subject_id, v.ends_at;

-- name: fold_usage :one
-- As cut_usage_day; it waits for no lock.
WITH limited AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', TRUE) AS synchronous_commit
)

SELECT app.fold_usage(:subject_id, :starts_at, :ends_at) AS folded
FROM limited;
