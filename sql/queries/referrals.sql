-- name: redeem_referral :optional
-- Locks both users in id order before it writes, so that concurrent redemptions queue
-- up instead of deadlocking. A missing referred user gives NULL, which the table
-- refuses.
WITH locked AS (
    SELECT
        u.id,
        u.referral_code
    FROM app.users AS u
    WHERE (u.referral_code = :referral_code OR u.id = :referred_id)
        AND u.anonymized_at IS NULL
    ORDER BY u.id
    FOR NO KEY UPDATE
)

INSERT INTO app.referrals AS r (referrer_id, referred_id, status, credits)
SELECT
    referrer.id AS referrer_id,
    referred.id AS referred_id,
    'completed' AS status,
    :credits AS credits
FROM locked AS referrer
LEFT JOIN locked AS referred ON referred.id = :referred_id
WHERE referrer.referral_code = :referral_code
RETURNING
    r.referrer_id,
    r.referred_id,
    r.status,
    r.credits,
    r.created_at,
    r.completed_at;

-- name: create_referral :optional
-- As redeem_referral, but pending: nothing is counted or granted yet.
WITH locked AS (
    SELECT
        u.id,
        u.referral_code
    FROM app.users AS u
    WHERE (u.referral_code = :referral_code OR u.id = :referred_id)
        AND u.anonymized_at IS NULL
    ORDER BY u.id
    FOR NO KEY UPDATE
)

INSERT INTO app.referrals AS r (referrer_id, referred_id, credits)
SELECT
    referrer.id AS referrer_id,
    referred.id AS referred_id,
    :credits AS credits
FROM locked AS referrer
LEFT JOIN locked AS referred ON referred.id = :referred_id
WHERE referrer.referral_code = :referral_code
RETURNING
    r.referrer_id,
    r.referred_id,
    r.status,
    r.credits,
    r.created_at,
    r.completed_at;

-- name: complete_referral :optional
-- Locks users before the referral, as everywhere; neither may be anonymized.
WITH locked AS (
    SELECT u.id
    FROM app.users AS u
    WHERE u.id IN (
            SELECT unnest(ARRAY[r.referrer_id, r.referred_id])
            FROM app.referrals AS r
            WHERE r.referred_id = :referred_id
        )
        AND u.anonymized_at IS NULL
    ORDER BY u.id
    FOR NO KEY UPDATE
)

UPDATE app.referrals AS r
SET status = 'completed'
WHERE r.referred_id = :referred_id
    AND r.status = 'pending'
    AND (SELECT count(*) FROM locked) = 2
RETURNING
    r.referrer_id,
    r.referred_id,
    r.status,
    r.credits,
    r.created_at,
    r.completed_at;

-- name: cancel_referral :optional
-- The function is SECURITY DEFINER; it returns no row unless a referral is pending.
SELECT
    r.referrer_id,
    r.referred_id,
    r.status,
    r.credits,
    r.created_at,
    r.completed_at
FROM app.cancel_referral(:referred_id) AS r;

-- name: get_referral_summary :one
-- A user is referred at most once, and makes few referrals.
SELECT
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.referral_credits,
    own.referrer_id,
    (
        SELECT count(*)
        FROM app.referrals AS made
        WHERE made.referrer_id = u.id
            AND made.status = 'pending'
    ) AS pending_count
FROM app.users AS u
LEFT JOIN app.referrals AS own ON u.id = own.referred_id
WHERE u.id = :user_id;

-- name: find_referral :optional
-- By the unique key: a user is referred at most once.
SELECT
    r.referrer_id,
    r.referred_id,
    r.status,
    r.credits,
    r.created_at,
    r.completed_at
FROM app.referrals AS r
WHERE r.referred_id = :referred_id;

-- name: list_referrals :many
-- Newest first. The cursor is the last referral of the page before.
SELECT
    r.referrer_id,
    r.referred_id,
    r.status,
    r.credits,
    r.created_at,
    r.completed_at
FROM app.referrals AS r
WHERE r.referrer_id = :user_id
    AND (r.created_at, r.referred_id) < (
        COALESCE(:before::timestamptz, 'infinity'),
        COALESCE(:before_id::uuid, '00000000-0000-0000-0000-000000000000')
    )
ORDER BY r.created_at DESC, r.referred_id DESC
LIMIT :limit;
