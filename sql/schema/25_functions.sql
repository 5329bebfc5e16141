-- The access method, and the functions that are written in C (Rust).

CREATE FUNCTION strata.warm_handler(internal) RETURNS table_am_handler
    LANGUAGE C AS 'MODULE_PATHNAME', 'strata_warm_handler';
COMMENT ON FUNCTION strata.warm_handler(internal) IS 'handler of the access method warm';

CREATE ACCESS METHOD warm TYPE TABLE HANDLER strata.warm_handler;
COMMENT ON ACCESS METHOD warm IS 'columnar fragments outside the data directory, with a delta store of heap pages';

CREATE FUNCTION strata.to_warm(partition regclass) RETURNS bigint
    LANGUAGE C STRICT VOLATILE AS 'MODULE_PATHNAME', 'strata_to_warm_wrapper';
COMMENT ON FUNCTION strata.to_warm(regclass) IS 'moves a heap table or partition to fragments while it is in use; returns the rows moved';

CREATE FUNCTION strata.to_hot(partition regclass) RETURNS bigint
    LANGUAGE C STRICT VOLATILE AS 'MODULE_PATHNAME', 'strata_to_hot_wrapper';
COMMENT ON FUNCTION strata.to_hot(regclass) IS 'moves a warm table or partition back to heap; returns its rows';

CREATE FUNCTION strata.consolidate(partition regclass, OUT fragments_before bigint, OUT fragments_after bigint, OUT bytes_before bigint,
        OUT bytes_after bigint, OUT rows_removed bigint, OUT rows_absorbed bigint) RETURNS SETOF record
    LANGUAGE C STRICT VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'strata_consolidate_wrapper';
COMMENT ON FUNCTION strata.consolidate(regclass) IS 'writes fragments of a warm table again that lost strata.consolidate_threshold of their rows, merges small ones and moves rows of the delta store into fragments, while the table is in use';

CREATE FUNCTION strata.sweep(grace_seconds integer DEFAULT NULL) RETURNS bigint
    LANGUAGE C VOLATILE AS 'MODULE_PATHNAME', 'strata_sweep_wrapper';
COMMENT ON FUNCTION strata.sweep(integer) IS 'removes catalog rows of dropped tables and, when the transaction commits, fragment files that no table needs; returns the number of files. What a transaction has written that has not ended stays. Without an argument, files younger than an hour stay, and where logs are archived those that the fragment log does not have yet; with one, only files younger than so many seconds stay. What a standby has not replayed yet stays in any case. On a standby, removes files of a store of its own';

CREATE FUNCTION strata.standbys_replayed() RETURNS pg_lsn
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT min(known.lsn) FROM (
        SELECT r.replay_lsn FROM pg_stat_replication r
         WHERE NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
        UNION ALL
        SELECT s.restart_lsn FROM pg_replication_slots s WHERE s.slot_type = 'physical' AND NOT s.active AND s.wal_status <> 'lost'
    ) AS known(lsn)
$$;
COMMENT ON FUNCTION strata.standbys_replayed() IS 'how far all standbys are that are connected or have a physical slot; null if there are none. Internal: to be called by a superuser';

CREATE FUNCTION strata.store_directory() RETURNS text
    LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'strata_store_directory_wrapper';
COMMENT ON FUNCTION strata.store_directory() IS 'the folder of the fragments of this database';

CREATE FUNCTION strata.memory(OUT budget_bytes bigint, OUT limit_bytes bigint, OUT kept_bytes bigint, OUT needed_bytes bigint,
        OUT processes bigint, OUT machine_bytes bigint, OUT available_bytes bigint, OUT control_group boolean) RETURNS SETOF record
    LANGUAGE C VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'strata_memory_wrapper';
COMMENT ON FUNCTION strata.memory() IS 'memory of fragments; see the view strata.stat_memory';

CREATE FUNCTION strata.access(OUT pid integer, OUT database oid, OUT kept_bytes bigint, OUT needed_bytes bigint, OUT peak_bytes bigint,
        OUT loaded bigint, OUT paged bigint, OUT direct bigint, OUT reads bigint, OUT read_bytes bigint, OUT from_memory bigint,
        OUT evicted_bytes bigint, OUT given_back_bytes bigint, OUT last_table oid, OUT last_access text, OUT last_reason text,
        OUT last_data_set_bytes bigint, OUT last_fragments bigint, OUT last_at timestamptz) RETURNS SETOF record
    LANGUAGE C VOLATILE ROWS 20 AS 'MODULE_PATHNAME', 'strata_access_wrapper';
COMMENT ON FUNCTION strata.access() IS 'how processes read fragments; see the view strata.stat_access';

CREATE FUNCTION strata.agent_call(request jsonb) RETURNS jsonb
    LANGUAGE C STRICT VOLATILE AS 'MODULE_PATHNAME', 'strata_agent_call_wrapper';
COMMENT ON FUNCTION strata.agent_call(jsonb) IS 'sends one request to the agent, shows its progress as notices and returns its result';
REVOKE ALL ON FUNCTION strata.agent_call(jsonb), strata.sweep(integer) FROM PUBLIC;
