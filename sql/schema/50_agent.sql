-- What the agent does, as functions. They run with their owner's rights because strata.agent_call(), which sends anything to
-- the agent, is granted to nobody; and they need EXECUTE, which strata_operate has: the agent acts as the operating
-- system's user that runs PostgreSQL.

CREATE FUNCTION strata.agent_ping() RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN strata.agent_call('{"op": "ping"}');
END
$$;
COMMENT ON FUNCTION strata.agent_ping() IS 'asks the agent who it is; an error if no agent listens';

CREATE FUNCTION strata.backup(label text DEFAULT NULL) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF label IS NOT NULL AND (label !~ '\S' OR label ~ '[[:cntrl:]]' OR length(label) > 200) THEN
        RAISE EXCEPTION 'invalid label of a backup: %', quote_literal(left(label, 60)) USING ERRCODE = 'invalid_parameter_value',
            DETAIL = 'A label has 1 to 200 characters, on one line.';
    END IF;
    RETURN strata.agent_call(jsonb_build_object('op', 'backup', 'label', label));
END
$$;
COMMENT ON FUNCTION strata.backup(text) IS 'has the agent take a backup; shows its progress and returns its entry';

CREATE FUNCTION strata.agent_target(target text) RETURNS text
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    said text := btrim(target);
    at timestamptz;
BEGIN
    IF target IS NULL THEN
        RAISE EXCEPTION 'target must not be null' USING ERRCODE = 'null_value_not_allowed', HINT = 'The end of the archive is ''latest''.';
    ELSIF lower(said) = 'latest' OR said ~ '^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$' OR said ~ '^\d{8}T\d{6}Z(-\d{1,3})?$' THEN
        RETURN said;
    ELSIF said ~ '^\d{4}-\d' THEN
        at := said::timestamptz;
        IF isfinite(at) THEN
            RETURN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
        END IF;
    END IF;
    RAISE invalid_parameter_value;
EXCEPTION WHEN invalid_parameter_value OR invalid_datetime_format OR datetime_field_overflow THEN
    RAISE EXCEPTION '% is not a recovery target', quote_literal(target) USING ERRCODE = 'invalid_parameter_value',
        HINT = 'A target is ''latest'', a position like ''0/16B3748'', a time like ''2026-01-31 09:30:00+01'', or a backup''s id.';
END
$$;
COMMENT ON FUNCTION strata.agent_target(text) IS 'a recovery target as the agent reads it: times without a zone are in that of the session. Internal';

CREATE FUNCTION strata.recovery_plan(target text DEFAULT 'latest') RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN strata.agent_call(jsonb_build_object('op', 'recovery_plan', 'target', strata.agent_target(target)));
END
$$;
COMMENT ON FUNCTION strata.recovery_plan(text) IS 'names the backup, log backups and fragments that a recovery to the target needs, and what is missing';

CREATE FUNCTION strata.agent_recovery_window()
    RETURNS TABLE (timeline integer, current boolean, restorable boolean, from_time timestamptz, to_time timestamptz, from_lsn pg_lsn, to_lsn pg_lsn,
        backups bigint, reason text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT t.timeline, t.current, w.restorable, w.from_time, w.to_time, w.from_lsn, w.to_lsn, w.backups, w.why
      FROM jsonb_to_recordset(strata.agent_call('{"op": "recovery_window"}') -> 'timelines')
               AS t (timeline integer, current boolean, intervals jsonb, gaps jsonb)
     CROSS JOIN LATERAL (
        SELECT true AS restorable, i.from_time, i.to_time, i.from_lsn, i.to_lsn, i.backups, NULL::text AS why
          FROM jsonb_to_recordset(t.intervals) AS i (from_lsn pg_lsn, to_lsn pg_lsn, from_time timestamptz, to_time timestamptz, backups bigint)
        UNION ALL
        SELECT false, NULL, NULL, g.from_lsn, g.to_lsn, NULL, g.why
          FROM jsonb_to_recordset(t.gaps) AS g (from_lsn pg_lsn, to_lsn pg_lsn, why text)) w
     ORDER BY 1, w.from_lsn;
END
$$;
COMMENT ON FUNCTION strata.agent_recovery_window() IS 'asks the agent for the rows of strata.recovery_window';

CREATE VIEW strata.recovery_window AS SELECT * FROM strata.agent_recovery_window();
COMMENT ON VIEW strata.recovery_window IS 'From when to when every moment can be recovered, timeline by timeline, and where the gaps are; asked of the agent, which reads the repository';
COMMENT ON COLUMN strata.recovery_window.current IS 'it is the timeline that a recovery follows when none is named';
COMMENT ON COLUMN strata.recovery_window.restorable IS 'true: every moment of the stretch can be recovered, its ends included; false: none can';
COMMENT ON COLUMN strata.recovery_window.from_time IS 'null where positions can be recovered but no time can';
COMMENT ON COLUMN strata.recovery_window.backups IS 'base backups in the stretch';
COMMENT ON COLUMN strata.recovery_window.reason IS 'why the stretch cannot be recovered, as a plan says it';

CREATE FUNCTION strata.recover(target text, "into" text, port integer DEFAULT NULL, "full" boolean DEFAULT false) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted text := strata.agent_target(target);
BEGIN
    IF "into" IS NULL OR "full" IS NULL THEN
        RAISE EXCEPTION '% must not be null', CASE WHEN "into" IS NULL THEN '"into"' ELSE '"full"' END USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF "into" !~ '^/' OR "into" ~ '[[:cntrl:]]' OR "into" ~ '(^|/)\.\.(/|$)' THEN
        RAISE EXCEPTION 'invalid directory for a recovery: %', quote_literal("into") USING ERRCODE = 'invalid_parameter_value',
            DETAIL = 'It must be an absolute path without "..", on the machine of the agent.';
    END IF;
    IF port NOT BETWEEN 1 AND 65535 THEN
        RAISE EXCEPTION 'invalid port for a recovered server: %', port USING ERRCODE = 'invalid_parameter_value',
            DETAIL = 'A port is between 1 and 65535.';
    END IF;
    RETURN strata.agent_call(jsonb_build_object('op', 'recover', 'target', wanted, 'into', "into", 'port', port, 'full', "full"));
END
$$;
COMMENT ON FUNCTION strata.recover(text, text, integer, boolean) IS 'has the agent recover the member to the target in a new directory and open a server there; "full" waits for all fragments';
