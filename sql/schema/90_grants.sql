-- Who may do what. docs/design/tier.md has the reasons.

REVOKE ALL ON ALL TABLES IN SCHEMA strata FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA strata FROM PUBLIC;

-- strata_read: names and sizes.
GRANT USAGE ON SCHEMA strata TO strata_read;
GRANT SELECT ON strata.partitions, strata.fragments, strata.policies, strata.jobs, strata.backups, strata.log_backups,
    strata.stat_memory, strata.stat_access, strata.segments, strata.stat_fragment_index, strata.recovery_window TO strata_read;
GRANT EXECUTE ON FUNCTION strata.memory(), strata.access(), strata.store_directory(), strata.fragment_index_counters(), strata.bound_text(text),
    strata.heat_now(double precision, interval, timestamptz), strata.agent_recovery_window() TO strata_read;

-- strata_operate: the tiers of the tables that the role owns, and the agent's jobs. Row security guards policy and job.
GRANT EXECUTE ON FUNCTION
    strata.to_warm(regclass), strata.to_hot(regclass), strata.consolidate(regclass), strata.rebuild_index(regclass),
    strata.manage(regclass, interval, interval, integer, boolean, double precision, double precision, interval), strata.unmanage(regclass, boolean),
    strata.table_name(regclass), strata.policy_key(regclass), strata.policy_now(regtype), strata.policy_cutoff(regtype, interval), strata.policy_bound(regtype, text),
    strata.policy_literal(regtype, timestamptz), strata.policy_ranges(regclass, regtype), strata.policy_grid(regclass, regtype, interval),
    strata.policy_lock(), strata.policy_outside_block(text), strata.policy_begin(regclass), strata.policy_end(),
    strata.policy_tables(regclass), strata.policy_partition_name(regclass, regtype, timestamptz, interval, text),
    strata.policy_create_partition(regclass, record, name, timestamptz, timestamptz), strata.policy_create_ahead(regclass),
    strata.policy_due(regclass), strata.policy_prepare(regclass), strata.policy_move_begin(regclass, regclass),
    strata.policy_move(bigint, regclass), strata.policy_canceled(text), strata.policy_worn(regclass), strata.policy_sample(regclass), strata.policy_heated(regclass),
    strata.heat_now(double precision, interval, timestamptz), strata.policy_to_consolidate(regclass),
    strata.policy_consolidate_begin(regclass, regclass), strata.policy_consolidate(bigint, regclass),
    strata.policy_failed(bigint, regclass, text, text, text, text)
    TO strata_operate;
GRANT EXECUTE ON PROCEDURE strata.run_policies(regclass) TO strata_operate;
GRANT SELECT, INSERT, UPDATE, DELETE ON strata.policy, strata.heat, strata.job TO strata_operate;
GRANT EXECUTE ON FUNCTION strata.agent_ping(), strata.backup(text), strata.recovery_plan(text), strata.agent_recovery_window(), strata.recover(text, text, integer, boolean)
    TO strata_operate;

-- strata_agent: what the sidecar reads and records, and the server's functions for a base backup.
GRANT SELECT ON strata.warm_table, strata.fragment, strata.deletion, strata.policy TO strata_agent;
GRANT SELECT, INSERT, UPDATE, DELETE ON strata.job, strata.backup, strata.log_backup TO strata_agent;
GRANT EXECUTE ON FUNCTION strata.sweep(integer) TO strata_agent;
GRANT pg_read_all_settings, pg_monitor, pg_checkpoint TO strata_agent;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean), pg_catalog.pg_backup_stop(boolean), pg_catalog.pg_switch_wal(),
    pg_catalog.pg_create_restore_point(text), pg_catalog.pg_control_system(), pg_catalog.pg_config()
    TO strata_agent;
GRANT SELECT ON pg_catalog.pg_config TO strata_agent;
