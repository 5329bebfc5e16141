-- The catalog of Strata: what the extension and the sidecar both know. The row types are in the crate strata-catalog.

-- The warm tier ------------------------------------------------------------------------------------------------------

CREATE TABLE strata.warm_table (
    relid       oid PRIMARY KEY,
    next_row_id bigint NOT NULL CHECK (next_row_id >= 0)
);
COMMENT ON TABLE strata.warm_table IS 'One row per warm table that has, or had, fragments: where its next row ids begin. Row ids are never used twice.';

CREATE TABLE strata.fragment (
    fragment_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relid        oid NOT NULL,
    filenode     oid NOT NULL,
    hash         text NOT NULL CHECK (hash ~ '^[0-9a-f]{64}$'),
    first_row_id bigint NOT NULL,
    row_count    bigint NOT NULL CHECK (row_count > 0),
    bytes        bigint NOT NULL,
    heap_bytes   bigint NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    created_lsn  pg_lsn NOT NULL DEFAULT pg_catalog.pg_current_wal_insert_lsn(),
    row_ids      bytea,
    deleted      bytea,
    deleted_rows bigint NOT NULL DEFAULT 0,
    gone_lsn     pg_lsn
);
CREATE INDEX fragment_relid ON strata.fragment (relid, filenode, first_row_id);
CREATE INDEX fragment_hash ON strata.fragment (hash);
COMMENT ON TABLE strata.fragment IS 'Fragments of warm tables. A fragment belongs to one relation file (filenode) of its table and lives and dies with it.';
COMMENT ON COLUMN strata.fragment.hash IS 'BLAKE3 of the file, in hexadecimal; the file is STORE/DATABASE_OID/<first two digits>/<hash>.frag';
COMMENT ON COLUMN strata.fragment.filenode IS 'the relation file; 0 once the fragment was replaced by consolidation, until it is swept';
COMMENT ON COLUMN strata.fragment.row_ids IS 'the row ids of its rows less first_row_id, as a Roaring bitmap in the portable format; null if they are consecutive';
COMMENT ON COLUMN strata.fragment.deleted IS 'the row ids less first_row_id of rows that are deleted for every snapshot, as such a bitmap: marks of strata.deletion that consolidation has folded';
COMMENT ON COLUMN strata.fragment.gone_lsn IS 'a position behind the commit that took the fragment out of use, noted where there are standbys: the row stays until they have replayed it';
COMMENT ON COLUMN strata.fragment.heap_bytes IS 'bytes that the rows took as heap pages with their index entries, estimated when they were moved';

CREATE TABLE strata.deletion (
    relid    oid NOT NULL,
    row_id   bigint NOT NULL,
    filenode oid NOT NULL,
    delta    tid NOT NULL
);
CREATE INDEX deletion_row ON strata.deletion (relid, row_id);
CREATE INDEX deletion_delta ON strata.deletion (relid, delta) WHERE delta < '(2147483648,0)';
COMMENT ON TABLE strata.deletion IS 'The deletion vectors: a fragment row is deleted for a snapshot iff a row here that the snapshot sees names it. delta is the delta row that took its place in relation file filenode, or a virtual TID: (2147483648,1) if the row was deleted, (2147483648,2) in the mark of a transaction that changed the delta row with a snapshot older than the promotion.';

CREATE TABLE strata.policy (
    relid         regclass PRIMARY KEY,
    hot_for       interval CHECK (hot_for > '0'),
    partition_by  interval CHECK (partition_by > '0'),
    ahead         integer NOT NULL DEFAULT 2 CHECK (ahead BETWEEN 0 AND 1000),
    enabled       boolean NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL DEFAULT pg_catalog.now(),
    cold_below    double precision CHECK (cold_below > 0),
    hot_above     double precision CHECK (hot_above > cold_below),
    half_life     interval NOT NULL DEFAULT '1 day' CHECK (half_life > '0'),
    CHECK (hot_for IS NOT NULL OR cold_below IS NOT NULL),
    CHECK (hot_above IS NULL OR cold_below IS NOT NULL)
);
COMMENT ON TABLE strata.policy IS 'Tiering policies of managed partitioned tables; see strata.manage()';
SELECT pg_catalog.pg_extension_config_dump('strata.policy', '');

CREATE TABLE strata.heat (
    relid       oid PRIMARY KEY,
    reads       double precision NOT NULL DEFAULT 0,
    writes      double precision NOT NULL DEFAULT 0,
    seen_reads  bigint NOT NULL,
    seen_writes bigint NOT NULL,
    last_read   timestamptz,
    last_write  timestamptz,
    since       timestamptz NOT NULL DEFAULT pg_catalog.now(),
    sampled_at  timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE strata.heat IS 'How much the partitions of managed tables are used, sampled from the server''s statistics by each run of the policies';
COMMENT ON COLUMN strata.heat.reads IS 'scans of the partition and of its indexes; each counts half after every half_life of the policy';
COMMENT ON COLUMN strata.heat.writes IS 'rows inserted, updated and deleted, which decay in the same way';
COMMENT ON COLUMN strata.heat.seen_reads IS 'the statistics'' own count at sampled_at';
COMMENT ON COLUMN strata.heat.last_read IS 'when a sample last found reads';
COMMENT ON COLUMN strata.heat.since IS 'when sampling began';

-- Jobs and backups ---------------------------------------------------------------------------------------------------

CREATE TABLE strata.job (
    job_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL CHECK (kind IN ('move', 'consolidate', 'backup', 'recovery_plan', 'recover', 'verify', 'expire', 'drill')),
    object       text,
    state        text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'failed')),
    phase        text,
    done         bigint,
    total        bigint,
    result       jsonb,
    error        text,
    requested_by text NOT NULL DEFAULT CURRENT_USER,
    started_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at  timestamptz
);
COMMENT ON TABLE strata.job IS 'Work of the tiering worker and of the agent, with its progress and its result';

CREATE TABLE strata.backup (
    backup_id         text PRIMARY KEY,
    system            text NOT NULL,
    member            text NOT NULL,
    repository        text NOT NULL,
    state             text NOT NULL CHECK (state IN ('running', 'complete', 'failed')),
    timeline          integer,
    start_lsn         pg_lsn,
    stop_lsn          pg_lsn,
    started_at        timestamptz NOT NULL,
    stopped_at        timestamptz,
    data_bytes        bigint,
    stored_bytes      bigint,
    fragments         bigint,
    fragment_bytes    bigint,
    fragments_copied  bigint,
    fragment_bytes_copied bigint,
    error             text,
    tool              text,
    tool_result       jsonb
);
COMMENT ON TABLE strata.backup IS 'Base backups as the agent recorded them. The repository is the truth; this is its image in SQL.';
COMMENT ON COLUMN strata.backup.tool IS 'the third-party tool that the data went through; null if it is in the repository itself';
COMMENT ON COLUMN strata.backup.tool_result IS 'what the tool gave back: for each object its exit code, own identifier, size and last messages';

CREATE TABLE strata.log_backup (
    system       text NOT NULL,
    member       text NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('wal', 'history', 'fragment')),
    name         text NOT NULL,
    timeline     integer,
    start_lsn    pg_lsn,
    end_lsn      pg_lsn,
    bytes        bigint NOT NULL,
    stored_bytes bigint NOT NULL,
    checksum     text NOT NULL,
    completed_at timestamptz NOT NULL,
    PRIMARY KEY (system, member, kind, name)
);
COMMENT ON TABLE strata.log_backup IS 'Completed log backups: WAL segments, timeline history files and the fragment log. The repository is the truth; this is its image in SQL.';
