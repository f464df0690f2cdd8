-- Loses every message, payload and daily sum: all billing data.

SET LOCAL lock_timeout = '5s';

DROP TABLE app.usage_daily;
DROP TABLE app.message_payloads;
DROP TABLE app.messages;
DROP FUNCTION app.add_usage();
