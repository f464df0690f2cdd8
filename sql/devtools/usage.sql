-- name: list_recorded_ids :many
-- Which of the ids the payer has messages of; by messages_pkey.
SELECT m.id
FROM app.messages AS m
WHERE m.subject_id = :subject_id
    AND m.id = any(:ids::uuid[]);

-- name: get_latest_finish :one
-- The latest finished_at that messages_finished_at_not_ahead_check accepts now.
SELECT
    (now() AT TIME ZONE interval '0' + interval '24 hours') AT TIME ZONE interval '0'
        AS finished_at;
