-- name: get_user_quota :one
-- end_date is the next reset. LIMIT ALL is an optimization fence: the period is
-- computed once.
SELECT
    u.id AS subject_id,
    u.period_start,
    u.end_date,
    u.quota,
    s.credits_used,
    u.subscription_active,
    GREATEST(u.quota - s.credits_used, 0) AS credits_remaining,
    s.credits_used >= u.quota AS is_exceeded,
    s.credits_used >= u.quota AND NOT u.subscription_active AS is_blocked
FROM (
    SELECT
        u.id,
        u.quota,
        u.subscription_active,
        app.get_start_date(
            u.quota_anchor, u.next_quota_reset, :at::timestamptz, u.quota_period_start
        ) AS period_start,
        COALESCE(
            app.get_next_reset(u.quota_anchor, u.next_quota_reset, :at), :at
        ) AS end_date
    FROM app.users AS u
    WHERE u.id = :user_id
    LIMIT ALL -- noqa: AM09
) AS u
CROSS JOIN LATERAL app.sum_credits(u.id, u.period_start, u.end_date) AS s;

-- name: get_fingerprint_quota :one
-- A fingerprint has no subscription: it is blocked once exceeded. LIMIT ALL as above.
SELECT
    f.id AS subject_id,
    f.period_start,
    f.end_date,
    f.base_quota AS quota,
    s.credits_used,
    FALSE AS subscription_active,
    GREATEST(f.base_quota - s.credits_used, 0) AS credits_remaining,
    s.credits_used >= f.base_quota AS is_exceeded,
    s.credits_used >= f.base_quota AS is_blocked
FROM (
    SELECT
        f.id,
        f.base_quota,
        app.get_start_date(
            f.quota_anchor, f.next_quota_reset, :at::timestamptz, f.quota_period_start
        ) AS period_start,
        COALESCE(
            app.get_next_reset(f.quota_anchor, f.next_quota_reset, :at), :at
        ) AS end_date
    FROM app.fingerprints AS f
    WHERE f.id = :fingerprint_id
    LIMIT ALL -- noqa: AM09
) AS f
CROSS JOIN LATERAL app.sum_credits(f.id, f.period_start, f.end_date) AS s;

-- name: list_user_quotas :many
-- By id. The first condition on id uses the primary key in generic plans too; the
-- second excludes the cursor itself.
SELECT
    u.id AS subject_id,
    u.email,
    p.period_start,
    p.end_date,
    u.quota,
    p.credits_used,
    u.subscription_active,
    GREATEST(u.quota - p.credits_used, 0) AS credits_remaining,
    p.credits_used >= u.quota AS is_exceeded,
    p.credits_used >= u.quota AND NOT u.subscription_active AS is_blocked
FROM app.users AS u
CROSS JOIN LATERAL app.get_period_usage(
    u.id,
    u.quota_anchor,
    u.next_quota_reset,
    :at::timestamptz,
    u.quota_period_start
) AS p
WHERE u.id >= COALESCE(:after::uuid, '00000000-0000-0000-0000-000000000000')
    AND u.id IS DISTINCT FROM :after::uuid
ORDER BY u.id
LIMIT :limit;

-- name: list_fingerprint_quotas :many
-- By id, with the conditions of list_user_quotas.
SELECT
    f.id AS subject_id,
    p.period_start,
    p.end_date,
    f.base_quota AS quota,
    p.credits_used,
    FALSE AS subscription_active,
    GREATEST(f.base_quota - p.credits_used, 0) AS credits_remaining,
    p.credits_used >= f.base_quota AS is_exceeded,
    p.credits_used >= f.base_quota AS is_blocked
FROM app.fingerprints AS f
CROSS JOIN LATERAL app.get_period_usage(
    f.id,
    f.quota_anchor,
    f.next_quota_reset,
    :at::timestamptz,
    f.quota_period_start
) AS p
WHERE f.id >= COALESCE(:after::uuid, '00000000-0000-0000-0000-000000000000')
    AND f.id IS DISTINCT FROM :after::uuid
ORDER BY f.id
LIMIT :limit;
