-- name: get_connection_ends :one
-- As the server sees this connection; NULL for a socket file.
SELECT
    host(inet_client_addr()) AS client_address,
    inet_client_port() AS client_port,
    host(inet_server_addr()) AS server_address,
    inet_server_port() AS server_port;

-- name: format_drop_database :one
-- Sessions that still use it are ended.
SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', :name::text) AS statement;

-- name: format_create_database :one
-- From template1, as createdb does it.
SELECT format('CREATE DATABASE %I', :name::text) AS statement;
