-- name: list_stored_results :many
-- Generated columns, indexes and checks that store or prove the results of functions.
-- functions: the functions of app that they call, directly or through others. SQL
-- bodies depend on the functions that they call; other bodies contain their names.
WITH RECURSIVE app_functions AS (
    SELECT
        p.oid,
        p.proname,
        p.prosrc,
        p.prosqlbody IS NULL AS is_text
    FROM pg_proc AS p
    WHERE p.pronamespace = to_regnamespace('app')
),

calls AS (
    SELECT
        d.objid AS caller,
        d.refobjid AS called
    FROM pg_depend AS d
    WHERE d.classid = 'pg_proc'::regclass
        AND d.refclassid = 'pg_proc'::regclass
    UNION
    SELECT
        f.oid AS caller,
        g.oid AS called
    FROM app_functions AS f
    INNER JOIN app_functions AS g ON f.prosrc ~ ('\m' || g.proname || '\M')
    WHERE f.is_text
),

app_tables AS (
    SELECT
        t.oid,
        t.relname,
        (
            SELECT a.attname
            FROM pg_attribute AS a
            WHERE a.attrelid = t.oid
                AND a.attnum > 0
                AND NOT a.attisdropped
                AND a.attgenerated = ''
                AND a.attidentity = ''
            ORDER BY a.attnum
            LIMIT 1
        ) AS plain_column
    FROM pg_class AS t
    WHERE t.relnamespace = to_regnamespace('app')
        AND NOT t.relispartition
),

results AS (
    SELECT
        'column' AS kind,
        a.attrelid AS table_id,
        a.attname AS name,
        pg_get_expr(e.adbin, e.adrelid) AS definition,
        d.refobjid AS called
    FROM pg_attribute AS a
    INNER JOIN pg_attrdef AS e ON a.attrelid = e.adrelid AND a.attnum = e.adnum
    INNER JOIN pg_depend AS d
        ON d.refclassid = 'pg_proc'::regclass
        AND (
            (d.classid = 'pg_attrdef'::regclass AND e.oid = d.objid)
            OR (
                d.classid = 'pg_class'::regclass
                AND a.attrelid = d.objid
                AND a.attnum = d.objsubid
            )
        )
    WHERE a.attgenerated = 's'
    UNION ALL
    SELECT
        'index' AS kind,
        i.indrelid AS table_id,
        x.relname AS name,
        pg_get_indexdef(i.indexrelid) AS definition,
        d.refobjid AS called
    FROM pg_index AS i
    INNER JOIN pg_class AS x ON i.indexrelid = x.oid
    INNER JOIN pg_depend AS d
        ON d.classid = 'pg_class'::regclass
        AND i.indexrelid = d.objid
        AND d.refclassid = 'pg_proc'::regclass
    UNION ALL
    SELECT
        'check' AS kind,
        c.conrelid AS table_id,
        c.conname AS name,
        pg_get_constraintdef(c.oid) AS definition,
        d.refobjid AS called
    FROM pg_constraint AS c
    INNER JOIN pg_depend AS d
        ON d.classid = 'pg_constraint'::regclass
        AND c.oid = d.objid
        AND d.refclassid = 'pg_proc'::regclass
    WHERE c.contype = 'c'
),

reached AS (
    SELECT
        r.kind,
        r.table_id,
        r.name,
        r.definition,
        r.called
    FROM results AS r
    UNION
    SELECT
        r.kind,
        r.table_id,
        r.name,
        r.definition,
        c.called
    FROM reached AS r
    INNER JOIN calls AS c ON r.called = c.caller
)

SELECT
    r.kind,
    t.relname AS table_name,
    r.name,
    r.definition,
    t.plain_column,
    array_agg(DISTINCT f.proname::text) AS functions
FROM reached AS r
INNER JOIN app_tables AS t ON r.table_id = t.oid
INNER JOIN app_functions AS f ON r.called = f.oid
GROUP BY r.kind, t.relname, r.name, r.definition, t.plain_column
ORDER BY t.relname, strpos('column index check', r.kind), r.name;
