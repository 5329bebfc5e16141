-- What is asked of the agent: arguments are checked first; without an agent there is a clear error (58000).
\set SHOW_CONTEXT never
SELECT strata.backup('');
SELECT strata.backup(E'two\nlines');
SELECT strata.backup(repeat('x', 201));
SELECT strata.recovery_plan(NULL);
SELECT strata.recovery_plan('next tuesday');
SELECT strata.recovery_plan('2001-02-30');
SELECT strata.recovery_plan('infinity');
SELECT strata.recover('next tuesday', '/somewhere');
SELECT strata.recover('latest', NULL);
SELECT strata.recover('latest', 'somewhere');
SELECT strata.recover('latest', '/some/../where');
SELECT strata.recover('latest', '/somewhere', 0);
SELECT strata.recover('latest', '/somewhere', 70000);
SELECT strata.recover('latest', '/somewhere', "full" => NULL);
-- Targets as the agent reads them: a time without a zone is in the session's.
SET timezone = 'Europe/Berlin';
SELECT t, strata.agent_target(t)
  FROM unnest('{latest,LATEST," 0/16B3748 ",20260131T093015Z,20260131T093015Z-2,2026-01-31,2026-01-31 09:30,2026-07-31 09:30:15.25,2026-01-31 09:30:15+05:30,2026-01-31T09:30:15Z}'::text[]) t;
\set VERBOSITY sqlstate
SELECT strata.agent_ping();
SELECT strata.backup();
SELECT strata.backup('label');
SELECT strata.recovery_plan();
SELECT strata.recovery_plan('2026-01-31 09:30');
SELECT strata.recover('latest', '/somewhere', 5499, true);
