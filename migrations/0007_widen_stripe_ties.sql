-- An event of the second in which Stripe was asked was taken for newer than its answer.

SET LOCAL lock_timeout = '5s';

CREATE OR REPLACE FUNCTION app.judge_stripe_view(
    seen_at timestamptz,
    known_at timestamptz,
    is_settled boolean,
    source text,
    can_ask boolean
)
RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN known_at IS NULL OR source = 'object' THEN 'applied'
    -- What was fetched is known since the request, and was told up to a second later.
    WHEN date_trunc('second', seen_at) >= known_at + interval '1 second' THEN 'applied'
    WHEN is_settled AND date_trunc('second', seen_at) >= date_trunc('second', known_at)
        THEN 'applied'
    WHEN date_trunc('second', seen_at) < date_trunc('second', known_at)
        AND (is_settled OR source = 'event')
        THEN 'stale'
    WHEN can_ask THEN 'unclear'
    ELSE 'applied'
END;
