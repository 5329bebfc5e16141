-- Logical replication. The catalog describes this server: what changes in it is not for subscribers.

-- Logical decoding leaves out changes of a relation with relrewrite (unless a consumer asks for rewrites): it is how the files that
-- ALTER TABLE fills are kept out of it. There is no other way to keep a table out of FOR ALL TABLES and of consumers that read all.
-- pg_upgrade does not carry it over, so the runs of the policies see to it again.
CREATE FUNCTION strata.hide_catalog() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE pg_class c SET relrewrite = c.oid
      FROM (SELECT t.oid, t.reltoastrelid
              FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid JOIN pg_class t ON t.oid = d.objid
             WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'strata' AND d.classid = 'pg_class'::regclass
               AND d.deptype = 'e' AND t.relkind = 'r') own
     WHERE c.oid IN (own.oid, own.reltoastrelid) AND c.relrewrite <> c.oid;
END
$$;
COMMENT ON FUNCTION strata.hide_catalog() IS 'keeps the tables of schema strata out of logical decoding; called by the extension''s script and by each run of the background worker. Needed once after pg_upgrade; a superuser''s';

SELECT strata.hide_catalog();

-- The first copy of a subscription is not decoded. A publisher's catalog must not get into a subscriber's own: a trigger drops what a
-- subscription's worker writes there. The extension itself, which a worker calls when it changes a warm table, writes as role
-- "origin", for which the trigger does not fire. Policies are left out: they name tables, not files, and belong to a dump.
CREATE FUNCTION strata.drop_replicated() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT backend_type FROM pg_stat_get_activity(pg_backend_pid())) LIKE 'logical replication%' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION strata.drop_replicated() IS 'trigger: keeps the catalog of a publisher out of this one';

CREATE TRIGGER drop_replicated BEFORE INSERT OR UPDATE OR DELETE ON strata.warm_table
    FOR EACH ROW EXECUTE FUNCTION strata.drop_replicated();
CREATE TRIGGER drop_replicated BEFORE INSERT OR UPDATE OR DELETE ON strata.fragment
    FOR EACH ROW EXECUTE FUNCTION strata.drop_replicated();
CREATE TRIGGER drop_replicated BEFORE INSERT OR UPDATE OR DELETE ON strata.segment
    FOR EACH ROW EXECUTE FUNCTION strata.drop_replicated();
CREATE TRIGGER drop_replicated BEFORE INSERT OR UPDATE OR DELETE ON strata.segment_page
    FOR EACH ROW EXECUTE FUNCTION strata.drop_replicated();
CREATE TRIGGER drop_replicated BEFORE INSERT OR UPDATE OR DELETE ON strata.deletion
    FOR EACH ROW EXECUTE FUNCTION strata.drop_replicated();
CREATE TRIGGER drop_replicated BEFORE INSERT OR UPDATE OR DELETE ON strata.heat
    FOR EACH ROW EXECUTE FUNCTION strata.drop_replicated();
CREATE TRIGGER drop_replicated BEFORE INSERT OR UPDATE OR DELETE ON strata.job
    FOR EACH ROW EXECUTE FUNCTION strata.drop_replicated();
CREATE TRIGGER drop_replicated BEFORE INSERT OR UPDATE OR DELETE ON strata.backup
    FOR EACH ROW EXECUTE FUNCTION strata.drop_replicated();
CREATE TRIGGER drop_replicated BEFORE INSERT OR UPDATE OR DELETE ON strata.log_backup
    FOR EACH ROW EXECUTE FUNCTION strata.drop_replicated();
ALTER TABLE strata.warm_table ENABLE REPLICA TRIGGER drop_replicated;
ALTER TABLE strata.fragment ENABLE REPLICA TRIGGER drop_replicated;
ALTER TABLE strata.segment ENABLE REPLICA TRIGGER drop_replicated;
ALTER TABLE strata.segment_page ENABLE REPLICA TRIGGER drop_replicated;
ALTER TABLE strata.deletion ENABLE REPLICA TRIGGER drop_replicated;
ALTER TABLE strata.heat ENABLE REPLICA TRIGGER drop_replicated;
ALTER TABLE strata.job ENABLE REPLICA TRIGGER drop_replicated;
ALTER TABLE strata.backup ENABLE REPLICA TRIGGER drop_replicated;
ALTER TABLE strata.log_backup ENABLE REPLICA TRIGGER drop_replicated;
