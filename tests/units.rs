//! What the units of systemd promise: how much each service could do if it were taken over, and that none is given up.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::process::Command;

/// Each service, and the most that `systemd-analyze security` may give it (0 is nothing that it could do, 10 everything).
const SERVICES: &[(&str, f64)] = &[("warrend", 1.7), ("warren-coordinator", 1.4), ("warren-relay", 1.4)];

#[test]
fn no_service_may_do_more_than_it_has_to() {
    // Whoever joins speaks to the agent, and to nobody else; the others write one file as root.
    for (service, most) in SERVICES.iter().chain(&[("warren-join", 0.7), ("warren-threads", 1.7), ("warren-dns", 1.3)])
    {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", &file(service)])
            .env("LC_ALL", "C")
            .output()
            .expect("systemd-analyze, of the package systemd");

        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let overall = text.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_default();
        let score = overall.split_whitespace().find_map(|word| word.parse::<f64>().ok());
        assert!(score.is_some_and(|score| score <= *most), "{service}: at most {most}\n{text}");
    }
}

#[test]
fn no_service_is_given_up_and_each_proves_that_it_is_alive() {
    for (service, _) in SERVICES {
        let unit = fs::read_to_string(file(service)).unwrap();
        let has = |line: &str| unit.lines().any(|has| has == line);
        // The manager's default gives up for good after five starts within ten seconds, and upgrades are starts too.
        assert!(has("StartLimitIntervalSec=0"), "{service}");
        assert!(has("WatchdogSec=3min") && has("Type=notify"), "{service}");
        // What clap and the configuration end with where a setting cannot be used: trying again would fill the log.
        assert!(has("RestartPreventExitStatus=2"), "{service}");
        assert!(!unit.contains("Wants=network-online.target") && !unit.contains("Requires="), "{service}");
    }
}

fn file(service: &str) -> String {
    format!("systemd/{service}.service")
}
