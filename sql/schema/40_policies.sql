-- Tiering policies. docs/design/tier.md explains who may do what, and why these functions run with the rights of their caller.
--
-- Points in time are timestamptz throughout. For a key of type date or timestamp, which knows no zone, they stand for that
-- date or time in UTC; strata.policy_now() is then the local time, also "in UTC", so that both compare.

-- The rights: rows of policy and job are guarded where they are, for the current role.
ALTER TABLE strata.policy ENABLE ROW LEVEL SECURITY;
CREATE POLICY read ON strata.policy FOR SELECT USING (true);
CREATE POLICY own ON strata.policy
    USING (pg_catalog.pg_has_role(CURRENT_USER, (SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = relid), 'USAGE'))
    WITH CHECK (pg_catalog.pg_has_role(CURRENT_USER, (SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = relid), 'USAGE'));
COMMENT ON POLICY own ON strata.policy IS 'a policy belongs to the owner of its table';
ALTER TABLE strata.heat ENABLE ROW LEVEL SECURITY;
CREATE POLICY read ON strata.heat FOR SELECT USING (true);
CREATE POLICY own ON strata.heat
    USING (pg_catalog.pg_has_role(CURRENT_USER, (SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = relid), 'USAGE'))
    WITH CHECK (pg_catalog.pg_has_role(CURRENT_USER, (SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = relid), 'USAGE'));
COMMENT ON POLICY own ON strata.heat IS 'samples are taken by the owner of the table';
ALTER TABLE strata.job ENABLE ROW LEVEL SECURITY;
CREATE POLICY read ON strata.job FOR SELECT USING (true);
CREATE POLICY move ON strata.job TO strata_operate USING (kind IN ('move', 'consolidate')) WITH CHECK (kind IN ('move', 'consolidate'));
COMMENT ON POLICY move ON strata.job IS 'whoever runs policies records the moves';
CREATE POLICY agent ON strata.job TO strata_agent USING (true) WITH CHECK (true);
COMMENT ON POLICY agent ON strata.job IS 'the agent records all its jobs';

-- A dropped table takes its policy with it. The only function here with its owner's rights: a table may be dropped by anybody
-- who owns it. It can be called by the event only.
CREATE FUNCTION strata.forget_dropped() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM strata.policy p
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0 AND p.relid = d.objid;
    DELETE FROM strata.heat h
     USING pg_catalog.pg_event_trigger_dropped_objects() d
     WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0 AND h.relid = d.objid;
END
$$;
COMMENT ON FUNCTION strata.forget_dropped() IS 'removes the policies of dropped tables; internal';
CREATE EVENT TRIGGER strata_forget_dropped ON sql_drop WHEN TAG IN ('DROP TABLE', 'DROP SCHEMA', 'DROP OWNED', 'DROP EXTENSION')
    EXECUTE FUNCTION strata.forget_dropped();
COMMENT ON EVENT TRIGGER strata_forget_dropped IS 'removes the policies of dropped tables';

-- What a managed table is --------------------------------------------------------------------------------------------

CREATE FUNCTION strata.table_name("table" regclass) RETURNS name
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    RETURN COALESCE((SELECT c.relname FROM pg_class c WHERE c.oid = "table"), "table"::oid::text);
COMMENT ON FUNCTION strata.table_name(regclass) IS 'a table''s name for messages, which quote it; internal';

CREATE FUNCTION strata.policy_key("table" regclass, OUT attribute name, OUT type regtype)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    form record;
BEGIN
    SELECT c.oid, c.relkind, c.relpersistence, c.relowner, c.relispartition, t.partstrat, t.partnatts, t.partattrs[0] AS attnum
      INTO form
      FROM pg_class c LEFT JOIN pg_partitioned_table t ON t.partrelid = c.oid
     WHERE c.oid = "table";
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no table with OID %', "table"::oid USING ERRCODE = 'undefined_table';
    END IF;
    IF form.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '"%" is not a table', strata.table_name("table") USING ERRCODE = 'wrong_object_type';
    END IF;
    IF NOT pg_has_role(current_user, form.relowner, 'USAGE') THEN
        RAISE EXCEPTION 'must be owner of table %', strata.table_name("table") USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF form.relkind <> 'p' THEN
        RAISE EXCEPTION 'table "%" is not partitioned', strata.table_name("table") USING ERRCODE = 'wrong_object_type',
            HINT = CASE WHEN form.relispartition
                        THEN format('It is a partition of "%s", which can be managed.', strata.table_name(pg_partition_root("table")))
                        ELSE 'A table that is partitioned BY RANGE on a date or timestamp column can be managed. strata.to_warm() moves any table.' END;
    END IF;
    IF form.relpersistence = 't' THEN
        RAISE EXCEPTION 'table "%" is temporary', strata.table_name("table") USING ERRCODE = 'wrong_object_type',
            HINT = 'Fragments outlive a session; only permanent tables can be managed.';
    END IF;
    IF form.partstrat <> 'r' OR form.partnatts <> 1 OR form.attnum = 0 THEN
        RAISE EXCEPTION 'table "%" is not partitioned by range on one column', strata.table_name("table") USING ERRCODE = 'wrong_object_type',
            DETAIL = format('Its partition key is %s.', pg_get_partkeydef("table")),
            HINT = 'A table that is partitioned BY RANGE on a date or timestamp column can be managed.';
    END IF;
    SELECT a.attname, a.atttypid INTO attribute, type FROM pg_attribute a WHERE a.attrelid = "table" AND a.attnum = form.attnum;
    IF type NOT IN ('date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype) THEN
        RAISE EXCEPTION 'table "%" is partitioned on column "%" of type %', strata.table_name("table"), attribute, type
            USING ERRCODE = 'wrong_object_type',
            HINT = 'The age of a partition is known if the column is a date, timestamp or timestamp with time zone.';
    END IF;
END
$$;
COMMENT ON FUNCTION strata.policy_key(regclass) IS 'checks that the current role may manage a table and that it can be managed; its partition column. Internal';

CREATE FUNCTION strata.policy_now(type regtype) RETURNS timestamptz
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    RETURN CASE WHEN type = 'timestamptz'::regtype THEN now() ELSE localtimestamp AT TIME ZONE 'UTC' END;
COMMENT ON FUNCTION strata.policy_now(regtype) IS 'the present time as partition bounds of that type compare with it; internal';

CREATE FUNCTION strata.policy_cutoff(type regtype, hot_for interval) RETURNS timestamptz
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    RETURN CASE WHEN type = 'timestamptz'::regtype THEN now() - hot_for ELSE (localtimestamp - hot_for) AT TIME ZONE 'UTC' END;
COMMENT ON FUNCTION strata.policy_cutoff(regtype, interval) IS 'partitions whose upper bound is not beyond this are to be warm; internal';

CREATE FUNCTION strata.policy_bound(type regtype, bound text) RETURNS timestamptz
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    RETURN CASE WHEN bound = 'MINVALUE' THEN '-infinity'::timestamptz
                WHEN bound = 'MAXVALUE' THEN 'infinity'::timestamptz
                WHEN type = 'timestamptz'::regtype THEN btrim(bound, '''')::timestamptz
                ELSE btrim(bound, '''')::timestamp AT TIME ZONE 'UTC' END;
COMMENT ON FUNCTION strata.policy_bound(regtype, text) IS 'a partition bound as a point in time; internal';

CREATE FUNCTION strata.policy_literal(type regtype, at timestamptz) RETURNS text
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD'
    RETURN quote_literal(CASE WHEN type = 'timestamptz'::regtype THEN at::text
                              WHEN type = 'date'::regtype THEN (at AT TIME ZONE 'UTC')::date::text
                              ELSE (at AT TIME ZONE 'UTC')::text END);
COMMENT ON FUNCTION strata.policy_literal(regtype, timestamptz) IS 'a point in time as a quoted partition bound; internal';

-- ISO dates go out and come back the same; the style of the session need not.
CREATE FUNCTION strata.policy_ranges("table" regclass, type regtype)
    RETURNS TABLE (partition regclass, lower timestamptz, upper timestamptz)
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD'
BEGIN ATOMIC
    SELECT p.oid::regclass, strata.policy_bound(type, p.range[1]), strata.policy_bound(type, p.range[2])
      FROM (SELECT c.oid, regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \((.*)\) TO \((.*)\)$') AS range
              FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE i.inhparent = "table") p
     WHERE p.range IS NOT NULL
     ORDER BY 2;
END;
COMMENT ON FUNCTION strata.policy_ranges(regclass, regtype) IS 'the partitions of a table with their bounds, without the default partition; internal';

-- The grid: of which width the partitions are, and, for timestamptz, in which time zone that width is counted. Both are
-- read off the newest partitions that exist: a zone is right if the width leads from each lower to each upper bound there.
CREATE FUNCTION strata.policy_grid("table" regclass, type regtype, partition_by interval, OUT width interval, OUT zone text)
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    zones text[] := ARRAY['UTC'];
    best record;
BEGIN
    IF type = 'timestamptz'::regtype THEN
        zones := ARRAY[current_setting('TimeZone'), 'UTC'];
    END IF;
    FOR attempt IN 1..2 LOOP
        WITH newest AS (
            SELECT r.lower, r.upper FROM strata.policy_ranges("table", type) r
             WHERE isfinite(r.lower) AND isfinite(r.upper) ORDER BY r.lower DESC LIMIT 3
        ), local AS (
            SELECT z.name, z.rank, n.lower AT TIME ZONE z.name AS l, n.upper AT TIME ZONE z.name AS u
              FROM newest n CROSS JOIN unnest(zones) WITH ORDINALITY z(name, rank)
        ), width AS (
            SELECT DISTINCT ON (l.name) l.name, l.rank, l.u - l.l AS days,
                   make_interval(months => (12 * (extract(year FROM l.u) - extract(year FROM l.l))
                                            + extract(month FROM l.u) - extract(month FROM l.l))::integer) AS months
              FROM local l ORDER BY l.name, l.l DESC
        ), candidate AS (
            SELECT w.name, w.rank, c.width, c.unit
              FROM width w
             CROSS JOIN LATERAL (VALUES (w.months, 1), (w.days, 2)) c(width, unit)
             WHERE partition_by IS NULL AND c.width > '0'
            UNION ALL
            SELECT w.name, w.rank, partition_by, 0 FROM width w WHERE partition_by IS NOT NULL
        )
        SELECT c.width, c.name, bool_and(l.l + c.width = l.u) AS fits,
               bool_and(l.l = date_trunc('day', l.l)) OR c.width < '1 day' AS aligned
          INTO best
          FROM candidate c JOIN local l ON l.name = c.name
         GROUP BY c.name, c.rank, c.width, c.unit
         ORDER BY 3 DESC, 4 DESC, c.unit, c.rank
         LIMIT 1;
        EXIT WHEN best IS NULL OR best.fits AND best.aligned OR type <> 'timestamptz'::regtype;
        -- Neither the session's zone nor UTC explains the bounds: they were made in another one.
        zones := zones || ARRAY(SELECT z.name FROM pg_timezone_names z ORDER BY z.name COLLATE "C");
    END LOOP;
    width := COALESCE(partition_by, CASE WHEN best.fits THEN best.width END);
    zone := COALESCE(best.name, zones[1]);
    IF date_trunc('day', width) = '0' THEN
        zone := 'UTC';  -- hours are the same everywhere, and UTC has no clock changes
    END IF;
END
$$;
COMMENT ON FUNCTION strata.policy_grid(regclass, regtype, interval) IS 'the width of a table''s partitions (null if they differ) and the time zone in which it is counted; internal';

-- strata.manage and strata.unmanage ----------------------------------------------------------------------------------

CREATE FUNCTION strata.manage("table" regclass, hot_for interval DEFAULT NULL, partition_by interval DEFAULT NULL, ahead integer DEFAULT 2,
                              if_not_exists boolean DEFAULT false, cold_below double precision DEFAULT NULL,
                              hot_above double precision DEFAULT NULL, half_life interval DEFAULT '1 day') RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    key record;
    width interval := partition_by;
    other regclass;
BEGIN
    IF "table" IS NULL OR ahead IS NULL OR if_not_exists IS NULL OR half_life IS NULL THEN
        RAISE EXCEPTION '% must not be null', CASE WHEN "table" IS NULL THEN 'table' WHEN ahead IS NULL THEN 'ahead'
                                                   WHEN if_not_exists IS NULL THEN 'if_not_exists' ELSE 'half_life' END
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF hot_for IS NULL AND cold_below IS NULL THEN
        RAISE EXCEPTION 'hot_for and cold_below must not both be null' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Pass hot_for => ''30 days'' to move partitions by age, cold_below => 10 to move those that are little used, or both.';
    END IF;
    key := strata.policy_key("table");
    IF hot_for <= '0' THEN
        RAISE EXCEPTION 'hot_for must be longer than zero' USING ERRCODE = 'invalid_parameter_value', DETAIL = format('It is %s.', hot_for);
    END IF;
    IF cold_below <= 0 THEN
        RAISE EXCEPTION 'cold_below must be above zero' USING ERRCODE = 'invalid_parameter_value', DETAIL = format('It is %s.', cold_below);
    END IF;
    IF hot_above IS NOT NULL AND (cold_below IS NULL OR hot_above <= cold_below) THEN
        RAISE EXCEPTION 'hot_above must be larger than cold_below' USING ERRCODE = 'invalid_parameter_value',
            DETAIL = format('hot_above is %s, cold_below is %s.', hot_above, COALESCE(cold_below::text, 'null')),
            HINT = 'Between the two a partition stays in the tier where it is.';
    END IF;
    IF half_life <= '0' THEN
        RAISE EXCEPTION 'half_life must be longer than zero' USING ERRCODE = 'invalid_parameter_value', DETAIL = format('It is %s.', half_life);
    END IF;
    IF ahead NOT BETWEEN 0 AND 1000 THEN
        RAISE EXCEPTION 'ahead must be between 0 and 1000' USING ERRCODE = 'invalid_parameter_value', DETAIL = format('It is %s.', ahead);
    END IF;
    IF width <= '0' THEN
        RAISE EXCEPTION 'partition_by must be longer than zero' USING ERRCODE = 'invalid_parameter_value', DETAIL = format('It is %s.', width);
    END IF;
    IF EXISTS (SELECT FROM strata.policy p WHERE p.relid = "table") THEN
        IF NOT if_not_exists THEN
            RAISE EXCEPTION 'table "%" is managed already', strata.table_name("table") USING ERRCODE = 'duplicate_object',
                HINT = 'strata.unmanage() removes its policy.';
        END IF;
        RAISE NOTICE 'table "%" is managed already, skipping', strata.table_name("table");
        RETURN;
    END IF;
    SELECT p.relid INTO other FROM strata.policy p
     WHERE p.relid IN (SELECT a FROM pg_partition_ancestors("table") a UNION SELECT t.relid FROM pg_partition_tree("table") t);
    IF FOUND THEN
        RAISE EXCEPTION 'table "%" shares partitions with managed table "%"', strata.table_name("table"), strata.table_name(other) USING ERRCODE = 'duplicate_object',
            DETAIL = 'Two policies must not decide over one partition.', HINT = format('Use strata.unmanage(%L) first.', other::text);
    END IF;
    IF width IS NULL AND ahead > 0 THEN
        width := (strata.policy_grid("table", key.type, NULL)).width;
        IF width IS NULL THEN
            RAISE EXCEPTION 'the width of the partitions of table "%" is not known', strata.table_name("table") USING ERRCODE = 'invalid_parameter_value',
                DETAIL = 'It has no partitions with two bounds, or the newest of them are of different widths.',
                HINT = 'Pass partition_by, for example partition_by => ''1 month''; or ahead => 0 to create no partitions.';
        END IF;
    END IF;
    IF key.type = 'date'::regtype AND width <> date_trunc('day', width) THEN
        RAISE EXCEPTION 'partition_by must be whole days for table "%"', strata.table_name("table") USING ERRCODE = 'invalid_parameter_value',
            DETAIL = format('It is %s, and column "%s" is a date.', width, key.attribute);
    END IF;
    INSERT INTO strata.policy (relid, hot_for, partition_by, ahead, cold_below, hot_above, half_life)
    VALUES ("table", hot_for, width, ahead, cold_below, hot_above, half_life);
END
$$;
COMMENT ON FUNCTION strata.manage(regclass, interval, interval, integer, boolean, double precision, double precision, interval) IS 'makes a tiering policy: partitions of the table become warm hot_for after their upper bound, or when their heat is below cold_below, or when both hold if both are given; hot again when it is at least hot_above; and new partitions are created ahead';

CREATE FUNCTION strata.unmanage("table" regclass, if_exists boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF "table" IS NULL THEN
        RAISE EXCEPTION 'table must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF NOT COALESCE(pg_has_role(current_user, (SELECT c.relowner FROM pg_class c WHERE c.oid = "table"), 'USAGE'), true) THEN
        RAISE EXCEPTION 'must be owner of table %', strata.table_name("table") USING ERRCODE = 'insufficient_privilege';
    END IF;
    DELETE FROM strata.policy p WHERE p.relid = "table";
    IF FOUND THEN
        RETURN;
    ELSIF if_exists THEN
        RAISE NOTICE 'table "%" is not managed, skipping', strata.table_name("table");
    ELSE
        RAISE EXCEPTION 'table "%" is not managed', strata.table_name("table") USING ERRCODE = 'undefined_object',
            HINT = 'strata.policies shows the managed tables.';
    END IF;
END
$$;
COMMENT ON FUNCTION strata.unmanage(regclass, boolean) IS 'removes the tiering policy of a table; its partitions stay in the tiers where they are';
