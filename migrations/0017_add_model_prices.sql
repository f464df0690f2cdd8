-- Contracts and gateways have prices of their own, by host.

SET LOCAL lock_timeout = '5s';

CREATE TABLE app.model_prices (
    id                      bigint GENERATED ALWAYS AS IDENTITY,
    provider                text,
    model                   text NOT NULL,
    valid_from              timestamptz NOT NULL,
    input_price             numeric,
    cache_creation_price    numeric,
    cache_creation_1h_price numeric,
    cache_read_price        numeric,
    output_price            numeric,
    created_at              timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT model_prices_pkey PRIMARY KEY (id),
    -- valid_from before provider: find_own_cost reads the latest price first, and NULL
    -- is a provider like the others.
    CONSTRAINT model_prices_model_valid_from_provider_key
        UNIQUE NULLS NOT DISTINCT (model, valid_from, provider)
);

COMMENT ON TABLE app.model_prices IS
    'The operator''s own prices, in US dollars per million tokens. A row holds from'
    ' valid_from until the next one of its provider and model.';
COMMENT ON COLUMN app.model_prices.provider IS
    'messages.provider to which the price applies; NULL is for messages without one.';
COMMENT ON COLUMN app.model_prices.model IS
    'messages.model to which the price applies.';
COMMENT ON COLUMN app.model_prices.valid_from IS
    'Applies to messages that finished at this time or later.';
COMMENT ON COLUMN app.model_prices.input_price IS
    'Of input_tokens. NULL ends the own prices: the published price applies again.';
COMMENT ON COLUMN app.model_prices.cache_creation_price IS
    'Of cache_creation_input_tokens; NULL if calls that write to the cache have no'
    ' price.';
COMMENT ON COLUMN app.model_prices.cache_creation_1h_price IS
    'Of cache writes kept for an hour; NULL if it is cache_creation_price.';
COMMENT ON COLUMN app.model_prices.cache_read_price IS
    'Of cache_read_input_tokens; NULL if calls that read from the cache have no price.';
COMMENT ON COLUMN app.model_prices.output_price IS
    'Of output_tokens; NULL if input_price is.';

-- Checks are added separately to keep the column list on one screen.
ALTER TABLE app.model_prices
    ADD CONSTRAINT model_prices_provider_length_check
        CHECK (length(provider) BETWEEN 1 AND 255),
    ADD CONSTRAINT model_prices_model_length_check
        CHECK (length(model) BETWEEN 1 AND 255),
    ADD CONSTRAINT model_prices_valid_from_is_finite_check CHECK (isfinite(valid_from)),
    ADD CONSTRAINT model_prices_price_is_amount_check CHECK (
        LEAST(
            input_price, cache_creation_price, cache_creation_1h_price,
            cache_read_price, output_price
        ) >= 0
        AND GREATEST(
            input_price, cache_creation_price, cache_creation_1h_price,
            cache_read_price, output_price
        ) < 'Infinity'
    ),
    ADD CONSTRAINT model_prices_input_has_output_check
        CHECK ((input_price IS NULL) = (output_price IS NULL)),
    ADD CONSTRAINT model_prices_cache_has_input_check CHECK (
        input_price IS NOT NULL
        OR num_nonnulls(
            cache_creation_price, cache_creation_1h_price, cache_read_price
        ) = 0
    ),
    ADD CONSTRAINT model_prices_cache_creation_1h_has_default_check
        CHECK (cache_creation_1h_price IS NULL OR cache_creation_price IS NOT NULL);

ALTER TABLE app.messages
    ADD COLUMN provider text;

ALTER TABLE app.messages
    ADD CONSTRAINT messages_provider_length_check
    CHECK (length(provider) BETWEEN 1 AND 255) NOT VALID;

CREATE TRIGGER model_prices_keep_in_force BEFORE DELETE ON app.model_prices
FOR EACH ROW WHEN (OLD.valid_from <= clock_timestamp())
EXECUTE FUNCTION app.refuse_change('set a price from a later time');

-- A change would give a message another cost than the same message recorded before.
CREATE TRIGGER model_prices_never_change BEFORE UPDATE ON app.model_prices
FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
EXECUTE FUNCTION app.refuse_change('set a price from a later time');

CREATE TRIGGER model_prices_no_truncate BEFORE TRUNCATE ON app.model_prices
FOR EACH STATEMENT
EXECUTE FUNCTION app.refuse_change('prices in force are kept');

COMMENT ON COLUMN app.messages.provider IS
    'Host that served the model, such as aws; NULL if not given.';

-- The programs that record keep running: their role writes the new column from the next
-- migration on, before `pyapp db roles` runs.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pyapp_app') THEN
        GRANT INSERT (provider) ON app.messages TO pyapp_app;
        GRANT SELECT ON app.model_prices TO pyapp_app;
    END IF;
END;
$$;
