-- Runs of the tiering policies. The procedure commits after each partition, so it can neither be SECURITY DEFINER nor pin its
-- search_path: it holds no expression with an operator, and all the work is in functions that pin theirs.

CREATE FUNCTION strata.policy_lock() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    RETURN x'737472617461'::bigint;
COMMENT ON FUNCTION strata.policy_lock() IS 'key of the advisory lock that a run of the policies holds; internal';

-- COMMIT fails in an exception block in any case, but with one message in a transaction block (or a function, as here) and
-- with another one outside.
CREATE FUNCTION strata.policy_outside_block(message text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    inside text;
BEGIN
    BEGIN
        COMMIT;
    EXCEPTION WHEN invalid_transaction_termination THEN
        inside := SQLERRM;
    END;
    IF message = inside THEN
        RAISE EXCEPTION 'strata.run_policies() cannot run inside a transaction block' USING ERRCODE = 'active_sql_transaction',
            DETAIL = 'It commits after each partition.',
            HINT = 'Call it alone: neither between BEGIN and COMMIT, nor from a function, nor with other statements in one string.';
    END IF;
END
$$;
COMMENT ON FUNCTION strata.policy_outside_block(text) IS 'raises an error if message is what COMMIT says in a transaction block; internal';

CREATE FUNCTION strata.policy_begin("table" regclass) RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF "table" IS NOT NULL THEN
        PERFORM strata.policy_key("table");
        IF NOT EXISTS (SELECT FROM strata.policy p WHERE p.relid = "table") THEN
            RAISE EXCEPTION 'table "%" is not managed', strata.table_name("table") USING ERRCODE = 'undefined_object',
                HINT = 'strata.manage() makes a policy for it.';
        END IF;
    END IF;
    -- A run of this session that ended with an error has left the lock, which is then ours.
    IF NOT EXISTS (SELECT FROM pg_locks l
                    WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid() AND l.granted AND l.objsubid = 1
                      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                      AND (l.classid::bigint << 32 | l.objid::bigint) = strata.policy_lock())
       AND NOT pg_try_advisory_lock(strata.policy_lock()) THEN
        RAISE NOTICE 'another session runs the policies of this database, skipping';
        RETURN false;
    END IF;
    -- Nobody else runs policies now, so what still counts as running was interrupted.
    UPDATE strata.job j
       SET state = 'failed', error = 'interrupted: the server or the session ended meanwhile', finished_at = clock_timestamp()
     WHERE j.kind IN ('move', 'consolidate') AND j.state = 'running';
    DELETE FROM strata.policy p WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = p.relid);
    DELETE FROM strata.heat h WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = h.relid);
    RETURN true;
END
$$;
COMMENT ON FUNCTION strata.policy_begin(regclass) IS 'checks a run''s argument, takes its lock and clears up after an interrupted run; false if another session has the lock. Internal';

CREATE FUNCTION strata.policy_end() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_unlock(strata.policy_lock());
END
$$;
COMMENT ON FUNCTION strata.policy_end() IS 'releases the lock of a run; internal';

CREATE FUNCTION strata.policy_tables("table" regclass) RETURNS regclass[]
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found regclass[] := '{}';
    policy record;
BEGIN
    FOR policy IN
        SELECT p.relid, pg_has_role(current_user, c.relowner, 'USAGE') AS mine
          FROM strata.policy p JOIN pg_class c ON c.oid = p.relid
         WHERE CASE WHEN "table" IS NULL THEN p.enabled ELSE p.relid = "table" END
         ORDER BY p.created_at, p.relid::oid
    LOOP
        IF policy.mine THEN
            found := found || policy.relid::regclass;
        ELSE
            RAISE NOTICE 'skipping table %: only its owner can run its policy', policy.relid;
        END IF;
    END LOOP;
    RETURN found;
END
$$;
COMMENT ON FUNCTION strata.policy_tables(regclass) IS 'the tables of a run; internal';

-- Partitions ahead ---------------------------------------------------------------------------------------------------

-- In the style of the newest partitions' names: what is around the date there, and the date in the same form.
CREATE FUNCTION strata.policy_partition_name("table" regclass, type regtype, lower timestamptz, width interval, zone text) RETURNS name
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    formats text[] := ARRAY['YYYYMMDDHH24MISS', 'YYYYMMDD_HH24MISS', 'YYYYMMDDHH24MI', 'YYYYMMDD_HH24MI', 'YYYY_MM_DD_HH24MI',
                            'YYYYMMDDHH24', 'YYYYMMDD_HH24', 'YYYY_MM_DD_HH24', 'YYYYMMDD', 'YYYY_MM_DD', 'YYYY-MM-DD',
                            'YYYYMM', 'YYYY_MM', 'YYYY-MM', '"y"YYYY"m"MM', 'IYYY"w"IW', 'IYYY_"w"IW', 'IYYY_IW',
                            'YYYY"q"Q', 'YYYY_"q"Q', 'YYYY_Q', 'YYYY'];
    parent record;
    style record;
    stamp text;
    made name;
BEGIN
    SELECT c.relname, c.relnamespace INTO parent FROM pg_class c WHERE c.oid = "table";
    WITH newest AS (
        SELECT c.relname::text AS relname, r.lower AT TIME ZONE zone AS at
          FROM strata.policy_ranges("table", type) r JOIN pg_class c ON c.oid = r.partition
         WHERE isfinite(r.lower) ORDER BY r.lower DESC LIMIT 3
    ), part AS (
        SELECT f.format, f.rank, n.relname, to_char(n.at, f.format) AS stamp, strpos(n.relname, to_char(n.at, f.format)) AS pos
          FROM newest n CROSS JOIN unnest(formats) WITH ORDINALITY f(format, rank)
    )
    SELECT p.format, min(left(p.relname, p.pos - 1)) AS prefix, min(substr(p.relname, p.pos + length(p.stamp))) AS suffix
      INTO style
      FROM part p
     GROUP BY p.format, p.rank
    HAVING bool_and(p.pos > 0) AND count(DISTINCT left(p.relname, p.pos - 1)) = 1
       AND count(DISTINCT substr(p.relname, p.pos + length(p.stamp))) = 1
     ORDER BY p.rank LIMIT 1;
    IF FOUND THEN
        stamp := style.prefix || to_char(lower AT TIME ZONE zone, style.format) || style.suffix;
        IF octet_length(stamp) <= 63
           AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = parent.relnamespace AND c.relname = stamp) THEN
            RETURN stamp;
        END IF;
    END IF;
    stamp := to_char(lower AT TIME ZONE zone, CASE WHEN date_trunc('day', width) = width THEN '"_p"YYYYMMDD' ELSE '"_p"YYYYMMDD_HH24MISS' END);
    made := parent.relname;
    WHILE octet_length(made::text || stamp) > 63 LOOP
        made := left(made::text, -1);
    END LOOP;
    RETURN made::text || stamp;
END
$$;
COMMENT ON FUNCTION strata.policy_partition_name(regclass, regtype, timestamptz, interval, text) IS 'the name of a new partition; internal';

-- A table that is made first and then attached: that locks the partitioned table only against other DDL, while CREATE TABLE ...
-- PARTITION OF would wait for, and hold up, every query of it.
CREATE FUNCTION strata.policy_create_partition("table" regclass, key record, made name, lower timestamptz, upper timestamptz) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    low text := strata.policy_literal(key.type, lower);
    high text := strata.policy_literal(key.type, upper);
    parent record;
    partition text;
    occupied boolean;
    message text;
    fact text;
BEGIN
    SELECT n.nspname, c.relowner, c.reltablespace, s.spcname, NULLIF(t.partdefid, 0)::regclass AS rest
      INTO parent
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_partitioned_table t ON t.partrelid = c.oid
      LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
     WHERE c.oid = "table";
    partition := format('%I.%I', parent.nspname, made);
    IF parent.rest IS NOT NULL THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE %I >= %s AND %I < %s)', parent.rest, key.attribute, low, key.attribute, high)
           INTO occupied;
        IF occupied THEN
            RAISE WARNING 'could not create partition % of table %', partition, "table" USING
                DETAIL = format('The default partition %s has rows from %s to %s.', parent.rest, low, high),
                HINT = 'Move these rows to a partition of their own; later runs create the partitions after it.';
            RETURN;
        END IF;
    END IF;
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING STORAGE INCLUDING COMPRESSION) USING heap %s',
                   partition, "table", 'TABLESPACE ' || quote_ident(parent.spcname));
    IF pg_get_userbyid(parent.relowner) <> current_user THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %I', partition, pg_get_userbyid(parent.relowner));
    END IF;
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', "table", partition, low, high);
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, fact = PG_EXCEPTION_DETAIL;
    RAISE WARNING 'could not create partition % of table %', partition, "table" USING DETAIL = concat_ws(E'\n', message, NULLIF(fact, ''));
END
$$;
COMMENT ON FUNCTION strata.policy_create_partition(regclass, record, name, timestamptz, timestamptz) IS 'creates one partition, or warns why not; internal';

CREATE FUNCTION strata.policy_create_ahead("table" regclass) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key record := strata.policy_key("table");
    policy record;
    grid record;
    at timestamptz := strata.policy_now(key.type);
    anchor timestamp;
    steps double precision;
    low timestamptz;
    high timestamptz;
BEGIN
    SELECT p.ahead, p.partition_by INTO policy FROM strata.policy p WHERE p.relid = "table";
    IF policy.ahead IS NULL OR policy.ahead = 0 THEN
        RETURN;
    END IF;
    grid := strata.policy_grid("table", key.type, policy.partition_by);
    IF grid.width IS NULL THEN
        RAISE EXCEPTION 'the width of the partitions of table "%" is not known', strata.table_name("table") USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- First the partition that holds the present time. Older holes are left alone: who has rows for them makes partitions.
    SELECT r.upper INTO high FROM strata.policy_ranges("table", key.type) r WHERE r.lower <= at AND r.upper > at;
    IF NOT FOUND THEN
        SELECT COALESCE(max(r.upper) FILTER (WHERE r.upper <= at AND isfinite(r.upper)), min(r.lower) FILTER (WHERE r.lower > at AND isfinite(r.lower)))
               AT TIME ZONE grid.zone
          INTO anchor FROM strata.policy_ranges("table", key.type) r;
        -- Without a neighbour: months and years from a January 1, weeks from a Monday.
        anchor := COALESCE(anchor, CASE WHEN extract(epoch FROM grid.width) % 604800 = 0 AND grid.width < '1 month' THEN timestamp '2001-01-01' ELSE timestamp '2000-01-01' END);
        steps := extract(epoch FROM (at AT TIME ZONE grid.zone) - anchor) / extract(epoch FROM grid.width);
        steps := floor(CASE WHEN steps > 0 THEN 0.95 * steps ELSE 1.05 * steps - 1 END);
        WHILE (anchor + (steps + 1) * grid.width) AT TIME ZONE grid.zone <= at LOOP
            steps := steps + 1;
        END LOOP;
        low := (anchor + steps * grid.width) AT TIME ZONE grid.zone;
        high := (anchor + (steps + 1) * grid.width) AT TIME ZONE grid.zone;
        SELECT COALESCE(max(r.upper) FILTER (WHERE r.upper > low AND r.upper <= at), low), COALESCE(min(r.lower) FILTER (WHERE r.lower > at AND r.lower < high), high)
          INTO low, high FROM strata.policy_ranges("table", key.type) r;
        PERFORM strata.policy_create_partition("table", key, strata.policy_partition_name("table", key.type, low, grid.width, grid.zone), low, high);
    END IF;
    FOR i IN 1..policy.ahead LOOP
        EXIT WHEN NOT isfinite(high);
        low := high;
        SELECT r.upper INTO high FROM strata.policy_ranges("table", key.type) r WHERE r.lower <= low AND r.upper > low;
        CONTINUE WHEN FOUND;
        high := ((low AT TIME ZONE grid.zone) + grid.width) AT TIME ZONE grid.zone;
        SELECT COALESCE(min(r.lower), high) INTO high
          FROM strata.policy_ranges("table", key.type) r WHERE r.lower > low AND r.lower < high;
        PERFORM strata.policy_create_partition("table", key, strata.policy_partition_name("table", key.type, low, grid.width, grid.zone), low, high);
    END LOOP;
END
$$;
COMMENT ON FUNCTION strata.policy_create_ahead(regclass) IS 'creates the partition that holds the present time and those ahead that are missing; internal';

-- Heat ---------------------------------------------------------------------------------------------------------------

-- The statistics count from some time on, and start again when they are reset; what is new since the last sample is added.
CREATE FUNCTION strata.policy_sample("table" regclass) RETURNS void
    LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO strata.heat AS h (relid, seen_reads, seen_writes)
    SELECT t.relid, s.seq_scan + COALESCE(s.idx_scan, 0), s.n_tup_ins + s.n_tup_upd + s.n_tup_del
      FROM pg_partition_tree("table") t
      JOIN pg_class c ON c.oid = t.relid AND c.relkind = 'r'
      JOIN pg_stat_all_tables s ON s.relid = t.relid
        ON CONFLICT (relid) DO UPDATE SET
           reads = strata.heat_now(h.reads, (SELECT p.half_life FROM strata.policy p WHERE p.relid = "table"), h.sampled_at)
                   + excluded.seen_reads - CASE WHEN excluded.seen_reads >= h.seen_reads THEN h.seen_reads ELSE 0 END,
           writes = strata.heat_now(h.writes, (SELECT p.half_life FROM strata.policy p WHERE p.relid = "table"), h.sampled_at)
                    + excluded.seen_writes - CASE WHEN excluded.seen_writes >= h.seen_writes THEN h.seen_writes ELSE 0 END,
           last_read = CASE WHEN excluded.seen_reads NOT IN (h.seen_reads, 0) THEN now() ELSE h.last_read END,
           last_write = CASE WHEN excluded.seen_writes NOT IN (h.seen_writes, 0) THEN now() ELSE h.last_write END,
           seen_reads = excluded.seen_reads,
           seen_writes = excluded.seen_writes,
           sampled_at = now();
END;
COMMENT ON FUNCTION strata.policy_sample(regclass) IS 'samples the heat of the partitions of a managed table; internal';

-- Moves --------------------------------------------------------------------------------------------------------------

CREATE FUNCTION strata.policy_due("table" regclass) RETURNS SETOF regclass
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key record := strata.policy_key("table");
BEGIN
    RETURN QUERY
        SELECT t.relid
          FROM strata.policy p
         CROSS JOIN LATERAL strata.policy_ranges("table", key.type) r
         CROSS JOIN LATERAL pg_partition_tree(r.partition) t
          JOIN pg_class c ON c.oid = t.relid AND c.relkind = 'r' AND c.relpersistence = 'p'
          JOIN pg_am a ON a.oid = c.relam AND a.amname = 'heap'
          LEFT JOIN strata.heat h ON h.relid = t.relid
         WHERE p.relid = "table" AND isfinite(r.upper) AND r.upper <= strata.policy_cutoff(key.type, COALESCE(p.hot_for, '0'))
               -- What was not watched for a while is not known to be cold.
           AND (p.cold_below IS NULL
                OR h.since <= now() - p.half_life AND strata.heat_now(h.reads + h.writes, p.half_life, h.sampled_at) < p.cold_below)
         ORDER BY r.upper, c.relname;
END
$$;
COMMENT ON FUNCTION strata.policy_due(regclass) IS 'the hot leaf partitions of a managed table that are to be warm by its policy; internal';

CREATE FUNCTION strata.policy_heated("table" regclass) RETURNS SETOF regclass
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.relid
      FROM strata.policy p
     CROSS JOIN LATERAL pg_partition_tree("table") t
      JOIN strata.heat h ON h.relid = t.relid
      JOIN pg_class c ON c.oid = t.relid AND c.relkind = 'r' AND c.relpersistence = 'p'
      JOIN pg_am a ON a.oid = c.relam AND a.amname = 'warm'
     WHERE p.relid = "table" AND strata.heat_now(h.reads + h.writes, p.half_life, h.sampled_at) >= p.hot_above
     ORDER BY c.relname;
END;
COMMENT ON FUNCTION strata.policy_heated(regclass) IS 'the warm leaf partitions of a managed table that are to be hot again by its policy; internal';

-- Fragments that lost strata.consolidate_threshold of their rows, or a delta store of a twentieth of the rows.
CREATE FUNCTION strata.policy_worn("table" regclass) RETURNS SETOF regclass
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.relid
      FROM pg_partition_tree("table") t
      JOIN pg_class c ON c.oid = t.relid AND c.relkind = 'r' AND c.relpersistence = 'p'
      JOIN pg_am a ON a.oid = c.relam AND a.amname = 'warm'
     CROSS JOIN LATERAL (
          SELECT COALESCE(sum(f.rows), 0) AS rows,
                 COALESCE(bool_or(f.deleted_rows > 0 AND f.deleted_rows >= current_setting('strata.consolidate_threshold')::float8 * f.rows), false) AS worn
            FROM strata.fragments f WHERE f."table" = t.relid) s
     WHERE s.worn OR (pg_relation_size(c.oid) / current_setting('block_size')::bigint - 1) * 80 > GREATEST(10000, s.rows / 20)
     ORDER BY c.relname;
END;
COMMENT ON FUNCTION strata.policy_worn(regclass) IS 'the warm leaf partitions of a managed table that are worth consolidating; internal';

CREATE FUNCTION strata.policy_prepare("table" regclass) RETURNS regclass[]
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    message text;
BEGIN
    BEGIN
        PERFORM strata.policy_create_ahead("table");
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
        RAISE WARNING 'could not create partitions of table % ahead', "table" USING DETAIL = message;
    END;
    PERFORM strata.policy_sample("table");
    RETURN ARRAY(SELECT strata.policy_due("table") UNION ALL SELECT strata.policy_heated("table"));
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
    RAISE WARNING 'could not run the policy of table %', "table" USING DETAIL = message;
    RETURN '{}';
END
$$;
COMMENT ON FUNCTION strata.policy_prepare(regclass) IS 'creates partitions ahead, samples heat, and returns the partitions to move; internal';

CREATE FUNCTION strata.policy_move_begin("table" regclass, partition regclass) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job bigint;
    direction text := 'to warm';
BEGIN
    -- The run began a while ago: the partition may be gone, moved, or out of the policy by now.
    IF partition IN (SELECT d FROM strata.policy_due("table") d) THEN
        direction := 'to warm';
    ELSIF partition IN (SELECT h FROM strata.policy_heated("table") h) THEN
        direction := 'to hot';
    ELSE
        RETURN NULL;
    END IF;
    INSERT INTO strata.job (kind, object, phase)
    SELECT 'move', format('%I.%I', n.nspname, c.relname), direction
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = partition
    RETURNING job_id INTO job;
    RETURN job;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'could not move partition % %', partition, direction USING DETAIL = SQLERRM;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION strata.policy_move_begin(regclass, regclass) IS 'records a move that begins; null if the partition is not to be moved. Internal';

CREATE FUNCTION strata.policy_to_consolidate("table" regclass) RETURNS regclass[]
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(SELECT strata.policy_worn("table"));
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'could not look for partitions of table % to consolidate', "table" USING DETAIL = SQLERRM;
    RETURN '{}';
END
$$;
COMMENT ON FUNCTION strata.policy_to_consolidate(regclass) IS 'the partitions that a run consolidates; internal';

CREATE FUNCTION strata.policy_consolidate_begin("table" regclass, partition regclass) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job bigint;
BEGIN
    INSERT INTO strata.job (kind, object)
    SELECT 'consolidate', format('%I.%I', n.nspname, c.relname)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = partition AND partition IN (SELECT w FROM strata.policy_worn("table") w)
    RETURNING job_id INTO job;
    RETURN job;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'could not consolidate partition %', partition USING DETAIL = SQLERRM;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION strata.policy_consolidate_begin(regclass, regclass) IS 'records a consolidation that begins; null if there is nothing to do any more. Internal';

CREATE FUNCTION strata.policy_consolidate(job bigint, partition regclass) RETURNS text
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    report record;
    code text;
    message text;
    fact text;
    advice text;
BEGIN
    SELECT * INTO report FROM strata.consolidate(partition);
    -- Nothing that every snapshot sees as deleted yet: a later run finds it.
    DELETE FROM strata.job j
     WHERE j.job_id = job AND report.rows_removed = 0 AND report.rows_absorbed = 0 AND report.fragments_before = report.fragments_after;
    UPDATE strata.job j SET state = 'done', finished_at = clock_timestamp(), result = to_jsonb(report) WHERE j.job_id = job;
    RETURN NULL;
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, fact = PG_EXCEPTION_DETAIL, advice = PG_EXCEPTION_HINT;
    RETURN strata.policy_failed(job, partition, code, message, fact, advice);
END
$$;
COMMENT ON FUNCTION strata.policy_consolidate(bigint, regclass) IS 'consolidates a partition and records how it went; the message if the statement was canceled. Internal';

CREATE FUNCTION strata.policy_failed(job bigint, partition regclass, code text, message text, fact text, advice text) RETURNS text
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    attempts bigint;
    kind text;
    direction text;
BEGIN
    -- One row stands for all failures of a partition for the same reason, so that retries do not fill the table.
    WITH same AS (
        DELETE FROM strata.job j
         USING strata.job own
         WHERE own.job_id = job AND j.kind = own.kind AND j.state = 'failed' AND j.object = own.object AND j.result ->> 'sqlstate' = code
        RETURNING (j.result ->> 'attempts')::bigint AS attempts
    )
    SELECT 1 + COALESCE(sum(s.attempts), 0) INTO attempts FROM same s;
    UPDATE strata.job j
       SET state = 'failed', error = concat_ws(E'\n', message, NULLIF(fact, ''), NULLIF(advice, '')), finished_at = clock_timestamp(),
           result = jsonb_build_object('sqlstate', code, 'attempts', attempts)
     WHERE j.job_id = job
    RETURNING j.kind, j.phase INTO kind, direction;
    IF code = '57014' THEN
        RETURN message;
    END IF;
    IF kind = 'move' THEN
        RAISE WARNING 'could not move partition % %', partition, direction
            USING ERRCODE = code, DETAIL = concat_ws(E'\n', message, NULLIF(fact, '')), HINT = advice;
    ELSE
        RAISE WARNING 'could not consolidate partition %', partition
            USING ERRCODE = code, DETAIL = concat_ws(E'\n', message, NULLIF(fact, '')), HINT = advice;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION strata.policy_failed(bigint, regclass, text, text, text, text) IS 'records a failed job of a run; the message if the statement was canceled. Internal';

CREATE FUNCTION strata.policy_move(job bigint, partition regclass) RETURNS text
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before bigint := pg_total_relation_size(partition);
    moved bigint;
    code text;
    message text;
    fact text;
    advice text;
    direction text;
BEGIN
    BEGIN
        SELECT j.phase INTO direction FROM strata.job j WHERE j.job_id = job;
        moved := CASE direction WHEN 'to hot' THEN strata.to_hot(partition) ELSE strata.to_warm(partition) END;
        UPDATE strata.job j
           SET state = 'done', done = moved, total = moved, finished_at = clock_timestamp(),
               result = jsonb_build_object('rows', moved, 'bytes_before', before, 'bytes_after', pg_total_relation_size(partition)
                            + COALESCE((SELECT sum(f.bytes) FROM strata.fragments f WHERE f."table" = partition), 0)::bigint)
         WHERE j.job_id = job;
        RETURN NULL;
    EXCEPTION WHEN query_canceled OR OTHERS THEN
        GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, fact = PG_EXCEPTION_DETAIL, advice = PG_EXCEPTION_HINT;
    END;
    IF code <> '57014' AND EXISTS (SELECT FROM pg_class c JOIN pg_am a ON a.oid = c.relam
                                    WHERE c.oid = partition AND (a.amname = 'warm') = (direction <> 'to hot')) THEN
        DELETE FROM strata.job j WHERE j.job_id = job;  -- somebody moved it by hand, while this waited for the lock
        RETURN NULL;
    END IF;
    RETURN strata.policy_failed(job, partition, code, message, fact, advice);
END
$$;
COMMENT ON FUNCTION strata.policy_move(bigint, regclass) IS 'moves a partition and records how it went; the message if the statement was canceled. Internal';

CREATE FUNCTION strata.policy_canceled(message text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '%', message USING ERRCODE = 'query_canceled';
END
$$;
COMMENT ON FUNCTION strata.policy_canceled(text) IS 'ends a run that was canceled; internal';

CREATE PROCEDURE strata.run_policies("table" regclass DEFAULT NULL)
    LANGUAGE plpgsql
AS $$
DECLARE
    managed pg_catalog.regclass;
    partition pg_catalog.regclass;
    tables pg_catalog.regclass[];
    partitions pg_catalog.regclass[];
    job pg_catalog.int8;
    canceled pg_catalog.text;
BEGIN
    BEGIN
        COMMIT;
    EXCEPTION WHEN invalid_transaction_termination THEN
        PERFORM strata.policy_outside_block(SQLERRM);
    END;
    IF NOT strata.policy_begin("table") THEN
        RETURN;
    END IF;
    COMMIT;
    tables := strata.policy_tables("table");
    FOREACH managed IN ARRAY tables LOOP
        partitions := strata.policy_prepare(managed);
        COMMIT;
        FOREACH partition IN ARRAY partitions LOOP
            job := strata.policy_move_begin(managed, partition);
            COMMIT;
            IF job IS NOT NULL THEN
                canceled := strata.policy_move(job, partition);
                COMMIT;
                IF canceled IS NOT NULL THEN
                    PERFORM strata.policy_end();
                    PERFORM strata.policy_canceled(canceled);
                END IF;
            END IF;
        END LOOP;
        partitions := strata.policy_to_consolidate(managed);
        COMMIT;
        FOREACH partition IN ARRAY partitions LOOP
            job := strata.policy_consolidate_begin(managed, partition);
            COMMIT;
            IF job IS NOT NULL THEN
                canceled := strata.policy_consolidate(job, partition);
                COMMIT;
                IF canceled IS NOT NULL THEN
                    PERFORM strata.policy_end();
                    PERFORM strata.policy_canceled(canceled);
                END IF;
            END IF;
        END LOOP;
    END LOOP;
    PERFORM strata.policy_end();
END
$$;
COMMENT ON PROCEDURE strata.run_policies(regclass) IS 'runs the policies of all managed tables, or of one: creates partitions ahead, moves partitions as the policy says and consolidates worn ones, each in a transaction of its own; one run at a time in a database';
