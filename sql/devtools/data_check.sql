-- name: count_compared :one
-- Counts the rows compared, to show that the database is not empty.
SELECT
    (SELECT count(*) FROM app.usage_daily) AS days,
    (SELECT count(*) FROM app.users) AS users;

-- name: list_usage_drift :many
-- Reads all messages once, in one snapshot.
SELECT
    v.subject_id,
    v.day,
    v.kept_messages,
    v.recorded_messages,
    v.kept_input_tokens,
    v.recorded_input_tokens,
    v.kept_cache_creation_input_tokens,
    v.recorded_cache_creation_input_tokens,
    v.kept_cache_read_input_tokens,
    v.recorded_cache_read_input_tokens,
    v.kept_output_tokens,
    v.recorded_output_tokens,
    v.kept_cost,
    v.recorded_cost,
    v.kept_credits,
    v.recorded_credits
FROM app.usage_drift AS v
ORDER BY v.subject_id, v.day;

-- name: list_referral_drift :many
-- Includes users with extra credits given by hand, which a repair keeps.
SELECT
    v.user_id,
    v.referral_limit,
    v.kept_count,
    v.completed_count,
    v.kept_credits,
    v.granted_credits
FROM app.referral_drift AS v
ORDER BY v.user_id;

-- name: repair_usage_day :one
-- Blocks writers of that payer's day, and waits for them.
SELECT app.repair_usage_day(:subject_id, :day) AS is_repaired;

-- name: repair_referral_totals :one
-- Never lowers credits.
SELECT app.repair_referral_totals(:user_id) AS is_repaired;
