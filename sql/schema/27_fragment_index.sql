-- The fragment index: segments over the fragments of warm tables. docs/design/fragment-index.md has the design; the extension writes and
-- reads these tables below the executor.

CREATE SEQUENCE strata.segment_id;
COMMENT ON SEQUENCE strata.segment_id IS 'numbers of segments, none of which is used twice';

CREATE TABLE strata.segment (
    segment_id   bigint PRIMARY KEY,
    relid        oid NOT NULL,
    filenode     oid NOT NULL,
    level        integer NOT NULL,
    first_row_id bigint NOT NULL,
    end_row_id   bigint NOT NULL,
    fragments    bigint NOT NULL,
    rows         bigint NOT NULL,
    keys         text NOT NULL,
    page_bytes   bigint NOT NULL,
    directory    bytea NOT NULL,
    created_at   timestamptz NOT NULL
);
CREATE INDEX segment_file ON strata.segment (relid, filenode, first_row_id);
COMMENT ON TABLE strata.segment IS 'The fragment index: each segment spans fragments of one relation file that are neighbours in age. strata.segments shows them by name';
COMMENT ON COLUMN strata.segment.level IS '0: a fragment''s own; four segments of one level become one of the next';
COMMENT ON COLUMN strata.segment.keys IS 'the attribute numbers of the keys that it has pages for: 1,2;4';
COMMENT ON COLUMN strata.segment.directory IS 'its fragments and the bounds of their columns, versioned and with a checksum';

CREATE TABLE strata.segment_page (
    segment_id bigint NOT NULL,
    page       integer NOT NULL,
    data       bytea NOT NULL,
    PRIMARY KEY (segment_id, page)
);
ALTER TABLE strata.segment_page ALTER COLUMN data SET STORAGE MAIN;
COMMENT ON TABLE strata.segment_page IS 'The pages of segments: from hashes of keys to row ids, each with a checksum. A page is never changed';

CREATE FUNCTION strata.rebuild_index("table" regclass, OUT segments bigint, OUT fragments bigint, OUT bytes bigint) RETURNS SETOF record
    LANGUAGE C STRICT VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'strata_rebuild_index_wrapper';
COMMENT ON FUNCTION strata.rebuild_index(regclass) IS 'writes the fragment index of a warm table again from its fragments, while the table is in use; fragments that are not in the store are fetched';

CREATE FUNCTION strata.fragment_index_counters(OUT lookups bigint, OUT segments_probed bigint, OUT pages_read bigint, OUT fragments_probed bigint,
        OUT row_ids bigint, OUT damaged bigint) RETURNS SETOF record
    LANGUAGE C STRICT VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'strata_fragment_index_counters_wrapper';
COMMENT ON FUNCTION strata.fragment_index_counters() IS 'what this session asked of the fragment index; the view strata.stat_fragment_index has it';

CREATE VIEW strata.stat_fragment_index AS
SELECT lookups, segments_probed, pages_read, fragments_probed, row_ids, damaged FROM strata.fragment_index_counters();
COMMENT ON VIEW strata.stat_fragment_index IS 'What this session has asked of the fragment indexes of all tables since it began';
COMMENT ON COLUMN strata.stat_fragment_index.lookups IS 'look-ups of a key: by queries, for unique constraints and for ON CONFLICT';
COMMENT ON COLUMN strata.stat_fragment_index.segments_probed IS 'segments that these asked; it grows with the logarithm of the number of fragments';
COMMENT ON COLUMN strata.stat_fragment_index.pages_read IS 'pages of segments that were read from the catalog; others were in the session''s memory';
COMMENT ON COLUMN strata.stat_fragment_index.fragments_probed IS 'fragments that were asked for a key: those that the segments did not exclude';
COMMENT ON COLUMN strata.stat_fragment_index.row_ids IS 'row ids whose fragment was looked for';
COMMENT ON COLUMN strata.stat_fragment_index.damaged IS 'times that a segment or a page was found to be damaged or missing, so that fragments were looked at instead';

CREATE VIEW strata.segments AS
SELECT c.oid::pg_catalog.regclass AS "table", s.segment_id, s.level, s.fragments, s.rows, s.first_row_id, s.end_row_id - 1 AS last_row_id,
       pg_catalog.pg_column_size(s.directory) AS directory_bytes, s.page_bytes,
       ARRAY(SELECT (SELECT pg_catalog.string_agg(a.attname, ', ' ORDER BY n.i)
                       FROM pg_catalog.string_to_table(k.key, ',') WITH ORDINALITY n (attnum, i)
                       JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = n.attnum::smallint)
               FROM pg_catalog.string_to_table(s.keys, ';') WITH ORDINALITY k (key, i) WHERE k.key <> '' ORDER BY k.i) AS keys,
       s.created_at
  FROM strata.segment s
  JOIN pg_catalog.pg_class c ON c.oid = s.relid AND c.relfilenode = s.filenode;
COMMENT ON VIEW strata.segments IS 'The fragment index of warm tables, segment by segment';
COMMENT ON COLUMN strata.segments.level IS '0: a segment of one fragment''s own; four segments of one level become one of the next';
COMMENT ON COLUMN strata.segments.fragments IS 'the number of fragments that it spans';
COMMENT ON COLUMN strata.segments.first_row_id IS 'the first row id of its fragments';
COMMENT ON COLUMN strata.segments.directory_bytes IS 'the bytes that the fragments'' row ids and bounds take';
COMMENT ON COLUMN strata.segments.page_bytes IS 'the bytes of its key maps';
COMMENT ON COLUMN strata.segments.keys IS 'unique keys for which it knows which of its fragments may have a value; others are told apart by the bounds of their columns';
