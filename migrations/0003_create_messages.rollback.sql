-- Loses every message, payload and daily sum: the bill itself.

SET LOCAL lock_timeout = '5s';

DROP FUNCTION app.get_period_usage(
    uuid, timestamptz, timestamptz, timestamptz, timestamptz
);
DROP FUNCTION app.sum_credits(uuid, timestamptz, timestamptz);
DROP TABLE app.usage_daily;
DROP FUNCTION app.retire_payload_partition(date);
DROP FUNCTION app.create_payload_partitions(date, integer);
DROP TABLE app.message_payloads;
DROP TABLE app.messages;
DROP FUNCTION app.add_usage();
