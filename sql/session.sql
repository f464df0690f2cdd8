-- What pyapp.connect and pyapp.pool run once in each new session, except behind a
-- pooler. The other settings are options of its start: pyapp/_core/session_settings.py.
-- No name or operator here goes by the search_path, which is among what is set.
SELECT
    -- Any other value disables triggers and foreign keys. Refused where the role may
    -- not set it.
    CASE
        WHEN pg_catalog.textne(
            pg_catalog.current_setting('session_replication_role'), 'origin'
        )
            THEN pg_catalog.set_config('session_replication_role', 'origin', FALSE)
    END AS replication_role,
    -- Since the minor releases of August 2024; it forbids the use of views.
    CASE
        WHEN pg_catalog.textne(
            pg_catalog.current_setting('restrict_nonsystem_relation_kind', TRUE), ''
        )
            THEN
                pg_catalog.set_config('restrict_nonsystem_relation_kind', '', FALSE)
    END AS restriction,
    -- A path that names pg_catalog may put other functions and operators before it.
    CASE
        WHEN pg_catalog.int4gt(
            pg_catalog.strpos(pg_catalog.current_setting('search_path'), 'pg_catalog'),
            0
        )
            THEN
                pg_catalog.set_config(
                    'search_path',
                    pg_catalog.concat(
                        'pg_catalog, ', pg_catalog.current_setting('search_path')
                    ),
                    FALSE
                )
    END AS search_path;
