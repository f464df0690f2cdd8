SET LOCAL lock_timeout = '5s';

DROP FUNCTION app.take_stripe_event(
    text, text, text, timestamptz, jsonb, text, text, jsonb, boolean
);
DROP FUNCTION app.put_stripe_view(
    text, jsonb, text, boolean, boolean, boolean, boolean
);
DROP FUNCTION app.put_stripe_subscription(jsonb, text, boolean, boolean);
DROP FUNCTION app.put_stripe_customer(jsonb, text, boolean, boolean, boolean);
DROP FUNCTION app.sync_stripe_user(uuid, boolean);
DROP FUNCTION app.judge_stripe_view(timestamptz, timestamptz, boolean, text, boolean);
DROP FUNCTION app.lock_stripe_customer(text);
