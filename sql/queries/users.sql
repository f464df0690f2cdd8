-- name: create_user :optional
-- Quota and referral code are column defaults. Returns no row if the address is taken,
-- instead of an error that would abort the caller's transaction. The queries of this
-- file list the columns of User: `*` would break running programs when a column is
-- added.
INSERT INTO app.users AS u (email, name)
VALUES (:email, :name)
ON CONFLICT (lower(email)) DO NOTHING
RETURNING
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at;

-- name: get_user :one
-- Anonymized users are included, because their messages are kept.
SELECT
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at
FROM app.users AS u
WHERE u.id = :user_id;

-- name: find_user_by_email :optional
-- Ignoring case, by users_lower_email_idx.
SELECT
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at
FROM app.users AS u
WHERE lower(u.email) = lower(:email);

-- name: list_users :many
-- By id, the only order that never changes: the Stripe sync updates created_at.
SELECT
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at
FROM app.users AS u
WHERE :after::uuid IS NULL OR u.id > :after
ORDER BY u.id
LIMIT :limit;

-- name: set_user_profile :optional
-- Sets both columns, so that NULL clears them.
UPDATE app.users AS u
SET
    name = :name,
    image_url = :image_url
WHERE u.id = :user_id
    AND u.anonymized_at IS NULL
RETURNING
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at;

-- name: set_user_email :optional
-- A new address is unverified; the same one in another case stays verified.
UPDATE app.users AS u
SET
    email = :email,
    email_verified_at
    = CASE WHEN lower(u.email) = lower(:email) THEN u.email_verified_at END
WHERE u.id = :user_id
    AND u.anonymized_at IS NULL
RETURNING
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at;

-- name: mark_user_email_verified :optional
-- Match the address too: the user may have changed it since verification was requested.
-- The first verification sets the time, and a trigger then deletes the user's sessions.
-- The trigger's lock is taken first, because upgrading the UPDATE's lock can deadlock.
WITH locked AS MATERIALIZED (
    SELECT u.id
    FROM app.users AS u
    WHERE u.id = :user_id
        AND lower(u.email) = lower(:email)
        AND u.email_verified_at IS NULL
    FOR UPDATE
)

UPDATE app.users AS u
SET email_verified_at = COALESCE(u.email_verified_at, now())
WHERE u.id = :user_id
    AND lower(u.email) = lower(:email)
    -- Always true; makes the UPDATE wait for the lock.
    AND (SELECT count(*) FROM locked) >= 0
RETURNING
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at;

-- name: anonymize_user :optional
-- Erases personal data and keeps messages. Returns no row for an unknown user.
SELECT
    u.id,
    u.email,
    u.name,
    u.email_verified_at,
    u.image_url,
    u.base_quota,
    u.referral_credits,
    u.quota,
    u.referral_code,
    u.referral_limit,
    u.referral_count,
    u.stripe_customer_id,
    u.stripe_subscription_id,
    u.stripe_price_id,
    u.subscription_status,
    u.subscription_active,
    u.created_at,
    u.updated_at,
    u.anonymized_at
FROM app.anonymize_user(:user_id) AS u;
