-- Loses no data.

SET LOCAL lock_timeout = '5s';

DROP FUNCTION app.anonymize_user(uuid);
DROP FUNCTION app.apply_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, jsonb, boolean
);
DROP FUNCTION app.sync_stripe_users(uuid[], boolean);
DROP VIEW app.stripe_entitlements;
DROP FUNCTION app.find_best_subscription(text, boolean);
DROP FUNCTION app.find_user_customer(uuid, text);
DROP FUNCTION app.upsert_stripe_subscriptions(jsonb, text, boolean, boolean);
DROP FUNCTION app.compare_stripe_subscriptions(jsonb, text, boolean);
DROP FUNCTION app.upsert_stripe_customers(
    jsonb, text, boolean, boolean, boolean
);
DROP FUNCTION app.compare_stripe_customers(jsonb, text, boolean, boolean);
DROP FUNCTION app.find_customer_owners(jsonb);
DROP FUNCTION app.compare_stripe_snapshot(
    timestamptz, timestamptz, boolean, text, boolean
);
DROP FUNCTION app.lock_snapshot_users(jsonb, boolean);
DROP FUNCTION app.lock_stripe_customer(text);
DROP FUNCTION app.delete_expired_sessions(bigint);
DROP FUNCTION app.delete_user_sessions(uuid);
DROP FUNCTION app.delete_session(bytea);
DROP FUNCTION app.cancel_referral(uuid);
DROP FUNCTION app.get_period_usage(
    uuid, timestamptz, timestamptz, timestamptz, timestamptz
);
DROP FUNCTION app.sum_credits(uuid, timestamptz, timestamptz);
DROP FUNCTION app.get_start_date(
    timestamptz, timestamptz, timestamptz, timestamptz
);
DROP FUNCTION app.get_next_reset(timestamptz, timestamptz, timestamptz);
DROP FUNCTION app.get_period_end(timestamptz, timestamptz);
DROP FUNCTION app.retire_payload_partition(date);
DROP FUNCTION app.create_payload_partitions(date, integer);
DROP FUNCTION app.record_message(
    uuid, uuid, uuid, timestamptz, integer, integer, integer, integer, integer, text,
    text, text, numeric, numeric, jsonb, jsonb
);
DROP FUNCTION app.repair_referral_totals(uuid);
DROP VIEW app.referral_drift;
DROP FUNCTION app.repair_usage_day(uuid, date);
DROP FUNCTION app.sum_usage_day(uuid, date);
DROP VIEW app.usage_drift;
