//! A backup that SQL asks for goes through restic; the server comes back from it with its warm rows, the first of them while a query
//! waits for the tool.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use std::fs;
use std::time::Duration;
use strata_tests::{Agent, Cluster, Options, Strata, checks, process, recovered, twin};

#[test]
fn a_backup_by_sql_goes_through_restic_and_comes_back_warm() {
    let cluster = Cluster::with(Options::new().archiving()).unwrap();
    let mut c = cluster.connect().unwrap();
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, v text); INSERT INTO {t} SELECT i, md5((i * 7)::text) FROM generate_series(1, 60000) i"
        ))
        .unwrap();
    }
    checks::rewarm(&mut c, "w").unwrap();
    let strata = Strata::configure(&cluster).unwrap();
    let dir = cluster.dir();
    fs::write(dir.join("password"), "a password\n").unwrap();
    let text = fs::read_to_string(strata.config()).unwrap();
    let tool = format!(
        "\n[tool]\npreset = \"restic\"\nrepository = \"{0}/second\"\nstate = \"{0}/state\"\n[tool.env]\nHOME = \"{0}\"\n\
         [tool.secrets]\nRESTIC_PASSWORD = {{ file = \"{0}/password\" }}\n",
        dir.display()
    );
    fs::write(strata.config(), text + &tool).unwrap();
    strata.run(&["tool", "init"]).expect("restic is needed by this test: \".ci/setup\" installs it");
    strata.archive(&cluster).unwrap();
    let agent = Agent::start(&cluster, &strata).unwrap();

    let backup: Value = c.query_one("SELECT strata.backup('by SQL')", &[]).unwrap().get(0);
    assert_eq!(backup["tool"]["name"], "restic", "{backup}");
    assert!(backup["fragments"].as_u64().unwrap() > 0, "{backup}");
    let row =
        twin::rows(&mut c, "SELECT state, tool, tool_result->'objects'->0->>'exit_code' FROM strata.backups").unwrap();
    assert_eq!(row, [["complete", "restic", "0"].map(|text| Some(text.to_owned())).to_vec()]);
    let frags = process::files_below(strata.repository())
        .into_iter()
        .filter(|file| file.extension().is_some_and(|e| e == "frag"));
    assert_eq!(frags.count(), 0, "fragments are in the tool, and nowhere twice");

    // After the backup: changes, and more fragments, which the agent sends.
    for t in ["w", "h"] {
        c.batch_execute(&format!(
            "UPDATE {t} SET v = 'x' WHERE id % 1000 = 0; DELETE FROM {t} WHERE id % 777 = 0; \
             INSERT INTO {t} SELECT i, md5(i::text) FROM generate_series(60001, 90000) i"
        ))
        .unwrap();
    }
    checks::rewarm(&mut c, "w").unwrap();
    let logged = "SELECT count(*) = 0 FROM strata.fragment f WHERE NOT EXISTS (SELECT FROM strata.log_backup l WHERE l.name LIKE '%/' || f.hash)";
    process::wait_for("the fragment log", Duration::from_secs(60), || twin::value(&mut c, logged).unwrap() == "t")
        .unwrap();
    recovered::wait_archived(&mut c).unwrap();
    drop(c);
    agent.stop();
    cluster.kill9().unwrap();
    fs::remove_dir_all(cluster.store()).unwrap();

    let back = recovered::recover(&strata, "latest", &[]).unwrap();
    let mut b = back.cluster.connect().unwrap();
    // Whatever has come by now: a query waits for what it needs.
    twin::assert_same(&mut b, "w", "h").unwrap();
    checks::key_is_exact(&mut b, "w", "id").unwrap();
    let back = recovered::recover(&strata, backup["id"].as_str().unwrap(), &["--full"]).unwrap();
    let mut b = back.cluster.connect().unwrap();
    twin::assert_same(&mut b, "w", "h").unwrap();
    assert_eq!(twin::value(&mut b, "SELECT count(*) FROM w").unwrap(), "60000");
    assert_eq!(strata.run(&["verify"]).unwrap().code, 0);
}
