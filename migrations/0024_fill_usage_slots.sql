-- The days summed before the trigger of 0023. Writers wait for no batch.

-- transactional: false

DO $$
DECLARE
    last_subject uuid := '00000000-0000-0000-0000-000000000000';
    last_day date := '-infinity';
BEGIN
    LOOP
        -- Read by usage_slots_kept_by_trigger.
        PERFORM set_config('app.is_repairing', 'on', TRUE);

        -- A row that the trigger has copied is newer than the one read here. The lock
        -- keeps a repair from deleting a row until its copy is there.
        WITH batch AS MATERIALIZED (
            SELECT d.*
            FROM app.usage_daily AS d
            WHERE (d.subject_id, d.day) > (last_subject, last_day)
            ORDER BY d.subject_id, d.day
            LIMIT 1000
            FOR KEY SHARE
        ),

        copied AS (
            INSERT INTO app.usage_slots (
                subject_id, starts_at, ends_at, slot, messages, input_tokens,
                cache_creation_input_tokens, cache_read_input_tokens, output_tokens,
                cost, credits
            )
            SELECT
                b.subject_id,
                b.day::timestamp AT TIME ZONE interval '0',
                (b.day + 1)::timestamp AT TIME ZONE interval '0',
                0,
                b.messages,
                b.input_tokens,
                b.cache_creation_input_tokens,
                b.cache_read_input_tokens,
                b.output_tokens,
                b.cost,
                b.credits
            FROM batch AS b
            ORDER BY b.subject_id, b.day
            ON CONFLICT ON CONSTRAINT usage_slots_pkey DO NOTHING
        )

        SELECT b.subject_id, b.day INTO last_subject, last_day
        FROM batch AS b
        ORDER BY b.subject_id DESC, b.day DESC
        LIMIT 1;
        EXIT WHEN NOT FOUND;
        COMMIT;
    END LOOP;
    ANALYZE app.usage_slots;
END;
$$;
