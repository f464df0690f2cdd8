"""Conventions of the schema, each checked by a query of the catalog.

The query of a rule returns the objects that break it. `remedy` is the advice. `planted`
is a change that breaks only this rule, and `caught` is the object that breaks it.
"""

from dataclasses import dataclass

COLUMNS = """
SELECT
    a.*, t.relname, t.relkind, format_type(a.atttypid, a.atttypmod) AS type,
    col_description(a.attrelid, a.attnum) AS comment,
    concat_ws('.', t.relnamespace::regnamespace, t.relname, a.attname) AS object
FROM pg_attribute AS a
INNER JOIN pg_class AS t ON t.oid = a.attrelid
WHERE t.relnamespace = 'app'::regnamespace
    AND t.relkind IN ('r', 'p', 'v', 'm')
    AND NOT t.relispartition
    AND a.attnum > 0
    AND NOT a.attisdropped
"""

INDEXES = """
SELECT
    i.*, x.relname, t.relname AS table_name, x.relam,
    ARRAY(
        SELECT concat_ws(
            ' ', pg_get_indexdef(i.indexrelid, n, FALSE),
            i.indclass[n - 1], i.indoption[n - 1], i.indcollation[n - 1]
        )
        FROM generate_series(1, i.indnkeyatts) AS n
        ORDER BY n
    ) AS keys,
    pg_get_expr(i.indpred, i.indrelid) AS predicate,
    EXISTS (
        SELECT FROM pg_constraint AS c
        WHERE c.conindid = i.indexrelid AND c.contype IN ('p', 'u', 'x')
    ) AS is_constraint
FROM pg_index AS i
INNER JOIN pg_class AS x ON x.oid = i.indexrelid
INNER JOIN pg_class AS t ON t.oid = i.indrelid
WHERE t.relnamespace = 'app'::regnamespace AND NOT x.relispartition
"""

CONSTRAINTS = """
SELECT c.*, t.relname
FROM pg_constraint AS c
INNER JOIN pg_class AS t ON t.oid = c.conrelid
WHERE t.relnamespace = 'app'::regnamespace AND NOT t.relispartition
    AND c.contype IN ('p', 'u', 'f', 'c', 'x')
"""

FUNCTIONS = """
SELECT p.*, p.oid::regprocedure::text AS object
FROM pg_proc AS p
WHERE p.pronamespace = 'app'::regnamespace
"""

# Tables of billing, referrals and Stripe, whose rows outlive their users. An item is
# part of its subscription.
KEPT = (
    "^(messages|message_payloads|usage_slots|referrals"
    "|stripe_(?!subscription_items$).*)$"
)


@dataclass(frozen=True)
class Rule:
    """A rule: its query, advice, and a change that breaks it."""

    name: str
    sql: str
    remedy: str
    planted: str
    caught: str


RULES = (
    Rule(
        "foreign_key_leads_an_index",
        f"""
        SELECT c.conname FROM ({CONSTRAINTS}) AS c
        WHERE c.contype = 'f' AND NOT EXISTS (
            SELECT FROM pg_index AS i
            WHERE i.indrelid = c.conrelid AND i.indisvalid
                -- A partial index may leave out rows whose key is NULL.
                AND COALESCE(
                    pg_get_expr(i.indpred, i.indrelid) = (
                        SELECT format('(%I IS NOT NULL)', a.attname)
                        FROM pg_attribute AS a
                        WHERE a.attrelid = i.indrelid AND a.attnum = c.conkey[1]
                    ),
                    i.indpred IS NULL
                )
                AND (i.indkey::smallint[])[0:cardinality(c.conkey) - 1] @> c.conkey
        )
        """,
        "create an index on its columns; a partial one may only leave out NULL keys",
        "ALTER TABLE app.plans ADD COLUMN user_id uuid"
        " CONSTRAINT plans_user_id_fkey REFERENCES app.users ON DELETE RESTRICT;"
        "COMMENT ON COLUMN app.plans.user_id IS 'NULL for all.';"
        "CREATE INDEX plans_user_id_idx ON app.plans (user_id) WHERE id = 'paid'",
        "plans_user_id_fkey",
    ),
    Rule(
        "index_does_not_repeat_the_prefix_of_another",
        f"""
        SELECT a.relname FROM ({INDEXES}) AS a INNER JOIN ({INDEXES}) AS b
            ON b.indrelid = a.indrelid AND b.indexrelid <> a.indexrelid
            AND b.relam = a.relam AND b.predicate IS NOT DISTINCT FROM a.predicate
        WHERE b.keys[1:cardinality(a.keys)] = a.keys
            AND b.indkey::smallint[] @> a.indkey::smallint[]
            -- A unique index enforces a rule that a longer index does not.
            AND (NOT a.indisunique OR (b.indisunique AND b.keys = a.keys))
            AND (cardinality(b.keys) > cardinality(a.keys) OR NOT a.is_constraint)
        """,
        "drop it: another index starts with the same columns",
        "CREATE INDEX sessions_repeated_idx ON app.sessions (token_hash)",
        "sessions_repeated_idx",
    ),
    Rule(
        "constraint_carries_table_and_suffix",
        f"""
        SELECT c.conname FROM ({CONSTRAINTS}) AS c
        WHERE c.conname !~ concat('^', c.relname, '_([a-z].*_)?', CASE c.contype
            WHEN 'p' THEN 'pkey' WHEN 'u' THEN 'key' WHEN 'f' THEN 'fkey'
            WHEN 'c' THEN 'check' ELSE 'excl'
        END, '$') OR c.conname = concat(c.relname, '_check')
        """,
        "name it <table>_<rule or columns>_ and pkey, key, fkey, check or excl",
        "ALTER TABLE app.plans ADD CHECK (id <> monthly_credits::text)",
        "plans_check",
    ),
    Rule(
        "index_carries_table_and_suffix",
        f"""
        SELECT i.relname FROM ({INDEXES}) AS i
        WHERE NOT i.is_constraint
            AND i.relname !~ concat('^', i.table_name, '_.+_idx$')
        """,
        "name it <table>_<columns or rows>_idx",
        "CREATE INDEX plans_by_credits ON app.plans (monthly_credits)",
        "plans_by_credits",
    ),
    Rule(
        "trigger_carries_table_and_action",
        """
        SELECT g.tgname FROM pg_trigger AS g
        INNER JOIN pg_class AS t ON t.oid = g.tgrelid
        WHERE t.relnamespace = 'app'::regnamespace AND NOT g.tgisinternal
            AND g.tgname !~ concat('^', t.relname, '_[a-z]')
        """,
        "name it <table>_<action>",
        "CREATE TRIGGER stamp BEFORE UPDATE ON app.plans"
        " FOR EACH ROW EXECUTE FUNCTION app.set_updated_at()",
        "stamp",
    ),
    Rule(
        "function_is_called_verb_object",
        f"""
        SELECT f.object FROM ({FUNCTIONS}) AS f WHERE f.proname !~ '^[a-z]+_[a-z_]+$'
        """,
        "name it <verb>_<object>",
        "CREATE FUNCTION app.total() RETURNS integer LANGUAGE sql RETURN 1;"
        "COMMENT ON FUNCTION app.total() IS 'One.'",
        "app.total()",
    ),
    Rule(
        "schema_is_commented",
        """
        SELECT n.nspname FROM pg_namespace AS n
        WHERE n.nspname = 'app' AND obj_description(n.oid, 'pg_namespace') IS NULL
        """,
        "describe it: COMMENT ON SCHEMA",
        "COMMENT ON SCHEMA app IS NULL",
        "app",
    ),
    Rule(
        "table_and_view_are_commented",
        """
        SELECT t.oid::regclass::text FROM pg_class AS t
        WHERE t.relnamespace = 'app'::regnamespace
            AND t.relkind IN ('r', 'p', 'v', 'm')
            AND obj_description(t.oid, 'pg_class') IS NULL
        """,
        "describe its rows: COMMENT ON TABLE or VIEW",
        "COMMENT ON TABLE app.plans IS NULL",
        "app.plans",
    ),
    Rule(
        "column_is_commented",
        f"""
        SELECT c.object FROM ({COLUMNS}) AS c
        WHERE c.comment IS NULL AND c.attname NOT IN ('id', 'created_at', 'updated_at')
        """,
        "give its unit, the meaning of NULL, its writer: COMMENT ON COLUMN",
        "ALTER TABLE app.plans ADD COLUMN rank integer NOT NULL DEFAULT 0",
        "app.plans.rank",
    ),
    Rule(
        "function_is_commented",
        f"""
        SELECT f.object FROM ({FUNCTIONS}) AS f
        WHERE obj_description(f.oid, 'pg_proc') IS NULL
        """,
        "describe what it returns: COMMENT ON FUNCTION",
        "CREATE FUNCTION app.get_one() RETURNS integer LANGUAGE sql RETURN 1",
        "app.get_one()",
    ),
    Rule(
        "comment_says_more_than_the_name",
        f"""
        SELECT c.object FROM ({COLUMNS}) AS c
        WHERE regexp_replace(lower(c.comment), '^the |[^a-z]', '', 'g')
            = replace(c.attname, '_', '')
        """,
        "say more than the name, or leave the comment out",
        "COMMENT ON COLUMN app.users.image_url IS 'The image URL; NULL.'"
        ";COMMENT ON COLUMN app.plans.monthly_credits IS 'Monthly credits.'",
        "app.plans.monthly_credits",
    ),
    Rule(
        "nullable_column_says_what_null_means",
        f"""
        SELECT c.object FROM ({COLUMNS}) AS c
        WHERE c.relkind IN ('r', 'p') AND NOT c.attnotnull
            AND c.comment IS DISTINCT FROM NULL AND c.comment !~ '\\mNULL\\M'
        """,
        "give the meaning of NULL in its comment, or make it NOT NULL",
        "COMMENT ON COLUMN app.users.name IS 'For display.'",
        "app.users.name",
    ),
    Rule(
        "time_has_a_zone_and_text_no_length",
        f"""
        SELECT c.object FROM ({COLUMNS}) AS c
        WHERE c.type ~ '^(timestamp|time)( |\\().*without'
            OR c.type ~ '^(time.* with time zone|character|json$|money|real|double)'
            AND c.type !~ '^timestamp'
        """,
        "use timestamptz, text with a check, jsonb or numeric",
        "ALTER TABLE app.plans ADD COLUMN ended_at timestamp;"
        "COMMENT ON COLUMN app.plans.ended_at IS 'NULL while sold.'",
        "app.plans.ended_at",
    ),
    Rule(
        "function_has_a_fixed_search_path",
        f"""
        SELECT f.object FROM ({FUNCTIONS}) AS f
        WHERE (f.prosqlbody IS NULL OR f.prosecdef) AND NOT EXISTS (
            SELECT FROM unnest(f.proconfig) AS s
            WHERE s = 'search_path=pg_catalog, pg_temp'
        )
        """,
        "write its body as RETURN or BEGIN ATOMIC, or SET search_path = pg_catalog,"
        " pg_temp: with '', types of pg_temp come first, and any caller creates them",
        "ALTER FUNCTION app.set_updated_at() SET search_path = ''",
        "app.set_updated_at()",
    ),
    Rule(
        "utc_is_not_looked_up_by_name",
        f"""
        SELECT e.object
        FROM (
            SELECT f.object, concat(f.prosrc, pg_get_function_sqlbody(f.oid)) AS text
            FROM ({FUNCTIONS}) AS f
            UNION ALL
            SELECT c.object, pg_get_expr(d.adbin, d.adrelid)
            FROM ({COLUMNS}) AS c
            INNER JOIN pg_attrdef AS d ON d.adrelid = c.attrelid AND d.adnum = c.attnum
            UNION ALL
            SELECT c.conname, pg_get_constraintdef(c.oid) FROM ({CONSTRAINTS}) AS c
        ) AS e
        WHERE e.text ~* '(time zone|timezone\\() *''(?![0-9])'
        """,
        "write UTC as interval '0': TimeZone can redefine the name",
        "CREATE FUNCTION app.get_day() RETURNS date LANGUAGE sql"
        " RETURN (now() AT TIME ZONE 'UTC')::date;"
        "COMMENT ON FUNCTION app.get_day() IS 'The day.'",
        "app.get_day()",
    ),
    Rule(
        "security_definer_is_not_left_to_public",
        f"""
        SELECT f.object FROM ({FUNCTIONS}) AS f
        WHERE f.prosecdef AND has_function_privilege('public', f.oid, 'EXECUTE')
        """,
        "REVOKE EXECUTE FROM public after creating it",
        "CREATE FUNCTION app.get_one() RETURNS integer LANGUAGE sql SECURITY DEFINER"
        " SET search_path = pg_catalog, pg_temp RETURN 1;"
        "COMMENT ON FUNCTION app.get_one() IS 'One.'",
        "app.get_one()",
    ),
    Rule(
        "foreign_key_writes_its_on_delete",
        f"""
        SELECT c.conname FROM ({CONSTRAINTS}) AS c
        WHERE c.contype = 'f' AND c.confdeltype = 'a'
        """,
        "write ON DELETE; RESTRICT if in doubt",
        "ALTER TABLE app.plans ADD COLUMN user_id uuid"
        " CONSTRAINT plans_user_id_fkey REFERENCES app.users;"
        "COMMENT ON COLUMN app.plans.user_id IS 'NULL for all.';"
        "CREATE INDEX plans_user_id_idx ON app.plans (user_id)",
        "plans_user_id_fkey",
    ),
    Rule(
        "nothing_cascades_into_rows_that_are_kept",
        f"""
        SELECT c.conname FROM ({CONSTRAINTS}) AS c
        WHERE c.contype = 'f' AND c.relname ~ '{KEPT}' AND c.confdeltype <> 'r'
            AND c.confdeltype <> 'a'
        """,
        "use ON DELETE RESTRICT: rows of billing and Stripe outlive their users",
        "ALTER TABLE app.stripe_customers"
        " DROP CONSTRAINT stripe_customers_user_id_fkey,"
        " ADD CONSTRAINT stripe_customers_user_id_fkey FOREIGN KEY (user_id)"
        " REFERENCES app.users (id) ON DELETE SET NULL",
        "stripe_customers_user_id_fkey",
    ),
    Rule(
        "everything_is_in_our_schema",
        """
        SELECT t.oid::regclass::text FROM pg_class AS t
        WHERE t.relnamespace = 'public'::regnamespace
        """,
        "qualify it: app.<name>",
        "CREATE TABLE public.strays ()",
        "strays",
    ),
)
