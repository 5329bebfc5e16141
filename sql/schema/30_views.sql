-- Views: what there is, by name and size. They run with the rights of the extension's owner; 90_grants.sql gives them to strata_read.

CREATE FUNCTION strata.bound_text(bound text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    RETURN CASE WHEN bound ~ '^''[^'']*''$' THEN btrim(bound, '''') ELSE bound END;
COMMENT ON FUNCTION strata.bound_text(text) IS 'a bound of a range partition without its quotes, if it is a single literal; internal';

CREATE FUNCTION strata.heat_now(amount double precision, half_life interval, since timestamptz) RETURNS double precision
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    RETURN amount * 0.5 ^ LEAST(GREATEST(extract(epoch FROM now() - since) / extract(epoch FROM half_life), 0), 1000)::double precision;
COMMENT ON FUNCTION strata.heat_now(double precision, interval, timestamptz) IS 'what is left of an amount after some time; internal';

-- Current fragments: those of the relation file that the table has now. The row ids of a fragment end where those of the next begin.
CREATE VIEW strata.fragments AS
SELECT c.oid::pg_catalog.regclass AS "table",
       f.fragment_id,
       f.hash,
       strata.store_directory() || '/' || pg_catalog.left(f.hash, 2) || '/' || f.hash || '.frag' AS path,
       f.first_row_id,
       f.row_count AS rows,
       f.deleted_rows + (SELECT pg_catalog.count(*)
          FROM strata.deletion d
         WHERE d.relid = f.relid AND d.row_id >= f.first_row_id AND (f.next_row_id IS NULL OR d.row_id < f.next_row_id)
           AND d.delta <> '(2147483648,2)'
       ) AS deleted_rows,
       f.bytes,
       f.heap_bytes,
       f.created_at
  FROM (SELECT x.*,
               pg_catalog.lead(x.first_row_id) OVER (PARTITION BY x.relid, x.filenode ORDER BY x.first_row_id) AS next_row_id
          FROM strata.fragment x) f
  JOIN pg_catalog.pg_class c ON c.oid = f.relid AND c.relfilenode = f.filenode;
COMMENT ON VIEW strata.fragments IS 'The fragments of warm tables, with the rows of them that are deleted';
COMMENT ON COLUMN strata.fragments.path IS 'the fragment''s file; it is absent after a recovery until the first use of the fragment or until the agent has brought it';
COMMENT ON COLUMN strata.fragments.rows IS 'rows that the fragment was written with';
COMMENT ON COLUMN strata.fragments.deleted_rows IS 'rows of the fragment that were deleted, or changed: a changed row goes on in the delta store';
COMMENT ON COLUMN strata.fragments.heap_bytes IS 'bytes that these rows took as heap pages with their index entries, estimated when they were moved';

CREATE VIEW strata.partitions AS
WITH RECURSIVE warm_am AS (
    SELECT a.oid FROM pg_catalog.pg_am a WHERE a.amname = 'warm' AND a.amtype = 't'
), root AS (
    -- Partitioned tables that are managed, or have a warm partition; and warm tables that are partitions of nothing.
    SELECT COALESCE(pg_catalog.pg_partition_root(p.relid), p.relid)::oid AS relid FROM strata.policy p
    UNION
    SELECT COALESCE(pg_catalog.pg_partition_root(c.oid), c.oid)::oid
      FROM pg_catalog.pg_class c
     WHERE c.relam = (SELECT oid FROM warm_am) AND c.relkind IN ('r', 'm')
), node AS (
    SELECT r.relid AS root, r.relid, NULL::text AS bound FROM root r
    UNION ALL
    SELECT n.root, c.oid, COALESCE(n.bound, pg_catalog.pg_get_expr(c.relpartbound, c.oid) COLLATE "default")
      FROM node n
      JOIN pg_catalog.pg_inherits i ON i.inhparent = n.relid
      JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
), leaf AS (
    SELECT n.root, c.oid, c.reltuples, c.relam = (SELECT oid FROM warm_am) AS warm,
           pg_catalog.regexp_match(n.bound, '^FOR VALUES FROM \((.*)\) TO \((.*)\)$') AS range,
           pg_catalog.pg_total_relation_size(c.oid) AS heap_bytes,
           pg_catalog.pg_indexes_size(c.oid) AS index_bytes
      FROM node n
      JOIN pg_catalog.pg_class c ON c.oid = n.relid
     WHERE c.relkind IN ('r', 'm')
), stored AS (
    SELECT f."table"::oid AS relid, pg_catalog.count(*) AS fragments, pg_catalog.sum(f.rows)::bigint AS rows,
           pg_catalog.sum(f.deleted_rows)::bigint AS deleted, pg_catalog.sum(f.bytes)::bigint AS bytes,
           pg_catalog.sum(f.heap_bytes)::bigint AS heap_bytes
      FROM strata.fragments f
     GROUP BY 1
)
SELECT l.root::pg_catalog.regclass AS "table",
       l.oid::pg_catalog.regclass AS partition,
       CASE WHEN l.warm THEN 'warm' ELSE 'hot' END AS tier,
       CASE WHEN l.warm AND s.relid IS NOT NULL THEN s.rows - s.deleted + delta.rows
            WHEN l.reltuples >= 0 THEN l.reltuples::bigint
            WHEN l.warm THEN delta.rows
       END AS rows,
       strata.bound_text(l.range[1]) AS range_from,
       strata.bound_text(l.range[2]) AS range_to,
       l.heap_bytes,
       l.index_bytes,
       COALESCE(s.bytes, 0) AS warm_bytes,
       pg_catalog.round(s.heap_bytes::numeric / NULLIF(s.bytes, 0), 2) AS compression,
       COALESCE(s.deleted, 0) AS deleted_rows,
       COALESCE(s.fragments, 0) AS fragments,
       (SELECT strata.heat_now(h.reads + h.writes, p.half_life, h.sampled_at)
          FROM strata.policy p WHERE p.relid = l.root OR p.relid IN (SELECT a FROM pg_catalog.pg_partition_ancestors(l.oid) a) LIMIT 1) AS heat,
       h.last_read,
       h.last_write
  FROM leaf l
  LEFT JOIN strata.heat h ON h.relid = l.oid
  LEFT JOIN stored s ON s.relid = l.oid
  CROSS JOIN LATERAL (
      -- The delta store by its pages, as many rows as they hold at the width that the rows of the fragments had as heap, or,
      -- without fragments, at that of the columns. One page is always kept, also when it is empty.
      SELECT CASE WHEN h.bytes <= b.block_size THEN 0
                  ELSE (h.bytes / GREATEST(COALESCE(s.heap_bytes / NULLIF(s.rows, 0), w.bytes), 28))::bigint
             END AS rows
        FROM (SELECT pg_catalog.pg_relation_size(l.oid) AS bytes) h,
             (SELECT pg_catalog.current_setting('block_size')::bigint AS block_size) b,
             (SELECT 28 + COALESCE(pg_catalog.sum(CASE WHEN t.attlen > 0 THEN t.attlen ELSE 32 END), 0) AS bytes
                FROM pg_catalog.pg_attribute t WHERE t.attrelid = l.oid AND t.attnum > 0 AND NOT t.attisdropped) w
  ) delta;
COMMENT ON VIEW strata.partitions IS 'Partitions, with their tier and size, of every partitioned table that is managed or has warm partitions, and warm tables that are no partitions';
COMMENT ON COLUMN strata.partitions."table" IS 'the partitioned table at the top; for a warm table that is no partition, that table itself';
COMMENT ON COLUMN strata.partitions.rows IS 'estimate. Hot: from the last VACUUM or ANALYZE, null if there was none. Warm: the rows of its fragments without the deleted ones, exactly, and an estimate for the delta store';
COMMENT ON COLUMN strata.partitions.range_from IS 'lower bound, inclusive, of the partition or of the first-level partition that it belongs to; null if that is no range';
COMMENT ON COLUMN strata.partitions.range_to IS 'upper bound, exclusive';
COMMENT ON COLUMN strata.partitions.heap_bytes IS 'pages in the data directory: heap or delta store, TOAST, and indexes';
COMMENT ON COLUMN strata.partitions.index_bytes IS 'the indexes'' part of heap_bytes';
COMMENT ON COLUMN strata.partitions.warm_bytes IS 'bytes of the fragments';
COMMENT ON COLUMN strata.partitions.compression IS 'bytes of the rows of the fragments as heap with indexes, when they were moved, divided by warm_bytes';
COMMENT ON COLUMN strata.partitions.deleted_rows IS 'rows of fragments that were deleted or changed since they were moved';

COMMENT ON COLUMN strata.partitions.heat IS 'scans and changed rows, each of which counts half after every half_life of the policy; null if nothing samples it';
COMMENT ON COLUMN strata.partitions.last_read IS 'when a run of the policies last found that it had been read since the run before';

CREATE VIEW strata.policies AS
SELECT p.relid AS "table", p.hot_for, p.cold_below, p.hot_above, p.half_life, p.partition_by, p.ahead, p.enabled, p.created_at,
       t.hot AS hot_partitions, t.warm AS warm_partitions
  FROM strata.policy p
  CROSS JOIN LATERAL (
      SELECT pg_catalog.count(*) FILTER (WHERE a.amname = 'heap') AS hot,
             pg_catalog.count(*) FILTER (WHERE a.amname = 'warm') AS warm
        FROM pg_catalog.pg_partition_tree(p.relid) n
        JOIN pg_catalog.pg_class c ON c.oid = n.relid AND c.relkind = 'r'
        JOIN pg_catalog.pg_am a ON a.oid = c.relam
  ) t;
COMMENT ON VIEW strata.policies IS 'Tiering policies of managed tables; strata.manage() makes them, strata.unmanage() removes them';
COMMENT ON COLUMN strata.policies.hot_for IS 'a partition is moved when its upper bound is at least this long ago; null: age does not count';
COMMENT ON COLUMN strata.policies.cold_below IS 'a partition is moved when its heat is below this; null: heat does not count';
COMMENT ON COLUMN strata.policies.hot_above IS 'a warm partition is moved back when its heat is at least this; null: none is';
COMMENT ON COLUMN strata.policies.half_life IS 'after this time an access counts half';
COMMENT ON COLUMN strata.policies.partition_by IS 'width of the partitions that are created ahead';
COMMENT ON COLUMN strata.policies.ahead IS 'partitions that shall exist after the one that holds the present time; 0 creates none';
COMMENT ON COLUMN strata.policies.enabled IS 'whether runs without the name of a table heed the policy';

CREATE VIEW strata.jobs AS
SELECT j.job_id, j.kind, j.object, j.state, j.phase, j.done, j.total, j.result, j.error, j.requested_by, j.started_at, j.finished_at,
       COALESCE(j.finished_at, CASE WHEN j.state = 'running' THEN pg_catalog.clock_timestamp() END) - j.started_at AS duration
  FROM strata.job j;
COMMENT ON VIEW strata.jobs IS 'Moves and consolidations by the policies, and the agent''s jobs';
COMMENT ON COLUMN strata.jobs.object IS 'what the job works on; for a move or a consolidation the partition';
COMMENT ON COLUMN strata.jobs.duration IS 'from start to end, or until now if it runs';

CREATE VIEW strata.backups AS
SELECT b.backup_id, b.system, b.member, b.repository, b.state, b.timeline, b.start_lsn, b.stop_lsn, b.started_at, b.stopped_at,
       b.stopped_at - b.started_at AS duration, b.data_bytes, b.stored_bytes,
       b.fragments, b.fragment_bytes, b.fragments_copied, b.fragment_bytes_copied, b.error, b.tool, b.tool_result
  FROM strata.backup b;
COMMENT ON VIEW strata.backups IS 'Base backups as the agent recorded them; the repository is the truth';
COMMENT ON COLUMN strata.backups.data_bytes IS 'bytes read from the data directory';
COMMENT ON COLUMN strata.backups.stored_bytes IS 'bytes that they take in the repository';
COMMENT ON COLUMN strata.backups.fragments IS 'fragments that the backup needs';
COMMENT ON COLUMN strata.backups.fragments_copied IS 'those of them that the repository did not have before';
COMMENT ON COLUMN strata.backups.tool IS 'the third-party tool that holds the data; null if the repository itself does';
COMMENT ON COLUMN strata.backups.tool_result IS 'what the tool gave back: for each object its exit code, own identifier, size and last messages';

CREATE VIEW strata.log_backups AS
SELECT l.system, l.member, l.kind, l.name, l.timeline, l.start_lsn, l.end_lsn, l.bytes, l.stored_bytes, l.checksum, l.completed_at
  FROM strata.log_backup l;
COMMENT ON VIEW strata.log_backups IS 'Completed log backups as the agent recorded them; the repository is the truth';

CREATE VIEW strata.stat_memory AS SELECT m.* FROM strata.memory() m;
COMMENT ON VIEW strata.stat_memory IS 'Memory of fragments in the whole server: one row, none unless Strata is in shared_preload_libraries';
COMMENT ON COLUMN strata.stat_memory.budget_bytes IS 'strata.memory_budget';
COMMENT ON COLUMN strata.stat_memory.limit_bytes IS 'what of it may be used: at most half of the memory there is, and half of what is available on top of what is used';
COMMENT ON COLUMN strata.stat_memory.kept_bytes IS 'what processes keep of fragments; never above limit_bytes when it is taken';
COMMENT ON COLUMN strata.stat_memory.needed_bytes IS 'what processes need at the moment: footers of open fragments, decoded columns of the blocks that are read, chunks of the last look-ups, rows that will be fragments';
COMMENT ON COLUMN strata.stat_memory.processes IS 'processes that have read fragments';
COMMENT ON COLUMN strata.stat_memory.machine_bytes IS 'memory of the machine, or of the control group if that is less';
COMMENT ON COLUMN strata.stat_memory.available_bytes IS 'what of it is available, looked at once a second at most';
COMMENT ON COLUMN strata.stat_memory.control_group IS 'whether a control group sets machine_bytes';

CREATE VIEW strata.stat_access AS
SELECT a.pid, d.datname AS database, a.kept_bytes, a.needed_bytes, a.peak_bytes, a.loaded, a.paged, a.direct, a.reads, a.read_bytes,
       a.from_memory, a.evicted_bytes, a.given_back_bytes, a.last_access, a.last_reason,
       CASE WHEN d.datname = pg_catalog.current_database() THEN a.last_table::pg_catalog.regclass END AS last_table,
       a.last_data_set_bytes, a.last_fragments, a.last_at
  FROM strata.access() a
  LEFT JOIN pg_catalog.pg_database d ON d.oid = a.database;
COMMENT ON VIEW strata.stat_access IS 'How each process reads fragments, and what it keeps of them';
COMMENT ON COLUMN strata.stat_access.kept_bytes IS 'what it keeps';
COMMENT ON COLUMN strata.stat_access.needed_bytes IS 'what it needs at the moment';
COMMENT ON COLUMN strata.stat_access.peak_bytes IS 'the most of both together since the process began';
COMMENT ON COLUMN strata.stat_access.loaded IS 'statements whose data set fitted into memory: fragments were read whole and stay';
COMMENT ON COLUMN strata.stat_access.paged IS 'statements that read what they asked for, and kept it where there was room';
COMMENT ON COLUMN strata.stat_access.direct IS 'statements that read what they asked for, and kept nothing';
COMMENT ON COLUMN strata.stat_access.reads IS 'pieces of fragments (a column of a block, a filter) that were read from files; this and the next three are brought up to date when a statement begins';
COMMENT ON COLUMN strata.stat_access.from_memory IS 'times that a piece was in memory instead';
COMMENT ON COLUMN strata.stat_access.evicted_bytes IS 'bytes pushed out to make room';
COMMENT ON COLUMN strata.stat_access.given_back_bytes IS 'bytes given back because others asked or the budget was lowered';
COMMENT ON COLUMN strata.stat_access.last_access IS 'loaded, paged or direct: the last statement''s';
COMMENT ON COLUMN strata.stat_access.last_reason IS 'why';
COMMENT ON COLUMN strata.stat_access.last_table IS 'one of its tables, if it is in this database';
COMMENT ON COLUMN strata.stat_access.last_data_set_bytes IS 'bytes of the fragments of the tables and partitions that it read';
