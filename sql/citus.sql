-- Spreads the schema over several machines by Citus, with the payer as the key. Run it
-- on the coordinator, on an empty database that has schema.sql, before roles.sql;
-- docs/scaling.md says what is gained and lost. Names have their schema, because a role
-- that may create objects in public could otherwise have its own function called.

CREATE EXTENSION citus;

-- Citus allows triggers on distributed tables only where it is told that they write
-- nothing outside the row's own shard group: ours writes the payer's own days.
SELECT pg_catalog.set_config('citus.enable_unsafe_triggers', 'on', FALSE);

-- ---------------------------------------------------------------------------
-- The same in every place
-- ---------------------------------------------------------------------------

-- All that distributed rows refer to, so that their foreign keys stay on one machine.
-- The rest refers to these and stays on the coordinator: sessions, referrals, stripe_*.
SELECT pg_catalog.create_reference_table('app.plans');
SELECT pg_catalog.create_reference_table('app.users');
SELECT pg_catalog.create_reference_table('app.fingerprints');

-- ---------------------------------------------------------------------------
-- By payer
-- ---------------------------------------------------------------------------

-- A unique index has to hold the payer. So the same id of one device is one message for
-- each payer here: a retry after sign-in is billed again, to the user.
DROP INDEX app.messages_fingerprint_id_id_idx;
CREATE INDEX messages_fingerprint_id_idx ON app.messages (fingerprint_id);

SELECT pg_catalog.create_distributed_table('app.messages', 'subject_id');

SELECT pg_catalog.create_distributed_table(
    'app.message_payloads', 'subject_id', colocate_with => 'app.messages'
);

SELECT pg_catalog.create_distributed_table(
    'app.usage_daily', 'subject_id', colocate_with => 'app.messages'
);

-- ---------------------------------------------------------------------------
-- The rollup
-- ---------------------------------------------------------------------------

-- Citus cannot plan an INSERT ... SELECT from a transition table: so day by day. Still
-- in key order, so that two writers of several rows never wait for each other.
CREATE OR REPLACE FUNCTION app.add_usage()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    usage record;
BEGIN
    FOR usage IN
        SELECT
            i.subject_id,
            (i.finished_at AT TIME ZONE interval '0')::date AS day,
            count(*) AS messages,
            sum(i.input_tokens) AS input_tokens,
            sum(i.cache_creation_input_tokens) AS cache_creation_input_tokens,
            sum(i.cache_read_input_tokens) AS cache_read_input_tokens,
            sum(i.output_tokens) AS output_tokens,
            sum(i.cost) AS cost,
            sum(i.credits) AS credits
        FROM inserted AS i
        GROUP BY 1, 2
        ORDER BY 1, 2
    LOOP
        INSERT INTO app.usage_daily AS d (
            subject_id, day, messages, input_tokens, cache_creation_input_tokens,
            cache_read_input_tokens, output_tokens, cost, credits
        )
        VALUES (
            usage.subject_id, usage.day, usage.messages, usage.input_tokens,
            usage.cache_creation_input_tokens, usage.cache_read_input_tokens,
            usage.output_tokens, usage.cost, usage.credits
        )
        ON CONFLICT (subject_id, day) DO UPDATE SET
            messages = d.messages + excluded.messages,
            input_tokens = d.input_tokens + excluded.input_tokens,
            cache_creation_input_tokens
                = d.cache_creation_input_tokens + excluded.cache_creation_input_tokens,
            cache_read_input_tokens
                = d.cache_read_input_tokens + excluded.cache_read_input_tokens,
            output_tokens = d.output_tokens + excluded.output_tokens,
            cost = d.cost + excluded.cost,
            credits = d.credits + excluded.credits;
    END LOOP;
    RETURN NULL;
END;
$$;

-- It goes by the depth of triggers, which a statement sent on to a shard starts anew.
-- In its place the grants of roles.sql keep all but the owner from writing the sums.
DROP TRIGGER usage_daily_kept_by_trigger ON app.usage_daily;
