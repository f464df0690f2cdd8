-- name: create_user :optional
-- Quota and referral code come from the table's defaults. A taken address gives no row:
-- an error would abort the caller's transaction.
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
-- Anonymized users are found too, for their bill is kept.
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
-- Regardless of case, by users_lower_email_idx.
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
-- By id, the only order that never changes: created_at follows Stripe.
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
-- Both at once, so that NULL can clear either.
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
-- A new address is unproven; the same one in another case stays proven.
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
-- The address is named, because the user may have changed it since the mail was sent.
-- The first proof sets the time, and a trigger then ends the sessions from before it.
-- The trigger's lock is taken here first: upgraded from the update's, it can deadlock.
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
-- Erases the person and keeps the bill. No row says that there is no such user.
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
