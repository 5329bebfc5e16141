-- Roles of Strata. They are cluster-wide, so they may be there already from another database.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'strata_read') THEN
        CREATE ROLE strata_read NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'strata_operate') THEN
        CREATE ROLE strata_operate NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'strata_agent') THEN
        CREATE ROLE strata_agent NOLOGIN;
    END IF;
END
$$;
GRANT strata_read TO strata_operate, strata_agent;
