-- Loses app.model_prices, app.messages.provider.

SET LOCAL lock_timeout = '5s';

ALTER TABLE app.messages
    DROP CONSTRAINT messages_provider_length_check;

DROP TABLE app.model_prices;

ALTER TABLE app.messages
    DROP COLUMN provider;
