-- name: create_session :optional
-- FOR KEY SHARE waits for a concurrent anonymize_user, and makes it wait: either it
-- deletes the session, or the user is found anonymized here.
INSERT INTO app.sessions AS s (
    token_hash, user_id, fingerprint_id, created_at, expires_at
)
SELECT
    :token_hash AS token_hash,
    u.id AS user_id,
    :fingerprint_id AS fingerprint_id,
    statement_timestamp() AS created_at,
    statement_timestamp() + :ttl AS expires_at
FROM app.users AS u
WHERE u.id = :user_id
    AND u.anonymized_at IS NULL
FOR KEY SHARE
RETURNING
    s.user_id,
    s.fingerprint_id,
    s.created_at,
    s.expires_at;

-- name: find_session :optional
-- Not now(), which would keep a session valid in a transaction that stays open. Users
-- are joined last: their wide rows then pass through one join. Columns that would
-- repeat others are left out: sessions.user_id, fingerprints.id, and anonymized_at.
SELECT
    s.fingerprint_id AS session_fingerprint_id,
    s.created_at AS session_created_at,
    s.expires_at AS session_expires_at,
    u.id AS user_id,
    u.email AS user_email,
    u.name AS user_name,
    u.email_verified_at AS user_email_verified_at,
    u.image_url AS user_image_url,
    u.base_quota AS user_base_quota,
    u.referral_credits AS user_referral_credits,
    u.quota AS user_quota,
    u.referral_code AS user_referral_code,
    u.referral_limit AS user_referral_limit,
    u.referral_count AS user_referral_count,
    u.stripe_customer_id AS user_stripe_customer_id,
    u.stripe_subscription_id AS user_stripe_subscription_id,
    u.stripe_price_id AS user_stripe_price_id,
    u.subscription_status AS user_subscription_status,
    u.subscription_active AS user_subscription_active,
    u.created_at AS user_created_at,
    u.updated_at AS user_updated_at,
    f.sig_hash AS fingerprint_sig_hash,
    f.base_quota AS fingerprint_base_quota,
    f.created_at AS fingerprint_created_at
FROM app.sessions AS s
LEFT JOIN app.fingerprints AS f ON s.fingerprint_id = f.id
INNER JOIN app.users AS u ON s.user_id = u.id
WHERE s.token_hash = :token_hash
    AND s.expires_at > COALESCE(:at, statement_timestamp())
    AND u.anonymized_at IS NULL;

-- name: list_user_sessions :many
-- Newest first, expired ones included. Not ordered by the hash of the token, the only
-- unique key, because pyapp_readonly may not read it.
SELECT
    s.user_id,
    s.fingerprint_id,
    s.created_at,
    s.expires_at
FROM app.sessions AS s
WHERE s.user_id = :user_id
ORDER BY s.created_at DESC, s.expires_at DESC, s.fingerprint_id DESC
LIMIT :limit;

-- name: list_fingerprint_sessions :many
-- As list_user_sessions, of all users of the fingerprint.
SELECT
    s.user_id,
    s.fingerprint_id,
    s.created_at,
    s.expires_at
FROM app.sessions AS s
WHERE s.fingerprint_id = :fingerprint_id
ORDER BY s.created_at DESC, s.expires_at DESC, s.user_id DESC
LIMIT :limit;

-- name: extend_session :optional
-- Only a valid session, and never to an earlier end.
UPDATE app.sessions AS s
SET expires_at = GREATEST(s.expires_at, statement_timestamp() + :ttl)
WHERE s.token_hash = :token_hash
    AND s.expires_at > statement_timestamp()
RETURNING
    s.user_id,
    s.fingerprint_id,
    s.created_at,
    s.expires_at;

-- name: delete_session :rowcount
-- Deletes the session, expired or not. The function is SECURITY DEFINER.
SELECT d.user_id
FROM app.delete_session(:token_hash) AS d (user_id);

-- name: delete_user_sessions :rowcount
-- By sessions_user_id_idx.
SELECT d.user_id
FROM app.delete_user_sessions(:user_id) AS d (user_id);

-- name: delete_expired_sessions :rowcount
-- Oldest first, by sessions_expires_at_idx; skips locked rows.
SELECT d.user_id
FROM app.delete_expired_sessions(:limit) AS d (user_id);
